"""Depthwise convolution in NHWC: vectors along the channels, a strip of columns in registers.

Products of u8 and s8 are accumulated in f32 while every partial sum stays below 2**24, where f32 is
exact: the conversion is cheaper than a 32-bit integer multiplication. Larger kernels use int32.

Taps of half precision are multiplied and summed as they are where the CPU can and they are few
(:data:`targets.kernels.gemm.HALF_TERMS`); elsewhere 16-bit floats are widened.

Where 16 bits are proven to hold every result, bias included, products and sums are computed modulo
2**16 (vpmullw, vpaddw), twice as many channels at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.analysis.accumulators import Bounds, of_weights
from dlcc.lowering.kernel import Footprint, KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import depthwise_neon as neon
from targets.kernels import depthwise_vnni as vnni
from targets.kernels import epilogue
from targets.kernels.conv import channel_constants, fold_zero_point
from targets.kernels.depthwise_rows import RowItems
from targets.kernels.gemm import HALF_TERMS, Cut, even_cut
from targets.kernels.skeleton import divide
from targets.kernels.spec import (
    FLOATS,
    NUMPY,
    SHORT_FLOATS,
    SIZE,
    ConvSpec,
    OutType,
    ResidualType,
)
from targets.kernels.stage import Stage, fill_constant, rows_stage, stage_step

SHORT = 16
"""Width of short sums, in bits."""

UNROLL = 320
"""Most multiply-accumulate instructions written out in a row before kernel rows become a loop."""


@dataclass(frozen=True)
class Depthwise(RowItems):
    """What determines the code.

    ``pads``: top and left padding (the output size tells the rest); taps on padding are left out.
    ``shifted``: the zero point is taken off every input, because taps that are left out may not
    count; else it is folded into the bias. ``short``: sums have 16 bits. ``native``: the CPU rounds
    to bf16 itself. ``half``: f16 is multiplied and summed as it is.
    """

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    in_dtype: str
    out: OutType
    residual: ResidualType | None
    lanes: int
    registers: int
    fused: bool
    short: bool
    pads: tuple[int, int] = (0, 0)
    shifted: bool = False
    native: bool = False
    half: bool = False

    @property
    def accumulator(self) -> str:
        """Dtype of the accumulators: f32 where it is exact, or the input is real numbers."""
        if self.short:
            return "int16"
        if self.half:
            return "float16"
        exact = self.kernel[0] * self.kernel[1] * 255 * 128 < 1 << 24
        return "float32" if self.in_dtype in FLOATS or exact else "int32"

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return ceil(self.c / self.lanes)

    @property
    def cols(self) -> Cut:
        """Output columns in strips that fit the registers, beside a kernel row of weights."""
        return even_cut(self.ow, max(2, (self.registers - 4) // (2 if self.registers > 16 else 3)))


@dataclass
class _Emitter:
    """The kernel being emitted."""

    kb: tir.KernelBuilder
    shape: Depthwise
    x: Any
    w: Any
    zero: Any
    out: epilogue.Pointers


def _tap(em: _Emitter, acc: Any, slot: int, x: Any, w: Any) -> None:
    kb, lanes = em.kb, em.shape.lanes
    total = kb.load(acc, slot * lanes, lanes)
    kind = em.shape.accumulator
    if kind.startswith("float") and em.shape.fused:
        kb.store(acc, slot * lanes, kb.pure("llvm.fma", kind, lanes, x, w, total))
    else:
        kb.store(acc, slot * lanes, total + x * w)


def _weight(em: _Emitter, at: Any) -> Any:
    """A vector of weights as the accumulator's dtype; integer layers hold them as bytes."""
    kb, shape = em.kb, em.shape
    value = kb.load(em.w, at, shape.lanes)
    if shape.in_dtype == "u8":
        value = _converted(em, value)
    if shape.in_dtype in SHORT_FLOATS and not shape.half:
        value = kb.widened(value)
    return kb.let(value, "w")


def _converted(em: _Emitter, codes: Any) -> Any:
    """Codes as the accumulator's dtype."""
    kb, kind = em.kb, em.shape.accumulator
    return kb.cast(codes if kind == "int16" else kb.cast(codes, "int32"), kind)


def _kernel_row(
    em: _Emitter, acc: Any, width: int, first: int | None, x_at: Any, w_at: Any
) -> None:
    """All taps of one kernel row: every input pixel is loaded and converted once.

    ``first``: the strip's first output column where it is known; taps outside the input are then
    left out. Elsewhere the strip touches no border. ``x_at``: where the strip's window starts.
    """
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    taps: dict[int, list[tuple[int, int]]] = {}
    for col in range(width):
        for j in range(shape.kernel[1]):
            at = col * shape.stride[1] + j * shape.dilation[1]
            if first is None or 0 <= first * shape.stride[1] - shape.pads[1] + at < shape.w:
                taps.setdefault(at, []).append((col, j))
    step = shape.blocks * lanes
    weights = [_weight(em, w_at + j * step) for j in range(shape.kernel[1])]
    for at in sorted(taps):
        x = kb.load(em.x, x_at + at * shape.c, lanes)
        if shape.in_dtype == "u8":
            x = _converted(em, x)
        if shape.in_dtype in SHORT_FLOATS and not shape.half:
            x = kb.widened(x)
        if shape.shifted:
            x = x - kb.splat(kb.load(em.zero, 0), lanes)
        x = kb.let(x, "x")
        for col, j in taps[at]:
            _tap(em, acc, col, x, weights[j])


def _kernel_rows(em: _Emitter, row: Any) -> tuple[Any, Any]:
    """First and last kernel row (exclusive) that meet the input at output row ``row``."""
    kb, shape = em.kb, em.shape
    if not shape.row_borders:
        return 0, shape.kernel[0]
    step = shape.dilation[0]
    zero, above = tir.tirx.IntImm("int32", 0), shape.pads[0] - row * shape.stride[0]
    low = tir.tirx.truncdiv(tir.tirx.max(above, zero) + (step - 1), step)
    below = tir.tirx.max(above + shape.h, zero) + (step - 1)
    high = tir.tirx.min(tir.tirx.truncdiv(below, step), tir.tirx.IntImm("int32", shape.kernel[0]))
    return kb.let(low, "kh_low"), kb.let(high, "kh_high")


@dataclass(frozen=True)
class _Place:
    """Where a row of output is computed: expressions, and the valid lanes of the channel block."""

    rows: tuple[Any, Any]
    pixel: Any
    x_row: Any
    channel: Any
    valid: int


def _strip(em: _Emitter, place: _Place, width: int, col: Any, first: int | None) -> None:
    """``width`` output pixels of one channel block, from output column ``col``."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    channel = place.channel
    left = kb.let(place.x_row + col * shape.stride[1] - shape.pads[1], "left")
    x_at = kb.let(left * shape.c + channel, "x_at")
    acc = kb.alloc(shape.accumulator, width * lanes)
    start = kb.const(0, shape.accumulator, lanes)
    if shape.short:  # a result that fits has the right sign only with its bias
        start = kb.let(kb.cast(kb.load(em.out.bias, channel, lanes), "int16"), "start")
    for i in range(width):
        kb.store(acc, i * lanes, start)
    rows, taps = shape.kernel
    x_row, w_row = shape.dilation[0] * shape.w * shape.c, taps * shape.blocks * lanes
    if not shape.row_borders and rows * taps * width <= UNROLL:
        for i in range(rows):
            _kernel_row(em, acc, width, first, x_at + i * x_row, channel + i * w_row)
    else:
        with kb.loop(*place.rows, "kh") as i:
            x_i, w_i = kb.let(x_at + i * x_row), kb.let(channel + i * w_row)
            _kernel_row(em, acc, width, first, x_i, w_i)
    channels = epilogue.load_channels(kb, em.out, channel, lanes)
    channels.bias = None if shape.short else channels.bias
    for i in range(width):
        value = kb.load(acc, i * lanes, lanes)
        if shape.in_dtype == "u8" and shape.accumulator != "int32":
            value = kb.cast(value, "int32")
        if shape.half:
            value = kb.widened(value)
        index = kb.let((place.pixel + col + i) * shape.c + channel, "y_at")
        epilogue.finish(kb, em.out, channels, value, index, place.valid, shape.out)


def _row(em: _Emitter, image: Any, row: Any, block: Any, valid: int) -> None:
    """One output row of one channel block: border strips by themselves, the others in loops."""
    kb, shape = em.kb, em.shape
    place = _Place(
        _kernel_rows(em, row),
        kb.let((image * shape.oh + row) * shape.ow, "pixel"),
        kb.let((image * shape.h + row * shape.stride[0] - shape.pads[0]) * shape.w, "x_row"),
        kb.let(block * shape.lanes, "channel"),
        valid,
    )
    start = 0
    for count, width in (shape.cols.first, shape.cols.rest):
        at = 0
        while at < count:
            inner = at
            while inner < count and not shape.touches_border(start + inner * width, width):
                inner += 1
            if inner > at:
                with kb.loop(at, inner, "strip") as strip:
                    _strip(em, place, width, kb.let(strip * width + start, "col"), None)
                at = inner
            else:
                first = start + at * width
                _strip(em, place, width, first, first)
                at += 1
        start += count * width


def depthwise_function(name: str, shape: Depthwise) -> Any:
    """The PrimFunc: parameters x, weights, [zero,] the epilogue's, [residual,] y."""
    kb = tir.KernelBuilder(name, bfloat16=shape.native)
    integer = shape.in_dtype == "u8"
    x = kb.pointer("x", NUMPY[shape.in_dtype], align=1)
    w = kb.pointer("weights", "int8" if integer else NUMPY[shape.in_dtype])
    zero = kb.pointer("zero", shape.accumulator) if shape.shifted else None
    out = epilogue.parameters(kb, integer, shape.out, shape.residual)
    em = _Emitter(kb, shape, x, w, zero, out)
    tail = shape.c - (shape.blocks - 1) * shape.lanes
    whole = shape.blocks if tail == shape.lanes else shape.blocks - 1
    per_chunk = ceil(shape.blocks / shape.chunks)
    with kb.loop(kb.begin, kb.end, "item") as item:
        rest, chunk = divide(kb, item, shape.chunks, "chunk")
        image, row = divide(kb, rest, shape.oh, "row")
        image = image if shape.n > 1 else 0
        row = row if shape.oh > 1 else 0
        start = kb.let(chunk * per_chunk, "start")
        limit = tir.tirx.IntImm("int32", whole)
        if whole:
            stop = kb.let(tir.tirx.min(start + per_chunk, limit), "stop")
            with kb.loop(start, stop, "block") as block:
                _row(em, image, row, block, shape.lanes)
        if whole < shape.blocks:
            inside = tir.tirx.all(start <= whole, start + per_chunk > whole)
            with kb.when(inside):
                _row(em, image, row, whole, tail)
    return kb.build()


def _shape(spec: ConvSpec, isa: Isa, short: bool) -> tuple[Depthwise, Stage | None]:
    """The kernel's shape and the copy of the input with readable slack, if it needs one."""
    if not (spec.groups == spec.c == spec.oc):
        raise ValueError("depthwise: groups, input and output channels must be equal")
    few = spec.kh * spec.kw <= HALF_TERMS
    half = spec.in_dtype == "f16" and isa.float16 == "multiply" and few
    stage, lanes = None, isa.lanes * (2 if short or half else 1)
    if spec.c % lanes and not spec.input_slack:
        stage = rows_stage(spec.n * spec.h * spec.w, spec.c, spec.in_dtype, spec.in_dtype)
    shape = Depthwise(
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        spec.oh,
        spec.ow,
        (spec.kh, spec.kw),
        spec.stride,
        spec.dilation,
        spec.in_dtype,
        spec.epilogue.out,
        spec.epilogue.residual,
        lanes,
        isa.registers,
        isa.fma,
        short,
        spec.pads[:2],
        any(spec.pads) and spec.in_dtype == "u8" and spec.in_zero_point != 0,
        spec.epilogue.out == "bf16" and isa.bfloat16 != "widen",
        half,
    )
    return shape, stage


def depthwise(
    spec: ConvSpec,
    isa: Isa,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    *,
    short: Bounds | None = None,
) -> KernelPlan:
    """Plans a depthwise convolution (``groups == c == oc``); arguments as for ``conv2d``.

    ``short``: sum in 16 bits, which :func:`result_bits` proves for codes of this range.
    """
    shape, stage = _shape(spec, isa, short is not None)
    if spec.in_dtype == "u8":
        if multiplier is None:
            raise ValueError("u8 activations need a multiplier")
        fast = None if shape.short else _bytes_plan(spec, isa, weights, bias, multiplier)
        if fast is not None:
            return fast
        if short is not None and result_bits(spec, weights, bias, short) > SHORT:
            raise ValueError(f"sums are not proven to fit {SHORT} bits")
        folded = 0 if shape.shifted else spec.in_zero_point
        bias = fold_zero_point(bias, weights, folded)
    else:
        bias, multiplier = bias.astype(np.float32), None
    packed = np.zeros((spec.kh, spec.kw, shape.blocks * shape.lanes), weights.dtype)
    packed[..., : spec.c] = weights[:, 0].transpose(1, 2, 0)
    constants = {"weight": packed}
    constants |= channel_constants(spec.epilogue, 1, shape.lanes, bias, multiplier, ratio)
    steps: list[KernelStep] = []
    source: KernelArg = ("in", 0)
    if stage is not None:
        constants["fill"] = fill_constant(spec.in_zero_point, spec.in_dtype)
        steps.append(stage_step(stage, isa, source, "fill", 0))
        source = ("scratch", 0)
    key = name_key("depthwise", shape)
    args: list[KernelArg] = [source, ("const", "weight")]
    if shape.shifted:
        constants["zero"] = np.array([spec.in_zero_point], shape.accumulator)
        args.append(("const", "zero"))
    names = epilogue.argument_names(spec.in_dtype == "u8", shape.residual)
    args += [("const", name) for name in names]
    args += [("in", 1)] if shape.residual is not None else []
    args.append(("out", 0))
    steps.append(
        KernelStep(
            key,
            lambda: depthwise_function(key, shape),
            tuple(args),
            shape.items,
            footprint=lambda: _footprint(spec, shape, len(args)),
        )
    )
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(stage.bytes,) if stage else (),
        features=isa.vector_flags(bfloat16=shape.native),
        kernel="depthwise" + (f" {SHORT}-bit sums" if shape.short else ""),
    )


def result_bits(spec: ConvSpec, weights: np.ndarray, bias: np.ndarray, data: Bounds) -> int:
    """Bits that hold ``bias + sum((x - zero point) * w)`` of every channel for any codes x.

    Args:
        spec: the layer.
        weights: ``[c, 1, kh, kw]``.
        bias: ``[c]``.
        data: range of the codes; padding holds the zero point.
    """
    zero = spec.in_zero_point
    centred = Bounds(min(data.low - zero, 0), max(data.high - zero, 0))
    return of_weights(weights.reshape(spec.c, -1), centred, bias).all.bits


def _footprint(
    spec: ConvSpec, shape: Depthwise | vnni.DepthwiseVnni | neon.DepthwiseNeon, arguments: int
) -> Footprint:
    """Bytes that each item touches; the operands are x, constants, the residual, the output."""
    rows, out = shape.row_spans(shape.n, shape.chunks)
    pixels = out * (shape.ow * shape.c)
    reads = {0: rows * (shape.w * shape.c * SIZE[spec.in_dtype])}
    if spec.epilogue.residual is not None:
        reads[arguments - 2] = pixels * SIZE[spec.epilogue.residual]
    return Footprint(reads, {arguments - 1: pixels * SIZE[spec.epilogue.out]})


def _bytes_plan(
    spec: ConvSpec, isa: Isa, weights: np.ndarray, bias: np.ndarray, multiplier: np.ndarray
) -> KernelPlan | None:
    """The plan by products of bytes, or None where layer, numbers or CPU do not allow it."""
    shape: vnni.DepthwiseVnni | neon.DepthwiseNeon | None
    if isa.arch == "x86":
        shape = vnni.shape_of(spec, isa)
        bias = fold_zero_point(bias, weights, spec.in_zero_point)
        if shape is None or not epilogue.products_fit(weights, bias, multiplier):
            return None
        kernel, key = "depthwise-vnni", name_key("depthwise_vnni", shape)
        build = partial(vnni.depthwise_vnni_function, key, shape)
        packed, channels = (
            vnni.pack_weights(weights, shape),
            partial(vnni.pack_channels, shape=shape),
        )
    else:
        shape = neon.shape_of(spec, isa, weights)
        bias = fold_zero_point(bias, weights, spec.in_zero_point - neon.OFFSET)
        if shape is None:
            return None
        kernel, key = "depthwise-neon", name_key("depthwise_neon", shape, isa.arch)
        build = partial(neon.depthwise_neon_function, key, shape)
        packed, channels = (
            neon.pack_weights(weights, shape),
            partial(neon.pack_channels, shape=shape),
        )
    constants = {
        "weight": packed,
        "zero": np.array([spec.in_zero_point], np.uint8),
        "bias": channels(bias),
        "scalars": epilogue.scalars(spec.epilogue),
        "multiplier": channels(multiplier.astype(np.float32)),
    }
    args: list[KernelArg] = [("const", name) for name in constants]
    steps: list[KernelStep] = []
    source: KernelArg = ("in", 0)
    scratch: tuple[int, ...] = ()
    if spec.c % shape.width and not spec.input_slack:
        stage = rows_stage(spec.n * spec.h * spec.w, spec.c, "u8", "u8")
        constants["fill"] = fill_constant(0, "u8")
        steps.append(stage_step(stage, isa, source, "fill", 0))
        source, scratch = ("scratch", 0), (stage.bytes,)
    steps.append(
        KernelStep(
            key,
            build,
            (source, *args, ("out", 0)),
            shape.items,
            footprint=lambda: _footprint(spec, shape, len(args) + 2),
        )
    )
    return KernelPlan(
        tuple(steps),
        constants,
        scratch,
        features=isa.vector_flags(),
        kernel=kernel,
    )


def depthwise_cost(spec: ConvSpec, isa: Isa, *, short: bool = False) -> float:
    """Predicted seconds of :func:`depthwise` on one thread."""
    shape, stage = _shape(spec, isa, short)
    taps = spec.kh * spec.kw
    vectors = spec.n * spec.oh * spec.ow * shape.blocks
    cycles = vectors * (taps * (0.5 if isa.fma and not short else 1.0) + 9.0)
    make = vnni.shape_of if isa.arch == "x86" else neon.shape_of
    fast = None if short else make(spec, isa)
    if fast is not None:
        cycles = fast.cycles
    return cycles / CLOCK + (stage.seconds if stage else 0.0)


def is_depthwise(spec: ConvSpec) -> bool:
    """Whether :func:`depthwise` serves this layer."""
    return spec.groups == spec.c == spec.oc and spec.c > 1
