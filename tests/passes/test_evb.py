"""Ranks by variational Bayesian matrix factorisation."""

from __future__ import annotations

import numpy as np
import pytest

from passes.factorization.evb import _knee, evb_rank


def spectrum(rows: int, columns: int, rank: int, strength: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    matrix = rng.standard_normal((rows, columns)) + strength / max(rank, 1) ** 0.5 * signal
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"),
    [(100, 200, 10), (200, 100, 10), (64, 576, 8), (200, 200, 30), (20, 400, 5), (100, 100, 0)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e5])
def test_the_rank_of_a_noisy_matrix_is_found(
    rows: int, columns: int, rank: int, scale: float
) -> None:
    singular = spectrum(rows, columns, rank, 2.5)
    assert evb_rank(scale * singular, rows, columns) == rank


def test_a_matrix_without_noise_keeps_its_rank() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 90))
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert evb_rank(singular, 60, 90) == 5
    assert evb_rank(np.array([3.0]), 1, 9) == 1
    assert evb_rank(np.zeros(4), 4, 9) == 0


def test_signals_below_the_noise_are_not_seen() -> None:
    assert evb_rank(spectrum(100, 100, 10, 0.1), 100, 100) == 0


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 1.0])
def test_the_knee_is_near_its_published_approximation(alpha: float) -> None:
    assert _knee(alpha) == pytest.approx(2.5129 * alpha**0.5, rel=0.15)
