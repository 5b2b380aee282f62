"""What rows of a GPU have in common; those of scalar code, with a thread for each work item."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.kernels.grid_items import on_grid
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.rows import layers


class GridRow(KernelRow):
    """Another row's kernels on a GPU: ``row`` is one of scalar code."""

    def __init__(self, row: KernelRow) -> None:
        self.row = row
        self.name, self.ops, self.encodings = row.name, row.ops, row.encodings  # type: ignore[misc]

    def refuses(self, node: Node) -> str:
        """What the row refuses."""
        return self.row.refuses(node)

    def cost(self, node: Node) -> float:
        """A CPU's, after what rows made for GPUs take."""
        return 2 * LAUNCH_SECONDS + self.row.cost(node)

    def plan(self, node: Node) -> KernelPlan:
        """The row's own, with a thread for each work item."""
        return on_grid(self.row.plan(node))


class MachineRow(KernelRow):
    """A row of code that is written for blocks of threads of ``machine``."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine


class LayerRow(MachineRow):
    """A row of convolutions or linear layers, all of whose contents go to one generator.

    Attributes:
        generate: of the spec, weights, bias, multipliers, ratios of a residual, and the machine.
    """

    generate: ClassVar[Callable[..., KernelPlan]]

    def plan(self, node: Node) -> KernelPlan:
        """What the generator makes of the layer."""
        made = layers.layer_constants(node)
        parts = made.weights, made.bias, made.multiplier, made.ratio
        return type(self).generate(layers.conv_spec(node), *parts, self.machine)
