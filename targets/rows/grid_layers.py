"""Rows of convolutions and linear layers on a GPU."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from targets.kernels import grid_depthwise, grid_direct, grid_grouped, grid_matmul, grid_transposed
from targets.kernels.grid_gemm import best_tile, gemm_refusal, grid_gemm, predicted
from targets.kernels.grid_items import on_grid
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.rows import layers
from targets.rows.grid import LayerRow, MachineRow

TERM_CYCLES = 12
"""That a thread waits for the operands of one product of its sum."""

FIRST_CYCLES = 1200
"""Until a thread has found and got its first operands, and to finish and store a result."""

OWN_PRODUCTS = 16
"""Instructions for that, as many as for so many products."""

PRODUCTS = 16
"""Products of a multiprocessor in a cycle where threads share nothing."""


def direct_seconds(terms: int, results: int, machine: Machine, moved: int = 0) -> float:
    """Of ``results`` sums of ``terms`` products, a thread each, from and to ``moved`` bytes."""
    together = results * (terms + OWN_PRODUCTS) / (machine.multiprocessors * PRODUCTS)
    cycles = max(together, terms * TERM_CYCLES + FIRST_CYCLES)
    return LAUNCH_SECONDS + max(cycles / machine.clock, moved / machine.memory)


def _node_seconds(node: Node, products: int, machine: Machine) -> float:
    """Of a layer's products, a thread for each of its results."""
    results, moved = node.output.type.elements, node.input(0).type.bytes + node.output.type.bytes
    return direct_seconds(products // results, results, machine, moved)


class GridConvRow(MachineRow):
    """Any convolution or linear layer, a thread for each result."""

    name: ClassVar[str] = "grid-conv"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family."""
        return layers.refusal(node)

    def cost(self, node: Node) -> float:
        """Products, and the wait for operands."""
        return _node_seconds(node, layers.conv_spec(node).macs, self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        spec = layers.conv_spec(node)
        parts = made.weights, made.bias, made.multiplier, made.ratio
        return on_grid(grid_direct.grid_conv2d(spec, *parts))


class GridDepthwiseRow(LayerRow):
    """Depthwise convolutions, a thread for some channels of some pixels."""

    name: ClassVar[str] = "grid-depthwise"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)
    generate = staticmethod(grid_depthwise.grid_depthwise)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, other groups, and channels that fill no word."""
        return layers.refusal(node) or grid_depthwise.depthwise_refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Of the best share of a thread."""
        spec = layers.conv_spec(node)
        share = grid_depthwise.best_share(spec, self.machine)
        return grid_depthwise.depthwise_cost(spec, share, self.machine)


class GridGroupedRow(LayerRow):
    """Convolutions of several groups, a thread for some channels of some pixels."""

    name: ClassVar[str] = "grid-grouped"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)
    generate = staticmethod(grid_grouped.grid_grouped)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, and groups whose channels fill no word."""
        return layers.refusal(node) or grid_grouped.grouped_refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Of the best share of a thread."""
        spec = layers.conv_spec(node)
        share = grid_grouped.best_grouped(spec, self.machine)
        return grid_grouped.grouped_cost(spec, share, self.machine)


class GridConvTransposeRow(MachineRow):
    """Any transposed convolution."""

    name: ClassVar[str] = "grid-conv-transpose"
    ops: ClassVar[tuple[str, ...]] = ("conv_transpose2d",)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family."""
        return layers.refusal(node)

    def cost(self, node: Node) -> float:
        """Products, and the wait for operands."""
        return _node_seconds(node, op_of(node).macs(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made, spec = layers.layer_constants(node), layers.conv_transpose_spec(node)
        parts = made.weights, made.bias, made.multiplier
        return on_grid(grid_direct.grid_conv2d_transpose(spec, *parts))


class GridTransposedRow(MachineRow):
    """Transposed convolutions of one group as blocked products, one for each phase."""

    name: ClassVar[str] = "grid-transposed-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv_transpose2d",)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, groups, and results without taps."""
        why = layers.refusal(node)
        return why or grid_transposed.transposed_refusal(layers.conv_transpose_spec(node))

    def cost(self, node: Node) -> float:
        """Of all phases, and of putting them together."""
        return grid_transposed.transposed_cost(layers.conv_transpose_spec(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """The phases, and a step that puts them together."""
        made, spec = layers.layer_constants(node), layers.conv_transpose_spec(node)
        parts = made.weights, made.bias, made.multiplier
        return grid_transposed.grid_transposed(spec, *parts, self.machine)


class GridGemmRow(LayerRow):
    """Convolutions and linear layers of one group as blocked products of matrices."""

    name: ClassVar[str] = "grid-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    generate = staticmethod(grid_gemm)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, and groups."""
        return layers.refusal(node) or gemm_refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Of the best tile."""
        spec = layers.conv_spec(node)
        return predicted(spec, best_tile(spec, self.machine), self.machine)


class GridMatmulRow(MachineRow):
    """Products of two activations."""

    name: ClassVar[str] = "grid-matmul"
    ops: ClassVar[tuple[str, ...]] = ("matmul",)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, constants, and leading axes that differ."""
        return layers.refusal(node) or grid_matmul.matmul_refusal(layers.matmul_spec(node))

    def cost(self, node: Node) -> float:
        """Of the tile, and of the copies before."""
        return grid_matmul.matmul_cost(layers.matmul_spec(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """Copies in the form of weights, and the products."""
        spec = layers.matmul_spec(node)
        multiplier = layers.matmul_multiplier(node) if spec.in_dtype == "u8" else None
        return grid_matmul.grid_matmul(spec, self.machine, multiplier)
