"""Rows of the kernel table that run weights of a few bits from their packed codes."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Affine, Binary, Node, Ternary
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.cpu import layers
from targets.cpu.isa import Isa
from targets.cpu.kernels import packed_gemv
from targets.cpu.kernels.packed_bits import Codes
from targets.cpu.kernels.sparse_layer import Layer


def _codes(node: Node) -> Codes:
    """What the codes of an integer layer's weight stand for."""
    encoding = node.input(1).type.encoding
    if isinstance(encoding, Binary) and layers.weight_array(node).all():
        return Codes.signs()
    assert encoding.uniform is not None
    return Codes.signed(encoding.uniform.bits)


class PackedGemvRow(KernelRow):
    """Linear layers of one row of 8-bit activations by weights of at most 7 bits."""

    name: ClassVar[str] = "packed-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        if not super().serves(node):
            return False
        uniform = node.input(1).type.encoding.uniform
        return uniform is None or uniform.bits < 8

    def refuses(self, node: Node) -> str:
        """Float activations, several rows, codes that are not signed."""
        return layers.refusal(node) or packed_gemv.refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Products and bytes of the packed codes."""
        return packed_gemv.packed_gemv_cost(layers.conv_spec(node), self.isa, _codes(node))

    def plan(self, node: Node) -> KernelPlan:
        """A copy of an input that may not be read past its end, then the product."""
        made = layers.layer_constants(node)
        layer = Layer(layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio)
        return packed_gemv.packed_gemv(layer, self.isa, _codes(node))


def packed_rows(isa: Isa) -> list[KernelRow]:
    """All rows for packed weights that this feature level can run."""
    return [PackedGemvRow(isa)]
