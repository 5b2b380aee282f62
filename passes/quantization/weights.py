"""Weights of one layer: scales, rounding that sees the data, bias, accumulator bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlcc.analysis.accumulators import Bounds, of_weights
from dlcc.ir import Affine
from dlcc.ir.encodings import Array
from passes.quantization.ranges import SMALLEST, lattice

ACCUMULATOR = 1 << 31
"""Accumulators are int32: |acc| must stay below this."""

_HEADROOM = 1 << 29
"""Bias and residual may each take this much of an accumulator."""

_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Metric:
    """In what order a layer's weights are rounded, and how errors are passed on.

    Attributes:
        order: int [groups, K]: inputs of large variance first.
        upper: float64 [groups, K, K]: Cholesky factor of the inverse of the reordered covariance.
    """

    order: Array
    upper: Array

    @staticmethod
    def of(second: Array, damping: float = 0.01) -> Metric:
        """The metric of a covariance [groups, K, K].

        Args:
            second: the covariance.
            damping: added to the diagonal, as a part of its mean.

        Raises:
            LinAlgError: it is too singular.
        """
        order = np.argsort(-np.einsum("gkk->gk", second), axis=1, kind="stable")
        return Metric(order, _inverse_factor(second, order, damping))


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


def nearest(weight: Array, scales: Array, bits: int) -> Array:
    """Codes by rounding half to even, clamped symmetrically."""
    last = (1 << (bits - 1)) - 1
    return np.clip(np.rint(weight.astype(np.float64) / scales[:, None]), -last, last)


def round_with_data(
    weight: Array,
    scales: Array,
    metric: Metric,
    bits: int,
    *,
    keep_zeros: bool = False,
) -> Array:
    """Codes that minimise the layer's output error on data, not the weights' own error.

    Weights are rounded one input at a time, and the error made is taken up by the inputs not yet
    rounded, in the metric of the inputs' covariance (Frantar et al. 2022, GPTQ; inputs of large
    variance first).

    Args:
        weight: [O, K]; the O channels are ``groups`` equal runs.
        scales: [O].
        metric: of the inputs' covariance.
        bits: width of the codes.
        keep_zeros: weights that are 0 keep the code 0; the others take up the errors before them
            (Frantar and Alistarh 2023, SparseGPT).
    """
    order, upper = metric.order, metric.upper
    groups, depth = order.shape
    last = (1 << (bits - 1)) - 1
    w = weight.astype(np.float64).reshape(groups, -1, depth)
    step = scales.reshape(groups, -1)
    w = np.take_along_axis(w, order[:, None, :], axis=2)
    free = (w != 0) | (not keep_zeros)
    codes = np.empty_like(w)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.empty((groups, w.shape[1], stop - start))
        for k in range(start, stop):
            codes[:, :, k] = np.clip(np.rint(w[:, :, k] / step), -last, last) * free[:, :, k]
            error = (w[:, :, k] - codes[:, :, k] * step) / upper[:, None, k, k]
            w[:, :, k + 1 : stop] -= error[:, :, None] * upper[:, None, k, k + 1 : stop]
            errors[:, :, k - start] = error
        w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    out = np.empty_like(codes)
    np.put_along_axis(out, np.broadcast_to(order[:, None, :], out.shape), codes, axis=2)
    return out.reshape(weight.shape)


def _inverse_factor(second: Array, order: Array, damping: float) -> Array:
    """Upper Cholesky factor of the inverse of the damped, reordered covariance, per group."""
    groups, depth, _ = second.shape
    index = np.arange(groups)[:, None, None]
    h = second[index, order[:, :, None], order[:, None, :]]
    mean = np.einsum("gkk->g", h) / depth
    ridge = damping * mean + 1e-12 * max(float(mean.max(initial=0.0)), 1e-30)
    h = h + ridge[:, None, None] * np.eye(depth)
    inverse = np.linalg.inv(h)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return np.asarray(np.linalg.cholesky(inverse).transpose(0, 2, 1))


def quantise_weight(
    weight: Array,
    bits: int,
    floor: Array,
    moments: Moments | None,
    *,
    per_tensor: bool = False,
    keep_zeros: bool = False,
) -> QuantisedWeights:
    """Codes and scales of a weight [O, K]; with data where its covariance is given.

    ``keep_zeros``: what is 0 stays 0, whatever the data says.
    """
    scales, exact = channel_scales(weight, bits, floor)
    if per_tensor:
        scales = np.full_like(scales, scales.max())
    codes = nearest(weight, scales, bits)
    metric = None if exact or moments is None else moments.metric
    if metric is not None:
        codes = round_with_data(weight, scales, metric, bits, keep_zeros=keep_zeros)
    return QuantisedWeights(codes.astype(np.int8 if bits <= 8 else np.int32), scales, exact)


def accumulator_bound(
    codes: Array, source: Affine, bias: Array | None, residual_terms: Array | None
) -> int:
    """Largest |accumulator| that any input can cause, in exact integers.

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
    return Bounds(
        int((found.low - extra).min(initial=0)), int((found.high + extra).max(initial=0))
    ).reach
