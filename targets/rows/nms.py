"""Row for non-maximum suppression."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from targets.kernels.nms import Suppression, suppression
from targets.rows.base import IsaRow
from targets.rows.default import ELEMENTS_PER_SECOND
from targets.rows.regions import operands_of


class SuppressionRow(IsaRow):
    """Boxes of every class that do not overlap better ones."""

    name: ClassVar[str] = "non-max-suppression"
    ops: ClassVar[tuple[str, ...]] = ("non_max_suppression",)

    def refuses(self, node: Node) -> str:
        """Codes."""
        plain = all(node.input(k).type.is_dense for k in (0, 1))
        return "" if plain else "the numbers are not plain"

    def cost(self, node: Node) -> float:
        """Every choice looks at all boxes."""
        return op_of(node).scanned(node) / ELEMENTS_PER_SECOND

    def plan(self, node: Node) -> KernelPlan:
        """Two steps."""
        op = op_of(node)
        images, classes, boxes = node.input(1).type.shape
        layer = Suppression(
            images,
            classes,
            boxes,
            int(op.get(node, "boxes")),
            float(op.get(node, "iou")),
            float(op.get(node, "score")),
            bool(op.get(node, "filtered")),
            bool(op.get(node, "center")),
        )
        operands, constants = operands_of(node)
        return KernelPlan(
            suppression(layer, operands),
            constants,
            scratch=layer.scratch,
            thread_scratch=(4 * boxes,),
            features=self.isa.vector_flags(),
            kernel="non-max suppression",
        )
