"""The kernel table of Cortex-M."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cortex_m.cores import Core
from targets.rows.cortex_m import DspConvRow, DspDepthwiseRow
from targets.rows.default import DefaultRow


def rows_for(core: Core) -> tuple[KernelRow, ...]:
    """All rows for this core."""
    return (
        DspConvRow(core.isa, core.clock),
        DspDepthwiseRow(core.isa, core.clock),
        DefaultRow(core.isa),
    )
