"""Canonical polyadic form of a convolution: a sum of outer products of four vectors."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir.encodings import Array
from passes.factorization.forms import Form, Tucker
from passes.factorization.layer import Factor, Layer, Ranks

SWEEPS = 60
"""Alternating least-squares sweeps at most."""

GAIN = 1e-6
"""They stop when one gains less than this part of the weights' energy."""

_RIDGE = 1e-6
"""Damping of each least-squares step, over the mean of its diagonal: keeps components apart that
would grow without bound against each other (Phan et al. 2020)."""

_GRID = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Ranks looked at: each takes an optimisation of its own."""

_MODES = "oikl"


class Cp(Form):
    """1x1, vertical depthwise, horizontal depthwise, 1x1 (Lebedev et al. 2015).

    The rank-one terms are fitted to the weights by alternating least squares; there is no closed
    form, and the result is a local minimum.
    """

    name: ClassVar[str] = "cp"

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self._known: dict[int, list[Array]] = {}

    @classmethod
    def refusal(cls, layer: Layer) -> str:
        return "" if min(layer.kernel) > 1 else "its kernel has no two axes to separate"

    @property
    def full(self) -> Ranks:
        size, shape = self.layer.weight.size, self.layer.weight.shape
        return (min(size // n for n in shape),)

    def candidates(self) -> list[Ranks]:
        return [(r,) for r in _GRID if r < min(self.full[0], 2 * max(self.layer.weight.shape))]

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        layer, (r,), g = self.layer, ranks, self.layer.geometry()
        kh, kw = layer.kernel
        return (
            Factor("reduce", (r, layer.inputs, 1, 1)),
            Factor("vertical", (r, 1, kh, 1), g.along(0), r),
            Factor("horizontal", (r, 1, 1, kw), g.along(1), r),
            Factor("expand", (layer.outputs, r, 1, 1)),
        )

    def kept(self, ranks: Ranks) -> float:
        error = np.square(self.compose(self.weights(ranks)) - self.layer.weight).sum()
        return max(0.0, 1 - float(error) / self.layer.energy)

    def weights(self, ranks: Ranks) -> list[Array]:
        o, i, k, l = self._vectors(ranks[0])  # noqa: E741 - the names of the modes
        return [
            i.T[:, :, None, None],
            k.T[:, None, :, None],
            l.T[:, None, None],
            o[:, :, None, None],
        ]

    def compose(self, weights: list[Array]) -> Array:
        i, k, l, o = weights  # noqa: E741
        vectors = (i[:, :, 0, 0], k[:, 0, :, 0], l[:, 0, 0], o[:, :, 0, 0])
        return np.asarray(np.einsum("ri,rk,rl,or->oikl", *vectors, optimize=True))

    def evb(self) -> Ranks:
        """The larger of the two ranks of the Tucker form."""
        return (max(Tucker(self.layer).evb()),)

    def _vectors(self, rank: int) -> list[Array]:
        """[n, rank] for the output, the input, the vertical and the horizontal mode."""
        if rank not in self._known:
            self._known[rank] = self._alternate(rank)
        return self._known[rank]

    def _alternate(self, rank: int) -> list[Array]:
        rng = np.random.default_rng(rank)
        weight = self.layer.weight
        vectors = [rng.standard_normal((n, rank)) for n in weight.shape]
        before = -np.inf
        for _ in range(SWEEPS):
            for mode in range(4):
                vectors[mode] = self._solve(vectors, mode)
            self._balance(vectors)
            composed = np.einsum("or,ir,kr,lr->oikl", *vectors, optimize=True)
            kept = 1 - float(np.square(composed - weight).sum()) / self.layer.energy
            if kept - before < GAIN:
                break
            before = kept
        return vectors

    def _solve(self, vectors: list[Array], mode: int) -> Array:
        """Least squares for one mode's vectors, the others fixed."""
        others = [m for m in range(4) if m != mode]
        terms = ",".join(f"{_MODES[m]}r" for m in others)
        right = np.einsum(
            f"{_MODES},{terms}->{_MODES[mode]}r",
            self.layer.weight,
            *(vectors[m] for m in others),
            optimize=True,
        )
        gram = np.prod([vectors[m].T @ vectors[m] for m in others], axis=0)
        gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
        return np.asarray(np.linalg.solve(gram, right.T).T)

    def _balance(self, vectors: list[Array]) -> None:
        """Give the four vectors of a component one length, in place."""
        lengths = [np.maximum(np.linalg.norm(v, axis=0), 1e-150) for v in vectors]
        mean = np.prod(lengths, axis=0) ** 0.25
        for v, length in zip(vectors, lengths, strict=True):
            v *= mean / length


__all__ = ["Cp"]
