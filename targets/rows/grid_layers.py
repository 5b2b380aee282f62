"""Rows of convolutions and linear layers on a GPU."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from dlcc.ops import op_of
from targets.kernels import grid_direct
from targets.rows import layers
from targets.rows.grid import on_grid

SECONDS_PER_MAC = 1e-12
"""Nominal, of threads that share nothing."""


class GridConvRow(KernelRow):
    """Any convolution or linear layer, a thread for each result."""

    name: ClassVar[str] = "grid-conv"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family."""
        return layers.refusal(node)

    def cost(self, node: Node) -> float:
        """Products at a nominal rate."""
        return layers.conv_spec(node).macs * SECONDS_PER_MAC

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        spec = layers.conv_spec(node)
        parts = made.weights, made.bias, made.multiplier, made.ratio
        return on_grid(grid_direct.grid_conv2d(spec, *parts))


class GridConvTransposeRow(KernelRow):
    """Any transposed convolution."""

    name: ClassVar[str] = "grid-conv-transpose"
    ops: ClassVar[tuple[str, ...]] = ("conv_transpose2d",)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family."""
        return layers.refusal(node)

    def cost(self, node: Node) -> float:
        """Products at a nominal rate."""
        return op_of(node).macs(node) * SECONDS_PER_MAC

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made, spec = layers.layer_constants(node), layers.conv_transpose_spec(node)
        parts = made.weights, made.bias, made.multiplier
        return on_grid(grid_direct.grid_conv2d_transpose(spec, *parts))
