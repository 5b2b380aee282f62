"""From a statistic to an encoding: range methods, scale and zero point, lattices."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from dlcc.analysis.statistics import Function, Range, TensorStatistic
from dlcc.ir import Affine
from dlcc.ir.encodings import Array

Method = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]

FEWEST_STEPS = 8
"""Steps below which the lattice of an input may be a whim of the samples (all zeros, a mask)."""

_PROBED = 1 << 16
"""Values that a lattice is guessed from, before all are checked."""

SMALLEST = float(np.finfo(np.float32).tiny) * 2**20
"""Smallest scale given out; products of two scales stay normal float32 numbers."""


def pick_range(
    statistic: TensorStatistic,
    method: Method,
    percentile: float,
    norm: float,
    bits: int,
    through: Function | None = None,
) -> Range:
    """The range to represent, by one of the methods; holds 0.

    Args:
        statistic: of the tensor.
        method: how to choose.
        percentile: for "percentile", in %.
        norm: for "mse": the power of the error that is averaged.
        bits: width of the codes.
        through: for "mse": the only function that reads the tensor.
    """
    if method == "min-max":
        return statistic.with_zero()
    if method == "moving-average":
        return statistic.moving_average_range()
    if method == "percentile":
        return statistic.percentile_range(percentile)
    if method == "entropy":
        return statistic.entropy_range(1 << bits)
    return statistic.error_range(1 << bits, norm, through=through)


def asymmetric(low: float, high: float, bits: int) -> Affine:
    """Unsigned encoding of [low, high] with an exact code for 0.

    The zero point is rounded, and the scale is as small as it can be for both ends to stay within
    half a step of the codes' ends.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    last = (1 << bits) - 1
    if high - low < SMALLEST * last:
        return Affine.per_tensor(bits, False, max(SMALLEST, high - low), 0 if low == 0.0 else last)
    scale = (high - low) / last
    zero = round(-low / scale)
    return Affine.per_tensor(bits, False, scale, min(max(zero, 0), last))


def lattice(values: Array, levels: int) -> float | None:
    """Step s such that all values are integer multiples of s with fewer than ``levels`` steps.

    Inputs that were integers (pixels, fixed-point features) and weights that were quantised before
    keep their own grid this way and lose nothing.

    Returns:
        The step, or None where there is none: too many different values, or no common step.
    """
    flat = values.reshape(-1)
    step = _common_step(flat[:: max(1, flat.size // _PROBED)], levels)
    if step is None:
        return None
    multiples = flat.astype(np.float64) / step
    if float(multiples.max()) - float(multiples.min()) >= levels:
        return None
    return step if np.abs(multiples - np.rint(multiples)).max() < 2e-3 else None


def _common_step(values: Array, levels: int) -> float | None:
    """Step that fits a few of the values."""
    points = np.unique(np.append(values.astype(np.float64), 0.0))
    peak = float(np.abs(points).max())
    gaps = np.diff(points)
    gaps = gaps[gaps > 1e-5 * peak]
    if points.size > levels or not gaps.size or not math.isfinite(peak):
        return None
    span = float(points[-1] - points[0])
    count = round(span / float(gaps.min()))
    return span / count if count < levels else None


def on_lattice(step: float, low: float, high: float, bits: int) -> Affine | None:
    """Unsigned encoding with exactly this scale; the codes that calibration left free are split.

    None where [low, high] does not fit.
    """
    last = (1 << bits) - 1
    first, count = round(min(low, 0.0) / step), round((max(high, 0.0) - min(low, 0.0)) / step)
    if count > last or step < SMALLEST:
        return None
    spare = (last - count) // 2 if first < 0 else 0
    return Affine.per_tensor(bits, False, step, min(max(-first + spare, 0), last))


def input_lattice(samples: Array, bits: int) -> Affine | None:
    """Encoding that holds all values of an input exactly, where there is one."""
    step = lattice(samples, 1 << bits)
    low, high = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
    if step is None or (high - low) / step < FEWEST_STEPS:
        return None
    return on_lattice(step, float(samples.min()), float(samples.max()), bits)
