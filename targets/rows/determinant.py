"""Row for determinants."""

from __future__ import annotations

from math import prod
from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from targets.kernels.determinant import determinants
from targets.rows.base import IsaRow
from targets.rows.default import MACS_PER_SECOND
from targets.rows.regions import operands_of


class DeterminantRow(IsaRow):
    """Determinants of float32 matrices."""

    name: ClassVar[str] = "determinant"
    ops: ClassVar[tuple[str, ...]] = ("determinant",)

    def refuses(self, node: Node) -> str:
        """Codes, and matrices without elements."""
        x = node.input(0).type
        return "" if x.is_dense and x.elements else "the numbers are not plain"

    def cost(self, node: Node) -> float:
        """A third of the cube of the rows for each matrix."""
        x = node.input(0).type
        return x.elements * x.shape[-1] / (3 * MACS_PER_SECOND)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        shape = node.input(0).type.shape
        operands, constants = operands_of(node)
        step = determinants(prod(shape[:-2]), shape[-1], operands)
        scratch = (4 * shape[-1] ** 2,)
        features = self.isa.vector_flags()
        return KernelPlan(
            (step,), constants, thread_scratch=scratch, features=features, kernel="determinant"
        )
