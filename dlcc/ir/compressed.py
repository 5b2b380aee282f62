"""Encodings of compressed weights: ternary, binary, codebooks (sparse: :mod:`dlcc.ir.sparse`).

Their parts are the stored bytes: codes are packed (:mod:`dlcc.ir.packing`), so that
``stored_bytes`` is the length of the parts plus four bytes for each float32 of the encoding itself.
Kernels pack the codes again in the order they read them.

``encode`` projects: ``decode(encode(x))`` is the nearest tensor that the encoding can hold (for
codebooks: the one that k-means finds), and projecting twice changes nothing (ResidualCodebook,
whose greedy search is no projection, excepted).

The *matrix view* of a weight has a row per index of axis 0 and, in each row, the numbers of the
other axes with axis 1 fastest: input channels of a convolution lie side by side.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir.clustering import cluster_scalars, cluster_vectors
from dlcc.ir.encodings import Affine, Array, Encoding, Parts, float32_tuple
from dlcc.ir.packing import pack_bits, unpack_bits


def matrix_view(values: Array) -> Array:
    """float[rows, columns]: see the module's description."""
    if values.ndim < 2:
        return values.reshape(values.size, 1)
    return np.moveaxis(values, 1, -1).reshape(values.shape[0], -1)


def from_matrix(matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`matrix_view`."""
    if len(shape) < 2:
        return matrix.reshape(shape)
    moved = (shape[0], *shape[2:], shape[1])
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), -1, 1))


def finite_float32(values: Array, name: str) -> Array:
    """``values`` in float32.

    Raises:
        ValueError: one is NaN or infinite; ``name`` is the encoding's.
    """
    array = np.asarray(values, np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: NaN or infinite values cannot be encoded")
    return array


def _along(parameters: tuple[float, ...], axis: int | None, shape: tuple[int, ...]) -> Array:
    """Per-tensor or per-index parameters in a shape that broadcasts against the values."""
    array = np.asarray(parameters, np.float32)
    if axis is None:
        return array.reshape(())
    if not 0 <= axis < len(shape) or shape[axis] != array.size:
        raise ValueError(f"{array.size} parameters do not fit axis {axis} of shape {list(shape)}")
    return array.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _check_scales(name: str, axis: int | None, *groups: tuple[float, ...]) -> None:
    for scales in groups:
        if not scales or len(scales) != len(groups[0]) or (axis is None and len(scales) != 1):
            raise ValueError(f"{name}: one scale is needed, or one per index of the axis")
        if any(not 0 <= s < float("inf") for s in scales):
            raise ValueError(f"{name}: scales must be finite and not negative")


def _two_bits(scales: tuple[float, ...], axis: int | None) -> Affine:
    """Codes -1, 0, 1 of these scales; where a scale is 0, so are all codes, and 1 stands for it."""
    return Affine.symmetric(2, np.asarray([scale or 1.0 for scale in scales]), axis)


def _reduced(values: Array, axis: int | None) -> Array:
    """[groups, elements]: the numbers that share a scale."""
    if axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _means(values: Array, chosen: Array) -> tuple[float, ...]:
    """Mean of |values| over the chosen elements of each row; 0 where none is chosen."""
    total = np.sum(np.abs(values) * chosen, axis=1, dtype=np.float64)
    return tuple(float(t) for t in total / np.maximum(chosen.sum(axis=1), 1))


def _best_scales(side: Array) -> tuple[float, ...]:
    """Per row of ``side`` (none negative) the s with the least squared error of 0 and s.

    With the k largest at their mean the error falls by (their sum)^2 / k.
    """
    sums = np.cumsum(-np.sort(-side.astype(np.float64), axis=1), axis=1)
    count = np.arange(1, side.shape[1] + 1)
    best = (sums**2 / count).argmax(axis=1)
    return tuple(float(s[k] / (k + 1)) for s, k in zip(sums, best, strict=True))


class Coded(Encoding):
    """An encoding with one code per element, packed into the part ``values``."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Width of a code."""

    @abstractmethod
    def to_codes(self, values: Array) -> tuple[Array, dict[str, Array]]:
        """Codes in the shape of ``values``, and further parts."""

    @abstractmethod
    def from_codes(self, codes: Array, parts: Parts) -> Array:
        """Real values of codes, float32."""

    @abstractmethod
    def parameter_bytes(self) -> int:
        """Bytes of the encoding's own numbers."""

    def pack(self, codes: Array) -> Array:
        """The part ``values``."""
        return pack_bits(codes, self.code_bits)

    def unpack(self, parts: Parts, count: int) -> Array:
        """Codes, int32[count]."""
        return unpack_bits(parts["values"], count, self.code_bits, signed=True)

    def encode(self, values: Array) -> dict[str, Array]:
        """Codes, packed, and further parts."""
        codes, extra = self.to_codes(values)
        return {"values": self.pack(codes), **extra}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Unpack, then look up."""
        count = int(np.prod(shape, dtype=np.int64))
        return self.from_codes(self.unpack(parts, count).reshape(shape), parts)

    def stored_bytes(self, parts: Parts) -> int:
        """Bytes of the parts and of the encoding's own numbers."""
        return sum(int(a.nbytes) for a in parts.values()) + self.parameter_bytes()


@dataclass(frozen=True)
class Ternary(Coded):
    """-negative, 0 or +positive, two bits each (Zhu et al. 2017, Trained Ternary Quantization).

    Codes are -1, 0, 1 in two's complement.

    Attributes:
        positive: the positive value, one per tensor or per index of ``axis``.
        negative: magnitude of the negative value, as many.
        axis: the axis of several scales, or None.
    """

    name: ClassVar[str] = "ternary"

    positive: tuple[float, ...]
    negative: tuple[float, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", float32_tuple(self.positive))
        object.__setattr__(self, "negative", float32_tuple(self.negative))
        _check_scales(self.name, self.axis, self.positive, self.negative)

    @property
    def code_bits(self) -> int:
        """Two."""
        return 2

    @property
    def uniform(self) -> Affine | None:
        """Two-bit codes, if both values are equally far from 0."""
        return _two_bits(self.positive, self.axis) if self.positive == self.negative else None

    @staticmethod
    def fit(
        values: Array,
        axis: int | None = None,
        threshold: float | None = 0.7,
        *,
        symmetric: bool = False,
    ) -> Ternary:
        """Scales for a tensor: means beyond ``threshold`` times mean |values| (Li et al. 2016).

        Args:
            values: the tensor.
            axis: the axis with scales of their own, or None.
            threshold: None for the scales of the least squared error.
            symmetric: one scale for both signs.
        """
        rows = _reduced(finite_float32(values, "ternary"), axis)
        sides = [np.abs(rows)] if symmetric else [np.maximum(rows, 0), np.maximum(-rows, 0)]
        if threshold is None:
            found = [_best_scales(side) for side in sides]
        else:
            limit = threshold * np.mean(np.abs(rows), axis=1, keepdims=True)
            found = [_means(side, side > limit) for side in sides]
        return Ternary(found[0], found[-1], axis)

    def to_codes(self, values: Array) -> tuple[Array, dict[str, Array]]:
        """The nearest of the three values; halves go to 0."""
        array = finite_float32(values, self.name)
        high = array > _along(self.positive, self.axis, array.shape) / 2
        low = array < -_along(self.negative, self.axis, array.shape) / 2
        return high.astype(np.int8) - low.astype(np.int8), {}

    def from_codes(self, codes: Array, parts: Parts) -> Array:
        """Look up."""
        high = _along(self.positive, self.axis, codes.shape)
        low = _along(self.negative, self.axis, codes.shape)
        return np.where(codes > 0, high, np.where(codes < 0, -low, np.float32(0)))

    def parameter_bytes(self) -> int:
        """A float32 each."""
        return 4 * (len(self.positive) + len(self.negative))


@dataclass(frozen=True)
class Binary(Coded):
    """-scale or +scale, one bit each (Rastegari et al. 2016, XNOR-Net). Zero becomes +scale.

    Code 1 (bit 1) is -scale, code 0 is +scale.

    Attributes:
        scales: one per tensor or per index of ``axis``.
        axis: the axis of several scales, or None.
    """

    name: ClassVar[str] = "binary"

    scales: tuple[float, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", float32_tuple(self.scales))
        _check_scales(self.name, self.axis, self.scales)

    @property
    def code_bits(self) -> int:
        """One."""
        return 1

    @property
    def uniform(self) -> Affine:
        """Two-bit codes, of which 0 stands only where the scale is 0."""
        return _two_bits(self.scales, self.axis)

    @staticmethod
    def fit(values: Array, axis: int | None = None) -> Binary:
        """Scales for a tensor: mean |values|, the least-squares optimum."""
        rows = _reduced(finite_float32(values, "binary"), axis)
        return Binary(_means(rows, np.ones(rows.shape, bool)), axis)

    def to_codes(self, values: Array) -> tuple[Array, dict[str, Array]]:
        """Signs."""
        _along(self.scales, self.axis, values.shape)  # refuses an axis that does not fit
        return (finite_float32(values, self.name) < 0).astype(np.int8), {}

    def from_codes(self, codes: Array, parts: Parts) -> Array:
        """Look up."""
        scale = _along(self.scales, self.axis, codes.shape)
        return np.where(codes != 0, -scale, scale)

    def parameter_bytes(self) -> int:
        """A float32 each."""
        return 4 * len(self.scales)


def _check_bits(name: str, bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"{name}: {bits} bits, must be 1 to 16")


@dataclass(frozen=True)
class Codebook(Coded):
    """One of at most 2^bits float32 numbers for the whole tensor (Han et al. 2016).

    Parts: ``values``, unsigned indices of ``bits`` bits; ``codebook`` float32[entries].

    Attributes:
        bits: width of an index, 1 to 16.
    """

    name: ClassVar[str] = "codebook"

    bits: int

    def __post_init__(self) -> None:
        _check_bits(self.name, self.bits)

    @property
    def code_bits(self) -> int:
        """Width of an index."""
        return self.bits

    def unpack(self, parts: Parts, count: int) -> Array:
        """Indices, int32[count]."""
        return unpack_bits(parts["values"], count, self.bits)

    def to_codes(self, values: Array) -> tuple[Array, dict[str, Array]]:
        """Cluster (:func:`dlcc.ir.clustering.cluster_scalars`)."""
        entries, index = cluster_scalars(finite_float32(values, self.name), 1 << self.bits)
        return index, {"codebook": entries}

    def from_codes(self, codes: Array, parts: Parts) -> Array:
        """Look up."""
        return np.asarray(parts["codebook"])[codes]

    def parameter_bytes(self) -> int:
        """None: the codebook is a part."""
        return 0


@dataclass(frozen=True)
class ProductCodebook(Encoding):
    """Runs of ``length`` numbers share an index (Jegou et al. 2011, Product Quantization).

    The matrix view, or its transpose, is cut into runs of ``length`` columns. Every block of
    columns has a codebook of its own, or all share one.

    Parts: ``values``, unsigned indices [rows, blocks] of ``bits`` bits, packed; ``codebook``
    float32[blocks or 1, entries, length].

    Attributes:
        bits: width of an index, 1 to 16.
        length: numbers in a run; must divide the number of columns.
        shared: one codebook for all blocks of columns.
        along: "input": runs lie along the input channels of an output; "output": the view is
            transposed, so that they lie along the outputs of an input.
    """

    name: ClassVar[str] = "product_codebook"

    bits: int
    length: int
    shared: bool = False
    along: str = "input"

    def __post_init__(self) -> None:
        _check_bits(self.name, self.bits)
        _check_runs(self.name, self.length, self.along)

    def encode(self, values: Array) -> dict[str, Array]:
        """Cluster each block of columns (:func:`dlcc.ir.clustering.cluster_vectors`)."""
        runs = _runs(finite_float32(values, self.name), self.length, self.name, self.along)
        groups = [runs.reshape(-1, self.length)] if self.shared else list(runs.swapaxes(0, 1))
        found = [cluster_vectors(np.ascontiguousarray(g), 1 << self.bits) for g in groups]
        entries = max((len(book) for book, _ in found), default=0)
        books = np.zeros((len(found), entries, self.length), np.float32)
        for i, (book, _) in enumerate(found):
            books[i, : len(book)] = book
        index = [i for _, i in found]
        table = index[0].reshape(runs.shape[:2]) if self.shared else np.stack(index, axis=1)
        return {"values": pack_bits(table, self.bits), "codebook": books}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Look up."""
        rows, blocks = run_shape(shape, self.length, self.name, self.along)
        index = unpack_bits(parts["values"], rows * blocks, self.bits).reshape(rows, blocks)
        block = np.zeros(blocks, np.intp) if self.shared else np.arange(blocks)
        runs = np.asarray(parts["codebook"])[block[None, :], index]
        return _from_runs(runs.reshape(rows, -1), shape, self.along)

    def stored_bytes(self, parts: Parts) -> int:
        """Packed indices and codebooks."""
        return sum(int(a.nbytes) for a in parts.values())


@dataclass(frozen=True)
class ResidualCodebook(Encoding):
    """Each run of ``length`` numbers is a sum of one entry of every stage (Chen et al. 2010).

    Stage 1 clusters the runs of the matrix view, stage s+1 what stages 1..s leave over; AQLM
    (Egiazarian et al. 2024) is the same form with a better search.

    Parts: ``values``, unsigned indices [stages, rows, blocks] of ``bits`` bits, packed;
    ``codebook`` float32[stages, entries, length]. Stages are added in order, in float32.

    Attributes:
        bits: width of an index, 1 to 16.
        length: numbers in a run; must divide the number of columns.
        stages: number of codebooks, at least 1.
        along: as in ProductCodebook.
    """

    name: ClassVar[str] = "residual_codebook"

    bits: int
    length: int
    stages: int = 2
    along: str = "input"

    def __post_init__(self) -> None:
        _check_bits(self.name, self.bits)
        _check_runs(self.name, self.length, self.along)
        if self.stages < 1:
            raise ValueError(f"{self.name}: {self.stages} stages, must be at least 1")

    def encode(self, values: Array) -> dict[str, Array]:
        """Cluster, subtract, cluster what is left."""
        runs = _runs(finite_float32(values, self.name), self.length, self.name, self.along)
        rest, found = runs.reshape(-1, self.length), []
        for _ in range(self.stages):
            book, index = cluster_vectors(rest, 1 << self.bits)
            found.append((book, index))
            rest = rest - book[index]
        entries = max(len(book) for book, _ in found)
        books = np.zeros((self.stages, entries, self.length), np.float32)
        for i, (book, _) in enumerate(found):
            books[i, : len(book)] = book
        return {"values": pack_bits(np.stack([i for _, i in found]), self.bits), "codebook": books}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Look up and add."""
        rows, blocks = run_shape(shape, self.length, self.name, self.along)
        count = rows * blocks
        index = unpack_bits(parts["values"], self.stages * count, self.bits)
        books, total = parts["codebook"], np.zeros((count, self.length), np.float32)
        for stage, chosen in enumerate(index.reshape(self.stages, count)):
            total = total + books[stage][chosen]
        return _from_runs(total.reshape(rows, -1), shape, self.along)

    def stored_bytes(self, parts: Parts) -> int:
        """Packed indices and codebooks."""
        return sum(int(a.nbytes) for a in parts.values())


def _check_runs(name: str, length: int, along: str) -> None:
    if length < 1:
        raise ValueError(f"{name}: length {length}, must be at least 1")
    if along not in ("input", "output"):
        raise ValueError(f"{name}: runs lie along input or output, not {along!r}")


def run_shape(shape: tuple[int, ...], length: int, name: str, along: str) -> tuple[int, int]:
    """Rows and runs per row of the matrix view, or of its transpose.

    Raises:
        ValueError: runs of ``length`` do not divide the columns.
    """
    rows = shape[0] if shape else 1
    columns = int(np.prod(shape[1:], dtype=np.int64))
    if along == "output":
        rows, columns = columns, rows
    if columns % length:
        what = "columns" if along == "input" else "outputs"
        raise ValueError(f"{name}: {columns} {what} cannot be cut into runs of {length}")
    return rows, columns // length


def _runs(values: Array, length: int, name: str, along: str) -> Array:
    rows, blocks = run_shape(values.shape, length, name, along)
    matrix = matrix_view(values)
    return (matrix if along == "input" else matrix.T).reshape(rows, blocks, length)


def _from_runs(matrix: Array, shape: tuple[int, ...], along: str) -> Array:
    return from_matrix(matrix if along == "input" else matrix.T, shape)
