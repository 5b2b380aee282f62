"""Rows of a GPU: those of scalar code, with a thread for each work item."""

from __future__ import annotations

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.kernels.grid_items import on_grid


class GridRow(KernelRow):
    """Another row's kernels on a GPU.

    ``row``: of scalar code. Its costs are a CPU's: they only rank such rows among each other, after
    all that are made for GPUs.
    """

    def __init__(self, row: KernelRow) -> None:
        self.row = row
        self.name, self.ops, self.encodings = row.name, row.ops, row.encodings  # type: ignore[misc]

    def refuses(self, node: Node) -> str:
        """What the row refuses."""
        return self.row.refuses(node)

    def cost(self, node: Node) -> float:
        """The row's own."""
        return self.row.cost(node)

    def plan(self, node: Node) -> KernelPlan:
        """The row's own, with a thread for each work item."""
        return on_grid(self.row.plan(node))
