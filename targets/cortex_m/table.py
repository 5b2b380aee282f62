"""The kernel table of Cortex-M."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cortex_m.cores import Core
from targets.rows.cortex_m import (
    DspConvRow,
    DspDepthwiseRow,
    MeanRow,
    MveConvRow,
    PlainConvRow,
    PlainRow,
    PlainTransposedRow,
)


def rows_for(core: Core) -> tuple[KernelRow, ...]:
    """All rows for this core."""
    isa, clock = core.isa, core.clock
    return (
        *([MveConvRow(isa, clock)] if core.helium else []),
        DspConvRow(isa, clock),
        DspDepthwiseRow(isa, clock),
        MeanRow(isa, clock),
        PlainConvRow(isa, clock),
        PlainTransposedRow(isa, clock),
        PlainRow(isa, clock),
    )
