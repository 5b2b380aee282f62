"""Convolution on a GPU by one thread for each result: any groups, any type.

The threads of a warp compute neighbouring channels of a pixel, so that they share its activations
and read neighbouring weights: ``[kh, kw, c / groups, oc]``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from targets.kernels import epilogue
from targets.kernels.direct import layer_arguments, shared_epilogue
from targets.kernels.spec import NUMPY, ConvSpec, ConvTransposeSpec


def grid_conv2d(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
) -> KernelPlan:
    """The plan of a convolution or linear layer: an item for each element of the output.

    Args:
        spec: of any type.
        weights: ``[oc, c / groups, kh, kw]``: int8 codes, float32, float16 or bits of bfloat16.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
    """
    packed = np.ascontiguousarray(weights.transpose(2, 3, 1, 0))
    return _plan("conv", spec, packed, bias, multiplier, ratio, spec.n * spec.oh * spec.ow)


def grid_conv2d_transpose(
    spec: ConvTransposeSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
) -> KernelPlan:
    """The plan of a transposed convolution: each result gathers the inputs that reach it.

    Args:
        spec: of any type.
        weights: ``[c, oc / groups, kh, kw]``.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
    """
    per_group, outs = spec.c // spec.groups, spec.oc // spec.groups
    grouped = weights.reshape(spec.groups, per_group, outs, spec.kh, spec.kw)
    packed = grouped.transpose(3, 4, 1, 0, 2).reshape(spec.kh, spec.kw, per_group, spec.oc)
    pixels = spec.n * spec.size[0] * spec.size[1]
    packed = np.ascontiguousarray(packed)
    return _plan("conv_transpose", spec, packed, bias, multiplier, None, pixels)


def _plan(
    kind: str,
    spec: ConvSpec | ConvTransposeSpec,
    packed: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    pixels: int,
) -> KernelPlan:
    integer = spec.in_dtype == "u8"
    constants = {
        "weight": packed,
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    coded = replace(spec, epilogue=shared_epilogue(spec.epilogue))
    if isinstance(coded, ConvSpec):
        coded = replace(coded, input_slack=True)
    key = name_key(f"grid_{kind}", coded)

    def build() -> Any:
        made = _Conv(key, coded) if isinstance(coded, ConvSpec) else _Transposed(key, coded)
        return made.build()

    step = KernelStep(key, build, layer_arguments(spec), pixels * spec.oc)
    return KernelPlan((step,), constants, kernel=f"a thread each result, {spec.kh}x{spec.kw}")


class _Element:
    """One result: a sum over taps and channels, from the bias on."""

    def __init__(self, key: str, spec: ConvSpec | ConvTransposeSpec) -> None:
        self.kb = kb = tir.KernelBuilder(key)
        self.spec, self.integer = spec, spec.in_dtype == "u8"
        self.sum_type = "int32" if self.integer else "float32"
        self.x = kb.pointer("x", NUMPY[spec.stored or spec.in_dtype], align=1)
        codes = "int8" if self.integer else NUMPY[spec.in_dtype]
        self.weight = kb.pointer("weight", codes, align=1)
        self.at = epilogue.parameters(kb, self.integer, spec.epilogue.out, spec.epilogue.residual)
        self.depth = spec.c // spec.groups

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec, (height, width) = self.kb, self.spec, self._size()
        with kb.loop(kb.begin, kb.end, "element") as element:
            channel = kb.let(element % spec.oc, "channel")
            pixel = kb.let(element // spec.oc, "pixel")
            column, line = kb.let(pixel % width, "column"), kb.let(pixel // width, "line")
            row, image = kb.let(line % height, "row"), kb.let(line // height, "image")
            total = kb.alloc(self.sum_type, 1, "sum")
            kb.store(total, 0, kb.load(self.at.bias, channel))
            first = kb.let(channel // (spec.oc // spec.groups) * self.depth, "first")
            with kb.loop(0, spec.kh, "tap_row") as ky, kb.loop(0, spec.kw, "tap_column") as kx:
                inside, y, x = self._source(row, column, ky, kx)
                with kb.when(inside):
                    source = kb.let(((image * spec.h + y) * spec.w + x) * spec.c + first, "source")
                    tap = kb.let((ky * spec.kw + kx) * self.depth, "tap")
                    with kb.loop(0, self.depth, "i") as i:
                        weight = kb.load(self.weight, (tap + i) * spec.oc + channel)
                        self._add(total, kb.load(self.x, source + i), weight)
            channels = epilogue.Channels(None)
            if self.at.multiplier is not None:
                channels.multiplier = kb.load(self.at.multiplier, channel)
            if self.at.ratio is not None:
                channels.ratio = kb.load(self.at.ratio, channel)
            out = spec.epilogue.out
            epilogue.finish(kb, self.at, channels, kb.load(total, 0), element, 1, out)
        return kb.build()

    def _add(self, total: Any, value: Any, weight: Any) -> None:
        kb, old = self.kb, self.kb.load(total, 0)
        if self.integer:
            code = kb.cast(value, "int32") - self.spec.in_zero_point
            kb.store(total, 0, old + code * kb.cast(weight, "int32"))
            return
        kb.store(
            total,
            0,
            kb.extern("dlcc_fma", "float32", 1, self._real(value), kb.widened(weight), old),
        )

    def _real(self, value: Any) -> Any:
        """An activation as float32, rounded to what is multiplied."""
        spec, kb = self.spec, self.kb
        if spec.stored == "f32" and spec.in_dtype in ("bf16", "f16"):
            return kb.widened(kb.let(kb.rounded(value, spec.in_dtype), "short"))
        return kb.widened(value)

    def _size(self) -> tuple[int, int]:
        raise NotImplementedError

    def _source(self, row: Any, column: Any, ky: Any, kx: Any) -> tuple[Any, Any, Any]:
        """Whether a tap of a result lies on the input, and where."""
        raise NotImplementedError


class _Conv(_Element):
    spec: ConvSpec

    def _size(self) -> tuple[int, int]:
        return self.spec.oh, self.spec.ow

    def _source(self, row: Any, column: Any, ky: Any, kx: Any) -> tuple[Any, Any, Any]:
        kb, spec = self.kb, self.spec
        y = kb.let(row * spec.stride[0] + ky * spec.dilation[0] - spec.pads[0], "y")
        x = kb.let(column * spec.stride[1] + kx * spec.dilation[1] - spec.pads[1], "x")
        inside = tir.tirx.all(y >= 0, y < spec.h, x >= 0, x < spec.w)
        return (True if spec.kh == spec.kw == 1 and not any(spec.pads) else inside), y, x


class _Transposed(_Element):
    spec: ConvTransposeSpec

    def _size(self) -> tuple[int, int]:
        return self.spec.size

    def _source(self, row: Any, column: Any, ky: Any, kx: Any) -> tuple[Any, Any, Any]:
        kb, spec = self.kb, self.spec
        ways, inside = [], []
        for place, tap, axis, size in ((row, ky, 0, spec.h), (column, kx, 1, spec.w)):
            way = kb.let(place + spec.pads[axis] - tap * spec.dilation[axis], "way")
            inside += [way >= 0, way < size * spec.stride[axis]]
            if spec.stride[axis] > 1:
                inside.append(tir.tirx.truncmod(way, spec.stride[axis]).equal(0))
            ways.append(tir.tirx.truncdiv(way, spec.stride[axis]))
        return tir.tirx.all(*inside), ways[0], ways[1]
