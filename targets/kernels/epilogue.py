"""From accumulators to the stored output: bias, residual, requantisation, clamp.

All f32 operations round by themselves (numbers contract). In the integer path a conversion stands
between every product and the next sum, so nothing there can be fused. ``clamp(rint(t) + zy, lo,
hi)`` is computed as ``lrint(clamp(t, lo - zy, hi - zy)) + zy``, which is equal because the bounds
are integers, and which the CPU rounds and converts in one instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.spec import FLOATS, NUMPY, SHORT_FLOATS, Epilogue, OutType, ResidualType

SCALARS = ("zero_point", "low", "high", "residual_zero_point")
"""What the elements of the constant ``scalars`` are."""


def scalars(epilogue: Epilogue) -> np.ndarray:
    """The ``scalars`` constant, f32: out zero point, lower and upper bound before the zero point is
    added, residual zero point. A constant, not code, so that layers can share a function.
    """
    lo, hi = epilogue.bounds
    zero = epilogue.out_zero_point if epilogue.out not in FLOATS else 0
    return np.array([zero, lo - zero, hi - zero, epilogue.residual_zero_point], dtype=np.float32)


@dataclass
class Pointers:
    """The kernel's parameters that the epilogue reads and writes; ``scalars`` are values."""

    bias: Any
    scalars: list[Any]
    y: Any
    multiplier: Any = None
    ratio: Any = None
    residual: Any = None


def parameters(
    kb: tir.KernelBuilder, integer: bool, out: OutType, residual: ResidualType | None
) -> Pointers:
    """Declares the epilogue's parameters, in the order of :func:`argument_names`."""
    made = Pointers(
        bias=kb.pointer("bias", "int32" if integer else "float32"),
        scalars=[],
        y=None,
    )
    scalars = kb.pointer("scalars", "float32")
    if integer:
        made.multiplier = kb.pointer("multiplier", "float32")
    if residual == "u8":
        made.ratio = kb.pointer("ratio", "float32")
    if residual is not None:
        made.residual = kb.pointer("residual", NUMPY[residual], align=1)
    made.y = kb.pointer("y", NUMPY[out], align=1)
    # read once: in a loop, tile stores between them would keep LLVM from moving the loads out
    made.scalars = [kb.let(kb.load(scalars, i), name) for i, name in enumerate(SCALARS)]
    return made


def argument_names(integer: bool, residual: ResidualType | None) -> list[str]:
    """Constants that the epilogue takes, in parameter order (residual and output follow)."""
    names = ["bias", "scalars"]
    names += ["multiplier"] if integer else []
    return names + (["ratio"] if residual == "u8" else [])


@dataclass
class Channels:
    """Per-channel vectors of one block of channels, loaded once.

    ``bias``: None where the accumulators start with it.
    """

    bias: Any
    multiplier: Any = None
    ratio: Any = None


def load_channels(
    kb: tir.KernelBuilder, at: Pointers, index: Any, lanes: int, bias_offset: Any = 0
) -> Channels:
    """Loads the per-channel numbers of ``lanes`` channels from ``index``.

    ``bias_offset``: where the bias of the current image starts, if each image has its own.
    """
    made = Channels(kb.let(kb.load(at.bias, index + bias_offset, lanes), "bias"))
    if at.multiplier is not None:
        made.multiplier = kb.let(kb.load(at.multiplier, index, lanes), "mult")
    if at.ratio is not None:
        made.ratio = kb.let(kb.load(at.ratio, index, lanes), "ratio")
    return made


def _to_int(kb: tir.KernelBuilder, value: Any, lanes: int) -> Any:
    """``value`` rounded half to even, as int32."""
    return kb.lrint(value)


def _bounds(kb: tir.KernelBuilder, at: Pointers, lanes: int) -> tuple[Any, Any]:
    return kb.splat(at.scalars[1], lanes), kb.splat(at.scalars[2], lanes)


def finish(
    kb: tir.KernelBuilder,
    at: Pointers,
    channel: Channels,
    acc: Any,
    index: Any,
    count: int,
    out: OutType,
) -> None:
    """Stores the first ``count`` lanes of accumulator ``acc`` (i32 or f32) at output ``index``."""
    lanes = tir.lanes_of(acc)
    total = acc if channel.bias is None else acc + channel.bias
    residual = None
    if at.residual is not None:
        residual = kb.load_first(at.residual, index, lanes, count)
    if at.ratio is not None:
        zero = kb.splat(at.scalars[3], lanes)
        scaled = (kb.cast(kb.cast(residual, "int32"), "float32") - zero) * channel.ratio
        total = total + _to_int(kb, scaled, lanes)
    real = total
    if at.multiplier is not None:
        real = kb.cast(total, "float32") * channel.multiplier
    if out in FLOATS:
        if residual is not None:
            real = kb.pure("llvm.arithmetic.fence", "float32", lanes, real) + kb.widened(residual)
        real = kb.between(real, *_bounds(kb, at, lanes))
        real = kb.rounded(kb.let(real, "real"), out) if out in SHORT_FLOATS else real
        kb.store_first(at.y, index, real, count)
        return
    zero = kb.cast(at.scalars[0], "int32")
    inside = kb.clamp(real, *_bounds(kb, at, lanes))
    whole = _to_int(kb, inside, lanes) + kb.splat(zero, lanes)
    kb.store_first(at.y, index, kb.cast(whole, NUMPY[out]), count)


BUNDLE_LANES = 16
"""Lanes that :func:`finish_bundle` is written for: the packing instructions of AVX-512."""


def finish_bundle(
    kb: tir.KernelBuilder,
    at: Pointers,
    channels: list[Channels],
    values: list[Any],
    index: Any,
    count: int,
    out: OutType,
) -> None:
    """:func:`finish` of a bundle of 2 or 4 blocks (``channel_order``), to an integer output.

    The blocks are packed to int16 with saturation, where the zero point costs half as much, and
    four of them to bytes, where the clamp does too. Every ``t * m`` must fit an int32, or its
    conversion would lose its sign.
    """
    lanes, size = BUNDLE_LANES, len(values)
    totals = [value + channel.bias for value, channel in zip(values, channels, strict=True)]
    if at.residual is not None:
        added = _bundle_residuals(kb, at, channels, index, count)
        totals = [total + more for total, more in zip(totals, added, strict=True)]
    whole = [
        _to_int(kb, kb.cast(total, "float32") * channel.multiplier, lanes)
        for total, channel in zip(totals, channels, strict=True)
    ]
    codes = _packed(kb, at, whole, out)
    # in each 128-bit lane: 4 elements of the first block, 4 of the next, ...
    order = [
        lane + 4 * j + i
        for lane in range(0, size * lanes, 4 * size)
        for i in range(4)
        for j in range(size)
    ]
    codes = kb.shuffle(kb.let(codes, "q"), order)
    kb.store_first(at.y, index, kb.cast(codes, NUMPY[out]), count)


def _packed(kb: tir.KernelBuilder, at: Pointers, whole: list[Any], out: OutType) -> Any:
    """2 or 4 vectors of int32 as one of int16 (2) or bytes (4), with zero point and clamp.

    In each 128-bit lane: 4 elements of the first vector, 4 of the next, ...
    """
    lanes, size = BUNDLE_LANES, len(whole)
    zero, low, high = (kb.cast(at.scalars[i], "int32") for i in range(3))
    shift = kb.splat(kb.cast(zero, "int16"), 2 * lanes)
    words = []
    for pair in (whole[i : i + 2] for i in range(0, size, 2)):
        packed = kb.pure("llvm.x86.avx512.packssdw.512", "int16", 2 * lanes, *pair)
        words.append(kb.pure("llvm.sadd.sat", "int16", 2 * lanes, packed, shift))
    codes, dtype = words[0], "int16"
    if size == 4:
        name = {"u8": "packuswb", "s8": "packsswb"}[out]
        dtype = NUMPY[out]
        codes = kb.pure(f"llvm.x86.avx512.{name}.512", "int8", 4 * lanes, *words)
        codes = kb.reinterpret(codes, dtype, 4 * lanes)
    bounds = [kb.splat(kb.cast(bound + zero, dtype), size * lanes) for bound in (low, high)]
    return tir.tirx.min(tir.tirx.max(codes, bounds[0]), bounds[1])


PIXEL_BUNDLE = 4
"""Pixels that :func:`finish_pixels` takes."""


def finish_pixels(
    kb: tir.KernelBuilder,
    at: Pointers,
    channel: Channels,
    values: list[Any],
    index: Any,
    n: int,
    out: OutType,
) -> None:
    """:func:`finish` of ``n`` channels (at most 16) of 4 neighbouring pixels.

    Every ``t * m`` must fit an int32.
    """
    lanes, whole = BUNDLE_LANES, []
    for i, value in enumerate(values):
        total = value if channel.bias is None else value + channel.bias
        if at.residual is not None:
            residual = kb.load_first(at.residual, index + i * n, lanes, n)
            zero = kb.splat(at.scalars[3], lanes)
            scaled = (kb.cast(kb.cast(residual, "int32"), "float32") - zero) * channel.ratio
            total = total + _to_int(kb, scaled, lanes)
        real = kb.cast(total, "float32") * channel.multiplier
        whole.append(kb.let(_to_int(kb, real, lanes), "whole"))
    words = kb.reinterpret(kb.let(_packed(kb, at, whole, out), "q"), "int32", lanes)
    if n % 4 == 0:
        order = [4 * word + i for i in range(PIXEL_BUNDLE) for word in range(n // 4)]
        order += [0] * (lanes - len(order))
        codes = kb.reinterpret(kb.shuffle(words, order), NUMPY[out], 4 * lanes)
        kb.store_first(at.y, index, codes, PIXEL_BUNDLE * n)
        return
    for i in range(PIXEL_BUNDLE):
        codes = kb.shuffle(words, [4 * word + i for word in range(4)])
        codes = kb.reinterpret(codes, NUMPY[out], lanes)
        # a store may run into the pixels after it, which are still to come
        room = (PIXEL_BUNDLE - i) * n
        size = next((size for size in (1, 2, 4, 8, 16) if n <= size <= room), n)
        kb.store_first(at.y, index + i * n, codes, size)


def finish_planes(
    kb: tir.KernelBuilder, at: Pointers, sums: list[Any], channel: Any, out: OutType
) -> Any:
    """Four channels of 16 pixels to codes: a word for each pixel, the pixels along the lanes.

    ``sums``: a vector for each channel from ``channel``. Every ``t * m`` must fit an int32.
    """
    lanes, whole = BUNDLE_LANES, []
    for i, value in enumerate(sums):
        bias = kb.splat(kb.load(at.bias, channel + i), lanes)
        factor = kb.splat(kb.load(at.multiplier, channel + i), lanes)
        whole.append(_to_int(kb, kb.cast(value + bias, "float32") * factor, lanes))
    codes = kb.let(_packed(kb, at, whole, out), "q")
    order = [lane + 4 * j + i for lane in range(0, 64, 16) for i in range(4) for j in range(4)]
    return kb.reinterpret(kb.shuffle(codes, order), "int32", lanes)


def _bundle_residuals(
    kb: tir.KernelBuilder, at: Pointers, channels: list[Channels], index: Any, count: int
) -> list[Any]:
    """Each block's residual in units of the accumulators, int32.

    Lane i of block j is byte j of word i. A byte becomes a float without a conversion: below the
    bits of 2**23 it is that much more than 2**23. Byte 1 is left where it is and counts 256 fold,
    which its zero point and, by exact division, its ratio take into account.
    """
    lanes, size = BUNDLE_LANES, len(channels)
    raw = kb.load_first(at.residual, index, size * lanes, count)
    words = kb.reinterpret(raw, {2: "uint16", 4: "uint32"}[size], lanes)
    halves = [kb.let(kb.cast(words, "uint32") if size == 2 else words, "residual")]
    if size == 4:
        halves.append(
            kb.let(tir.tirx.shift_right(halves[0], kb.const(16, "uint32", lanes)), "high")
        )
    zero = at.scalars[3]
    added = []
    for j, channel in enumerate(channels):
        unit = 256 if j % 2 else 1
        bits = tir.tirx.bitwise_and(halves[j // 2], kb.const(255 * unit, "uint32", lanes))
        bits = tir.tirx.bitwise_or(bits, kb.const(0x4B000000, "uint32", lanes))
        offset = kb.splat(kb.const(2.0**23, "float32") + zero * float(unit), lanes)
        ratio = channel.ratio * kb.const(1 / unit, "float32", lanes)
        scaled = (kb.reinterpret(bits, "float32", lanes) - offset) * ratio
        added.append(_to_int(kb, scaled, lanes))
    return added


def products_fit(
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None = None,
    limit: float = 2.0**30,
) -> bool:
    """Whether no u8 accumulator (``bias`` folded) times its multiplier can leave int32.

    ``ratio``: of a u8 residual, which is part of the accumulator then.
    """
    reach = 255.0 * np.abs(weights.astype(np.float64)).reshape(weights.shape[0], -1).sum(axis=1)
    if ratio is not None:
        reach = reach + 255.0 * np.abs(ratio.astype(np.float64)) + 1.0
    largest = (reach + np.abs(bias.astype(np.float64))) * np.abs(multiplier.astype(np.float64))
    return bool(largest.max() < limit)
