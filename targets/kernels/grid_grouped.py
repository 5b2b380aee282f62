"""Grouped convolution on a GPU: 4 or 8 channels of one group, of some pixels, a thread.

A thread reads 4 to 16 bytes of its group's channels of a column, which all its results share. Of
codes, ``dp4a`` multiplies four channels at a time. Padding holds the input's zero point, and what
that adds everywhere is taken off the bias.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelPlan
from targets.kernels import grid_lanes
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_pixels import (
    PixelRun,
    Share,
    Work,
    pixels_plan,
    predicted,
    shares,
    too_large,
)
from targets.kernels.spec import SIZE, ConvSpec

_MOST_CHANNELS = 8


def grouped_refusal(spec: ConvSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    depth, outs = spec.c // spec.groups, spec.oc // spec.groups
    if spec.groups == 1 or depth == 1:
        return "it has no groups of several channels"
    if outs % 4:
        return f"the {outs} results of a group are no multiple of 4"
    sizes = SIZE[spec.in_dtype], SIZE[spec.stored or spec.in_dtype]
    if any(depth * size % 4 for size in sizes):
        return f"the {depth} channels of a group fill no word"
    return too_large(spec)


def _columns(spec: ConvSpec, share: Share) -> tuple[int, ...]:
    """Offsets of all columns that a thread reads, from the first pixel's first tap."""
    stride, dilation = spec.stride[1], spec.dilation[1]
    pixels, taps = range(share.pixels), range(spec.kw)
    return tuple(sorted({p * stride + tap * dilation for p in pixels for tap in taps}))


def _chunk(spec: ConvSpec) -> int:
    """Channels that are read at once."""
    size = SIZE[spec.stored or spec.in_dtype]
    return grid_lanes.widest(spec.c // spec.groups * size) // size


def grouped_cost(spec: ConvSpec, share: Share, machine: Machine) -> float:
    """Predicted seconds."""
    depth, columns = spec.c // spec.groups, len(_columns(spec, share))
    terms = spec.kw * depth // (4 if spec.in_dtype == "u8" else 1)
    words = depth * SIZE[spec.stored or spec.in_dtype] // 4
    made = share.channels * share.pixels
    operations = columns * (words + 4) + terms * (share.channels + made)
    chunk = _chunk(spec) * SIZE[spec.stored or spec.in_dtype] // 4
    return predicted(spec, share, Work(operations, columns * chunk + share.channels), machine)


@lru_cache(maxsize=1024)
def best_grouped(spec: ConvSpec, machine: Machine) -> Share:
    """The share that is predicted to take the least time."""
    made = shares(spec, _MOST_CHANNELS, spec.oc // spec.groups)
    return min(made, key=lambda share: grouped_cost(spec, share, machine))


def grid_grouped(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    share: Share | None = None,
) -> KernelPlan:
    """The plan of a grouped convolution.

    Args:
        spec: of any type.
        weights: ``[oc, c / groups, kh, kw]``: int8 codes, float32, float16 or bits of bfloat16.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        share: None: the best.
    """
    share, depth = share or best_grouped(spec, machine), spec.c // spec.groups
    packed = weights.transpose(2, 3, 1, 0)
    if spec.in_dtype == "u8":
        bias = bias - spec.in_zero_point * weights.astype(np.int64).reshape(spec.oc, -1).sum(axis=1)
        four = packed.reshape(spec.kh, spec.kw, depth // 4, 4, spec.oc)
        packed = four.transpose(0, 1, 2, 4, 3)
    packed = np.ascontiguousarray(packed)
    return pixels_plan("grouped", spec, share, packed, bias, multiplier, ratio, _Grouped)


class _Grouped(PixelRun):
    """Weights: ``[kh, kw, depth, oc]``; of codes ``[kh, kw, depth / 4, oc, 4]``."""

    def _row(self, y: Any, x: Any, start: Any, channel: Any, ky: Any) -> None:
        kb, spec = self.kb, self.spec
        depth, chunk, columns = spec.c // spec.groups, _chunk(spec), _columns(spec, self.share)
        first = kb.let(start + channel // (spec.oc // spec.groups) * depth, "first")
        with kb.loop(0, depth // chunk, "chunk") as number:
            line = self._line(y, x, first + number * chunk, columns, chunk)
            for tap in range(spec.kw):
                if self.integer:
                    self._codes(line, columns, number, channel, ky, tap)
                else:
                    self._reals(line, columns, number, channel, ky, tap)

    def _places(self, columns: tuple[int, ...], tap: int) -> list[int]:
        """For each pixel the column that a tap is multiplied by."""
        stride, dilation = self.spec.stride[1], self.spec.dilation[1]
        return [columns.index(p * stride + tap * dilation) for p in range(self.share.pixels)]

    def _codes(
        self, line: Any, columns: tuple[int, ...], number: Any, channel: Any, ky: Any, tap: int
    ) -> None:
        """Adds the products of a tap, four channels at a time."""
        kb, spec, channels = self.kb, self.spec, self.share.channels
        words, every = _chunk(spec) // 4, spec.c // spec.groups // 4
        for word in range(words):
            weight = kb.alloc("uint32", channels, "tap")
            place = (ky * spec.kw + tap) * every + number * words + word
            grid_lanes.load(
                kb, weight, 0, self.weight, (place * spec.oc + channel) * 4, 4 * channels
            )
            for pixel, column in enumerate(self._places(columns, tap)):
                code = kb.load(line, column * words + word)
                for i in range(channels):
                    total = kb.address(self.sums, pixel * channels + i)
                    kb.call("dlcc_dot4_u8s8", total, code, kb.load(weight, i))

    def _reals(
        self, line: Any, columns: tuple[int, ...], number: Any, channel: Any, ky: Any, tap: int
    ) -> None:
        """Adds the products of a tap, one channel after the other."""
        kb, spec, channels = self.kb, self.spec, self.share.channels
        chunk, dtype = _chunk(spec), spec.in_dtype
        with kb.unrolled(0, chunk, "i") as i:
            weight = kb.alloc("uint32", channels * SIZE[dtype] // 4, "tap")
            place = (ky * spec.kw + tap) * (spec.c // spec.groups) + number * chunk + i
            grid_lanes.load(kb, weight, 0, self.weight, place * spec.oc + channel, channels)
            factors = [
                kb.let(kb.widened(grid_lanes.real(kb, weight, j, dtype)), "factor")
                for j in range(channels)
            ]
            for pixel, column in enumerate(self._places(columns, tap)):
                value = kb.let(self._real(line, column * chunk + i), "value")
                for j, factor in enumerate(factors):
                    at = pixel * channels + j
                    total = kb.load(self.sums, at)
                    total = kb.extern("dlcc_fma", "float32", 1, value, factor, total)
                    kb.store(self.sums, at, total)
