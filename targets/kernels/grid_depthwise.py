"""Depthwise convolution on a GPU: 4 to 16 channels of some pixels a thread.

Codes are multiplied four taps at a time: a word holds four channels of a column; four columns are
transposed to four words with four columns of a channel each, which ``dp4a`` multiplies by the taps
of that channel. Where the taps of several pixels lie within these columns, their words of weights
are those taps moved by some bytes, with zeros around. Padding holds the input's zero point, and
what that adds everywhere is taken off the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Words:
    """Words of four columns of one channel, and which taps of which pixels they are multiplied by.

    Attributes:
        columns: offsets of all columns that are read, from the first pixel's first tap.
        words: of each its columns' places in ``columns``; fewer than four: zeros follow.
        variants: kinds of words of weights, by tap for each byte; -1: zero.
        uses: pixel, word and variant of each product.
    """

    columns: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]
    variants: tuple[tuple[int, ...], ...]
    uses: tuple[tuple[int, int, int], ...]

    @staticmethod
    def of(taps: int, stride: int, dilation: int, pixels: int) -> Words:
        """Those of ``pixels`` neighbouring pixels."""
        reach = (taps - 1) * dilation + 1
        needed = {p * stride + tap * dilation for p in range(pixels) for tap in range(taps)}
        starts: list[tuple[int, ...]] = []
        if dilation == 1:
            # as many pixels as fit share a word; longer kernels take words one after the other
            step = ((4 - taps) // stride + 1) * stride if taps <= 4 else 4
            last = (pixels - 1) * stride + reach
            starts = [
                tuple(first + i for i in range(4))
                for first in range(0, last, step)
                if any(first + i in needed for i in range(4))
            ]
        else:
            starts = [
                tuple(p * stride + tap * dilation for tap in range(first, min(first + 4, taps)))
                for p in range(pixels)
                for first in range(0, taps, 4)
            ]
        columns = tuple(sorted(needed))
        place = {column: i for i, column in enumerate(columns)}
        uses: list[tuple[int, int, int]] = []
        variants: dict[tuple[int, ...], int] = {}
        for pixel in range(pixels):
            wanted = {pixel * stride + tap * dilation: tap for tap in range(taps)}
            whole = [n for n, word in enumerate(starts) if wanted.keys() <= set(word)]
            for number in whole[:1] or range(len(starts)):
                word = starts[number]
                found = tuple(wanted.pop(column, -1) for column in word)
                if max(found) >= 0:
                    variant = variants.setdefault(found, len(variants))
                    uses.append((pixel, number, variant))
        used = {number: i for i, number in enumerate(sorted({number for _, number, _ in uses}))}
        words = tuple(tuple(place.get(c, -1) for c in starts[number]) for number in used)
        return Words(columns, words, tuple(variants), tuple((p, used[n], v) for p, n, v in uses))


def depthwise_refusal(spec: ConvSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.groups == 1 or spec.groups != spec.c or spec.oc != spec.c:
        return "its groups have more than one channel"
    if spec.c % 4:
        return f"its {spec.c} channels are no multiple of 4"
    return too_large(spec)


def depthwise_cost(spec: ConvSpec, share: Share, machine: Machine) -> float:
    """Predicted seconds."""
    words = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels)
    columns, size = len(words.columns), SIZE[spec.stored or spec.in_dtype]
    if spec.in_dtype == "u8":
        each = 2 * len(words.words) + len(words.uses)
        row, taps = columns * 4 + each * share.channels, len(words.variants) * share.channels
    else:
        row = columns * (4 + share.channels) + share.channels * share.pixels * spec.kw
        taps = spec.kw * share.channels * SIZE[spec.in_dtype] // 4
    work = Work(row, columns * share.channels * size // 4 + taps)
    return predicted(spec, share, work, machine)


@lru_cache(maxsize=1024)
def best_share(spec: ConvSpec, machine: Machine) -> Share:
    """The share that is predicted to take the least time."""
    most = 16 // SIZE[spec.stored or spec.in_dtype]
    return min(shares(spec, most, spec.c), key=lambda s: depthwise_cost(spec, s, machine))


def grid_depthwise(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    share: Share | None = None,
) -> KernelPlan:
    """The plan of a depthwise convolution.

    Args:
        spec: of any type.
        weights: ``[c, 1, kh, kw]``: int8 codes, float32, float16 or bits of bfloat16.
        bias: int32 or float32 ``[c]``.
        multiplier: float32 ``[c]``, for codes.
        ratio: float32 ``[c]``, of a residual operand of codes.
        machine: the GPU.
        share: None: the best.
    """
    share, integer = share or best_share(spec, machine), spec.in_dtype == "u8"
    packed = np.ascontiguousarray(weights[:, 0].transpose(1, 2, 0))
    if integer:
        bias = bias - spec.in_zero_point * weights.astype(np.int64).reshape(spec.c, -1).sum(axis=1)
        packed = _words_of_weights(packed, spec, share)
    return pixels_plan("depthwise", spec, share, packed, bias, multiplier, ratio, _Depthwise)


def _words_of_weights(packed: np.ndarray, spec: ConvSpec, share: Share) -> np.ndarray:
    """``[kh, kw, c]`` as ``[kh, variants, c, 4]`` (:class:`Words`)."""
    variants = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels).variants
    made = np.zeros((spec.kh, len(variants), spec.c, 4), np.int8)
    for number, variant in enumerate(variants):
        for byte, tap in enumerate(variant):
            if tap >= 0:
                made[:, number, :, byte] = packed[:, tap]
    return made


class _Depthwise(PixelRun):
    def __init__(self, key: str, spec: ConvSpec, share: Share, threads: int) -> None:
        super().__init__(key, spec, share, threads)
        self.words = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels)

    def _row(self, y: Any, x: Any, start: Any, channel: Any, ky: Any) -> None:
        line = self._line(y, x, start + channel, self.words.columns, self.share.channels)
        (self._codes if self.integer else self._reals)(line, channel, ky)

    def _codes(self, line: Any, channel: Any, ky: Any) -> None:
        kb, spec, channels, words = self.kb, self.spec, self.share.channels, self.words
        count = channels // 4
        weight = kb.alloc("uint32", len(words.variants) * channels, "taps")
        for variant in range(len(words.variants)):
            place = (ky * len(words.variants) + variant) * spec.c + channel
            grid_lanes.load(kb, weight, variant * channels, self.weight, place * 4, 4 * channels)
        with kb.unrolled(0, count, "quad") as quad:
            for number, columns in enumerate(words.words):
                turned = kb.alloc("uint32", 4, "turned")
                four = [
                    kb.const(0, "uint32") if place < 0 else kb.load(line, place * count + quad)
                    for place in (*columns, *[-1] * (4 - len(columns)))
                ]
                kb.call("dlcc_transpose4", kb.address(turned, 0), *four)
                for pixel, variant in [(p, v) for p, n, v in words.uses if n == number]:
                    for i in range(4):
                        total = kb.address(self.sums, pixel * channels + quad * 4 + i)
                        tap = kb.load(weight, variant * channels + quad * 4 + i)
                        kb.call("dlcc_dot4_u8s8", total, kb.load(turned, i), tap)

    def _reals(self, line: Any, channel: Any, ky: Any) -> None:
        kb, spec, channels = self.kb, self.spec, self.share.channels
        dtype, columns = spec.in_dtype, self.words.columns
        count = channels * SIZE[dtype] // 4
        weight = kb.alloc("uint32", spec.kw * count, "taps")
        for tap in range(spec.kw):
            place = (ky * spec.kw + tap) * spec.c + channel
            grid_lanes.load(kb, weight, tap * count, self.weight, place, channels)
        with kb.unrolled(0, channels, "i") as i:
            values = [
                kb.let(self._real(line, number * channels + i), "value")
                for number in range(len(columns))
            ]
            taps = [
                kb.let(kb.widened(grid_lanes.real(kb, weight, t * channels + i, dtype)), "tap")
                for t in range(spec.kw)
            ]
            for pixel in range(self.share.pixels):
                place = pixel * channels + i
                total = kb.load(self.sums, place)
                for t, tap in enumerate(taps):
                    at = columns.index(pixel * spec.stride[1] + t * spec.dilation[1])
                    total = kb.extern("dlcc_fma", "float32", 1, values[at], tap, total)
                kb.store(self.sums, place, total)
