"""Signs on a GPU: packed from float32 numbers, unpacked, and made of counted bits.

A warp makes a word: each lane has a channel, and a ballot gives the signs of all of them. Words are
those of :mod:`targets.kernels.sign_words`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels.grid_items import thread_each
from targets.kernels.sign_words import (
    WORD,
    SignPack,
    SignUnpack,
    real_parameters,
    real_value,
    words_of,
)
from targets.kernels.skeleton import divide

_WARPS = 8
"""Of a block."""


class _Words:
    """Emits a kernel whose every warp makes the word of 32 channels of a pixel."""

    def __init__(self, key: str, pixels: int, channels: int) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.kb = GridBuilder(key, _WARPS * WORD)
        self.words, self.channels = words_of(channels), channels
        self.count = pixels * self.words

    def begin(self) -> None:
        """The word of this warp; the last block's warps without one repeat the last."""
        kb = self.kb
        self.lane = kb.let(kb.thread % WORD, "lane")
        number = kb.let(kb.block * _WARPS + kb.thread // WORD, "number")
        self.inside = True if self.count % _WARPS == 0 else number < self.count
        last = tir.tirx.min(number, self.count - 1)
        self.number = number if self.inside is True else kb.let(last, "number")
        self.pixel, word = divide(kb, self.number, self.words, "word")
        self.channel = kb.let(word * WORD + self.lane, "channel")

    @contextmanager
    def lanes(self) -> Iterator[None]:
        """Runs what follows in lanes that have a channel."""
        with self.kb.when(True if self.channels % WORD == 0 else self.channel < self.channels):
            yield

    def store_signs(self, y: Any, negative: Any) -> None:
        """Stores the word; ``negative``: int32, not 0 in the lanes whose bits are 1."""
        kb = self.kb
        word = kb.let(kb.extern("dlcc_ballot", "int32", 1, negative), "signs")
        first = self.lane.equal(0)
        test = first if self.inside is True else tir.tirx.all(first, self.inside)
        with kb.when(test):
            kb.store(y, self.number, word)

    def step(self, func: Any, args: tuple[KernelArg, ...]) -> KernelStep:
        """The step of the kernel, which ``func`` makes."""
        blocks = -(-self.count // _WARPS)
        launch = Launch((blocks, 1, 1), (_WARPS * WORD, 1, 1))
        return KernelStep(self.kb.name, func, args, blocks, launch=launch)


def pack_step(spec: SignPack, source: KernelArg, to: KernelArg) -> KernelStep:
    """Signs of float32 numbers as words."""
    key = name_key("grid_pack_signs", spec)

    def build() -> Any:
        made = _Words(key, spec.pixels, spec.channels)
        kb = made.kb
        x, y = kb.pointer("x", "float32", align=4), kb.pointer("y", "int32", align=4)
        made.begin()
        sign = kb.alloc("int32", 1, "sign")
        kb.store(sign, 0, kb.const(0, "int32"))
        start = spec.start(kb, made.pixel)
        with made.lanes():
            value = kb.load(x, start + made.channel * spec.strides[-1])
            kb.store(sign, 0, kb.cast(value < kb.const(0.0, "float32"), "int32"))
        made.store_signs(y, kb.load(sign, 0))
        return kb.build()

    return _Words(key, spec.pixels, spec.channels).step(build, (source, to))


def unpack_step(spec: SignUnpack, source: KernelArg, to: KernelArg) -> KernelStep:
    """Words as float32 numbers (bytes 0 and 2 where there is no scale), a thread for each."""
    key = name_key("grid_unpack_signs", spec)

    def build() -> Any:
        kb = tir.KernelBuilder(key)
        dtype = "float32" if spec.scale else "uint8"
        x, y = kb.pointer("x", "int32", align=4), kb.pointer("y", dtype, align=1)
        up, down = (spec.scale, -spec.scale) if spec.scale else (2, 0)
        with kb.loop(kb.begin, kb.end, "element") as element:
            pixel, channel = divide(kb, element, spec.channels, "channel")
            word = kb.load(x, pixel * words_of(spec.channels) + channel // WORD)
            bit = tir.tirx.bitwise_and(tir.tirx.shift_right(word, channel % WORD), 1)
            index = spec.start(kb, pixel) + channel * spec.strides[-1]
            values = kb.const(down, dtype), kb.const(up, dtype)
            kb.store(y, index, tir.tirx.Select(bit.equal(1), *values))
        return kb.build()

    return thread_each(KernelStep(key, build, (source, to), spec.pixels * spec.channels))


@dataclass(frozen=True)
class Counted:
    """From counts of differing bits ``[splits, pixels, channels]`` to the layer's output.

    ``summed``: from sums of products, float32 ``[pixels, channels]``, which hold them exactly.

    Attributes:
        rows: of an image of the output; ``cols`` likewise.
        classes: whether the base depends on the place.
        signs: the output is binary.
        residual: float32 numbers are added.
    """

    pixels: int
    channels: int
    splits: int
    rows: int
    cols: int
    classes: bool
    signs: bool
    residual: bool
    summed: bool = False


def counted_step(spec: Counted, args: tuple[KernelArg, ...]) -> KernelStep:
    """The epilogue.

    ``args``: counts, base, classes of rows and columns (where they differ), multiplier, bias,
    limits and residual (for a float32 output), y. Of sums: sums, multiplier, bias, limits,
    residual, y.
    """
    key = name_key("grid_counted", spec)
    make = _summed if spec.summed else _counted
    return _Words(key, spec.pixels, spec.channels).step(lambda: make(key, spec), args)


def _summed(key: str, spec: Counted) -> Any:
    made = _Words(key, spec.pixels, spec.channels)
    kb = made.kb
    sums, real = kb.pointer("sums", "float32"), real_parameters(kb, spec.residual)
    y = kb.pointer("y", "int32" if spec.signs else "float32", align=4)
    made.begin()
    sign = kb.alloc("int32", 1, "sign")
    kb.store(sign, 0, kb.const(0, "int32"))
    with made.lanes():
        index = kb.let(made.pixel * spec.channels + made.channel, "index")
        value = real_value(kb, real, kb.load(sums, index), made.channel, index, 1)
        if spec.signs:
            kb.store(sign, 0, kb.cast(value < kb.const(0.0, "float32"), "int32"))
        else:
            with kb.when(made.inside):
                kb.store(y, index, value)
    if spec.signs:
        made.store_signs(y, kb.load(sign, 0))
    return kb.build()


def _counted(key: str, spec: Counted) -> Any:
    made = _Words(key, spec.pixels, spec.channels)
    kb = made.kb
    counts, base = kb.pointer("counts", "int32"), kb.pointer("base", "int32")
    classes = [kb.pointer(f"{axis}_class", "int32") for axis in ("row", "col") if spec.classes]
    real = None if spec.signs else real_parameters(kb, spec.residual)
    y = kb.pointer("y", "int32" if spec.signs else "float32", align=4)
    made.begin()
    sign = kb.alloc("int32", 1, "sign")
    kb.store(sign, 0, kb.const(0, "int32"))
    with made.lanes():
        index = kb.let(made.pixel * spec.channels + made.channel, "index")
        count = kb.load(counts, index)
        for split in range(1, spec.splits):
            count = count + kb.load(counts, index + split * (spec.pixels * spec.channels))
        count = kb.let(count, "count")
        at = made.channel
        if classes:
            line, col = divide(kb, made.pixel, spec.cols, "col")
            at = kb.load(classes[0], line % spec.rows) + kb.load(classes[1], col) + at
        limit = kb.let(kb.load(base, at), "base")
        if real is None:
            kb.store(sign, 0, kb.cast(limit < count, "int32"))
        else:
            sums = kb.cast(limit - count - count, "float32")
            value = real_value(kb, real, sums, made.channel, index, 1)
            with kb.when(made.inside):
                kb.store(y, index, value)
    if spec.signs:
        made.store_signs(y, kb.load(sign, 0))
    return kb.build()
