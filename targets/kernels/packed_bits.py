"""Codes of 1 to 7 bits as the packed kernels read them.

An integer code q of ``bits`` bits is ``base + step * u`` with u from 0 to 2^bits - 1. The bits of u
are cut into *planes* of 4, 2 and 1 bits, as few as there can be, so that each plane fills bytes
without gaps. A block is one vector of outputs, a step 32 columns; in a step the plane of b bits
takes b vectors. Each 32-bit lane of a vector belongs to one output; its four bytes belong to four
neighbouring columns, and a byte holds the codes of 8 / b such groups of columns, the first group in
the lowest bits. A vector of 32-bit words of the activations, the same in every lane, then meets the
codes of one group once they are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

STEP = 32
"""Columns of a step: a byte of one-bit codes in each of the four bytes of a lane."""

WORD = 4
"""Columns of a group: bytes of a lane."""


@dataclass(frozen=True)
class Codes:
    """What the stored codes stand for: weight code = base + step * u, 0 <= u < 2^bits."""

    bits: int
    base: int
    step: int = 1

    @staticmethod
    def signed(bits: int) -> Codes:
        """Two's complement codes of ``bits`` bits."""
        return Codes(bits, -(1 << (bits - 1)))

    @staticmethod
    def signs() -> Codes:
        """-1 and 1."""
        return Codes(1, -1, 2)

    @property
    def has_zero(self) -> bool:
        """Whether a code stands for 0."""
        return -self.base % self.step == 0 and 0 <= -self.base // self.step < 1 << self.bits

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Width and lowest bit of each plane, the widest first."""
        made, low = [], 0
        for width in (4, 2, 1):
            if self.bits & width:
                made.append((width, low))
                low += width
        return tuple(made)

    def unsigned(self, weights: np.ndarray) -> np.ndarray:
        """The u of each weight, uint8.

        Raises:
            ValueError: a weight is none of the codes.
        """
        u, rest = np.divmod(weights.astype(np.int32) - self.base, self.step)
        if rest.any() or (u.size and not 0 <= u.min() <= u.max() < 1 << self.bits):
            raise ValueError(f"the weights are no codes of {self.bits} bits from {self.base}")
        return u.astype(np.uint8)


def steps_of(columns: int) -> int:
    """Steps that the columns of a matrix take; the last is filled up with u = 0."""
    return ceil(columns / STEP)


def pack_planes(weights: np.ndarray, codes: Codes, lanes: int) -> np.ndarray:
    """Weights [outputs, columns] as uint8 ``[blocks, steps, bits, lanes, WORD]``."""
    n, k = weights.shape
    blocks, steps = ceil(n / lanes), steps_of(k)
    full = np.zeros((blocks * lanes, steps * STEP), np.uint8)
    full[:n, :k] = codes.unsigned(weights)
    # [block, step, group of columns, lane, column of the group]
    groups = full.reshape(blocks, lanes, steps, STEP // WORD, WORD).transpose(0, 2, 3, 1, 4)
    made = []
    for width, low in codes.planes:
        part = (groups >> low) & ((1 << width) - 1)
        fields = part.reshape(blocks, steps, width, 8 // width, lanes, WORD)
        packed = np.zeros((blocks, steps, width, lanes, WORD), np.uint8)
        for field in range(8 // width):
            packed |= fields[:, :, :, field] << (width * field)
        made.append(packed)
    return np.concatenate(made, axis=2)
