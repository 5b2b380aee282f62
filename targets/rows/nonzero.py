"""Row for the places of what is not zero."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from targets.kernels.nonzero import nonzero
from targets.rows.base import IsaRow
from targets.rows.default import ELEMENTS_PER_SECOND
from targets.rows.regions import operands_of


class NonzeroRow(IsaRow):
    """Places of numbers that are not zero."""

    name: ClassVar[str] = "nonzero"
    ops: ClassVar[tuple[str, ...]] = ("nonzero",)

    def refuses(self, node: Node) -> str:
        """Rows without numbers."""
        return "" if node.input(0).type.elements else "the operand has no elements"

    def cost(self, node: Node) -> float:
        """One pass."""
        return node.input(0).type.elements / ELEMENTS_PER_SECOND

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        operands, constants = operands_of(node)
        step = nonzero(node.input(0).type.elements, operands)
        features = self.isa.vector_flags()
        return KernelPlan((step,), constants, features=features, kernel="nonzero")
