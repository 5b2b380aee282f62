"""The kernel table of Cortex-M."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cortex_m.cores import Core
from targets.rows.cortex_m import DspConvRow, DspDepthwiseRow, MeanRow, MveConvRow, PlainRow


def rows_for(core: Core) -> tuple[KernelRow, ...]:
    """All rows for this core."""
    return (
        *([MveConvRow(core.isa, core.clock)] if core.helium else []),
        DspConvRow(core.isa, core.clock),
        DspDepthwiseRow(core.isa, core.clock),
        MeanRow(core.isa, core.clock),
        PlainRow(core.isa, core.clock),
    )
