"""Rounding a layer's weights so that its results change least, not the weights themselves.

With H the covariance of a layer's inputs, weights q instead of w change its centred results by
(q - w) H (q - w)^T. Arrays are [groups, R, K] as in :mod:`passes.quantization.grids`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from dlcc.ir.encodings import Array
from passes.quantization.grids import Grid, Uniform

Rounding = Literal["nearest", "gptq", "adaround"]
"""A method of :func:`round_weights`."""

ROUNDING_HELP = (
    "how weights are rounded; nearest: each by itself; gptq: one input after the other, the "
    "others take up the error that this makes in the layer's result; adaround: from there, one "
    "weight after the other takes the code with the least error of the result"
)

_BLOCK = 64
"""Columns whose updates are applied one by one before the rest gets them at once."""

_SWEEPS = 30
"""Most passes over all weights of one descent."""

_ROUNDS = 3
"""How often codes and scales are fitted in turn."""

_SLOW = 0.999
"""Ratio of errors at which fitting in turn ends."""

_GAIN = 1e-9
"""Least fall of the error, over that of moving the weight alone, for which a code is changed."""

_SYSTEM_WORK = 2e11
"""Multiply-accumulates that fitting the parameters of a grid may cost."""

_SHRINKING = 0.93
"""Ratio of the scales that are tried."""

_SMALLEST_SHARE = 0.08
"""The smallest scale tried, over that at which the largest weight is the largest code."""


@dataclass(frozen=True, eq=False)
class Metric:
    """What an error of a layer's weights costs, and in what order they are rounded.

    Attributes:
        damped: float64 [groups, K, K]: covariance of the inputs, its diagonal enlarged.
        order: int [groups, K]: inputs of large variance first.
        upper: float64 [groups, K, K]: Cholesky factor of the inverse of ``damped``, reordered.
    """

    damped: Array
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
        depth = second.shape[1]
        order = np.argsort(-np.einsum("gkk->gk", second), axis=1, kind="stable")
        mean = np.einsum("gkk->g", second) / depth
        ridge = damping * mean + 1e-12 * max(float(mean.max(initial=0.0)), 1e-30)
        damped = second + ridge[:, None, None] * np.eye(depth)
        return Metric(damped, order, _inverse_factor(damped, order))

    def error(self, change: Array) -> Array:
        """[groups, R]: what a change [groups, R, K] of the weights costs each output."""
        return np.asarray(((change @ self.damped) * change).sum(axis=2))


def _inverse_factor(damped: Array, order: Array) -> Array:
    """Upper Cholesky factor of the inverse of a reordered matrix, per group."""
    index = np.arange(len(damped))[:, None, None]
    inverse = np.linalg.inv(damped[index, order[:, :, None], order[:, None, :]])
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return np.asarray(np.linalg.cholesky(inverse).transpose(0, 2, 1))


@dataclass(frozen=True, eq=False)
class Rounded:
    """Weights on a grid.

    Attributes:
        grid: the grid.
        codes: [groups, R, K].
        free: bool, of the same shape: weights that are not held at 0; None for all.
    """

    grid: Grid
    codes: Array
    free: Array | None

    @cached_property
    def numbers(self) -> Array:
        """Real numbers, float64."""
        found = self.grid.numbers(self.codes, _columns(self.codes.shape[2]))
        return found if self.free is None else found * self.free

    def better(self, other: Rounded, target: Array, metric: Metric) -> Rounded:
        """For each output what costs less; for all together where they share their parameters."""
        mine, its = (metric.error(r.numbers - target) for r in (self, other))
        if self.grid.tied:
            return self if mine.sum() <= its.sum() else other
        chosen = (mine <= its)[:, :, None]
        parameters = np.where(chosen, self.grid.parameters, other.grid.parameters)
        codes = np.where(chosen, self.codes, other.codes)
        return Rounded(self.grid.with_parameters(parameters), codes, self.free)


def round_weights(
    target: Array,
    grid: Grid,
    metric: Metric | None,
    how: Rounding,
    *,
    keep_zeros: bool = False,
    refit: bool = True,
) -> Rounded:
    """Put weights on a grid.

    gptq (Frantar et al. 2022): in the order of the inputs' variance, each weight goes to the
    nearest number, and what is left over is made up for by the weights not yet rounded; with zeros
    kept it is that of SparseGPT (Frantar and Alistarh 2023). adaround minimises the same error over
    the codes (Nagel et al. 2020, "Up or down?", eq. 13) by cyclic descent: each weight in turn
    takes the code that is best while all others stay (Behdin et al. 2023, "QuantEase"), until none
    changes. In between the grid's parameters are fitted to the codes by least squares. For every
    output adaround costs no more than gptq, and gptq no more than nearest.

    Args:
        target: float [groups, R, K].
        grid: the numbers allowed.
        metric: of the inputs; None rounds to nearest.
        how: the method.
        keep_zeros: weights that are 0 stay 0.
        refit: whether the grid's parameters may change.
    """
    target = target.astype(np.float64)
    free = target != 0 if keep_zeros else None
    near = Rounded(grid, grid.nearest(target, _columns(target.shape[2])), free)
    if metric is None or how == "nearest":
        return near

    def compensated(grid: Grid) -> Rounded:
        return _gptq(target, grid, metric, free)

    best = compensated(grid).better(near, target, metric)
    if refit:
        best = _alternate(best, target, metric, lambda r: compensated(r.grid))
    if how == "adaround":
        best = _descend(best, target, metric)
    if how == "adaround" and refit:
        best = _alternate(best, target, metric, lambda r: _descend(r, target, metric))
    return best


def _alternate(
    best: Rounded, target: Array, metric: Metric, again: Callable[[Rounded], Rounded]
) -> Rounded:
    """Fit parameters and codes in turn while the error falls."""
    for _ in range(_ROUNDS):
        before = metric.error(best.numbers - target).sum()
        best = fitted(best, target, metric)
        best = again(best).better(best, target, metric)
        if metric.error(best.numbers - target).sum() >= _SLOW * before:
            break
    return best


def _columns(depth: int) -> Array:
    return np.arange(depth)[None]


def _gptq(target: Array, grid: Grid, metric: Metric, free: Array | None) -> Rounded:
    order, upper = metric.order, metric.upper
    groups, depth = order.shape
    w = np.take_along_axis(target, order[:, None, :], axis=2)
    held = None if free is None else ~np.take_along_axis(free, order[:, None, :], axis=2)
    codes = np.empty(w.shape, np.int64)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.empty((groups, w.shape[1], stop - start))
        for k in range(start, stop):
            here = order[:, k : k + 1]
            wanted = w[:, :, k : k + 1]
            if held is not None:
                wanted = np.where(held[:, :, k : k + 1], 0.0, wanted)
            code = grid.nearest(wanted, here)
            number = grid.numbers(code, here)[:, :, 0]
            if held is not None:
                number = np.where(held[:, :, k], 0.0, number)
            codes[:, :, k] = code[:, :, 0]
            error = (w[:, :, k] - number) / upper[:, None, k, k]
            w[:, :, k + 1 : stop] -= error[:, :, None] * upper[:, None, k, k + 1 : stop]
            errors[:, :, k - start] = error
        w[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    out = np.empty_like(codes)
    np.put_along_axis(out, np.broadcast_to(order[:, None, :], out.shape), codes, axis=2)
    return Rounded(grid, out, free)


def _descend(start: Rounded, target: Array, metric: Metric) -> Rounded:
    """Change one code after the other while the error falls, until none can."""
    grid, h, free = start.grid, metric.damped, start.free
    codes, numbers = start.codes.astype(np.int64), start.numbers.copy()
    slope = (numbers - target) @ h  # half the derivative of the error
    diagonal = np.einsum("gkk->gk", h)
    depth = codes.shape[2]
    for _ in range(_SWEEPS):
        moved = False
        for first in range(0, depth, _BLOCK):
            stop = min(first + _BLOCK, depth)
            before = numbers[:, :, first:stop].copy()
            for k in range(first, stop):
                curve = diagonal[:, None, k]
                wanted = numbers[:, :, k] - slope[:, :, k] / curve
                code = grid.nearest(wanted[:, :, None], np.array([[k]]))
                change = grid.numbers(code, np.array([[k]]))[:, :, 0] - numbers[:, :, k]
                own = change * change * curve
                good = -2 * change * slope[:, :, k] - own > _GAIN * own
                if free is not None:
                    good &= free[:, :, k]
                if not good.any():
                    continue
                moved = True
                change = np.where(good, change, 0.0)
                codes[:, :, k] = np.where(good, code[:, :, 0], codes[:, :, k])
                numbers[:, :, k] += change
                slope[:, :, first:stop] += change[:, :, None] * h[:, None, k, first:stop]
            total = numbers[:, :, first:stop] - before
            if total.any():
                slope[:, :, :first] += total @ h[:, first:stop, :first]
                slope[:, :, stop:] += total @ h[:, first:stop, stop:]
        if not moved:
            break
    return Rounded(grid, codes, free)


# -- parameters --------------------------------------------------------------------------------


def fitted(rounded: Rounded, target: Array, metric: Metric) -> Rounded:
    """The same codes, the grid's parameters by least squares; where they are allowed and better."""
    grid, codes = rounded.grid, rounded.codes
    count = grid.parameters.shape[2]
    if count * codes.size * codes.shape[2] > _SYSTEM_WORK:
        return rounded
    square, right = _normal_equations(rounded, target, metric)
    if grid.tied:
        square, right = (a.sum(axis=(0, 1), keepdims=True) for a in (square, right))
    old = grid.parameters
    unused = np.einsum("grss->grs", square) <= 0
    square = np.asarray(square + unused[..., None] * np.eye(count))
    right = np.asarray(np.where(unused, old, right))
    try:
        found: Array = np.linalg.solve(square, right[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return rounded
    found = found.astype(np.float32).astype(np.float64)
    good = np.isfinite(found).all(axis=2) & grid.allowed(found)
    if isinstance(grid, Uniform):
        good &= (found > 0).all(axis=2)
    parameters = np.where(good[..., None], found, old)
    made = Rounded(grid.with_parameters(parameters), codes, rounded.free)
    return made.better(rounded, target, metric)


def _normal_equations(rounded: Rounded, target: Array, metric: Metric) -> tuple[Array, Array]:
    """[groups, R, S, S] and [groups, R, S]: of the parameters of each output."""
    grid, codes = rounded.grid, rounded.codes
    groups, outputs, depth = codes.shape
    count = grid.parameters.shape[2]
    slot, factor = grid.terms(codes, _columns(depth))
    factor = np.broadcast_to(factor, codes.shape).astype(np.float64)
    if rounded.free is not None:
        factor = factor * rounded.free
    place = (np.arange(groups * outputs).reshape(groups, outputs, 1) * count + slot).reshape(-1)
    square = np.empty((groups, outputs, count, count))
    right = np.empty((groups, outputs, count))
    for s in range(count):
        mine = factor * (slot == s)
        used = np.flatnonzero(mine.any(axis=(0, 1)))
        spread = mine[:, :, used] @ metric.damped[:, used, :]
        sums = np.bincount(place, (spread * factor).reshape(-1), groups * outputs * count)
        square[:, :, s] = sums.reshape(groups, outputs, count)
        right[:, :, s] = (spread * target).sum(axis=2)
    return square, right


def searched_scales(target: Array, grid: Uniform, importance: Array) -> Uniform:
    """Smaller scales, at which large weights are clamped, where that lowers the error.

    Every run of columns of an output is tried by itself with rounding to nearest, errors weighed
    by the variances of the inputs.

    Args:
        target: [groups, R, K].
        grid: the scales at which the largest weights are the largest codes.
        importance: [groups, K].
    """
    count = grid.parameters.shape[2]
    member = grid.run[:, None] == np.arange(count)
    weights = importance[:, None, :]
    columns = _columns(target.shape[2])
    best, chosen = np.full((*target.shape[:2], count), np.inf), grid.parameters
    if grid.tied:
        best = best[:1, :1]
    share = 1.0
    while share > _SMALLEST_SHARE:
        scales = np.maximum(grid.parameters * share, grid.floor[..., None])
        tried = grid.with_parameters(scales.astype(np.float32).astype(np.float64))
        noise = tried.numbers(tried.nearest(target, columns), columns) - target
        error = (noise * noise * weights) @ member
        if grid.tied:
            error = error.sum(axis=(0, 1), keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        chosen = np.asarray(np.where(better, tried.parameters, chosen))
        share *= _SHRINKING
    found = grid.with_parameters(np.ascontiguousarray(chosen))
    assert isinstance(found, Uniform)
    return found


__all__ = [
    "ROUNDING_HELP",
    "Metric",
    "Rounded",
    "Rounding",
    "fitted",
    "round_weights",
    "searched_scales",
]
