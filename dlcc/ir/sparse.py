"""Sparse encodings: only some elements are stored, and where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir.compressed import Coded, finite_float32, matrix_view
from dlcc.ir.encodings import DENSE, Affine, Array, Dense, Encoding, Parts, ShortFloat
from dlcc.ir.packing import pack_bits, unpack_bits

_PATTERN = re.compile(
    r"unstructured|balanced(?P<share>\d+)|(?P<n>\d+):(?P<m>\d+)|block(?P<r>\d+)x(?P<c>\d+)"
)


@dataclass(frozen=True)
class Sparse(Encoding):
    """Only some elements are stored, the others are 0.

    The stored form of where they stand, one per pattern (all in the matrix view):

    * ``unstructured``: the non-zero elements; part ``mask``, one bit per element.
    * ``balancedR``: as unstructured, and every R rows that follow one another store equally many
      elements: those with fewer non-zero ones store zeros too. R must divide axis 0 (Yao et al.
      2019, "Balanced sparsity for efficient DNN inference on GPU").
    * ``N:M``: N elements of every M columns, the largest; part ``positions``, N places of
      ceil(log2 M) bits per group, rising. M must divide axis 1 (Mishra et al. 2021).
    * ``blockRxC``: blocks of R rows and C columns that hold a non-zero element; part ``mask``, one
      bit per block, blocks row by row. The last blocks may stick out; they are stored whole.

    The stored elements, in the order of the mask (in a block row by row), are encoded by ``inner``;
    its parts stand beside these. Scales of an inner axis are those of the whole tensor.

    Attributes:
        pattern: "unstructured", "balancedR", "N:M" or "blockRxC".
        inner: Dense, Affine, a 16-bit float, Ternary, Binary or Codebook.
    """

    name: ClassVar[str] = "sparse"

    pattern: str
    inner: Encoding = DENSE

    def __post_init__(self) -> None:
        match = _PATTERN.fullmatch(self.pattern)
        sizes = [] if match is None else [int(g) for g in match.groups() if g is not None]
        if match is None or any(n < 1 for n in sizes):
            raise ValueError(f"sparse: unknown pattern {self.pattern!r}")
        if self.nm is not None and not self.nm[0] <= self.nm[1]:
            raise ValueError(f"sparse: pattern {self.pattern} keeps more than there are")
        if not isinstance(self.inner, Dense | Affine | ShortFloat | Coded):
            raise ValueError(f"sparse: {self.inner.name} cannot be the inner encoding")

    def _sizes(self, *names: str) -> tuple[int, ...] | None:
        match = _PATTERN.fullmatch(self.pattern)
        assert match is not None
        return tuple(int(match[name]) for name in names) if match[names[0]] else None

    @property
    def uniform(self) -> Affine | None:
        """That of the stored elements: what is not stored is 0, as is its code."""
        return self.inner.uniform

    @property
    def short_float(self) -> ShortFloat | None:
        """That of the stored elements."""
        return self.inner.short_float

    @property
    def share(self) -> int | None:
        """R of the pattern balancedR: rows that together store as much as any other R rows."""
        sizes = self._sizes("share")
        return None if sizes is None else sizes[0]

    @property
    def nm(self) -> tuple[int, int] | None:
        """N and M of the pattern N:M."""
        sizes = self._sizes("n", "m")
        return None if sizes is None else (sizes[0], sizes[1])

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block."""
        sizes = self._sizes("r", "c")
        return None if sizes is None else (sizes[0], sizes[1])

    def encode(self, values: Array) -> dict[str, Array]:
        """Select, then encode what was selected."""
        if isinstance(self.inner, Dense):
            array = np.asarray(values)
            if array.dtype.kind == "f":
                finite_float32(array, self.name)
        else:
            array = finite_float32(values, self.name)
        where, places = self._select(array)
        return {**where, **self._encode_inner(array, places)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Decode the elements and put them in their places."""
        places = self._places(parts, shape)
        kept = self._decode_inner(parts, places, shape)
        out = np.zeros(int(np.prod(shape, dtype=np.int64)), kept.dtype)
        inside = places >= 0
        out[places[inside]] = kept[inside]
        return out.reshape(shape)

    def stored_bytes(self, parts: Parts) -> int:
        """Mask or positions, and the inner encoding's bytes."""
        where = sum(int(parts[k].nbytes) for k in ("mask", "positions") if k in parts)
        return where + self.inner.stored_bytes(self._inner_parts(parts))

    def density(self, parts: Parts, shape: tuple[int, ...]) -> float:
        """Share of elements that are stored."""
        return self._places(parts, shape).size / max(1, int(np.prod(shape, dtype=np.int64)))

    def codes(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """The codes of an Affine inner encoding in their places, and 0 elsewhere.

        Raises:
            TypeError: the inner encoding is another one.
        """
        if not isinstance(self.inner, Affine):
            raise TypeError(f"sparse: {self.inner.name} has no integer codes")
        places, stored = self._places(parts, shape), self._inner_parts(parts)["values"]
        out = np.zeros(int(np.prod(shape, dtype=np.int64)), stored.dtype)
        inside = places >= 0
        out[places[inside]] = stored[inside]
        return out.reshape(shape)

    # -- where ---------------------------------------------------------------------------------

    def units(self, shape: tuple[int, ...]) -> Array:
        """Logical flat index of every element, row by row of the matrix view; -1 outside.

        [elements, 1], [groups, M] for N:M (N of each are kept), or [blocks, R * C] (a block is kept
        as a whole).

        Raises:
            ValueError: the pattern does not fit the shape.
        """
        flat = matrix_view(np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape))
        if self.nm is not None:
            m = self.nm[1]
            along = shape[1] if len(shape) > 1 else 1
            if along % m:
                raise ValueError(f"sparse: groups of {m} do not divide axis 1 of {list(shape)}")
            return flat.reshape(-1, m)
        if self.share is not None and len(flat) % self.share:
            raise ValueError(f"sparse: shares of {self.share} do not divide {len(flat)} rows")
        if self.block is not None:
            (r, c), (rows, columns) = self.block, flat.shape
            padded = np.pad(flat, ((0, -rows % r), (0, -columns % c)), constant_values=-1)
            tiles = padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c)
            blocks: Array = tiles.swapaxes(1, 2).reshape(-1, r * c)
            return blocks
        return flat.reshape(-1, 1)

    def _select(self, array: Array) -> tuple[dict[str, Array], Array]:
        """The parts that say where, and the logical flat index of each stored element."""
        layout = self.units(array.shape)
        grouped = np.where(layout >= 0, array.reshape(-1)[layout], 0) if array.size else layout
        if self.nm is not None:
            order = np.argsort(-np.abs(grouped), axis=1, kind="stable")[:, : self.nm[0]]
            chosen = np.sort(order, axis=1)
            places = np.take_along_axis(layout, chosen, axis=1).reshape(-1)
            return {"positions": pack_bits(chosen, self._position_bits)}, places
        kept = np.any(grouped != 0, axis=1)
        if self.share is not None and kept.any():
            kept = _filled_up(grouped.reshape(len(array) // self.share, -1))
        return {"mask": pack_bits(kept, 1)}, layout[kept].reshape(-1)

    @property
    def _position_bits(self) -> int:
        assert self.nm is not None
        return max(1, (self.nm[1] - 1).bit_length())

    def _places(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        layout: Array = self.units(shape)
        if self.nm is not None:
            count = layout.shape[0] * self.nm[0]
            chosen = unpack_bits(parts["positions"], count, self._position_bits)
            taken = np.take_along_axis(layout, chosen.reshape(-1, self.nm[0]), axis=1)
            return taken.reshape(-1)
        kept = unpack_bits(parts["mask"], layout.shape[0], 1).astype(bool)
        places: Array = layout[kept].reshape(-1)
        return places

    # -- what ----------------------------------------------------------------------------------

    def _inner_parts(self, parts: Parts) -> dict[str, Array]:
        return {k: a for k, a in parts.items() if k not in ("mask", "positions")}

    def _encode_inner(self, array: Array, places: Array) -> dict[str, Array]:
        flat = array.reshape(-1)
        kept = np.where(places >= 0, flat[places], 0) if flat.size else flat
        if getattr(self.inner, "axis", None) is None:
            return self.inner.encode(kept.astype(array.dtype))
        # scales belong to an axis of the whole tensor, so the codes are made there
        if isinstance(self.inner, Affine):
            codes = self.inner.quantise(array).reshape(-1)
            zero = np.zeros((), codes.dtype)
            return {"values": np.where(places >= 0, codes[places], zero)}
        assert isinstance(self.inner, Coded)
        all_codes, _ = self.inner.to_codes(array)
        return {"values": self.inner.pack(np.where(places >= 0, all_codes.reshape(-1)[places], 0))}

    def _decode_inner(self, parts: Parts, places: Array, shape: tuple[int, ...]) -> Array:
        own = self._inner_parts(parts)
        if getattr(self.inner, "axis", None) is None:
            return self.inner.decode(own, (places.size,))
        inside = places >= 0
        if isinstance(self.inner, Affine):
            codes = own["values"]
        else:
            assert isinstance(self.inner, Coded)
            codes = self.inner.unpack(own, places.size)
        whole = np.zeros(int(np.prod(shape, dtype=np.int64)), codes.dtype)
        whole[places[inside]] = codes[inside]
        whole = whole.reshape(shape)
        if isinstance(self.inner, Affine):
            real: Array = self.inner.dequantise(whole)
        else:
            assert isinstance(self.inner, Coded)
            real = self.inner.from_codes(whole, own)
        return np.where(inside, real.reshape(-1)[places], np.float32(0))


def _filled_up(shares: Array) -> Array:
    """bool[elements]: in each row of ``shares`` as many of the largest as the fullest has."""
    most = int(np.count_nonzero(shares, axis=1).max())
    order = np.argsort(-np.abs(shares), axis=1, kind="stable")[:, :most]
    chosen = np.zeros(shares.shape, np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen.reshape(-1)
