"""How wide an accumulator must be: exact bounds on dot products of integers.

A layer accumulates ``sum_k x_k * w_k + offset`` in a register of P bits. A *wrapping* register
holds the right result if the result itself fits, whatever its partial sums did, for it computes
modulo 2^P. A *saturating* register must hold every partial sum; since kernels add in an order of
their own, that means every sum of some of the terms.

There are three guarantees, each tighter and weaker than the one before (de Bruin, Zivkovic and
Corporaal 2018, "Quantization of constrained processor data paths applied to convolutional neural
networks", section IV):

* :func:`of_ranges`: any weights and any data of the given ranges;
* :func:`of_weights`: these weights and any data;
* :func:`of_results`: the results that were seen, with a margin.

All numbers are exact: Python integers, or int64 where they are proved to fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import ceil

import numpy as np

from dlcc.ir.encodings import Array


class Overflow(Enum):
    """What a register does with a sum that it cannot hold."""

    WRAP = "wrap"
    SATURATE = "saturate"


@dataclass(frozen=True)
class Bounds:
    """The integers from ``low`` to ``high``."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"bounds: {self.low} is above {self.high}")

    @property
    def bits(self) -> int:
        """Width of the narrowest two's complement register that holds all of them."""
        return max(signed_bits(self.low), signed_bits(self.high))

    @property
    def unsigned_bits(self) -> int:
        """Width of the narrowest unsigned register that holds all of them.

        Raises:
            ValueError: some are negative.
        """
        if self.low < 0:
            raise ValueError(f"an unsigned register cannot hold {self.low}")
        return max(1, self.high.bit_length())

    @property
    def reach(self) -> int:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def fits(self, bits: int) -> bool:
        """Whether a two's complement register of ``bits`` bits holds all of them."""
        return self.bits <= bits

    def hull(self, other: Bounds) -> Bounds:
        """The smallest bounds that contain both."""
        return Bounds(min(self.low, other.low), max(self.high, other.high))

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Bounds) -> Bounds:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Bounds(min(corners), max(corners))

    def times(self, count: int) -> Bounds:
        """Sums of ``count`` numbers, each within these bounds."""
        return Bounds(self.low * count, self.high * count)

    def partial(self) -> Bounds:
        """The same and 0: bounds on sums of some of the terms, if terms are of one sign each."""
        return Bounds(min(self.low, 0), max(self.high, 0))


def signed_bits(value: int) -> int:
    """Width of the narrowest two's complement register that holds ``value``."""
    return (value if value >= 0 else ~value).bit_length() + 1


def of_ranges(
    terms: int, weights: Bounds, data: Bounds, overflow: Overflow = Overflow.WRAP
) -> Bounds:
    """Bounds on a sum of ``terms`` products of any weight and any datum.

    Raises:
        ValueError: ``terms`` is negative.
    """
    if terms < 0:
        raise ValueError(f"a sum of {terms} terms")
    total = (weights * data).times(terms)
    return total if overflow is Overflow.WRAP else total.partial()


@dataclass(frozen=True)
class ChannelBounds:
    """Bounds of each output channel (or of other sums): integers ``low[O]`` and ``high[O]``."""

    low: Array
    high: Array

    @property
    def all(self) -> Bounds:
        """The smallest bounds that contain those of every channel; 0 where there is none."""
        if not self.low.size:
            return Bounds(0, 0)
        return Bounds(int(self.low.min()), int(self.high.max()))


def of_weights(
    codes: Array,
    data: Bounds,
    offset: Array | None = None,
    overflow: Overflow = Overflow.WRAP,
) -> ChannelBounds:
    """Bounds on ``codes @ x + offset`` for these weights and any data, per output channel.

    Without an offset, bounds of wrapping registers are attained by some data: no register of fewer
    bits is safe.

    Args:
        codes: integers [O, K].
        data: range of every x.
        offset: what is added to each channel, integers [O]; a saturating register starts with it.
        overflow: whether partial sums must fit too.

    Raises:
        ValueError: sums could exceed 64 bits.
    """
    if codes.ndim != 2:
        raise ValueError(f"weights of shape {list(codes.shape)}, must be [O, K]")
    positive, negative = _parts(codes, data)
    if overflow is Overflow.SATURATE:
        data = data.partial()  # every term may be left out
    found = of_parts(positive, negative, data)
    start = np.zeros(len(codes), np.int64) if offset is None else offset.astype(np.int64)
    return ChannelBounds(found.low + start, found.high + start)


def of_parts(positive: Array, negative: Array, data: Bounds) -> ChannelBounds:
    """Bounds on sums whose positive and whose negative weights add up to these, for any data.

    Args:
        positive: sums of positive weights, integers of any shape that hold a bound.
        negative: of negative ones, of the same shape.
        data: range of every x.
    """
    return ChannelBounds(
        positive * data.low + negative * data.high, positive * data.high + negative * data.low
    )


def of_tiles(
    codes: Array, data: Bounds, tile: int, taps: int, overflow: Overflow = Overflow.WRAP
) -> ChannelBounds:
    """Bounds on sums of tiles of input channels, of each tap of a kernel for itself.

    Args:
        codes: integers [O, K], the taps along the last axis of K.
        data: range of every x.
        tile: neighbouring input channels whose products are summed up.
        taps: positions of the kernel.
        overflow: whether partial sums must fit too.
    """
    by_tap = codes.reshape(len(codes), -1, taps).transpose(0, 2, 1)
    by_tap = np.pad(by_tap, ((0, 0), (0, 0), (0, -by_tap.shape[2] % tile)))
    each = of_weights(by_tap.reshape(-1, tile), data, overflow=overflow)
    low, high = (ends.reshape(len(codes), -1) for ends in (each.low, each.high))
    return ChannelBounds(low.min(axis=1), high.max(axis=1))


def _parts(codes: Array, data: Bounds) -> tuple[Array, Array]:
    """Sums of the positive and of the negative weights of each row, int64."""
    wide = codes.astype(np.int64)
    largest = int(np.abs(wide).max(initial=0)) * max(1, codes.shape[1]) * max(1, data.reach)
    if largest >= 1 << 62:
        raise ValueError(f"sums of {codes.shape[1]} terms may reach {largest}, beyond 64 bits")
    return np.maximum(wide, 0).sum(axis=1), np.minimum(wide, 0).sum(axis=1)


def of_results(low: int, high: int, margin: float) -> Bounds:
    """Bounds on results like those seen, with a margin on either side of 0.

    Args:
        low: the smallest that was seen.
        high: the largest.
        margin: share by which results may be larger than any seen, at least 0.

    Raises:
        ValueError: a negative margin.
    """
    if margin < 0:
        raise ValueError(f"a margin of {margin}, must be at least 0")
    factor = 1 + Fraction(margin)
    seen = Bounds(low, high).partial()
    return Bounds(-ceil(-seen.low * factor), ceil(seen.high * factor))


def widest(candidates: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of widths (weights, data) that no other pair exceeds in both."""
    kept: list[tuple[int, int]] = []
    for weights, data in sorted(set(candidates), reverse=True):
        if not kept or data > kept[-1][1]:
            kept.append((weights, data))
    return kept
