"""Rows of the kernel table for binary activations: packing, unpacking, and layers of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from dlcc import numerics
from dlcc.ir import Binary, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.lowering.target import KernelRow
from dlcc.ops.integer import weight_scales
from targets.isa import CLOCK, Isa
from targets.kernels import conv, xnor
from targets.kernels.sign_words import (
    Finish,
    SignPack,
    SignUnpack,
    finish_function,
    pack_function,
    real_constants,
    unpack_function,
)
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.stage import CACHED_COPY, CACHED_COPY_BANDWIDTH, COPY_BANDWIDTH
from targets.rows import layers
from targets.rows.base import IsaRow

STRIDED = 4.0
"""Cycles of a sign that is read by itself."""


def _traffic(size: int) -> float:
    """Seconds that ``size`` bytes of activations take, read and written together."""
    return size / (CACHED_COPY_BANDWIDTH if size <= 2 * CACHED_COPY else COPY_BANDWIDTH)


def _pack_step(spec: SignPack, source: KernelArg, to: KernelArg) -> KernelStep:
    key = name_key("pack_signs", spec)
    return KernelStep(key, partial(pack_function, key, spec), (source, to), spec.pixels)


def _unpack_step(
    x: TensorType, y: TensorType, scale: float, source: KernelArg, to: KernelArg
) -> KernelStep:
    spec = SignUnpack(x.physical_shape, strides(y, x), scale)
    key = name_key("unpack_signs", spec)
    return KernelStep(key, partial(unpack_function, key, spec), (source, to), spec.pixels)


def _vectors(isa: Isa) -> tuple[int, bool]:
    """Float32 lanes of vectors whose signs become words, and whether NEON does it."""
    return min(8, isa.lanes), isa.arch != "x86"


def strides(source: TensorType, target: TensorType) -> tuple[int, ...]:
    """Distances in ``source``, in numbers, along the axes of ``target`` in memory."""
    place = source.permutation
    lengths = np.cumprod((1, *source.physical_shape[:0:-1]))[::-1]
    at = {axis: int(length) for axis, length in zip(place, lengths, strict=True)}
    return tuple(at[axis] for axis in target.permutation)


class SignsRow(IsaRow):
    """Changes between float32 and binary activations, and of a binary activation's layout."""

    name: ClassVar[str] = "signs"
    ops: ClassVar[tuple[str, ...]] = ("quantize", "dequantize", "relayout")

    def serves(self, node: Node) -> bool:
        """Asked about binary activations alone."""
        if not super().serves(node):
            return False
        return node.input(0).type.is_binary or node.output.type.is_binary

    def refuses(self, node: Node) -> str:
        """Scalars, and float numbers of other widths."""
        for value in (node.input(0), node.output):
            if str(value.type.dtype) != "f32" or not value.type.rank:
                return f"%{value.name} is no float32 tensor with axes"
        return "" if node.output.type.elements else "the output has no elements"

    def cost(self, node: Node) -> float:
        """Bytes, or signs that are read one by one."""
        x, y = node.input(0).type, node.output.type
        moved = x.permutation != y.permutation
        return _traffic(x.bytes + y.bytes) + moved * y.elements * STRIDED / CLOCK

    def _pack(self, x: TensorType, y: TensorType, source: KernelArg) -> KernelStep:
        spec = SignPack(y.physical_shape, strides(x, y), *_vectors(self.isa))
        return _pack_step(spec, source, ("out", 0))

    def plan(self, node: Node) -> KernelPlan:
        """One step; another order is packed again."""
        x, y = node.input(0).type, node.output.type
        encoding = x.encoding
        if not isinstance(encoding, Binary):
            return self._plan((self._pack(x, y, ("in", 0)),), "pack signs")
        scale = encoding.scales[0]
        if not y.is_binary:
            step = _unpack_step(x, y, scale, ("in", 0), ("out", 0))
            return self._plan((step,), "unpack signs")
        steps = (
            _unpack_step(x, x, scale, ("in", 0), ("scratch", 0)),
            self._pack(x, y, ("scratch", 0)),
        )
        return replace(self._plan(steps, "move signs"), scratch=(4 * x.elements,))

    def _plan(self, steps: tuple[KernelStep, ...], kernel: str) -> KernelPlan:
        return KernelPlan(steps, features=self.isa.vector_flags(), kernel=kernel)


@dataclass(frozen=True)
class _Layer:
    """Constants of a layer of binary activations; ``codes`` int8 ``[oc, c/groups, kh, kw]``."""

    codes: Array
    multiplier: Array
    bias: Array


def _constants(node: Node) -> _Layer:
    weight, given = node.input(1), node.optional_input(2)
    encoding, source = weight.type.encoding.uniform, node.input(0).type.encoding.uniform
    assert encoding is not None
    assert source is not None
    codes = encoding.quantise(weight.decoded())
    codes = codes.reshape(*codes.shape, 1, 1) if node.op == "linear" else codes
    scales = source.scale * weight_scales(encoding, len(codes))
    bias = np.zeros(len(codes), np.float32) if given is None else given.decoded()
    return _Layer(codes, numerics.multiplier(scales), bias)


class _LayerRow(IsaRow):
    """Convolution and linear layers of binary activations."""

    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def serves(self, node: Node) -> bool:
        """Asked about binary activations alone."""
        return super().serves(node) and node.input(0).type.is_binary

    def refuses(self, node: Node) -> str:
        """Weights that are not known, or no codes of at most 8 bits."""
        weight, residual = node.input(1), node.optional_input(3)
        if not weight.is_constant:
            return "the weight is not known at compile time"
        codes = weight.type.encoding.uniform
        if codes is None or codes.bits > 8 or not codes.signed:
            return "the weights are no signed codes of at most 8 bits"
        if residual is not None and residual.is_constant:
            return "the residual operand is a constant"
        return "" if node.output.type.elements else "the output has no elements"


class XnorRow(_LayerRow):
    """Binary weights too: xor and popcount."""

    name: ClassVar[str] = "xnor"

    def refuses(self, node: Node) -> str:
        """Other weights, groups, and residuals before a sign."""
        why = super().refuses(node)
        if why:
            return why
        if not isinstance(node.input(1).type.encoding, Binary):
            return "the weights are not binary"
        if node.output.type.is_binary and node.optional_input(3) is not None:
            return "a residual is added before the sign"
        return xnor.refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Words, and results."""
        return xnor.xnor_cost(layers.conv_spec(node), self.isa, node.output.type.is_binary)

    def plan(self, node: Node) -> KernelPlan:
        """A padded copy of the words where there is padding, then the product."""
        return xnor.xnor(self.layer(node), self.isa)

    @staticmethod
    def layer(node: Node) -> xnor.BinaryLayer:
        """The layer, and its constants."""
        made = _constants(node)
        dead = ~made.codes.reshape(len(made.codes), -1).any(axis=1)  # of scale 0
        multiplier = np.where(dead, np.float32(0), made.multiplier)
        return xnor.BinaryLayer(
            layers.conv_spec(node),
            made.codes < 0,
            multiplier,
            made.bias,
            node.output.type.is_binary,
        )


class SignBytesRow(_LayerRow):
    """Signs unpacked to bytes, for the dense kernel of 8-bit codes."""

    name: ClassVar[str] = "sign-bytes"
    amx: ClassVar[bool] = False

    def bytes_spec(self, node: Node) -> ConvSpec:
        """The layer on bytes 0 and 2 around 1, to sums in float32, which hold them exactly."""
        spec = layers.conv_spec(node)
        epilogue = Epilogue("f32")
        return replace(
            spec, in_dtype="u8", in_zero_point=1, stored="u8", epilogue=epilogue, input_slack=True
        )

    def cost(self, node: Node) -> float:
        """The dense kernel's, and passes over its input and output."""
        spec, x, y = self.bytes_spec(node), node.input(0).type, node.output.type
        passed = x.bytes + x.elements + 4 * y.elements + y.bytes
        return conv.conv_cost(spec, self.isa, amx=self.amx) + _traffic(passed)

    def plan(self, node: Node) -> KernelPlan:
        """Unpack, the dense kernel, the epilogue."""
        spec, made, y = self.bytes_spec(node), _constants(node), node.output.type
        inner = self._product(spec, made.codes)
        first = len(inner.scratch)
        moved: dict[KernelArg, KernelArg] = {
            ("in", 0): ("scratch", first),
            ("out", 0): ("scratch", first + 1),
        }
        # the epilogue has constants of these names too
        moved |= {("const", name): ("const", f"product_{name}") for name in inner.constants}
        product = [
            replace(step, args=tuple(moved.get(arg, arg) for arg in step.args))
            for step in inner.steps
        ]
        x = node.input(0).type
        residual = node.optional_input(3) is not None
        lanes, arm = _vectors(self.isa)
        finish = Finish(spec.n * spec.oh * spec.ow, spec.oc, y.is_binary, residual, lanes, arm)
        args: list[KernelArg] = [("scratch", first + 1)]
        args += [("const", name) for name in ("multiplier", "bias", "limits")]
        args += [("in", 1)] if residual else []
        constants = {f"product_{name}": array for name, array in inner.constants.items()}
        padded = -(-spec.oc // lanes) * lanes
        limits = layers.conv_spec(node).epilogue
        constants |= real_constants(limits, made.multiplier, made.bias, padded)
        return replace(
            inner,
            steps=(
                self._unpacked(x, ("scratch", first)),
                *product,
                self._finished(finish, (*args, ("out", 0))),
            ),
            constants=constants,
            scratch=(*inner.scratch, x.elements, 4 * y.elements),
            kernel=f"signs as bytes, {inner.kernel}",
        )

    def _product(self, spec: ConvSpec, codes: Array) -> KernelPlan:
        """The dense kernel, without bias and scale."""
        zeros, ones = np.zeros(spec.oc, np.int32), np.ones(spec.oc, np.float32)
        return conv.conv2d(spec, self.isa, codes, zeros, ones, amx=self.amx)

    def _unpacked(self, x: TensorType, to: KernelArg) -> KernelStep:
        """Makes bytes of the input."""
        return _unpack_step(x, x, 0.0, ("in", 0), to)

    def _finished(self, finish: Finish, args: tuple[KernelArg, ...]) -> KernelStep:
        """The epilogue of the sums."""
        key = name_key("finish_signs", finish)
        return KernelStep(key, partial(finish_function, key, finish), args, finish.pixels)


class AmxSignBytesRow(SignBytesRow):
    """The same on AMX tiles."""

    name: ClassVar[str] = "sign-bytes-amx"
    amx: ClassVar[bool] = True


def sign_rows(isa: Isa) -> list[KernelRow]:
    """All rows for binary activations that this feature level can run."""
    rows: list[KernelRow] = [SignsRow(isa), XnorRow(isa), SignBytesRow(isa)]
    return [*rows, AmxSignBytesRow(isa)] if isa.dot == "amx" else rows
