"""Rank of a matrix of signal and noise, by empirical variational Bayesian matrix factorisation.

Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14 (2013), give the global solution in closed form: a singular
value is kept where it exceeds a threshold that depends on the noise variance (theorem 2), and the
variance is the minimum of a function of one variable (theorem 3).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dlcc.ir.encodings import Array

_SCAN = 256
"""Noise variances at which the free energy is computed before its minimum is narrowed down."""

_STEPS = 60
"""Golden-section steps: the interval shrinks by 10^-12."""


def evb_rank(singular: Array, rows: int, columns: int) -> int:
    """Number of components of a matrix that stand out from noise of unknown variance.

    Args:
        singular: all singular values, falling; as many as the shorter side.
        rows: of the matrix.
        columns: of the matrix.

    Returns:
        0 where the matrix looks like noise alone.
    """
    short, long = min(rows, columns), max(rows, columns)
    squares = np.asarray(singular, np.float64) ** 2
    squares = squares[squares > squares.max(initial=0.0) * 1e-24]
    if len(squares) < 2:
        return len(squares)
    alpha = short / long
    knee = _knee(alpha)
    edge = (1 + knee) * (1 + alpha / knee)
    variance = _noise_variance(squares, short, long, alpha, edge)
    return int(np.count_nonzero(squares > long * variance * edge))


@lru_cache(maxsize=1024)
def _knee(alpha: float) -> float:
    """Zero of Phi(t) + Phi(t / alpha) with Phi(z) = log(z + 1) / z - 1/2 (near 2.5129 sqrt alpha).

    Phi falls, so the zero is bracketed by bisection.
    """

    def phi(z: float) -> float:
        return float(np.log1p(z)) / z - 0.5

    low, high = 1e-12, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        if phi(middle) + phi(middle / alpha) > 0:
            low = middle
        else:
            high = middle
    return high


def _noise_variance(squares: Array, short: int, long: int, alpha: float, edge: float) -> float:
    """The variance of least free energy (theorem 3), between the bounds that the theorem gives."""
    total = float(squares.sum())
    most = min(int(np.ceil(short / (1 + alpha))) - 1, len(squares) - 1)
    upper = total / (short * long)
    lower = max(squares[most] / (long * edge), float(squares[most:].mean()) / long)
    if lower >= upper:
        return upper
    grid = np.geomspace(lower, upper, _SCAN)
    values = [_free_energy(v, squares, short, long, alpha, edge) for v in grid]
    best = int(np.argmin(values))
    low, high = grid[max(0, best - 1)], grid[min(_SCAN - 1, best + 1)]
    ratio = (5**0.5 - 1) / 2
    for _ in range(_STEPS):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        below = _free_energy(a, squares, short, long, alpha, edge) < _free_energy(
            b, squares, short, long, alpha, edge
        )
        low, high = (low, b) if below else (a, high)
    return float((low + high) / 2)


def _free_energy(
    variance: float, squares: Array, short: int, long: int, alpha: float, edge: float
) -> float:
    """Free energy over the short side's terms, up to a constant (equation 33 and below)."""
    x = squares / (long * variance)
    signal, noise = x[x > edge], x[x <= edge]
    centred = signal - (1 + alpha)
    tau = (centred + np.sqrt(np.maximum(centred**2 - 4 * alpha, 0.0))) / 2
    kept = signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1)
    empty = (short - len(squares)) * np.log(variance)  # components without any energy
    return float((noise - np.log(noise)).sum() + kept.sum() + empty)
