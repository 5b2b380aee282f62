"""Rows of every target for ops with loops of their own: in turn, or as long as data say."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.determinant import DeterminantRow
from targets.rows.nms import SuppressionRow
from targets.rows.nonzero import NonzeroRow
from targets.rows.recurrent import RecurrentRow
from targets.rows.regions import RegionsRow
from targets.rows.scatter import ScatterRow
from targets.rows.unique import UniqueRow


def loop_rows(isa: Isa) -> tuple[KernelRow, ...]:
    """All of them."""
    return (
        RecurrentRow(isa),
        RegionsRow(isa),
        ScatterRow(isa),
        DeterminantRow(isa),
        NonzeroRow(isa),
        SuppressionRow(isa),
        UniqueRow(isa),
    )
