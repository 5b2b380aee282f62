"""Rows of a GPU for binary activations: packing, unpacking, and layers of them."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dlcc.ir import Binary, Node
from dlcc.lowering.kernel import KernelPlan
from targets.isa import Isa
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.grid_signs import pack_step, unpack_step
from targets.kernels.grid_xnor import grid_xnor, xnor_cost, xnor_refusal
from targets.kernels.sign_words import SignPack, SignUnpack
from targets.rows import layers
from targets.rows.signs import SignsRow, XnorRow, strides


class GridSignsRow(SignsRow):
    """Changes between float32 and binary activations, and of a binary activation's layout."""

    name: ClassVar[str] = "grid-signs"

    def __init__(self, machine: Machine, thread: Isa) -> None:
        super().__init__(thread)
        self.machine = machine

    def cost(self, node: Node) -> float:
        """Bytes; what lies apart is read a sector at a time."""
        x, y = node.input(0).type, node.output.type
        apart = 8 if x.permutation != y.permutation else 1
        return 2 * LAUNCH_SECONDS + apart * (x.bytes + y.bytes) / self.machine.memory

    def plan(self, node: Node) -> KernelPlan:
        """One step; another order is packed again."""
        x, y = node.input(0).type, node.output.type
        encoding, pack = x.encoding, SignPack(y.physical_shape, strides(x, y), 1, False)
        if not isinstance(encoding, Binary):
            return KernelPlan((pack_step(pack, ("in", 0), ("out", 0)),), kernel="pack signs")
        unpack = SignUnpack(x.physical_shape, strides(y, x), encoding.scales[0])
        if not y.is_binary:
            return KernelPlan((unpack_step(unpack, ("in", 0), ("out", 0)),), kernel="unpack signs")
        flat = replace(unpack, strides=strides(x, x))
        steps = (
            unpack_step(flat, ("in", 0), ("scratch", 0)),
            pack_step(pack, ("scratch", 0), ("out", 0)),
        )
        return KernelPlan(steps, scratch=(4 * x.elements,), kernel="move signs")


class GridXnorRow(XnorRow):
    """Layers of binary activations by binary weights: xor and counted bits."""

    name: ClassVar[str] = "grid-xnor"

    def __init__(self, machine: Machine, thread: Isa) -> None:
        super().__init__(thread)
        self.machine = machine

    def refuses(self, node: Node) -> str:
        """Other weights, groups, and residuals before a sign."""
        return super().refuses(node) or xnor_refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """The product on bytes of signs, and the pass over its counts."""
        return xnor_cost(layers.conv_spec(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of windows that do not fill 16 bytes, the product, the epilogue."""
        return grid_xnor(self.layer(node), self.machine)
