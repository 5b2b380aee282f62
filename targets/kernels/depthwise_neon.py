"""Depthwise convolution of u8 by NEON's widening multiplications, smull and smlal.

Codes become ``code - 128`` by flipping their top bit. The products of some taps of a kernel row are
summed in 16 bits, as many as the layer's weights are proven to leave room for (at least two), and
then added to 32 bits by saddw: per 8 channels one instruction for each tap and two for each run of
taps. XNNPACK's best (qs8-dwconv, mla8) adds two taps. A strip of output columns loads each input
pixel once per kernel row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.analysis.accumulators import Bounds, of_weights
from targets.isa import Isa
from targets.kernels import epilogue
from targets.kernels.depthwise_rows import RowEmitter, RowItems, emit_items
from targets.kernels.gemm import Cut, even_cut
from targets.kernels.spec import FLOATS, NUMPY, ConvSpec

MAX_TAPS = 49
"""Largest kernel whose taps are written out."""

OFFSET = 128
"""What is taken off the codes."""

_SIGNED = Bounds(-OFFSET, OFFSET - 1)
_SHORT, _HALF, _WORDS = 16, 8, 4


@dataclass(frozen=True)
class DepthwiseNeon(RowItems):
    """What determines the code.

    ``lanes``: channels of a block, 8 or 16; ``strip``: output columns in registers; ``runs``: for
    each kernel row how many taps are summed in 16 bits at a time.
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
    pads: tuple[int, int]
    out: str
    lanes: int
    strip: int
    runs: tuple[tuple[int, ...], ...]
    fold = 1

    @property
    def width(self) -> int:
        """Bytes of a vector."""
        return self.lanes

    @property
    def cols(self) -> Cut:
        """Output columns in strips."""
        return even_cut(self.ow, self.strip)

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return ceil(self.c / self.lanes)

    @property
    def cycles(self) -> float:
        """Predicted cycles: two instructions a cycle."""
        halves = self.lanes / _HALF
        taps, runs = self.kernel[0] * self.kernel[1], sum(len(row) for row in self.runs)
        read = taps * (1.5 if self.stride[1] == 1 else 2.0)  # neighbours share what is loaded
        each = halves * (taps + 2 * runs + 8.0) + read
        return self.n * self.oh * self.ow * self.blocks * each / 2


def shape_of(spec: ConvSpec, isa: Isa, weights: np.ndarray | None = None) -> DepthwiseNeon | None:
    """The kernel's shape, or None where the layer or the CPU does not suit it.

    ``weights``: ``[c, 1, kh, kw]``; None: any.
    """
    epi = spec.epilogue
    suits = isa.arch != "x86" and spec.in_dtype == "u8" and epi.residual is None
    if not suits or epi.out in FLOATS or spec.kh * spec.kw > MAX_TAPS:
        return None
    wide = isa.registers > 16 and ceil(spec.c / 8) % 2 == 0
    wide = wide or (isa.registers > 16 and spec.c > 3 * _SHORT)
    strip = 4 if wide else 6 if isa.registers > 16 else 3
    rows = range(spec.kh)
    return DepthwiseNeon(
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
        2 * _HALF if wide else _HALF,
        strip if spec.stride[1] == 1 else max(2, strip - 1),
        tuple(_runs(spec.kw, None if weights is None else weights[:, 0, i]) for i in rows),
    )


def _runs(taps: int, weights: np.ndarray | None) -> tuple[int, ...]:
    """A kernel row cut into runs whose sums 16 bits hold; ``weights``: ``[c, kw]``."""
    made, at = [], 0
    while at < taps:
        end = min(at + 2, taps)  # two products of bytes always fit
        while weights is not None and end < taps and _fits(weights[:, at : end + 1]):
            end += 1
        made.append(end - at)
        at = end
    return tuple(made)


def _fits(weights: np.ndarray) -> bool:
    nothing = np.zeros(weights.shape[0], np.int32)
    return bool(of_weights(weights, _SIGNED, nothing).all.bits <= _SHORT)


def pack_weights(weights: np.ndarray, shape: DepthwiseNeon) -> np.ndarray:
    """``[c, 1, kh, kw]`` as ``[block][kh][kw][lane]``."""
    kh, kw = shape.kernel
    full = np.zeros((shape.blocks * shape.lanes, kh, kw), np.int8)
    full[: shape.c] = weights[:, 0]
    blocks = full.reshape(shape.blocks, shape.lanes, kh, kw)
    return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1))


def pack_channels(values: np.ndarray, shape: DepthwiseNeon) -> np.ndarray:
    """Per-channel numbers, filled up to whole blocks."""
    full = np.zeros(shape.blocks * shape.lanes, values.dtype)
    full[: shape.c] = values
    return full


@dataclass
class _Emitter(RowEmitter):
    """The kernel being emitted."""

    weight: Any = None
    bias: Any = None
    multiplier: Any = None
    scalars: Any = None
    y: Any = None


def _parts(value: Any) -> list[Any]:
    """A vector of bytes in eights."""
    if tir.lanes_of(value) == _HALF:
        return [value]
    return [tir.neon.half(value, which) for which in (0, 1)]


def _pixel(em: _Emitter, row: int, col: int | None, at: Any) -> Any:
    """The codes of one input pixel, less 128; ``col``: its column where it is known."""
    kb, lanes = em.kb, em.shape.lanes
    codes = kb.splat(kb.load(em.zero, 0), lanes)
    if col is None or 0 <= col < em.shape.w:
        codes = em.masked(row, kb.load(em.x, at, lanes))
    codes = tir.tirx.bitwise_xor(codes, kb.const(OFFSET, "uint8", lanes))
    return kb.let(kb.reinterpret(codes, "int8", lanes), "x")


def _kernel_row(
    em: _Emitter, acc: Any, row: int, size: int, first: int | None, x_at: Any, w_at: Any
) -> None:
    """All taps of one kernel row for ``size`` output columns; the row's window is at ``x_at``."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    kw, (step, apart) = shape.kernel[1], (shape.stride[1], shape.dilation[1])
    weights = [
        _parts(kb.let(kb.load(em.weight, w_at + (row * kw + j) * lanes, lanes), "w"))
        for j in range(kw)
    ]
    left = None if first is None else first * step - shape.pads[1]
    pixels = {
        at: _parts(_pixel(em, row, None if left is None else left + at, x_at + at * shape.c))
        for at in sorted({col * step + j * apart for col in range(size) for j in range(kw)})
    }
    for col in range(size):
        begin = 0
        for count in shape.runs[row]:
            for part in range(lanes // _HALF):
                products = [
                    tir.neon.multiply_long(pixels[col * step + j * apart][part], weights[j][part])
                    for j in range(begin, begin + count)
                ]
                total = kb.let(sum(products[1:], products[0]), "sum")
                for which in (0, 1):
                    slot = col * lanes + part * _HALF + which * _WORDS
                    wide = kb.cast(tir.neon.half(total, which), "int32")
                    kb.store(acc, slot, kb.load(acc, slot, _WORDS) + wide)
            begin += count


def _strip(em: _Emitter, size: int, col: Any, first: int | None, block: Any, valid: int) -> None:
    """``size`` output pixels of one channel block, from output column ``col``."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    channel = kb.let(block * lanes, "channel")
    w_at = kb.let(block * (shape.kernel[0] * shape.kernel[1] * lanes), "w_at")
    acc = kb.alloc("int32", size * lanes)
    for i in range(0, lanes, _WORDS):
        bias = kb.let(kb.load(em.bias, channel + i, _WORDS), "bias")
        for j in range(size):
            kb.store(acc, j * lanes + i, bias)
    x_col = kb.let((col * shape.stride[1] - shape.pads[1]) * shape.c + channel, "x_col")
    for row in range(shape.kernel[0]):
        x_at = kb.let(em.rows[row][0] + x_col, "x_at")
        _kernel_row(em, acc, row, size, first, x_at, w_at)
    factors = [
        kb.let(kb.load(em.multiplier, channel + i, _WORDS), "factor")
        for i in range(0, lanes, _WORDS)
    ]
    vectors = lanes // _WORDS
    real = [
        kb.cast(kb.load(acc, i * _WORDS, _WORDS), "float32") * factors[i % vectors]
        for i in range(size * vectors)
    ]
    _store(em, real, kb.let((em.pixel + col) * shape.c + channel, "y_at"), valid)


def _store(em: _Emitter, real: list[Any], y_at: Any, valid: int) -> None:
    """Requantises four vectors at a time, and stores each pixel's channels."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    zero, low, high = em.scalars
    for first in range(0, len(real), 4):
        bundle = real[first : first + 4]
        bundle += bundle[-1:] * (4 - len(bundle))
        codes = kb.let(tir.neon.requantised(bundle, zero, (low, high), NUMPY[shape.out]), "codes")
        for at in range(0, min(4, len(real) - first) * _WORDS, lanes):
            part = codes if lanes == 4 * _WORDS else kb.shuffle(codes, range(at, at + lanes))
            pixel = (first * _WORDS + at) // lanes
            kb.store_first(em.y, y_at + pixel * shape.c, part, valid)


def _blocks(em: _Emitter, size: int, col: Any, first: int | None) -> None:
    """One strip of all channel blocks of the work item."""
    kb, shape = em.kb, em.shape
    full, left = divmod(shape.c, shape.lanes)
    start, stop = em.blocks
    if full:
        last = kb.let(tir.tirx.min(stop, tir.tirx.IntImm("int32", full)), "last")
        with kb.loop(start, last, "block") as block:
            _strip(em, size, col, first, block, shape.lanes)
    if left:
        with kb.when(tir.tirx.all(start <= full, stop > full)):
            _strip(em, size, col, first, tir.tirx.IntImm("int32", full), left)


def depthwise_neon_function(name: str, shape: DepthwiseNeon) -> Any:
    """The PrimFunc: parameters x, weight, zero, bias, scalars, multiplier, y."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    weight, zero = kb.pointer("weight", "int8"), kb.pointer("zero", "uint8")
    bias, scalars = kb.pointer("bias", "int32"), kb.pointer("scalars", "float32")
    multiplier = kb.pointer("multiplier", "float32")
    y = kb.pointer("y", NUMPY[shape.out], align=1)
    limits = [kb.let(kb.load(scalars, i), epilogue.SCALARS[i]) for i in range(3)]
    em = _Emitter(
        kb, shape, x, zero, weight=weight, bias=bias, multiplier=multiplier, scalars=limits, y=y
    )
    emit_items(em, partial(_blocks, em))
    return kb.build()
