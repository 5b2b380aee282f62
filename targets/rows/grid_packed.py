"""Row of layers of many rows on a GPU whose weights of a few bits stay packed."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Affine, Binary, Node, Ternary
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.kernels.grid_gemm import predicted
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_packed import best_packed_tile, grid_packed, packed_refusal, width_of
from targets.rows import layers


class GridPackedGemmRow(KernelRow):
    """Convolutions and linear layers of 8-bit activations by weights of at most 4 bits."""

    name: ClassVar[str] = "grid-packed-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Float activations, groups, wider codes, architectures without matrix instructions."""
        if why := layers.refusal(node):
            return why
        return packed_refusal(layers.conv_spec(node), layers.narrow_codes(node), self.machine)

    def cost(self, node: Node) -> float:
        """Of the best tile."""
        spec, bits = layers.conv_spec(node), width_of(layers.narrow_codes(node))
        return predicted(spec, best_packed_tile(spec, bits, self.machine), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of the input where pixels are too narrow, the products, and a sum of parts."""
        made, spec = layers.layer_constants(node), layers.conv_spec(node)
        assert made.multiplier is not None
        parts = made.weights, made.bias, made.multiplier, made.ratio
        return grid_packed(spec, *parts, self.machine, layers.narrow_codes(node))
