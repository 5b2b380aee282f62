"""How faithful one network is to another: agreement, divergence and noise of their outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir.encodings import Array


@dataclass(frozen=True)
class Fidelity:
    """A network's scores against those of its reference, over the same samples.

    Attributes:
        samples: number of samples.
        agreement: share of samples whose highest score is of the same class, 0 to 1.
        divergence: mean Kullback-Leibler divergence of softmax(scores) from softmax(reference),
            in nats.
        sqnr_db: signal to quantisation noise, 10 log10(sum reference^2 / sum (scores -
            reference)^2); inf where both are equal.
    """

    samples: int
    agreement: float
    divergence: float
    sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return asdict(self)


def log_softmax(scores: Array) -> Array:
    """Logarithm of the softmax over the last axis, float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def ranks(scores: Array, labels: Array) -> Array:
    """How many classes stand before the label: 0 is a hit. Of equal scores the first class wins.

    Args:
        scores: [samples, classes].
        labels: integers [samples].
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    return np.asarray(np.sum((scores > own) | ((scores == own) & before), axis=1))


def top_k(scores: Array, labels: Array, k: int = 1) -> float:
    """Share of samples whose label is among the ``k`` highest scores; the first of equals wins.

    Args:
        scores: [samples, classes].
        labels: integers [samples].
        k: at least 1.
    """
    _check(scores, labels.shape + scores.shape[1:])
    return float((ranks(scores, labels) < k).mean())


def fidelity(reference: Array, scores: Array) -> Fidelity:
    """Compare scores [samples, classes] with the reference's.

    Raises:
        DlccError: the shapes differ, or there is no sample.
    """
    _check(scores, reference.shape)
    log_p, log_q = log_softmax(reference), log_softmax(scores)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    real = reference.astype(np.float64)
    noise = float(np.square(scores - real).sum())
    signal = float(np.square(real).sum())
    return Fidelity(
        samples=len(reference),
        agreement=float((reference.argmax(axis=1) == scores.argmax(axis=1)).mean()),
        divergence=max(0.0, float(divergence)),
        sqnr_db=10 * float(np.log10(signal / noise)) if noise and signal else float("inf"),
    )


def _check(scores: Array, shape: tuple[int, ...]) -> None:
    if scores.ndim != 2 or scores.shape != shape or not scores.size:
        raise DlccError(
            ExitCode.DATA,
            "the scores cannot be compared",
            why=f"they are {list(scores.shape)}, must be {list(shape)} with at least one sample",
            fix="give scores [samples, classes] of the same samples",
        )
