"""Row for different rows."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from targets.kernels.unique import Unique, unique
from targets.rows.base import IsaRow
from targets.rows.default import ELEMENTS_PER_SECOND
from targets.rows.regions import operands_of

_NUMBERS = {"float32"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class UniqueRow(IsaRow):
    """Different rows of plain numbers."""

    name: ClassVar[str] = "unique"
    ops: ClassVar[tuple[str, ...]] = ("unique_rows",)

    def refuses(self, node: Node) -> str:
        """Codes, and types that are not compared."""
        x = node.input(0).type
        plain = x.is_dense and str(x.storage.numpy) in _NUMBERS and x.elements
        return "" if plain else "the numbers are not plain"

    def cost(self, node: Node) -> float:
        """Each row is compared with some, and may move all."""
        rows, width = node.input(0).type.shape
        return rows * (width * rows.bit_length() + rows / 2) / ELEMENTS_PER_SECOND

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        x = node.input(0).type
        rows, width = x.shape
        ordered = bool(op_of(node).get(node, "sorted"))
        layer = Unique(rows, width, str(x.storage.numpy), ordered)
        operands, constants = operands_of(node)
        return KernelPlan(
            (unique(layer, operands),),
            constants,
            scratch=layer.scratch,
            features=self.isa.vector_flags(),
            kernel="unique",
        )
