"""Forms that a layer may be factorised into: their layers, and the weights for given ranks.

Each form is a change of variables under which truncation is optimal or nearly so, and tells for
every rank which part of the weights' energy (the sum of their squares) it keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import product
from typing import ClassVar

import numpy as np

from dlcc.ir.encodings import Array
from passes.factorization.evb import evb_rank
from passes.factorization.layer import Factor, Layer, Ranks

HOOI_SWEEPS = 10
"""Alternations of the higher-order orthogonal iteration at most."""

HOOI_GAIN = 1e-6
"""It stops when a sweep gains less than this part of the weights' energy."""

_FINE = ((64, 1), (128, 4), (512, 8), (1024, 16), (4096, 64))
_COARSE = ((16, 1), (64, 4), (128, 8), (384, 16), (768, 32), (4096, 64))
"""Full rank up to which ranks are looked at in which steps."""


class Form(ABC):
    """One form of one layer.

    Attributes:
        name: as the user writes it.
        axes: what each rank is a rank of, for remarks.
    """

    name: ClassVar[str] = ""
    axes: ClassVar[tuple[str, ...]] = ("rank",)

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    @classmethod
    @abstractmethod
    def refusal(cls, layer: Layer) -> str:
        """Why the form does not fit a layer, or ""."""

    @property
    @abstractmethod
    def full(self) -> Ranks:
        """Ranks at which the form is exact."""

    @abstractmethod
    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        """The layers for given ranks."""

    @abstractmethod
    def kept(self, ranks: Ranks) -> float:
        """Part of the energy that :meth:`weights` keeps at least, 0 to 1."""

    @abstractmethod
    def weights(self, ranks: Ranks) -> list[Array]:
        """float64 weights of the factors, in their shapes."""

    @abstractmethod
    def compose(self, weights: list[Array]) -> Array:
        """The weight [O, I, KH, KW] of one layer that computes what the factors compute."""

    @abstractmethod
    def evb(self) -> Ranks:
        """Ranks by variational Bayesian matrix factorisation; 0 where there is only noise."""

    def candidates(self) -> list[Ranks]:
        """Ranks worth looking at, below full rank."""
        every = product(*(rank_grid(r, fine=len(self.full) == 1) for r in self.full))
        return [ranks for ranks in every if ranks != self.full]


def rank_grid(full: int, *, fine: bool) -> list[int]:
    """Ranks from 1 to ``full``: the larger the layer the rarer, and multiples of what 16 divides.

    Args:
        full: the full rank.
        fine: for a form of one rank; else grids are multiplied, and coarser.
    """
    steps = _FINE if fine else _COARSE
    step = next((step for most, step in steps if full <= most), steps[-1][1])
    return [*range(step, full, step), full]


class _Matrix(Form):
    """Forms that are the truncated singular value decomposition of a matrix."""

    @abstractmethod
    def matrix(self) -> Array:
        """The weights as a matrix; its rows go with the last factor."""

    @property
    def full(self) -> Ranks:
        return (min(self._shape),)

    @property
    @abstractmethod
    def _shape(self) -> tuple[int, int]: ...

    @cached_property
    def _factors(self) -> tuple[Array, Array, Array]:
        """Left singular vectors, singular values, right ones, by the shorter side's Gram matrix."""
        matrix = self.matrix()
        tall = matrix.shape[0] > matrix.shape[1]
        short = matrix.T if tall else matrix
        _, vectors = principal(short @ short.T)
        other = vectors.T @ short
        values = np.sqrt(np.square(other).sum(axis=1))
        right = other / np.maximum(values, 1e-150)[:, None]
        return (right.T, values, vectors.T) if tall else (vectors, values, right)

    def kept(self, ranks: Ranks) -> float:
        squares = np.square(self._factors[1])
        return float(squares[: ranks[0]].sum() / squares.sum())

    def evb(self) -> Ranks:
        return (evb_rank(self._factors[1], *self._shape),)

    def _split(self, rank: int) -> tuple[Array, Array]:
        """[rows, rank] and [rank, columns]; both take a root of the singular values."""
        left, values, right = self._factors
        root = np.sqrt(values[:rank])
        return left[:, :rank] * root, root[:, None] * right[:rank]


class Svd(_Matrix):
    """The layer to fewer channels, then a 1x1 layer: an SVD over output channels.

    For a linear layer and a 1x1 convolution this is the best rank r approximation of the weight
    (Eckart and Young 1936; Xue, Li and Gong 2013).
    """

    name: ClassVar[str] = "svd"

    @classmethod
    def refusal(cls, layer: Layer) -> str:
        return ""

    @property
    def _shape(self) -> tuple[int, int]:
        return self.layer.outputs, self.layer.weight.size // self.layer.outputs

    def matrix(self) -> Array:
        return self.layer.weight.reshape(self._shape)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        layer, (r,) = self.layer, ranks
        first = Factor("reduce", (r, layer.inputs, *layer.kernel), layer.geometry())
        return first, Factor("expand", (layer.outputs, r, 1, 1))

    def weights(self, ranks: Ranks) -> list[Array]:
        left, right = self._split(ranks[0])
        return [right.reshape(-1, *self.layer.weight.shape[1:]), left[:, :, None, None]]

    def compose(self, weights: list[Array]) -> Array:
        first, second = weights
        return np.asarray(np.einsum("or,rikl->oikl", second[:, :, 0, 0], first, optimize=True))


class Spatial(_Matrix):
    """A KH x 1 and a 1 x KW convolution (Jaderberg, Vedaldi and Zisserman 2014, scheme 2)."""

    name: ClassVar[str] = "spatial"

    @classmethod
    def refusal(cls, layer: Layer) -> str:
        return "" if min(layer.kernel) > 1 else "its kernel has no two axes to separate"

    @property
    def _shape(self) -> tuple[int, int]:
        o, i, kh, kw = self.layer.weight.shape
        return o * kw, i * kh

    def matrix(self) -> Array:
        return self.layer.weight.transpose(0, 3, 1, 2).reshape(self._shape)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        layer, (r,), g = self.layer, ranks, self.layer.geometry()
        kh, kw = layer.kernel
        return (
            Factor("vertical", (r, layer.inputs, kh, 1), g.along(0)),
            Factor("horizontal", (layer.outputs, r, 1, kw), g.along(1)),
        )

    def weights(self, ranks: Ranks) -> list[Array]:
        left, right = self._split(ranks[0])
        o, i, kh, kw = self.layer.weight.shape
        second = left.reshape(o, kw, 1, -1).transpose(0, 3, 2, 1)
        return [right.reshape(-1, i, kh, 1), np.ascontiguousarray(second)]

    def compose(self, weights: list[Array]) -> Array:
        first, second = weights
        return np.asarray(
            np.einsum("orl,rik->oikl", second[:, :, 0], first[:, :, :, 0], optimize=True)
        )


class Tucker(Form):
    """1x1, core of the kernel's size, 1x1 (Kim et al. 2016, section 3.1: Tucker-2).

    A rank that is full needs no layer of its own: with all input channels kept, the core reads the
    input; with all output channels kept, it writes the output.
    """

    name: ClassVar[str] = "tucker"
    axes: ClassVar[tuple[str, ...]] = ("input rank", "output rank")

    @classmethod
    def refusal(cls, layer: Layer) -> str:
        return "" if layer.kernel != (1, 1) else "its kernel is 1x1; svd is its Tucker form"

    @property
    def full(self) -> Ranks:
        o, i, kh, kw = self.layer.weight.shape
        return min(i, o * kh * kw), min(o, i * kh * kw)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        layer, (r, s) = self.layer, ranks
        first = Factor("reduce", (r, layer.inputs, 1, 1))
        core = Factor("core", (s, r, *layer.kernel), layer.geometry())
        last = Factor("expand", (layer.outputs, s, 1, 1))
        return (
            *([first] if r < layer.inputs else []),
            core,
            *([last] if s < layer.outputs else []),
        )

    @cached_property
    def _bases(self) -> tuple[Array, Array]:
        """All principal directions of the input and the output channels."""
        w = self.layer.weight
        return principal(_gram(w, 1))[1], principal(_gram(w, 0))[1]

    @cached_property
    def _energies(self) -> Array:
        """[O + 1, I + 1]: energy of the core that so many output and input directions span."""
        inputs, outputs = self._bases
        core = np.einsum("os,oikl->sikl", outputs, self.layer.weight, optimize=True)
        core = np.einsum("ir,sikl->srkl", inputs, core, optimize=True)
        table = np.square(core).sum(axis=(2, 3)).cumsum(axis=0).cumsum(axis=1)
        return np.pad(table, ((1, 0), (1, 0)))

    def kept(self, ranks: Ranks) -> float:
        r, s = ranks
        r = self.layer.inputs if r == self.full[0] else r
        s = self.layer.outputs if s == self.full[1] else s
        return float(self._energies[s, r] / self._energies[-1, -1])

    def evb(self) -> Ranks:
        w = self.layer.weight
        sizes = ((w.shape[1], w.size // w.shape[1]), (w.shape[0], w.size // w.shape[0]))
        spectra = (
            principal(_gram(w, axis))[0][: min(n)] for axis, n in zip((1, 0), sizes, strict=True)
        )
        return tuple(evb_rank(np.sqrt(s), *n) for s, n in zip(spectra, sizes, strict=True))

    def weights(self, ranks: Ranks) -> list[Array]:
        """By higher-order orthogonal iteration (De Lathauwer et al. 2000) from the truncation."""
        r, s = ranks
        w, o, i = self.layer.weight, self.layer.outputs, self.layer.inputs
        first = np.eye(i) if r >= i else self._bases[0][:, :r]
        last = np.eye(o) if s >= o else self._bases[1][:, :s]
        before = -1.0
        for _ in range(HOOI_SWEEPS):
            reduced = np.einsum("ir,oikl->orkl", first, w, optimize=True)
            if s < o:
                last = principal(_gram(reduced, 0))[1][:, :s]
            expanded = np.einsum("os,oikl->sikl", last, w, optimize=True)
            if r < i:
                first = principal(_gram(expanded, 1))[1][:, :r]
            core = np.einsum("ir,sikl->srkl", first, expanded, optimize=True)
            kept = float(np.square(core).sum())
            if kept - before <= HOOI_GAIN * self.layer.energy:
                break
            before = kept
        return [
            *([np.ascontiguousarray(first.T)[:, :, None, None]] if r < i else []),
            core,
            *([np.ascontiguousarray(last)[:, :, None, None]] if s < o else []),
        ]

    def compose(self, weights: list[Array]) -> Array:
        out = next(w for w in weights if w.shape[2:] != (1, 1))
        if out is not weights[0]:
            out = np.einsum("srkl,ri->sikl", out, weights[0][:, :, 0, 0], optimize=True)
        if weights[-1].shape[2:] == (1, 1):
            out = np.einsum("os,sikl->oikl", weights[-1][:, :, 0, 0], out, optimize=True)
        return out


def principal(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, falling and not negative, and eigenvectors (columns) of a Gram matrix.

    The sign of each vector is fixed, so that equal weights give equal factors.
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    peaks = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return values, vectors * np.where(peaks < 0, -1.0, 1.0)


def _gram(tensor: Array, axis: int) -> Array:
    """Gram matrix of the tensor unfolded along an axis."""
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return np.asarray(rows @ rows.T)


__all__ = ["Form", "Spatial", "Svd", "Tucker", "principal", "rank_grid"]
