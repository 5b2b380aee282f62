"""Rows of a GPU for binary activations: packing, unpacking, and layers of them."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from dlcc.ir import Binary, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep
from targets.isa import Isa
from targets.kernels.grid_direct import grid_conv2d
from targets.kernels.grid_gemm import best_tile, gemm_refusal, grid_gemm, predicted
from targets.kernels.grid_items import on_grid
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.grid_signs import Counted, counted_step, pack_step, unpack_step
from targets.kernels.grid_xnor import grid_xnor, xnor_cost, xnor_refusal
from targets.kernels.sign_words import Finish, SignPack, SignUnpack
from targets.kernels.spec import ConvSpec
from targets.rows import layers
from targets.rows.grid_layers import direct_seconds
from targets.rows.signs import SignBytesRow, SignsRow, XnorRow, strides


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


class GridSignBytesRow(SignBytesRow):
    """Layers of binary activations by other weights, or of groups: signs unpacked to bytes."""

    name: ClassVar[str] = "grid-sign-bytes"

    def __init__(self, machine: Machine, thread: Isa) -> None:
        super().__init__(thread)
        self.machine = machine

    def cost(self, node: Node) -> float:
        """The dense kernel's, and passes over its input and output."""
        spec, x, y = self.bytes_spec(node), node.input(0).type, node.output.type
        passed = x.bytes + x.elements + 4 * y.elements + y.bytes
        return self._seconds(spec) + 2 * LAUNCH_SECONDS + passed / self.machine.memory

    def _seconds(self, spec: ConvSpec) -> float:
        if not gemm_refusal(spec):
            return predicted(spec, best_tile(spec, self.machine), self.machine)
        results = spec.n * spec.oh * spec.ow * spec.oc
        return direct_seconds(spec.macs // results, results, self.machine)

    def _product(self, spec: ConvSpec, codes: Array) -> KernelPlan:
        parts = np.zeros(spec.oc, np.int32), np.ones(spec.oc, np.float32), None
        if gemm_refusal(spec):
            return on_grid(grid_conv2d(spec, codes, *parts))
        return grid_gemm(spec, codes, *parts, self.machine)

    def _unpacked(self, x: TensorType, to: KernelArg) -> KernelStep:
        return unpack_step(SignUnpack(x.physical_shape, strides(x, x)), ("in", 0), to)

    def _finished(self, finish: Finish, args: tuple[KernelArg, ...]) -> KernelStep:
        flags = False, finish.signs, finish.residual, True
        return counted_step(Counted(finish.pixels, finish.channels, 1, 1, 1, *flags), args)
