"""Pruning of chosen layers: how many units each keeps, and the encoding that they are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.ir import Encoding, Graph, Sparse
from dlcc.ir.encodings import Array
from passes.compression.layers import Refuse, WeightLayer
from passes.compression.masks import Facts, Units, fitted_pattern


@dataclass(frozen=True)
class Candidate:
    """A layer that can be pruned.

    Attributes:
        layer: the layer.
        units: its units.
        scores: float64 [groups, units]: the saliency of each.
    """

    layer: WeightLayer
    units: Units
    scores: Array

    @property
    def means(self) -> Array:
        """float64 [groups, units]: saliency per element."""
        return np.asarray(self.scores / np.maximum(self.units.sizes(), 1))

    def mask(self, keep: int) -> Array:
        """bool, in the weight's shape: the ``keep`` units of the highest saliency."""
        return self.units.kept(self.scores, keep)


@dataclass(frozen=True)
class Pruned:
    """What pruning did to a layer.

    Attributes:
        zeros: elements that are 0 now.
        elements: of the weight.
        bytes_before: in the weights file.
        bytes_after: in the weights file.
        error: norm of the weight's change over the norm of the weight.
        encoding: name of the pattern, or "dense" where that is smaller.
    """

    zeros: int
    elements: int
    bytes_before: int
    bytes_after: int
    error: float
    encoding: str

    def __str__(self) -> str:
        return (
            f"{100 * self.zeros / self.elements:.1f} % zero ({self.encoding}), "
            f"{self.bytes_before} -> {self.bytes_after} bytes, weight error {self.error:.3g}"
        )


def candidates(
    layers: Sequence[WeightLayer],
    saliencies: Sequence[Array],
    pattern: str,
    facts: Facts,
    refuse: Refuse,
    *,
    per_row: bool = False,
) -> list[Candidate]:
    """The layers that the pattern fits.

    Args:
        layers: the layers.
        saliencies: additive saliency of every weight, in the weight's shape.
        pattern: as :func:`passes.compression.masks.fitted_pattern` takes it.
        facts: of the target.
        refuse: told of a layer that is left out.
        per_row: weights compete within their row only.
    """
    out = []
    for layer, saliency in zip(layers, saliencies, strict=True):
        try:
            fitted = fitted_pattern(pattern, layer.values.shape, facts)
            units = Units.of(fitted, layer.values.shape, per_row=per_row)
            Sparse(fitted, _inner(layer))
        except ValueError as error:
            refuse(layer.loc, str(error))
            continue
        out.append(Candidate(layer, units, units.scores(saliency)))
    return out


def keep_at(candidate: Candidate, sparsity: float) -> int:
    """Units that a layer of this sparsity keeps."""
    return max(1, candidate.units.count - round(sparsity * candidate.units.count))


def keep_in_all(found: Sequence[Candidate], sparsity: float) -> list[int]:
    """Units that each layer keeps where the least salient of the network are dropped.

    Saliencies per element are compared across layers; units are dropped while their elements are
    not more than ``sparsity`` of all. A layer may lose all; the mask keeps one unit for it.
    """
    means = np.concatenate([c.means.reshape(-1) for c in found])
    sizes = np.concatenate([c.units.sizes().reshape(-1) for c in found])
    order = np.argsort(means, kind="stable")
    dropped = np.zeros(len(means), np.bool_)
    dropped[order] = np.cumsum(sizes[order]) <= sparsity * sizes.sum() + 1e-9
    ends = np.cumsum([c.units.count for c in found])[:-1]
    return [int(np.count_nonzero(~part)) for part in np.split(dropped, ends)]


def keep_above(candidate: Candidate, saliency: float) -> int:
    """Units of a layer whose saliency per element is at least ``saliency``."""
    return int(np.count_nonzero(candidate.means >= saliency))


def _inner(layer: WeightLayer) -> Encoding:
    encoding = layer.weight.type.encoding
    return encoding.inner if isinstance(encoding, Sparse) else encoding


def store(graph: Graph, candidate: Candidate, values: Array) -> None:
    """Store a layer's remaining weights: sparse, or dense with zeros where that is smaller.

    Args:
        graph: the network.
        candidate: the layer.
        values: real values of its weight, 0 where nothing remains.
    """
    layer, inner = candidate.layer, _inner(candidate.layer)
    sparse = Sparse(candidate.units.pattern, inner)
    parts, whole = sparse.encode(values), inner.encode(values)
    smaller = sparse.stored_bytes(parts) < inner.stored_bytes(whole)
    layer.store(graph, parts if smaller else whole, sparse if smaller else inner)


def report(candidate: Candidate, bytes_before: int) -> Pruned:
    """What became of a layer that took ``bytes_before`` bytes."""
    layer = candidate.layer
    after = layer.weight.decoded()
    sparse = isinstance(layer.weight.type.encoding, Sparse)
    return Pruned(
        zeros=int(after.size - np.count_nonzero(after)),
        elements=int(after.size),
        bytes_before=bytes_before,
        bytes_after=layer.stored_bytes,
        error=float(np.linalg.norm(after - layer.values) / np.linalg.norm(layer.values)),
        encoding=candidate.units.pattern if sparse else "dense, which is smaller",
    )


__all__ = [
    "Candidate",
    "Pruned",
    "candidates",
    "keep_above",
    "keep_at",
    "keep_in_all",
    "report",
    "store",
]
