"""Depthwise convolution of u8 by vpdpbusd, which multiplies four taps of a channel at once.

The bytes that lie below each other in four kernel rows are brought side by side by two rounds of
``punpck``; that orders the channels of a block as ``[quarter][128-bit lane][4]``, and saturating
packs bring them back into natural order after the requantisation. Weights and per-channel numbers
are stored in the former order. Padding is the zero point, substituted in registers: the zero
point's share of the bias stays a constant.

A vector holds as many channels as it has bytes, or, where a layer has too few of them, the same
channels of ``fold`` neighbouring output pixels.

Only a plain requantisation to 8 bits has this form: the packs saturate, so every product
``acc * m`` must fit an int32, which :func:`epilogue.products_fit` proves
from the constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from targets.isa import Isa
from targets.kernels.depthwise_rows import RowEmitter, RowItems, emit_items
from targets.kernels.gemm import Cut, even_cut, tail_cut
from targets.kernels.spec import NUMPY, ConvSpec

_DOT = {64: "512", 32: "256", 16: "128"}
_PREFIX = {64: "llvm.x86.avx512.{}.512", 32: "llvm.x86.avx2.{}", 16: "llvm.x86.sse2.{}.128"}

MAX_TAPS = 49
"""Largest kernel whose taps are written out."""


@dataclass(frozen=True)
class DepthwiseVnni(RowItems):
    """What determines the code; ``width``: bytes of the widest vector."""

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]
    out: str
    width: int
    strip: int

    @property
    def groups(self) -> int:
        """Groups of up to four kernel rows."""
        return ceil(self.kernel[0] / 4)

    @property
    def fold(self) -> int:
        """Neighbouring output pixels in one vector: their channels lie side by side in NHWC.

        More than two only: narrower vectors share what they interleave between the kernel columns.
        """
        whole = self.c % 4 == 0 and self.width % self.c == 0
        return self.width // self.c if whole and self.width > 2 * self.c else 1

    @property
    def cols(self) -> Cut:
        """Output columns in strips."""
        return tail_cut(self.ow, self.fold) if self.fold > 1 else even_cut(self.ow, self.strip)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each block: the widest vector as often as it fits, then narrower ones."""
        full, left = divmod(self.c * self.fold, self.width)
        tail: tuple[int, ...] = ()
        if left:
            tail = (min(v for v in (16, 32, 64) if v >= left),)
        return (self.width,) * full + tail

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return len(self.widths)

    @property
    def cycles(self) -> float:
        """Predicted cycles: interleaving, dot products and requantisation of every vector."""
        rows, kw = self.n * self.oh, self.kernel[1]
        if self.fold > 1:
            picking = 3.0 * kw if self.stride[1] > 1 else 0.0
            return rows * self.cols.count * (self.groups * (7.0 * kw + picking) + 12.0)
        column = 4.2 if self.stride[1] == 1 else 7.0  # neighbours share what is interleaved
        whole = self.groups * column * kw + 14.0
        half = 0.68  # of the time for a vector of half the width or less
        vectors = sum(1.0 if width == 64 else half for width in self.widths)
        return rows * self.ow * vectors * whole

    def weight_bytes(self, width: int) -> int:
        """Packed weights of a block of ``width`` channels."""
        return self.kernel[1] * self.groups * 4 * width


def shape_of(spec: ConvSpec, isa: Isa) -> DepthwiseVnni | None:
    """The kernel's shape, or None where the layer or the CPU does not suit it."""
    epi = spec.epilogue
    suits = isa.without_amx().dot == "vnni" and spec.in_dtype == "u8" and epi.residual is None
    if not suits or epi.out == "f32" or spec.kh * spec.kw > MAX_TAPS:
        return None
    width = 4 * isa.lanes
    return DepthwiseVnni(
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        spec.oh,
        spec.ow,
        (spec.kh, spec.kw),
        spec.stride,
        spec.dilation,
        spec.pads[:2],
        epi.out,
        width,
        5 if isa.registers > 16 else 2,
    )


def _order(width: int) -> np.ndarray:
    """Channel of each accumulator lane of a block, ``[quarter, lane * 4 + element]``."""
    quarter, lane, element = np.meshgrid(
        np.arange(4), np.arange(width // 16), np.arange(4), indexing="ij"
    )
    return (lane * 16 + quarter * 4 + element).reshape(4, width // 4)


def pack_weights(weights: np.ndarray, shape: DepthwiseVnni) -> np.ndarray:
    """``[c, 1, kh, kw]`` as ``[block][kw][row group][quarter][lane * 4 + element][4 rows]``."""
    kh, kw = shape.kernel
    full = np.zeros((sum(shape.widths), shape.groups * 4, kw), np.int8)
    full[: shape.c * shape.fold, :kh] = np.tile(weights[:, 0], (shape.fold, 1, 1))
    pieces, start = [], 0
    for width in shape.widths:
        block = full[start : start + width].reshape(width, shape.groups, 4, kw)
        pieces.append(block[_order(width)].transpose(4, 2, 0, 1, 3).reshape(-1))
        start += width
    return np.concatenate(pieces)


def pack_channels(values: np.ndarray, shape: DepthwiseVnni) -> np.ndarray:
    """Per-channel numbers in the order of the accumulators."""
    full = np.zeros(sum(shape.widths), values.dtype)
    full[: shape.c * shape.fold] = np.tile(values, shape.fold)
    pieces, start = [], 0
    for width in shape.widths:
        pieces.append(full[start : start + width][_order(width)].reshape(-1))
        start += width
    return np.concatenate(pieces)


@dataclass
class _Emitter(RowEmitter):
    """The kernel being emitted."""

    weight: Any = None
    bias: Any = None
    multiplier: Any = None
    scalars: Any = None
    y: Any = None


@dataclass(frozen=True)
class _Block:
    """A block of channels: its width, how many of them are channels, and where it starts."""

    width: int
    valid: int
    channel: Any
    weight_at: Any


def _shuffle(a: Any, b: Any, unit: int, high: bool) -> Any:
    """``punpck`` of ``unit`` bytes: low or high halves of each 128-bit lane, interleaved."""
    lanes = tir.lanes_of(a)
    index = []
    for lane in range(0, lanes, 16):
        for at in range(8 if high else 0, 16 if high else 8, unit):
            index += [lane + at + i for i in range(unit)]
            index += [lanes + lane + at + i for i in range(unit)]
    return tir.tirx.Shuffle([a, b], [tir.tirx.IntImm("int32", i) for i in index])


def _folded(em: _Emitter, width: int, start: Any, at: int, first: int | None) -> Any:
    """Input column ``at`` of each of ``fold`` neighbouring windows, side by side.

    ``start``: of the input row; ``first``: first output column where it is known (then columns
    outside the input are the zero point), else all columns lie inside.
    """
    kb, shape = em.kb, em.shape
    fold, step = shape.fold, shape.stride[1]
    begin = at if first is None else first * step - shape.pads[1] + at
    base = begin if first is None else max(begin, 0)
    limit = base + fold * step if first is None else shape.w
    index = start + base * shape.c
    values = [
        kb.reinterpret(kb.load(em.x, index + i * width, width), "int32", width // 4)
        for i in range(step)
        if base + i * fold < limit
    ]
    zero = len(values) * fold
    columns = [begin + i * step for i in range(fold)]
    source = [i - base if base <= i < limit else zero for i in columns]
    if source == list(range(fold)):
        return kb.reinterpret(values[0], "uint8", width)
    values.append(kb.reinterpret(kb.splat(kb.load(em.zero, 0), width), "int32", width // 4))
    words = shape.c // 4
    order = [i * words + j for i in source for j in range(words)]
    picked = tir.tirx.Shuffle(values, [tir.tirx.IntImm("int32", i) for i in order])
    return kb.reinterpret(picked, "uint8", width)


def _column(
    em: _Emitter, block: _Block, group: int, at: int, first: int | None, x_col: Any
) -> list[Any]:
    """Four rows of one input column, side by side: a vector for each quarter of the channels."""
    kb, shape, width = em.kb, em.shape, block.width
    zero = kb.splat(kb.load(em.zero, 0), width)
    rows = []
    for i in range(4 * group, 4 * group + 4):
        if i >= shape.kernel[0]:
            rows.append(kb.const(0, "uint8", width))
            continue
        start = em.rows[i][0]
        value = zero
        col = at if first is None else first * shape.stride[1] - shape.pads[1] + at
        if shape.fold > 1 or first is None or 0 <= col < shape.w:
            if shape.fold > 1:
                value = _folded(em, width, start if first is not None else start + x_col, at, first)
            else:
                value = kb.load(em.x, start + x_col + at * shape.c, width)
            value = em.masked(i, value)
        rows.append(kb.let(value, "row"))
    pairs = [
        [kb.let(_shuffle(rows[k], rows[k + 1], 1, high), "pair") for high in (False, True)]
        for k in (0, 2)
    ]
    return [
        kb.let(_shuffle(pairs[0][half], pairs[1][half], 2, high), "taps")
        for half in (0, 1)
        for high in (False, True)
    ]


def _accumulate(
    em: _Emitter, block: _Block, acc: Any, size: int, first: int | None, x_col: Any
) -> None:
    """All taps of ``size`` output columns; every input column is interleaved once a row group."""
    kb, shape, lanes = em.kb, em.shape, block.width // 4
    taps: dict[int, list[tuple[int, int]]] = {}
    for col in range(size):
        for j in range(shape.kernel[1]):
            at = col * shape.stride[1] + j * shape.dilation[1]
            taps.setdefault(at, []).append((col, j))
    name = f"llvm.x86.avx512.vpdpbusd.{_DOT[block.width]}"
    for group in range(shape.groups):
        for at in sorted(taps):
            quarters = _column(em, block, group, at, first, x_col)
            for col, j in taps[at]:
                tap_at = block.weight_at + (j * shape.groups + group) * 4 * block.width
                for q, value in enumerate(quarters):
                    slot = (col * 4 + q) * lanes
                    weight = kb.load(em.weight, tap_at + q * block.width, block.width)
                    total = kb.load(acc, slot, lanes)
                    value = kb.reinterpret(value, "int8", block.width)
                    kb.store(acc, slot, kb.pure(name, "int32", lanes, total, value, weight))


def _finish(em: _Emitter, block: _Block, acc: Any, col: int, index: Any) -> None:
    """Requantises and stores one output pixel."""
    kb, width, lanes = em.kb, block.width, block.width // 4
    whole = []
    for q in range(4):
        factor = kb.load(em.multiplier, block.channel + q * lanes, lanes)
        real = kb.cast(kb.load(acc, (col * 4 + q) * lanes, lanes), "float32") * factor
        whole.append(kb.let(kb.lrint(real), "whole"))
    scalar = [kb.cast(kb.load(em.scalars, i), "int32") for i in range(3)]
    zero = kb.splat(kb.cast(scalar[0], "int16"), 2 * lanes)
    prefix = _PREFIX[width]
    halves = [
        kb.pure(prefix.format("packssdw"), "int16", 2 * lanes, whole[i], whole[i + 1])
        for i in (0, 2)
    ]
    halves = [kb.pure("llvm.sadd.sat", "int16", 2 * lanes, half, zero) for half in halves]
    name = "packuswb" if em.shape.out == "u8" else "packsswb"
    dtype = NUMPY[em.shape.out]
    packed = kb.reinterpret(kb.pure(prefix.format(name), "int8", width, *halves), dtype, width)
    low = kb.splat(kb.cast(scalar[1] + scalar[0], dtype), width)
    high = kb.splat(kb.cast(scalar[2] + scalar[0], dtype), width)
    packed = tir.tirx.min(tir.tirx.max(packed, low), high)
    kb.store_first(em.y, index, packed, block.valid)


def _strip(em: _Emitter, block: _Block, size: int, col: Any, first: int | None) -> None:
    """``size`` output pixels of one channel block, from output column ``col``."""
    kb, shape, lanes = em.kb, em.shape, block.width // 4
    acc = kb.alloc("int32", size * block.width)
    for q in range(4):
        bias = kb.let(kb.load(em.bias, block.channel + q * lanes, lanes), "bias")
        for i in range(size):
            kb.store(acc, (i * 4 + q) * lanes, bias)
    left = col * shape.stride[1] - shape.pads[1]
    x_col = kb.let(left * shape.c + block.channel, "x_col")
    _accumulate(em, block, acc, size, first, x_col)
    for i in range(size):
        index = kb.let((em.pixel + col + i) * shape.c + block.channel, "y_at")
        _finish(em, block, acc, i, index)


def _blocks(em: _Emitter, size: int, col: Any, first: int | None) -> None:
    """One strip of all channel blocks of the work item.

    The loop over blocks is inside the one over strips so that weights are operands in memory: the
    compiler would carry them through a loop over strips in registers that it does not have.
    """
    kb, shape = em.kb, em.shape
    if shape.fold > 1:
        block = _Block(shape.width, size * shape.c, tir.tirx.IntImm("int32", 0), 0)
        _strip(em, block, 1, col, first)
        return
    widths, full = shape.widths, shape.c // shape.width
    start, stop = em.blocks
    if full:
        last = kb.let(tir.tirx.min(stop, tir.tirx.IntImm("int32", full)), "last")
        with kb.loop(start, last, "block") as at:
            channel = kb.let(at * shape.width, "channel")
            weight_at = kb.let(at * shape.weight_bytes(shape.width), "weight_at")
            _strip(em, _Block(shape.width, shape.width, channel, weight_at), size, col, first)
    if full < len(widths):
        with kb.when(tir.tirx.all(start <= full, stop > full)):
            channel = kb.let(full * shape.width)
            weight_at = kb.let(full * shape.weight_bytes(shape.width))
            tail = _Block(widths[-1], shape.c - full * shape.width, channel, weight_at)
            _strip(em, tail, size, col, first)


def depthwise_vnni_function(name: str, shape: DepthwiseVnni) -> Any:
    """The PrimFunc: parameters x, weight, zero, bias, scalars, multiplier, y."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    weight, zero = kb.pointer("weight", "int8"), kb.pointer("zero", "uint8")
    bias, scalars = kb.pointer("bias", "int32"), kb.pointer("scalars", "float32")
    multiplier = kb.pointer("multiplier", "float32")
    y = kb.pointer("y", NUMPY[shape.out], align=1)
    em = _Emitter(
        kb, shape, x, zero, weight=weight, bias=bias, multiplier=multiplier, scalars=scalars, y=y
    )
    emit_items(em, partial(_blocks, em))
    return kb.build()
