"""Depthwise convolution on a GPU: a thread makes some channels of some pixels of a row.

Channels lie innermost, so 4 to 16 neighbouring ones are read and written by one instruction, and
the threads of a warp read one stretch of memory. What a thread has read of an input row it uses for
all its pixels.

Codes are multiplied four taps at a time: a word holds four channels of a column; four columns are
transposed to four words with four columns of a channel each, which ``dp4a`` multiplies by the taps
of that channel. Where the taps of several pixels lie within these columns, their words of weights
are those taps moved by some bytes, with zeros around. Padding holds the input's zero point, and
what that adds everywhere is taken off the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue, grid_lanes
from targets.kernels.direct import layer_arguments, shared_epilogue
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.spec import FLOATS, NUMPY, SIZE, ConvSpec

THREADS = 128
"""Threads of a block; they have nothing to do with each other."""

_REGISTERS = 65536
"""Of a multiprocessor; ``_OWN`` of a thread are for addresses and what the compiler needs."""

_OWN = 32
_MOST_RESIDENT = 2048
"""Threads of a multiprocessor at a time."""

_OPERATIONS = 64
"""Integer operations of a multiprocessor in a cycle; of floats it is twice that on some."""

_FIRST_CYCLES = 1000
"""Until the first numbers are there, and to store results."""

_OPERATION_CYCLES = 2
"""Of a thread for one operation among many that do not wait for each other."""

_CODE_OPERATIONS = 16
"""Of the epilogue; conversions count fourfold."""

_REAL_OPERATIONS = 5
_BYTES_PER_SECOND = 1e12


@dataclass(frozen=True)
class Share:
    """What a thread makes: ``channels``, a multiple of 4, of ``pixels`` of a row."""

    channels: int
    pixels: int


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
    if max(spec.n * spec.h * spec.w, spec.n * spec.oh * spec.ow) * spec.c * 4 >= 1 << 31:
        return "a tensor has 2 GiB or more"
    return ""


def predicted(spec: ConvSpec, share: Share, machine: Machine) -> float:
    """Seconds."""
    threads, made = _threads(spec, share), share.channels * share.pixels
    words = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels)
    columns, size = len(words.columns), SIZE[spec.stored or spec.in_dtype]
    if spec.in_dtype == "u8":
        each, finish = 2 * len(words.words) + len(words.uses), _CODE_OPERATIONS
        row, taps = columns * 4 + each * share.channels, len(words.variants) * share.channels
    else:
        row, finish = columns * (4 + share.channels) + made * spec.kw, _REAL_OPERATIONS
        taps = spec.kw * share.channels * SIZE[spec.in_dtype] // 4
    operations = spec.kh * row + made * finish
    together = threads * operations / (machine.multiprocessors * _OPERATIONS)
    registers = _OWN + made + columns * share.channels * size // 4 + taps
    resident = min(_MOST_RESIDENT, _REGISTERS // registers)
    waves = -(-threads // (machine.multiprocessors * resident))
    alone = waves * (_FIRST_CYCLES + operations * _OPERATION_CYCLES)
    moved = spec.n * spec.c * (spec.h * spec.w * size + spec.oh * spec.ow * SIZE[spec.epilogue.out])
    seconds = max(max(together, alone) / machine.clock, moved / _BYTES_PER_SECOND)
    return LAUNCH_SECONDS + seconds


@lru_cache(maxsize=1024)
def best_share(spec: ConvSpec, machine: Machine) -> Share:
    """The share that is predicted to take the least time."""
    most = 16 // SIZE[spec.stored or spec.in_dtype]
    shares = [
        Share(channels, pixels)
        for channels in (16, 8, 4)
        if channels <= max(most, 4) and spec.c % channels == 0
        for pixels in (4, 2, 1)
        if pixels <= spec.ow
    ]
    return min(shares, key=lambda share: predicted(spec, share, machine))


def _threads(spec: ConvSpec, share: Share) -> int:
    return spec.n * spec.oh * -(-spec.ow // share.pixels) * (spec.c // share.channels)


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
    constants = {
        "weight": packed,
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    for name, array in (("multiplier", multiplier), ("ratio", ratio)):
        if array is not None:
            constants[name] = np.broadcast_to(array, (spec.c,))
    coded = replace(spec, epilogue=shared_epilogue(spec.epilogue), input_slack=True)
    key, threads = name_key("grid_depthwise", coded, share), _threads(spec, share)
    launch = Launch((-(-threads // THREADS), 1, 1), (min(THREADS, threads), 1, 1))
    step = KernelStep(
        key,
        lambda: _Depthwise(key, coded, share, launch.block[0]).build(),
        layer_arguments(spec),
        threads,
        launch=launch,
    )
    name = f"depthwise {spec.kh}x{spec.kw}, {share.channels} channels of {share.pixels} pixels"
    return KernelPlan((step,), constants, kernel=name)


def _words_of_weights(packed: np.ndarray, spec: ConvSpec, share: Share) -> np.ndarray:
    """``[kh, kw, c]`` as ``[kh, variants, c, 4]`` (:class:`Words`)."""
    variants = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels).variants
    made = np.zeros((spec.kh, len(variants), spec.c, 4), np.int8)
    for number, variant in enumerate(variants):
        for byte, tap in enumerate(variant):
            if tap >= 0:
                made[:, number, :, byte] = packed[:, tap]
    return made


class _Depthwise:
    """Parameters as :func:`~targets.kernels.direct.layer_arguments` has them."""

    def __init__(self, key: str, spec: ConvSpec, share: Share, threads: int) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.kb = kb = GridBuilder(key, threads)
        self.spec, self.share, self.integer = spec, share, spec.in_dtype == "u8"
        self.stored = spec.stored or spec.in_dtype
        self.words = Words.of(spec.kw, spec.stride[1], spec.dilation[1], share.pixels)
        self.x = kb.pointer("x", NUMPY[self.stored])
        self.weight = kb.pointer("weight", "int8" if self.integer else NUMPY[spec.in_dtype])
        self.at = epilogue.parameters(kb, self.integer, spec.epilogue.out, spec.epilogue.residual)

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec, share = self.kb, self.spec, self.share
        item, threads = kb.let(kb.block * kb.threads + kb.thread, "item"), _threads(spec, share)
        with kb.when(True if threads % kb.threads == 0 else item < threads):
            blocks, runs = spec.c // share.channels, -(-spec.ow // share.pixels)
            channel = kb.let(item % blocks * share.channels, "channel")
            run = kb.let(item // blocks, "run")
            column, line = kb.let(run % runs * share.pixels, "column"), kb.let(run // runs, "line")
            row, image = kb.let(line % spec.oh, "row"), kb.let(line // spec.oh, "image")
            kind = "int32" if self.integer else "float32"
            self.sums = kb.alloc(kind, share.channels * share.pixels, "sums")
            for i in range(share.channels * share.pixels):
                kb.store(self.sums, i, kb.const(0, kind))
            rows = kb.unrolled if spec.kh * spec.kw <= 25 else kb.loop
            with rows(0, spec.kh, "tap_row") as ky:
                self._row(image, row, column, channel, ky)
            self._store(line, column, channel)
        return kb.build()

    def _row(self, image: Any, row: Any, column: Any, channel: Any, ky: Any) -> None:
        """Adds the products of a row of taps."""
        kb, spec = self.kb, self.spec
        y = kb.let(row * spec.stride[0] + ky * spec.dilation[0] - spec.pads[0], "y")
        x = kb.let(column * spec.stride[1] - spec.pads[1], "x")
        start = kb.let(((image * spec.h + y) * spec.w + x) * spec.c + channel, "start")
        channels = self.share.channels
        count = channels * SIZE[self.stored] // 4
        line = kb.alloc("uint32", len(self.words.columns) * count, "line")
        for number, offset in enumerate(self.words.columns):
            inside = self._inside(y, x, offset)
            if inside is not True:
                fill = spec.in_zero_point * 0x01010101 if self.integer else 0
                for i in range(count):
                    kb.store(line, number * count + i, kb.const(fill, "uint32"))
            with kb.when(inside):
                place = start + offset * spec.c
                grid_lanes.load(kb, line, number * count, self.x, place, channels)
        if self.integer:
            self._codes(line, channel, ky)
        else:
            self._reals(line, channel, ky)

    def _inside(self, y: Any, x: Any, offset: int) -> Any:
        """Whether a column of a row lies on the input; True: it always does."""
        spec, pixels = self.spec, self.share.pixels
        top, left = spec.pads[:2]
        last = -(-spec.ow // pixels) * pixels - pixels
        tests = []
        if top:
            tests.append(y >= 0)
        if (spec.oh - 1) * spec.stride[0] + (spec.kh - 1) * spec.dilation[0] - top >= spec.h:
            tests.append(y < spec.h)
        if offset < left:
            tests.append(x + offset >= 0)
        if last * spec.stride[1] - left + offset >= spec.w:
            tests.append(x + offset < spec.w)
        return tir.tirx.all(*tests) if len(tests) > 1 else tests[0] if tests else True

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

    def _real(self, line: Any, place: Any) -> Any:
        """An activation as float32, rounded to what is multiplied."""
        kb, dtype = self.kb, self.spec.in_dtype
        value = grid_lanes.real(kb, line, place, self.stored)
        if self.stored == "f32" and dtype in FLOATS and dtype != "f32":
            value = kb.rounded(kb.let(value, "value"), dtype)
        return kb.widened(value)

    def _store(self, line: Any, column: Any, channel: Any) -> None:
        kb, spec, share, out = self.kb, self.spec, self.share, self.spec.epilogue
        channels = grid_lanes.Channels.loaded(kb, self.at, channel, share.channels)
        for pixel in range(share.pixels):
            whole = spec.ow % share.pixels == 0 or pixel == 0
            with kb.when(True if whole else column + pixel < spec.ow):
                index = kb.let((line * spec.ow + column + pixel) * spec.c + channel, "index")
                first = pixel * share.channels
                channels.finish(kb, self.sums, first, index, out)
