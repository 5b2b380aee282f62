"""The kernel table of Cortex-M."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cortex_m.cores import Core
from targets.rows.cortex_m import (
    DspConvRow,
    DspDepthwiseRow,
    MeanRow,
    MveConvRow,
    PackedDspConvRow,
    PackedDspDepthwiseRow,
    PackedMveConvRow,
    PlainConvRow,
    PlainRow,
    PlainTransposedRow,
)
from targets.rows.loops import loop_rows


def rows_for(core: Core) -> tuple[KernelRow, ...]:
    """All rows for this core."""
    isa, clock = core.isa, core.clock
    return (
        *([PackedMveConvRow(isa, clock), MveConvRow(isa, clock)] if core.helium else []),
        PackedDspConvRow(isa, clock),
        DspConvRow(isa, clock),
        PackedDspDepthwiseRow(isa, clock),
        DspDepthwiseRow(isa, clock),
        MeanRow(isa, clock),
        PlainConvRow(isa, clock),
        PlainTransposedRow(isa, clock),
        *loop_rows(isa),
        PlainRow(isa, clock),
    )
