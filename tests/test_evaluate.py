"""Metrics between two networks' scores."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import fidelity, log_softmax, top_k


def test_equal_scores_are_perfect() -> None:
    x = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    found = fidelity(x, x)
    assert (found.agreement, found.divergence, found.sqnr_db) == (1.0, 0.0, float("inf"))
    assert found.to_json()["samples"] == 20


def test_figures_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    scores = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    found = fidelity(reference, scores)
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert found.divergence == pytest.approx(kl / 2)
    assert found.agreement == 0.5
    noise = np.square(scores - reference).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(reference).sum() / noise))


def test_divergence_does_not_see_a_shift_and_does_not_overflow() -> None:
    x = np.random.default_rng(1).standard_normal((6, 4)) * 500
    assert fidelity(x, x + 1000).divergence == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(log_softmax(x)).all()


def test_top_k() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    labels = np.array([1, 1, 0])
    assert top_k(scores, labels) == 0.0
    assert top_k(scores, labels, 2) == 1.0
    assert top_k(scores, np.array([0, 0, 2])) == 1.0


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (0, 4), (5,)])
def test_scores_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(DlccError) as caught:
        fidelity(np.zeros((5, 4)), np.zeros(shape))
    assert caught.value.code is ExitCode.DATA
