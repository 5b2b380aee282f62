"""Staging: copies of the input in the form that the inner kernels read without conditions.

A padded copy (borders hold the zero point), a copy with rows and columns of zero points inserted
(transposed convolution), u8 widened to i16 for pmaddwd, f32 rounded to bf16 or f16, or these
widened to f32, or simply a copy with readable slack.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import Footprint, KernelArg, KernelStep, name_key
from targets.isa import Isa
from targets.kernels.skeleton import divide
from targets.kernels.spec import NUMPY, SHORT_FLOATS, SIZE

_LINE = 64
_WRITTEN_OUT = 16
"""Most vectors of a row that are copied without a loop."""

_PAIRS = 32
"""bf16 numbers of a register, where the CPU multiplies pairs of them."""

COPY_BANDWIDTH = 20e9
"""Bytes per second of a staging copy, read and written bytes together."""

CACHED_COPY = 512 << 10
"""Bytes up to which source and copy lie in the second-level cache."""

CACHED_COPY_BANDWIDTH = 100e9
"""Bytes per second of a copy there."""


@dataclass(frozen=True)
class Stage:
    """A staged copy ``[n, out_h, out_w, c]`` of an input ``[n, h, w, c]``.

    Input pixel (i, j) lands at ``(top + i * spread_h, left + j * spread_w)``; the rest is the fill
    value. ``rounded``: dtype that f32 numbers are rounded to, even if they stay f32. ``spare``:
    channels beyond ``c`` of each pixel of the copy, which hold the fill value. ``slack``: 64 bytes
    after the input's end may be read. ``lead``: elements before the first row of the copy.
    ``flip``: u8 codes have their top bits flipped, which makes them s8 numbers, 128 less.
    """

    n: int
    h: int
    w: int
    c: int
    out_h: int
    out_w: int
    top: int
    left: int
    spread: tuple[int, int]
    src: str
    dst: str
    rounded: str = ""
    spare: int = 0
    slack: bool = False
    lead: int = 0
    flip: bool = False

    @property
    def elements(self) -> int:
        """Elements of the copy."""
        return self.lead + self.n * self.out_h * self.out_w * self.pitch

    @property
    def pitch(self) -> int:
        """Channels of the copy."""
        return self.c + self.spare

    @property
    def bytes(self) -> int:
        """Bytes of the copy."""
        return self.elements * SIZE[self.dst]

    @property
    def seconds(self) -> float:
        """Predicted time on one thread."""
        cached = self.bytes <= CACHED_COPY
        return 2 * self.bytes / (CACHED_COPY_BANDWIDTH if cached else COPY_BANDWIDTH)


def aligned(stage: Stage) -> Stage:
    """``stage`` with every row of the input at the start of a cache line.

    Stores across lines take twice as long. Where the lines would be a quarter longer it is left as
    it is.
    """
    line = _LINE // SIZE[stage.dst]
    pixels = line // gcd(line, stage.pitch)
    width = -(-stage.out_w // pixels) * pixels
    if 4 * width > 5 * stage.out_w:
        return stage
    return replace(stage, out_w=width, lead=-stage.left * stage.pitch % line)


def rows_stage(
    rows: int, c: int, src: str, dst: str, *, rounded: str = "", spare: int = 0
) -> Stage:
    """A plain copy (or widening) of a ``[rows, c]`` matrix, one work item per row."""
    return Stage(1, rows, 1, c, rows, 1, 0, 0, (1, 1), src, dst, rounded, spare)


def fill_constant(zero_point: int, src: str) -> np.ndarray:
    """What borders hold, as the one-element array that the staging kernel takes: real zero."""
    if src == "u8":
        return np.array([zero_point], dtype=np.int32)
    return np.zeros(1, np.float32)


def _copy(kb: tir.KernelBuilder, stage: Stage, put: Any, get: Any, x: Any, y: Any, n: int) -> None:
    """Copies (and widens) ``n`` contiguous elements."""
    lanes = 64 // SIZE["f32" if stage.rounded else stage.dst]
    at = 0
    while n:
        while lanes > n:
            lanes //= 2
        whole = n // lanes
        looped = whole if whole > _WRITTEN_OUT else 1
        for first in range(0, whole, looped):
            with kb.loop(first, first + looped, "v") as v:
                value = kb.load(x, get + v * lanes + at, lanes)
                kb.store(y, put + v * lanes + at, _converted(kb, stage, value))
        at += n // lanes * lanes
        n %= lanes


def _converted(kb: tir.KernelBuilder, stage: Stage, value: Any) -> Any:
    """A vector of the input as the copy's dtype."""
    if stage.flip:
        return _flipped(kb, value)
    if stage.src == stage.dst and not stage.rounded:
        return value
    if stage.src == "f32":
        short = kb.let(kb.rounded(value, stage.rounded), "short")
        return short if stage.dst == stage.rounded else kb.widened(short)
    return kb.widened(value) if stage.src in SHORT_FLOATS else kb.cast(value, NUMPY[stage.dst])


def _flipped(kb: tir.KernelBuilder, value: Any) -> Any:
    """u8 codes less 128."""
    return tir.tirx.bitwise_xor(value, kb.const(0x80, "uint8", tir.lanes_of(value)))


def _at_once(stage: Stage) -> int:
    """Pixels with spare channels that one step makes; 0: each by itself."""
    pixels = _PAIRS // stage.pitch
    readable = stage.slack or pixels * stage.c in (_PAIRS, _PAIRS // 2)
    fits = stage.dst == "bf16" and stage.spread[1] == 1 and 1 < pixels <= stage.w
    return pixels if stage.spare and fits and readable else 0


def _copy_spread(
    kb: tir.KernelBuilder, stage: Stage, put: Any, get: Any, x: Any, y: Any, fill: Any
) -> None:
    """Copies a row of pixels with spare channels, a register of them at a time."""
    c, pixels = stage.c, _at_once(stage)
    loaded = _PAIRS if pixels * c > _PAIRS // 2 else _PAIRS // 2
    pixel, channel = np.divmod(np.arange(pixels * stage.pitch), stage.pitch)
    order = np.where(channel < c, pixel * c + channel, loaded)
    with kb.loop(0, -(-stage.w // pixels), "step") as step:
        last = tir.tirx.IntImm("int32", stage.w - pixels)
        col = kb.let(tir.tirx.min(step * pixels, last), "col")
        halves = [
            kb.let(_converted(kb, stage, kb.load(x, get + col * c + at, _PAIRS // 2)), "half")
            for at in range(0, loaded, _PAIRS // 2)
        ]
        whole = kb.let(kb.shuffle(halves[0], range(loaded), *halves[1:]), "pixels")
        spread = kb.shuffle(whole, order.tolist(), kb.splat(fill, loaded))
        kb.store(y, put + col * stage.pitch, spread)


def _fill(kb: tir.KernelBuilder, stage: Stage, put: Any, y: Any, value: Any, n: int) -> None:
    """Stores ``value`` into ``n`` contiguous elements."""
    lanes, at = 64 // SIZE[stage.dst], 0
    while n:
        while lanes > n:
            lanes //= 2
        with kb.loop(0, n // lanes, "f") as v:
            kb.store(y, put + v * lanes + at, kb.splat(value, lanes))
        at += n // lanes * lanes
        n %= lanes


def _row(
    kb: tir.KernelBuilder, stage: Stage, put: Any, get: Any, x: Any, y: Any, fill: Any
) -> None:
    """One staged row that has an input row in it."""
    c, spread = stage.pitch, stage.spread[1]
    _fill(kb, stage, put, y, fill, stage.left * c)
    if spread == 1 and not stage.spare:
        _copy(kb, stage, put + stage.left * c, get, x, y, stage.w * c)
    elif _at_once(stage):
        _copy_spread(kb, stage, kb.let(put + stage.left * c, "put"), get, x, y, fill)
    else:
        with kb.loop(0, stage.w, "col") as col:
            at = kb.let(put + (stage.left + col * spread) * c, "put")
            _copy(kb, stage, at, kb.let(get + col * stage.c, "get"), x, y, stage.c)
            _fill(kb, stage, at + stage.c, y, fill, stage.spare)
            if spread > 1:
                with kb.when(col < stage.w - 1):
                    _fill(kb, stage, at + c, y, fill, (spread - 1) * c)
    end = stage.left + (stage.w - 1) * spread + 1
    _fill(kb, stage, kb.let(put + end * c, "end"), y, fill, (stage.out_w - end) * c)


def stage_function(name: str, stage: Stage, *, native: bool = False) -> Any:
    """The staging kernel: parameters x, fill, y; one work item per staged row.

    ``native``: the CPU has the instructions of AVX512-BF16.
    """
    kb = tir.KernelBuilder(name, bfloat16=native)
    x = kb.pointer("x", NUMPY[stage.src], align=1)
    fill = kb.pointer("fill", "int32" if stage.src == "u8" else "float32")
    y = kb.pointer("y", NUMPY[stage.dst])
    last = stage.top + (stage.h - 1) * stage.spread[0]
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, row = divide(kb, item, stage.out_h, "row")
        image = image if stage.n > 1 else 0
        row = row if stage.out_h > 1 else 0
        value = kb.cast(kb.load(fill, 0), NUMPY[stage.dst])
        value = kb.let(_flipped(kb, value) if stage.flip else value, "fill")
        put = kb.let(item * (stage.out_w * stage.pitch) + stage.lead, "put")
        source, left_over = divide(kb, row - stage.top, stage.spread[0], "source")
        every_row = stage.out_h == stage.h
        inside = True if every_row else tir.tirx.all(row >= stage.top, row <= last)
        if stage.spread[0] > 1 and not every_row:
            inside = tir.tirx.all(inside, left_over == 0)
        with kb.when(inside):
            get = kb.let((image * stage.h + source) * (stage.w * stage.c), "get")
            _row(kb, stage, put, get, x, y, value)
        if not every_row:
            with kb.when(tir.tirx.Not(inside)):
                _fill(kb, stage, put, y, value, stage.out_w * stage.pitch)
    return kb.build()


def stage_step(stage: Stage, isa: Isa, source: KernelArg, fill: str, scratch: int) -> KernelStep:
    """The step that stages ``source`` into buffer ``scratch``; ``fill`` names a constant."""
    native = stage.rounded == "bf16" and isa.bfloat16 != "widen"
    key = name_key("stage", stage, native)
    return KernelStep(
        key,
        lambda: stage_function(key, stage, native=native),
        (source, ("const", fill), ("scratch", scratch)),
        stage.n * stage.out_h,
        stage.seconds,
        footprint=lambda: _footprint(stage),
    )


def _footprint(stage: Stage) -> Footprint:
    """Bytes that each item touches: a staged row, and the input row in it if there is one."""
    item = np.arange(stage.n * stage.out_h)
    image, row = np.divmod(item, stage.out_h)
    source, between = np.divmod(row - stage.top, stage.spread[0])
    inside = (between == 0) & (source >= 0) & (source < stage.h)
    first = (image * stage.h + source) * inside
    reads = np.stack([first, first + inside], 1) * (stage.w * stage.c * SIZE[stage.src])
    writes = stage.lead + np.stack([item, item + 1], 1) * (stage.out_w * stage.pitch)
    writes = writes * SIZE[stage.dst]
    return Footprint({0: reads}, {2: writes})
