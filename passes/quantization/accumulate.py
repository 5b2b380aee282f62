"""What the accumulators of one layer can reach, under each of the three guarantees.

de Bruin, Zivkovic and Corporaal 2018, "Quantization of constrained processor data paths applied to
convolutional neural networks", section IV; the bounds are those of
:mod:`dlcc.analysis.accumulators`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlcc.analysis.accumulators import (
    Bounds,
    ChannelBounds,
    Overflow,
    of_ranges,
    of_results,
    of_tiles,
    of_weights,
)
from dlcc.ir import Affine, Node
from dlcc.ir.encodings import Array
from passes.compression.rows import groups_of, input_rows

Guarantee = Literal["ranges", "weights", "results"]

_BLOCK_NUMBERS = 1 << 23
"""Most numbers in the input rows of one product."""

_EXACT = 1 << 24
"""Sums below this are exact in float32."""


@dataclass(frozen=True)
class Accumulator:
    """A register, and for what it must be wide enough.

    Attributes:
        bits: its width.
        overflow: what it does with a sum that it cannot hold.
        guarantee: "ranges": any weights and data of the chosen widths; "weights": these weights
            and any data; "results": the calibration data, with a margin.
        margin: share by which results may be larger than on the calibration data.
        tile: products of neighbouring input channels that it sums up before it is emptied into a
            wider one (Colbert et al. 2024, "Accumulator-aware post-training quantization",
            tiles of a multi-stage accumulation); 0: all of a result's.
    """

    bits: int
    overflow: Overflow = Overflow.WRAP
    guarantee: Guarantee = "weights"
    margin: float = 0.0
    tile: int = 0

    @property
    def last(self) -> int:
        """The largest sum that it holds; the smallest is -last - 1."""
        return (1 << (self.bits - 1)) - 1

    def excess(self, found: ChannelBounds) -> Array:
        """By how much the sums of each channel are too large: what to divide them by."""
        high = found.high.astype(np.float64) / self.last
        low = found.low.astype(np.float64) / -(self.last + 1.0)
        return np.asarray(np.maximum(high, low))


def data_bounds(source: Affine) -> Bounds:
    """What is multiplied by a weight: codes less their zero point."""
    low, high = source.code_range
    return Bounds(low - source.zero_point, high - source.zero_point)


def any_data(
    codes: Array, bits: int, source: Affine, bias: Array, accumulator: Accumulator, taps: int = 1
) -> ChannelBounds:
    """Bounds of a layer's sums under the guarantees "ranges" and "weights".

    Args:
        codes: weight codes [O, K].
        bits: their width.
        source: encoding of the input.
        bias: codes [O]; a register starts with them, if it sums up a whole result.
        accumulator: the register.
        taps: positions of the kernel, the last axis of K.
    """
    if accumulator.tile:
        return _of_tiles(codes, bits, source, accumulator, taps)
    data = data_bounds(source)
    if accumulator.guarantee == "weights":
        return of_weights(codes, data, bias, accumulator.overflow)
    last = (1 << (bits - 1)) - 1
    found = of_ranges(codes.shape[1], Bounds(-last, last), data, accumulator.overflow)
    start = bias.astype(np.int64)
    return ChannelBounds(found.low + start, found.high + start)


def _of_tiles(
    codes: Array, bits: int, source: Affine, accumulator: Accumulator, taps: int
) -> ChannelBounds:
    """Bounds of the sums of tiles of input channels, of each tap for itself.

    What is summed up are products of bare codes: zero points and biases come in behind.
    """
    tile, data = accumulator.tile, Bounds(*source.code_range)
    if accumulator.guarantee == "ranges":
        last = (1 << (bits - 1)) - 1
        found = of_ranges(tile, Bounds(-last, last), data, accumulator.overflow)
        return ChannelBounds(*(np.full(len(codes), end) for end in (found.low, found.high)))
    return of_tiles(codes, data, tile, taps, accumulator.overflow)


def on_rows(
    rows: Iterable[Array],
    codes: Array,
    source: Affine,
    bias: Array,
    accumulator: Accumulator,
) -> ChannelBounds:
    """Bounds of a layer's sums on data that was seen, with the margin.

    Args:
        rows: centred input codes, [groups, rows, K] each.
        codes: weight codes [O, K].
        source: encoding of the input.
        bias: codes [O]; a register starts with them.
        accumulator: the register.
    """
    start = bias.astype(np.int64)
    low, high = start.copy(), start.copy()
    reach = int(np.abs(codes.astype(np.int64)).sum(axis=1).max(initial=0))
    kind = np.float32 if reach * data_bounds(source).reach < _EXACT else np.float64
    for part in rows:
        x: Array = part.astype(kind)
        turned: Array = codes.reshape(len(part), -1, codes.shape[1]).transpose(0, 2, 1).astype(kind)
        sums = x @ turned
        if accumulator.overflow is Overflow.SATURATE:
            # every partial sum lies between the sums of the negative and of the positive terms
            sizes = np.abs(x) @ np.abs(turned)
            least, most = (sums - sizes) / 2, (sums + sizes) / 2
        else:
            least = most = sums
        low = np.minimum(low, start + least.min(axis=1).reshape(-1).astype(np.int64))
        high = np.maximum(high, start + most.max(axis=1).reshape(-1).astype(np.int64))
    limits = [
        of_results(int(a), int(b), accumulator.margin) for a, b in zip(low, high, strict=True)
    ]
    return ChannelBounds(np.array([b.low for b in limits]), np.array([b.high for b in limits]))


def all_rows(node: Node, chunks: Sequence[Array], source: Affine) -> Iterator[Array]:
    """Centred input codes of every output of a conv2d or linear layer, block by block.

    Args:
        node: the layer.
        chunks: codes of its input.
        source: their encoding.
    """
    depth = math.prod(node.input(1).type.shape[1:])
    shape = node.output.type.shape
    count = math.prod(shape) // shape[1 if node.op == "conv2d" else -1]
    blocks = max(1, math.ceil(count * depth * groups_of(node) / _BLOCK_NUMBERS))
    for chunk in chunks:
        centred = chunk.astype(np.float32) - np.float32(source.zero_point)
        for chosen in np.array_split(np.arange(count), min(blocks, count)):
            yield input_rows(node, centred, chosen)


__all__ = ["Accumulator", "Guarantee", "all_rows", "any_data", "data_bounds", "on_rows"]
