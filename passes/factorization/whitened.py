"""The forms, fitted to what a layer computes on data instead of to its weights.

The results of a layer on centred inputs x of covariance S are T x. What a truncation loses is
measured there: with S = L L^T, the error of T' is |T L - T' L|. For one matrix the best projection
is onto the principal directions of the results (Zhang et al. 2016, "Accelerating very deep
convolutional networks", section 3.1). For the others a first factor is chosen in the metric of the
covariance of its own inputs, and what follows it is the least-squares solution on its results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlcc.ir.encodings import Array
from passes.compression import refit
from passes.compression.refit import Sums
from passes.factorization.forms import Form, Spatial, Svd, Tucker, principal
from passes.factorization.layer import Layer, Ranks

_FLOOR = 1e-6
"""Least variance of a direction, over the largest one's."""

_BALANCED = 1e-3
"""Singular values below this part of the largest are split between factors as if they were it."""


@dataclass(frozen=True)
class Metric:
    """What a layer is to compute, on the inputs that reach it.

    Attributes:
        target: float64 [O, K], K = I * KH * KW: the weight that makes the dense network's results
            of the inputs that the factorised prefix gives; near the layer's own.
        covariance: [K, K], of the inputs.
        sums: over all rows of inputs and results, for the error and the bias.
        held: over the rows that only judge.
    """

    target: Array
    covariance: Array
    sums: Sums
    held: Sums

    @staticmethod
    def of(layer: Layer, fitted: Sums, held: Sums, *, dense_prefix: bool = False) -> Metric:
        """The metric of a layer, from the sums of :mod:`passes.compression.side_by_side`.

        ``dense_prefix``: the inputs are those of the dense network, whose weight is the target.
        """
        weight = layer.weight.reshape(1, layer.outputs, -1)
        target = weight
        if not dense_prefix:
            target = refit.fit(weight, np.ones(weight.shape, np.bool_), fitted, held).weight
        every = fitted + held
        mean = every.x[0] / every.count
        covariance = every.xx[0] / every.count - np.outer(mean, mean)
        return Metric(target[0], covariance, every, held)

    @property
    def spread(self) -> float:
        """Variance of the results, summed over channels."""
        return float(
            np.einsum("ok,kl,ol->", self.target, self.covariance, self.target, optimize=True)
        )

    def bias(self, weight: Array) -> Array:
        """The bias [O] with which a weight [O, I, KH, KW] gives the dense network's means."""
        return np.asarray(refit.matching_bias(self._rows(weight), self.sums)[0])

    def error(self, weight: Array, bias: Array, *, held: bool = False) -> float:
        """Norm of the error of the results over that of their deviation from the mean."""
        sums = self.held if held else self.sums
        return sums.relative_error(self._rows(weight), bias[None])

    def _rows(self, weight: Array) -> Array:
        return weight.reshape(1, len(weight), -1)


class WhitenedSvd(Svd):
    """Projection of the results onto their principal directions."""

    def __init__(self, layer: Layer, metric: Metric) -> None:
        super().__init__(layer)
        self.metric = metric

    @cached_property
    def _factors(self) -> tuple[Array, Array, Array]:
        target, covariance = self.metric.target, self.metric.covariance
        energies, vectors = principal(target @ covariance @ target.T)
        values = np.sqrt(np.maximum(energies, _BALANCED**2 * max(energies[0], 1e-300)))
        return vectors, values, vectors.T @ target / values[:, None]

    def evb(self) -> Ranks:
        return Svd(self.layer).evb()


class _Projection:
    """A first factor for each rank, and the best layer behind it.

    The first factor maps F of the input's axes to r directions and leaves T taps alone.
    """

    def __init__(self, metric: Metric, front: int) -> None:
        outputs, depth = metric.target.shape
        taps = depth // front
        target = metric.target.reshape(outputs, front, taps)
        covariance = metric.covariance.reshape(front, taps, front, taps)
        variances, directions = principal(np.einsum("ftgt->fg", covariance))
        deviations = np.sqrt(np.maximum(variances, _FLOOR * max(variances[0], 1e-300)))
        root = directions * deviations
        gram = np.einsum("oft,ogt->fg", target, target, optimize=True)
        _, basis = principal(root.T @ gram @ root)
        self.taps = taps
        self.first = (directions / deviations @ basis).T
        """[F, F]: the first rows are the factor of that rank."""
        self._solve(metric, covariance)

    def _solve(self, metric: Metric, covariance: Array) -> None:
        """Normal equations on the results z of the first factor, for all ranks at once.

        Their Cholesky factor L is nested: its leading blocks are those of lower ranks.
        """
        front, taps = covariance.shape[:2]
        outputs = len(metric.target)
        half = np.einsum("rf,ftgu->rtgu", self.first, covariance, optimize=True)
        square = np.einsum("rtgu,sg->rtsu", half, self.first, optimize=True)
        square = square.reshape(front * taps, front * taps)
        square[np.diag_indices_from(square)] += _FLOOR * np.trace(square) / len(square)
        cross = half.reshape(front * taps, front * taps) @ metric.target.T
        self.lower = np.linalg.cholesky(square)
        self.coordinates = np.linalg.solve(self.lower, cross)
        """[F * T, O]: results in coordinates in which squares are energies."""
        assert self.coordinates.shape == (front * taps, outputs)

    def energies(self, basis: Array) -> Array:
        """[F, columns]: energy of each direction of z along each of an output basis' columns."""
        squares = np.square(self.coordinates @ basis)
        return np.asarray(squares.reshape(-1, self.taps, squares.shape[1]).sum(axis=1))

    def part(self, rank: int) -> Array:
        """The coordinates that the first ``rank`` directions span, [rank * T, O]."""
        return self.coordinates[: rank * self.taps]

    def last(self, rank: int) -> Array:
        """Weight [O, rank, T] of the layer behind the first ``rank`` directions."""
        size = rank * self.taps
        weight = np.linalg.solve(self.lower[:size, :size].T, self.part(rank))
        return np.ascontiguousarray(weight.T).reshape(-1, rank, self.taps)


class WhitenedSpatial(Spatial):
    """A vertical factor in the metric of its windows, and the best horizontal one behind it."""

    def __init__(self, layer: Layer, metric: Metric) -> None:
        super().__init__(layer)
        self.metric = metric

    @cached_property
    def _projection(self) -> _Projection:
        return _Projection(self.metric, self.layer.inputs * self.layer.kernel[0])

    @cached_property
    def _energies(self) -> Array:
        each = self._projection.energies(np.eye(self.layer.outputs)).sum(axis=1)
        return np.asarray(each.cumsum() / max(each.sum(), 1e-300))

    def kept(self, ranks: Ranks) -> float:
        return float(self._energies[ranks[0] - 1])

    def weights(self, ranks: Ranks) -> list[Array]:
        (r,), kh = ranks, self.layer.kernel[0]
        first = self._projection.first[:r].reshape(r, self.layer.inputs, kh, 1)
        return [first, self._projection.last(r)[:, :, None, :]]

    def evb(self) -> Ranks:
        return Spatial(self.layer).evb()


class WhitenedTucker(Tucker):
    """Input directions in the metric of the input channels, and the best core and output ones."""

    def __init__(self, layer: Layer, metric: Metric) -> None:
        super().__init__(layer)
        self.metric = metric

    @cached_property
    def _projection(self) -> _Projection:
        return _Projection(self.metric, self.layer.inputs)

    @cached_property
    def _energies(self) -> Array:
        coordinates = self._projection.coordinates
        _, basis = principal(coordinates.T @ coordinates)
        table = self._projection.energies(basis).T.cumsum(axis=0).cumsum(axis=1)
        return np.pad(table, ((1, 0), (1, 0)))

    def weights(self, ranks: Ranks) -> list[Array]:
        r, s = ranks
        w, o, i = self.layer.weight, self.layer.outputs, self.layer.inputs
        if r < i:
            part, second = self._projection.part(r), self._projection.last(r)
            gram, second = part.T @ part, second.reshape(o, r, *w.shape[2:])
        else:
            target = self.metric.target
            gram, second = target @ self.metric.covariance @ target.T, target.reshape(w.shape)
        first = [self._projection.first[:r][:, :, None, None]] if r < i else []
        if s >= o:
            return [*first, second]
        last = principal(gram)[1][:, :s]
        core = np.einsum("os,orkl->srkl", last, second, optimize=True)
        return [*first, core, np.ascontiguousarray(last)[:, :, None, None]]


WHITENED: dict[str, type[WhitenedSvd] | type[WhitenedSpatial] | type[WhitenedTucker]] = {
    form.name: form for form in (WhitenedSvd, WhitenedTucker, WhitenedSpatial)
}


def whitened(form: type[Form], layer: Layer, metric: Metric) -> Form:
    """A form fitted to data, or (cp) to the weights alone."""
    return WHITENED[form.name](layer, metric) if form.name in WHITENED else form(layer)


__all__ = ["Metric", "whitened"]
