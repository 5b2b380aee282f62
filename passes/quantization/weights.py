"""Weights of one layer: scales, rounding that sees the data, bias, accumulator bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlcc.analysis.accumulators import Bounds, of_weights
from dlcc.ir import Affine
from dlcc.ir.encodings import Array
from passes.quantization.grids import uniform
from passes.quantization.ranges import SMALLEST, lattice
from passes.quantization.rounding import Metric, Rounding, round_weights, searched_scales

ACCUMULATOR = 1 << 31
"""Accumulators are int32: |acc| must stay below this."""

WIDE = 8
"""Codes from this width on keep the scale of the largest weight: clamping it gains nothing."""

_HEADROOM = 1 << 29
"""Bias and residual may each take this much of an accumulator."""


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of a layer's input patches, as real numbers.

    Attributes:
        mean: float64 [groups, K]: mean of every weight's input.
        second: float64 [groups, K, K]: covariance of the inputs of one output; None if not wanted.
    """

    mean: Array
    second: Array | None

    @cached_property
    def metric(self) -> Metric | None:
        """Of the covariance; None where it was not wanted or is too singular."""
        if self.second is None:
            return None
        try:
            return Metric.of(self.second)
        except np.linalg.LinAlgError:
            return None


@dataclass(frozen=True)
class QuantisedWeights:
    """Codes of one layer.

    Attributes:
        codes: int [O, K].
        scales: float64 [O], float32 values.
        exact: the codes hold the float weights without any error.
    """

    codes: Array
    scales: Array
    exact: bool

    @property
    def real(self) -> Array:
        """float64 [O, K]."""
        return self.codes.astype(np.float64) * self.scales[:, None]


def channel_scales(weight: Array, bits: int, floor: Array) -> tuple[Array, bool]:
    """Scale of every output channel, and whether all weights are exact multiples of them.

    Weights that were quantised before lie on a lattice; channels that reach no further than
    ``last`` steps keep its step.

    Args:
        weight: [O, K].
        bits: width of the codes.
        floor: [O], smallest scale allowed (see :func:`scale_floor`).
    """
    last = (1 << (bits - 1)) - 1
    peak = np.abs(weight).max(axis=1, initial=0.0).astype(np.float64)
    scales = np.maximum(peak / last, np.maximum(floor, SMALLEST))
    fits = np.zeros(len(peak), np.bool_)
    step = lattice(weight, 1 << (bits + 1))
    if step is not None:
        fits = (peak <= step * (last + 0.01)) & (step >= np.maximum(floor, SMALLEST))
        scales = np.where(fits, step, scales)
    return scales.astype(np.float32).astype(np.float64), bool(fits.all())


def scale_floor(bias: Array, input_scale: float, residual_reach: float) -> Array:
    """Smallest weight scale per channel for which bias and residual fit the accumulator.

    A channel with tiny weights and a large bias (a dead channel) would otherwise overflow int32.

    Args:
        bias: real numbers [O].
        input_scale: of the layer's input.
        residual_reach: largest |real number| of the residual operand.
    """
    reach = np.maximum(np.abs(bias.astype(np.float64)), residual_reach)
    return np.asarray(reach / (input_scale * _HEADROOM))


def quantise_weight(
    weight: Array,
    bits: int,
    floor: Array,
    moments: Moments | None,
    how: Rounding = "gptq",
    *,
    per_tensor: bool = False,
    fit_scales: bool = True,
    keep_zeros: bool = False,
) -> QuantisedWeights:
    """Codes and scales of a weight [O, K]; with data where its covariance is given.

    Args:
        weight: [O, K].
        bits: width of the codes.
        floor: [O], smallest scales allowed.
        moments: of the layer's input.
        how: the rounding, where there is a covariance.
        per_tensor: one scale for all channels.
        fit_scales: narrow codes that are rounded with data get the scales with the least error, at
            which the largest weights may be clamped.
        keep_zeros: what is 0 stays 0, whatever the data says.
    """
    scales, exact = channel_scales(weight, bits, floor)
    if per_tensor:
        scales = np.full_like(scales, scales.max())
    metric = None if exact or moments is None or how == "nearest" else moments.metric
    groups = 1 if metric is None else len(metric.order)

    def rows(array: Array) -> Array:
        return array.reshape(groups, len(weight) // groups, -1)

    target = rows(weight)
    grid = uniform(rows(scales), bits, weight.shape[1], floor=rows(floor)[..., 0])
    fit_scales &= bits < WIDE and metric is not None and not per_tensor
    if metric is not None and fit_scales:
        grid = searched_scales(target, grid, np.einsum("gkk->gk", metric.damped))
    found = round_weights(target, grid, metric, how, keep_zeros=keep_zeros, refit=fit_scales)
    codes = found.codes.reshape(weight.shape).astype(np.int8 if bits <= 8 else np.int32)
    return QuantisedWeights(codes, found.grid.parameters.reshape(-1), exact)


def accumulator_reach(
    codes: Array, source: Affine, bias: Array | None, residual_terms: Array | None
) -> Array:
    """Largest |accumulator| of each output that any input can cause, in exact integers, int64[O].

    Args:
        codes: weight codes [O, K].
        source: encoding of the input; its codes may take every value, padding is the zero point.
        bias: int bias codes [O].
        residual_terms: largest |term| that a residual adds, [O].
    """
    low, high = source.code_range
    data = Bounds(low - source.zero_point, high - source.zero_point)
    found = of_weights(codes, data, bias)
    extra = 0 if residual_terms is None else residual_terms
    return np.maximum(np.abs(found.low - extra), np.abs(found.high + extra)).astype(np.int64)


def accumulator_bound(
    codes: Array, source: Affine, bias: Array | None, residual_terms: Array | None
) -> int:
    """The largest :func:`accumulator_reach`."""
    return int(accumulator_reach(codes, source, bias, residual_terms).max(initial=0))
