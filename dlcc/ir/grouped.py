"""Encoding of weights whose scales belong to groups of columns of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir.compressed import finite_float32, from_matrix, matrix_view
from dlcc.ir.encodings import Array, Encoding, Parts
from dlcc.ir.packing import pack_bits, unpack_bits

_SMALLEST = np.float32(np.finfo(np.float32).tiny) * np.float32(2**20)
"""Smallest scale given out: products with it stay normal numbers."""


@dataclass(frozen=True)
class Grouped(Encoding):
    """Uniform quantisation with a scale for each run of ``group`` columns of each row.

    Rows and columns are those of the matrix view: a group of a convolution lies along the input
    channels of one tap where their number is a multiple of ``group``. real = scale * q, with q
    symmetric: -(2^(bits-1)-1) .. 2^(bits-1)-1. The last group of a row may be shorter. Groups keep
    the error of a weight near the size of its neighbours (Dettmers and Zettlemoyer 2023, "The case
    for 4-bit precision", section 3).

    Parts: ``values``, codes [rows, columns] of ``bits`` bits in two's complement, packed;
    ``scales`` float32[rows, groups of a row].

    Attributes:
        bits: width of q, 2 to 8.
        group: columns that share a scale.
    """

    name: ClassVar[str] = "grouped"

    bits: int
    group: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{self.name}: {self.bits} bits, must be 2 to 8")
        if self.group < 1:
            raise ValueError(f"{self.name}: group {self.group}, must be at least 1")

    @property
    def last(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return -(-columns // self.group)

    def encode(self, values: Array) -> dict[str, Array]:
        """With scales that make the largest number of a group the largest code.

        Numbers that are multiples of a larger step, of which the largest code holds them all, keep
        that step.
        """
        matrix = matrix_view(finite_float32(values, self.name))
        return self.with_scales(values, self._steps(self._split(matrix)))

    def with_scales(self, values: Array, scales: Array) -> dict[str, Array]:
        """With these scales, float32[rows, groups], the nearest codes, halves to even."""
        matrix = matrix_view(finite_float32(values, self.name))
        steps = scales.astype(np.float32)
        scaled = self._split(matrix).astype(np.float64) / steps[:, :, None]
        codes = np.clip(np.rint(scaled), -self.last, self.last).astype(np.int8)
        flat = codes.reshape(len(matrix), -1)[:, : matrix.shape[1]]
        return {"values": pack_bits(flat, self.bits), "scales": np.ascontiguousarray(steps)}

    def codes(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """int8[rows, columns] of the matrix view."""
        rows = shape[0] if shape else 1
        count = int(np.prod(shape, dtype=np.int64))
        flat = unpack_bits(parts["values"], count, self.bits, signed=True)
        return flat.astype(np.int8).reshape(rows, -1)

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Codes times scales, in float32."""
        codes = self.codes(parts, shape)
        scales = np.asarray(parts["scales"])[:, np.arange(codes.shape[1]) // self.group]
        return from_matrix(codes.astype(np.float32) * scales, shape)

    def stored_bytes(self, parts: Parts) -> int:
        """Packed codes and scales."""
        return sum(int(a.nbytes) for a in parts.values())

    def _split(self, matrix: Array) -> Array:
        """[rows, groups, group], filled up with zeros."""
        rows, columns = matrix.shape
        padded = np.zeros((rows, self.groups(columns) * self.group), matrix.dtype)
        padded[:, :columns] = matrix
        return padded.reshape(rows, -1, self.group)

    def _steps(self, split: Array) -> Array:
        """float32[rows, groups]: the largest step that holds a group exactly, or largest / last."""
        peak = np.abs(split).max(axis=2)
        steps = np.maximum(peak / np.float32(self.last), _SMALLEST)
        found = np.zeros(steps.shape, np.bool_)
        for code in range(1, self.last + 1):
            near = np.maximum(peak / np.float32(code), _SMALLEST)
            for step in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, 0)):
                codes = np.rint(split / step[:, :, None])
                exact = (codes * step[:, :, None] == split).all(axis=2) & ~found
                if not exact.any():
                    continue
                steps = np.where(exact, step, steps)
                found |= exact
        return np.asarray(steps, np.float32)


__all__ = ["Grouped"]
