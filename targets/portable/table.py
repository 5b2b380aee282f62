"""The kernel table of portable C."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.default import DefaultRow
from targets.rows.direct import DirectConvRow, DirectTransposedRow
from targets.rows.loops import loop_rows


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows: direct loops, and default TIR without vectors."""
    return (
        DirectConvRow(isa),
        DirectTransposedRow(isa),
        *loop_rows(isa),
        DefaultRow(isa),
    )
