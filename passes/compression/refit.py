"""Least squares: the weights that remain of a layer take over what the dropped ones did.

Layer after layer, on what the already pruned prefix of the network computes, each output's
remaining weights and its bias are fitted to the outputs of the dense network (the closed form of
Hassibi and Stork 1993, Optimal Brain Surgeon, for all dropped weights of an output at once; inputs
of the pruned and outputs of the dense network as in He et al. 2017, "Channel pruning"). A ridge
draws the weights to what they were; how strong it is, samples decide that took no part in the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlcc.ir.encodings import Array

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges to choose from, over the mean variance of the layer's inputs."""

_TRIED = 64
"""Outputs of a layer on which the ridge is chosen."""

WORK = 2e12
"""Floating-point operations that the fit of one layer may cost."""


@dataclass
class Sums:
    """Sums over rows x (inputs of a layer) and t (wanted outputs).

    Attributes:
        count: rows.
        x: [groups, K].
        t: [groups, O / groups].
        xx: [groups, K, K].
        xt: [groups, K, O / groups].
        tt: [groups, O / groups]: squares.
    """

    count: int
    x: Array
    t: Array
    xx: Array
    xt: Array
    tt: Array

    @staticmethod
    def zero(groups: int, depth: int, outputs: int) -> Sums:
        """No rows yet."""
        return Sums(
            0,
            np.zeros((groups, depth)),
            np.zeros((groups, outputs)),
            np.zeros((groups, depth, depth)),
            np.zeros((groups, depth, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, x: Array, t: Array) -> None:
        """Add rows x [groups, rows, K] and t [groups, rows, O / groups]."""
        self.count += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.t += t.sum(axis=1, dtype=np.float64)
        turned = x.transpose(0, 2, 1)
        self.xx += turned @ x
        self.xt += turned @ t
        self.tt += np.square(t).sum(axis=1, dtype=np.float64)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.x + other.x,
            self.t + other.t,
            self.xx + other.xx,
            self.xt + other.xt,
            self.tt + other.tt,
        )

    def squared_error(self, weight: Array, bias: Array) -> Array:
        """Sum of (x @ weight + bias - t)^2, [groups, O / groups].

        Args:
            weight: [groups, O / groups, K].
            bias: [groups, O / groups].
        """
        products = ((weight @ self.xx) * weight).sum(axis=2)
        cross = np.einsum("gok,gko->go", weight, self.xt)
        means = np.einsum("gok,gk->go", weight, self.x)
        linear = 2 * bias * (means - self.t) + self.count * bias**2
        return np.asarray(np.maximum(products - 2 * cross + linear + self.tt, 0.0))

    def relative_error(self, weight: Array, bias: Array) -> float:
        """Norm of the error of all outputs over the norm of their deviation from the mean."""
        spread = float((self.tt - self.t**2 / self.count).sum())
        return float(np.sqrt(self.squared_error(weight, bias).sum() / max(spread, 1e-30)))


@dataclass(frozen=True)
class Fit:
    """The weights of a layer after its fit.

    Attributes:
        weight: [groups, O / groups, K], float64.
        bias: [groups, O / groups].
        ridge: the one chosen; infinite where the weights themselves stay.
    """

    weight: Array
    bias: Array
    ridge: float


def work(mask: Array) -> float:
    """Floating-point operations of :func:`fit` for a mask [groups, O / groups, K]."""
    total = 0.0
    for group in mask:
        systems = np.unique(np.packbits(group, axis=1), axis=0)
        sizes = np.unpackbits(systems, axis=1).sum(axis=1, dtype=np.float64)
        total += float((sizes**3).sum())
    return total


def fit(weight: Array, mask: Array, fitted: Sums, held: Sums) -> Fit:
    """Fit the remaining weights.

    Args:
        weight: [groups, O / groups, K]: where the ridge draws to; 0 where dropped.
        mask: the weights that remain, of the same shape.
        fitted: sums over the rows to fit.
        held: sums over other rows, on which the ridge is chosen.
    """
    few = np.linspace(0, weight.shape[1] - 1, min(_TRIED, weight.shape[1])).astype(int)
    best, chosen = _error(weight[:, few], few, fitted, held), float("inf")
    for ridge in RIDGES:
        tried = _solve(weight[:, few], mask[:, few], _part(fitted, few), ridge)
        error = _error(tried, few, fitted, held)
        if error < best:
            best, chosen = error, ridge
    every = fitted + held
    result = weight if chosen == float("inf") else _solve(weight, mask, every, chosen)
    return Fit(result, matching_bias(result, every), chosen)


def target(weight: Array, keep_zeros: bool, fitted: Sums, held: Sums) -> Array:
    """The weights that a layer should have, before they are rounded.

    Args:
        weight: [groups, O / groups, K], its own.
        keep_zeros: only those that are not 0 may change.
        fitted: as in :func:`fit`.
        held: as in :func:`fit`.

    Returns:
        Those of :func:`fit`, or ``weight`` where that is too much work.
    """
    mask = weight != 0 if keep_zeros else np.ones(weight.shape, np.bool_)
    return weight if work(mask) > WORK else fit(weight, mask, fitted, held).weight


def _part(sums: Sums, outputs: Array) -> Sums:
    return Sums(
        sums.count,
        sums.x,
        sums.t[:, outputs],
        sums.xx,
        sums.xt[:, :, outputs],
        sums.tt[:, outputs],
    )


def _error(weight: Array, outputs: Array, fitted: Sums, held: Sums) -> float:
    """Squared error on the held rows, with the bias that the fitted ones give."""
    bias = matching_bias(weight, _part(fitted, outputs))
    part = _part(held, outputs)
    return float(part.squared_error(weight, bias).sum())


def matching_bias(weight: Array, sums: Sums) -> Array:
    """The bias that makes the means equal."""
    return np.asarray((sums.t - np.einsum("gok,gk->go", weight, sums.x)) / sums.count)


@dataclass(frozen=True)
class _System:
    """Normal equations that outputs of one group with the same mask share.

    Attributes:
        group: the group.
        rows: its outputs.
        kept: their remaining weights.
        square: covariance of these weights' inputs, ridge-damped.
        missing: what the change of the weights is to make up for, [kept, rows].
    """

    group: int
    rows: Array
    kept: Array
    square: Array
    missing: Array

    def add(self, to: Array, change: Array) -> None:
        """Add ``change`` [kept, rows] to an array [groups, O / groups, K]."""
        to[self.group][np.ix_(self.rows, self.kept)] += change.T


def _systems(weight: Array, mask: Array, sums: Sums, ridge: float) -> Iterator[_System]:
    """Normal equations of the change of every output's remaining weights."""
    mean = sums.x / sums.count
    for g in range(len(weight)):
        covariance = sums.xx[g] / sums.count - np.outer(mean[g], mean[g])
        cross = sums.xt[g] / sums.count - np.outer(mean[g], sums.t[g] / sums.count)
        missing = cross - covariance @ weight[g].T
        damping = ridge * float(np.trace(covariance)) / len(covariance)
        if damping <= 0:
            continue  # a constant input: the bias does it all
        packed, which = np.unique(np.packbits(mask[g], axis=1), axis=0, return_inverse=True)
        for system in range(len(packed)):
            rows = np.flatnonzero(which.reshape(-1) == system)
            kept = np.flatnonzero(mask[g, rows[0]])
            square = covariance[np.ix_(kept, kept)]
            square[np.diag_indices(len(kept))] += damping
            yield _System(g, rows, kept, square, missing[np.ix_(kept, rows)])


def _solve(weight: Array, mask: Array, sums: Sums, ridge: float) -> Array:
    out = weight.copy()
    for system in _systems(weight, mask, sums, ridge):
        system.add(out, np.linalg.solve(system.square, system.missing))
    return out


def surgeon(weight: Array, mask: Array, sums: Sums, columns: Array, ridge: float = 1e-2) -> Array:
    """What the remaining weights are worth once the others are fitted without them.

    The rise of an output's squared error when the weights w_B go and the others take over is
    w_B^T ([H^-1]_BB)^-1 w_B at the fitted weights (Hassibi and Stork 1993, eq. 5; for blocks
    Kurtic et al. 2022, "The optimal BERT surgeon", eq. 6).

    Args:
        weight: [groups, O / groups, K]: where the ridge draws to; 0 where dropped.
        mask: the weights that remain, of the same shape.
        sums: sums over the rows to fit.
        columns: [B, c]: which of the K weights of an output go together; -1 fills up.
        ridge: over the mean variance of the inputs.

    Returns:
        Of the weight's shape: for each output and B the worth at its first remaining weight, else
        0.
    """
    out = np.zeros(weight.shape)
    for system in _systems(weight, mask, sums, ridge):
        inverse = np.linalg.inv(system.square)
        old = weight[system.group][np.ix_(system.rows, system.kept)].T
        fitted = old + inverse @ system.missing
        place = np.full(weight.shape[2] + 1, -1)  # the last for what fills up
        place[system.kept] = np.arange(len(system.kept))
        system.add(out, _worth(fitted, inverse, place[columns]))
    return out


def _worth(fitted: Array, inverse: Array, blocks: Array) -> Array:
    """Worth of blocks [B, c] of the weights [kept, rows]; -1 is in none."""
    blocks = blocks[(blocks >= 0).any(axis=1)]
    inside = blocks >= 0
    both = inside[:, :, None] & inside[:, None, :]
    square = np.where(
        both, inverse[blocks[:, :, None], blocks[:, None, :]], np.eye(blocks.shape[1])
    )
    weights = np.where(inside[:, :, None], fitted[blocks], 0.0)
    out = np.zeros(fitted.shape)
    first = blocks[np.arange(len(blocks)), inside.argmax(axis=1)]
    out[first] = (weights * np.linalg.solve(square, weights)).sum(axis=1)
    return out


__all__ = ["WORK", "Fit", "Sums", "fit", "matching_bias", "surgeon", "target", "work"]
