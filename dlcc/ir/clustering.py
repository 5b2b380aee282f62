"""k-means for codebooks: deterministic, exact where a codebook holds every value."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]

Start = Literal["linear", "density", "random"]
"""Where k-means starts (Han et al. 2016, section 3.2): centres evenly spaced between the smallest
and the largest number; with equally many numbers between them; or numbers chosen at random."""

_ROUNDS = 50
_VECTOR_ROUNDS = 20
_TRAINING = 1 << 15
"""Vectors on which a vector codebook is trained, at most."""
_CHUNK = 1 << 14


def cluster_scalars(
    values: Array,
    size: int,
    start: Start = "linear",
    rng: np.random.Generator | None = None,
) -> tuple[Array, Array]:
    """A codebook for numbers, by Lloyd's iteration.

    Evenly spaced centres keep the few large weights apart (Han et al. 2016, section 3.2).

    Args:
        values: float32, any shape.
        size: largest number of entries.
        start: where the centres start.
        rng: chooses the random ones; a fixed seed where it is not given.

    Returns:
        float32 entries in rising order (no more than distinct values), and the index of the
        nearest entry of each value, int32 in the shape of ``values``.
    """
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if distinct.size <= size:
        return distinct, inverse.astype(np.int32).reshape(values.shape)
    numbers = distinct.astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    weight = np.concatenate([[0.0], np.cumsum(counts * numbers)])
    centres = _started(numbers, mass, size, start, rng or np.random.default_rng(0))
    for _ in range(_ROUNDS):
        cuts = _cuts(numbers, centres)
        inside = mass[cuts[1:]] - mass[cuts[:-1]]
        sums = weight[cuts[1:]] - weight[cuts[:-1]]
        moved = np.where(inside > 0, sums / np.maximum(inside, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    entries = np.unique(centres.astype(np.float32))
    cuts = _cuts(numbers, entries.astype(np.float64))
    index = np.searchsorted(cuts[1:], np.arange(numbers.size), side="right")
    return entries, index.astype(np.int32)[inverse].reshape(values.shape)


def _started(
    numbers: Array, mass: Array, size: int, start: Start, rng: np.random.Generator
) -> Array:
    """``size`` first centres in rising order; ``mass[i]`` values are below ``numbers[i]``."""
    if start == "linear":
        return np.linspace(numbers[0], numbers[-1], size)
    if start == "random":
        return np.sort(rng.choice(numbers, size, replace=False))
    ranks = (np.arange(size) + 0.5) * (mass[-1] / size)
    places = np.searchsorted(mass[1:], ranks, side="right")
    return np.asarray(numbers[np.minimum(places, len(numbers) - 1)])


def _cuts(numbers: Array, centres: Array) -> Array:
    """Places in sorted ``numbers`` where the nearest of the sorted ``centres`` changes."""
    middles = (centres[1:] + centres[:-1]) / 2
    inner = np.searchsorted(numbers, middles, side="right")
    return np.concatenate([[0], inner, [numbers.size]])


def cluster_vectors(vectors: Array, size: int) -> tuple[Array, Array]:
    """A codebook for vectors, by Lloyd's iteration on a sample.

    Args:
        vectors: float32[count, length].
        size: largest number of entries.

    Returns:
        float32[entries, length] and the index of the nearest entry of each vector, int32[count].
    """
    rng = np.random.default_rng(0)
    sample = vectors
    if len(vectors) > _TRAINING:
        sample = vectors[rng.choice(len(vectors), _TRAINING, replace=False)]
    distinct = np.unique(sample, axis=0)
    if len(distinct) <= size:
        everything = distinct if sample is vectors else np.unique(vectors, axis=0)
        if len(everything) <= size:
            return everything, nearest_vector(vectors, everything)
        distinct = everything
    centres = distinct[rng.choice(len(distinct), size, replace=False)]
    for _ in range(_VECTOR_ROUNDS):
        index = nearest_vector(sample, centres)
        moved = _means(sample, index, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres, nearest_vector(vectors, centres)


def _means(sample: Array, index: Array, centres: Array) -> Array:
    """Mean of each cluster; an empty one gets the vector that is worst served."""
    counts = np.bincount(index, minlength=len(centres))
    sums = np.zeros(centres.shape, np.float64)
    np.add.at(sums, index, sample.astype(np.float64))
    moved = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        error = np.sum((sample - centres[index]).astype(np.float64) ** 2, axis=1)
        moved[empty] = sample[np.argsort(-error, kind="stable")[: empty.size]]
    return moved


def nearest_vector(vectors: Array, centres: Array) -> Array:
    """int32[count]: index of the centre at the smallest Euclidean distance, the first if equal."""
    out = np.empty(len(vectors), np.int32)
    points = centres.astype(np.float64)
    norms = np.sum(points**2, axis=1)
    for i in range(0, len(vectors), _CHUNK):
        chunk = vectors[i : i + _CHUNK].astype(np.float64)
        out[i : i + _CHUNK] = np.argmin(norms - 2 * (chunk @ points.T), axis=1)
    return out
