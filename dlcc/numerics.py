"""The one rounding rule (docs/numerics.md): what every integer kernel computes, in numpy.

Kernels on every CPU give exactly these bytes. Each float32 operation below is a separate IEEE-754
operation (no FMA), so the order written here is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcc.ir.dtypes import F32
from dlcc.ir.encodings import Affine, Array

ADD_SHIFT = 16
"""Fraction bits of the fixed-point sum of an integer add; fewer where 24 bits would be left."""


def multiplier(numerators: Sequence[float] | Array, denominator: float = 1.0) -> Array:
    """Product of scales over the output scale: in float64, rounded once to float32."""
    return np.asarray(np.asarray(numerators, np.float64) / denominator, dtype=np.float32)


def requantise(
    acc: Array, mult: Array, out: Affine, lo: float | None = None, hi: float | None = None
) -> Array:
    """clamp(rint(f32(acc) * mult) + zero_point, lo, hi) as codes of ``out``.

    Args:
        acc: int32 accumulators.
        mult: float32, broadcastable to ``acc``.
        out: per-tensor encoding of the result.
        lo: smallest code to let through (a fused activation), within the encoding's range.
        hi: largest such code.
    """
    low, high = out.code_range
    scaled = np.rint(acc.astype(np.float32) * mult.astype(np.float32))
    shifted = scaled + np.float32(out.zero_point)
    low, high = (low if lo is None else int(lo)), (high if hi is None else int(hi))
    clamped = np.minimum(np.maximum(shifted, np.float32(low)), np.float32(high))
    return clamped.astype(np.int32).astype(out.storage(F32).numpy)


def dequantise(acc: Array, mult: Array) -> Array:
    """f32(acc) * mult: an integer layer with a float output."""
    return np.asarray(acc.astype(np.float32) * mult.astype(np.float32), dtype=np.float32)


def residual_term(codes: Array, encoding: Affine, mult: Array) -> Array:
    """int32(rint(f32(q - zero_point) * mult)): a residual operand in accumulator units."""
    centred = (codes.astype(np.int32) - encoding.zero_point).astype(np.float32)
    return np.rint(centred * mult.astype(np.float32)).astype(np.int32)


def add_shift(ratios: Sequence[float], ranges: Sequence[int]) -> int:
    """Fraction bits S for a fixed-point sum whose terms stay below 2^24 in total.

    Args:
        ratios: scale of each operand over the output scale.
        ranges: largest |q - zero_point| of each operand.
    """
    shift = ADD_SHIFT
    while sum(abs(r) * 2.0**shift * n + 1 for r, n in zip(ratios, ranges, strict=True)) >= 1 << 24:
        shift -= 1  # negative where an operand is far larger than the output's range
    return shift


def activation_codes(out: Affine, act_min: float, act_max: float) -> tuple[int, int]:
    """Codes of a fused clamp to the real range [act_min, act_max], within the encoding's range."""
    low, high = out.code_range

    def code(real: float) -> int:
        if real == float("inf"):
            return high
        if real == -float("inf"):
            return low
        nearest = int(np.rint(np.float64(real) / out.scale)) + out.zero_point
        return min(max(nearest, low), high)

    return code(act_min), code(act_max)


def unary_table(function: Any, source: Affine, out: Affine) -> Array:
    """Output code of every input code of ``source``, for a real function of one argument.

    Entry ``i`` belongs to code ``code_range[0] + i``; non-finite results become the nearest finite
    end of the output range (NaN: the zero point).
    """
    low, high = source.code_range
    real = source.dequantise(np.arange(low, high + 1))
    with np.errstate(all="ignore"):
        result = np.asarray(function(real.astype(np.float64)), dtype=np.float64)
    smallest, largest = out.real_range
    result = np.nan_to_num(result, nan=0.0, posinf=largest, neginf=smallest)
    return out.quantise(result)
