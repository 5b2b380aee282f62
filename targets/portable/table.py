"""The kernel table of portable C."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.default import DefaultRow
from targets.rows.direct import DirectConvRow, DirectTransposedRow
from targets.rows.recurrent import RecurrentRow
from targets.rows.regions import RegionsRow
from targets.rows.scatter import ScatterRow


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows: direct loops, and default TIR without vectors."""
    return (
        DirectConvRow(isa),
        DirectTransposedRow(isa),
        RecurrentRow(isa),
        RegionsRow(isa),
        ScatterRow(isa),
        DefaultRow(isa),
    )
