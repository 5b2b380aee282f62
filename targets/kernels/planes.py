"""Planes: an image with its pixels along the lanes, for kernels whose lanes are pixels.

A plane holds 32 bits of each pixel, one float32 channel or four 8-bit ones, pixel after pixel, with
the borders of the padded image. Where the layer has a stride, each plane is cut by the remainders
of row and column, so that neighbouring outputs always read neighbouring places. A window's taps are
then fixed distances, and a vector of any 16 outputs is a vector of 16 inputs for each tap.

The way back, from sums with pixels along the lanes to NHWC, is :func:`finish_square`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from targets.isa import CLOCK
from targets.kernels import epilogue
from targets.kernels.skeleton import divide
from targets.kernels.spec import FLOATS, SIZE, ConvSpec, OutType

SLACK_PIXELS = 256
"""Pixels that may be read past the last plane: a block of outputs that ends late."""


_LINE = 16
"""Words of a cache line."""


@dataclass(frozen=True)
class Planes:
    """The staged image ``[n, planes, row phases, column phases, rows, columns]`` of 32-bit words.

    Attributes:
        n, h, w: of the input.
        words: 32-bit words of a pixel.
        stride: row and column phases; ``pads``: top and left border.
        rows, columns: of one phase of a plane, borders included.
        lanes: of the vectors it is made with.
        code: whether borders hold a byte four times over, else 0.0.
    """

    n: int
    h: int
    w: int
    words: int
    stride: tuple[int, int]
    pads: tuple[int, int]
    rows: int
    columns: int
    lanes: int
    code: bool

    @property
    def phase(self) -> int:
        """Words of one phase of a plane."""
        return self.rows * self.columns

    @property
    def plane(self) -> int:
        """Words of a plane: an odd number of cache lines, so that planes share no cache sets."""
        lines = ceil(self.phase * self.stride[0] * self.stride[1] / _LINE)
        return (lines | 1) * _LINE

    @property
    def image(self) -> int:
        """Words of an image."""
        return self.plane * self.words

    @property
    def bytes(self) -> int:
        """Bytes of all images."""
        return 4 * (self.n * self.image + SLACK_PIXELS)

    @property
    def seconds(self) -> float:
        """Predicted time on one thread: 1.5 cycles a vector, for each doubling of the lanes."""
        pixels = self.n * self.h * ceil(self.w / self.lanes) * self.lanes
        vectors = pixels * ceil(self.words / self.lanes)
        return vectors * 1.5 * self.lanes.bit_length() / CLOCK


def _pointwise(spec: ConvSpec) -> bool:
    return spec.kh == spec.kw == 1 and spec.stride == (1, 1) and not any(spec.pads)


def planes_of(spec: ConvSpec, lanes: int) -> Planes:
    """The planes of a layer without groups."""
    words = spec.c * SIZE[spec.in_dtype] // 4
    code = spec.in_dtype == "u8"
    if _pointwise(spec):  # the rows of all images follow each other
        rows = spec.n * spec.h
        return Planes(1, rows, spec.w, words, (1, 1), (0, 0), rows, spec.w, lanes, code)
    (down, right), (height, width) = spec.stride, spec.padded
    rows, columns = ceil(height / down), ceil(width / right)
    return Planes(
        spec.n, spec.h, spec.w, words, spec.stride, spec.pads[:2], rows, columns, lanes, code
    )


def word_places(spec: ConvSpec, planes: Planes) -> np.ndarray:
    """Where the word of each four (float32: one) columns of the weights lies, from word 0."""
    down, right = planes.stride
    row, tap, word = np.meshgrid(
        np.arange(spec.kh) * spec.dilation[0],
        np.arange(spec.kw) * spec.dilation[1],
        np.arange(planes.words),
        indexing="ij",
    )
    phase = (row % down * right + tap % right) * planes.phase
    within = row // down * planes.columns + tap // right
    return np.asarray(word * planes.plane + phase + within).reshape(-1)


def output_pixels(spec: ConvSpec, planes: Planes, block: int) -> np.ndarray:
    """Output pixel at each place of a phase, int32 (-1: none), up to whole blocks of places."""
    if _pointwise(spec):
        found = np.arange(spec.n * spec.oh * spec.ow)
    else:
        row, column = np.divmod(np.arange((spec.oh - 1) * planes.columns + spec.ow), planes.columns)
        found = np.where(column < spec.ow, row * spec.ow + column, -1)
    padded = np.full(ceil(found.size / block) * block, -1, np.int32)
    padded[: found.size] = found
    return padded


def transposed(kb: tir.KernelBuilder, rows: list[Any]) -> list[Any]:
    """A square of numbers, vector by vector, mirrored at its diagonal."""
    size, step = len(rows), 1
    shuffle, lane = tir.tirx.Shuffle, partial(tir.tirx.IntImm, "int32")
    while step < size:
        made = list(rows)
        for i in range(size):
            if not i & step:
                pair = [rows[i], rows[i | step]]
                low = [j if not j & step else size + j - step for j in range(size)]
                high = [j + step if not j & step else size + j for j in range(size)]
                made[i] = kb.let(shuffle(pair, [lane(j) for j in low]), "t")
                made[i | step] = kb.let(shuffle(pair, [lane(j) for j in high]), "t")
        rows, step = made, 2 * step
    return rows


# -- staging -----------------------------------------------------------------------------------


def planes_function(name: str, planes: Planes) -> Any:
    """The staging kernel: parameters x, fill, y; one work item per row of the padded image."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "int32", align=1)
    fill = kb.pointer("fill", "int32")
    y = kb.pointer("y", "int32")
    value = kb.load(fill, 0)
    if planes.code:
        value = kb.cast(kb.cast(value, "uint32") * kb.const(0x01010101, "uint32"), "int32")
    value = kb.let(value, "fill")
    down, right = planes.stride
    top, _ = planes.pads
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, row = divide(kb, item, planes.rows * down, "row")
        image, row = (image, row) if planes.n > 1 else (0, item)
        line, phase = divide(kb, row, down, "line")
        source = kb.let(row - top, "source")
        start = image * planes.image + line * planes.columns + phase * right * planes.phase
        start = kb.let(start, "start")
        inside = True
        if planes.rows * down != planes.h:
            inside = tir.tirx.all(source >= 0, source < planes.h)
        with kb.when(inside):
            pixel = kb.let((image * planes.h + source) * planes.w, "pixel")
            for column in range(right):
                _row(kb, planes, x, y, pixel, start + column * planes.phase, column, value)
        if inside is not True:
            with kb.when(tir.tirx.Not(inside)), kb.loop(0, planes.words, "plane") as plane:
                for column in range(right):
                    at = start + column * planes.phase + plane * planes.plane
                    _fill(kb, y, kb.let(at, "at"), planes.columns, value, planes.lanes)
    return kb.build()


def _fill(kb: tir.KernelBuilder, y: Any, at: Any, count: int, value: Any, lanes: int) -> None:
    """``count`` words of ``value``."""
    for begin in range(0, count, lanes):
        kb.store_first(y, at + begin, kb.splat(value, lanes), min(lanes, count - begin))


def _row(
    kb: tir.KernelBuilder,
    planes: Planes,
    x: Any,
    y: Any,
    pixel: Any,
    start: Any,
    phase: int,
    value: Any,
) -> None:
    """One row of one column phase of all planes: squares of pixels and words, then the borders."""
    lanes, right = planes.lanes, planes.stride[1]
    first = (phase - planes.pads[1]) % right
    left = (first + planes.pads[1]) // right
    count = max(0, -(-(planes.w - first) // right))
    count = min(count, planes.columns - left)
    pixels = _Pixels(pixel, first, right, count)
    whole, rest = divmod(planes.words, lanes)
    with kb.loop(0, whole + (rest > 0), "group") as group:
        sizes = [(group < whole, lanes), (group >= whole, rest)] if rest and whole else []
        for condition, words in sizes or [(True, rest or lanes)]:
            with kb.when(condition):
                _squares(kb, planes, (x, y), pixels, start + left, group, words)
    with kb.loop(0, planes.words, "plane") as plane:
        at = kb.let(start + plane * planes.plane, "at")
        _fill(kb, y, at, left, value, lanes)
        _fill(kb, y, at + left + count, planes.columns - left - count, value, lanes)


@dataclass(frozen=True)
class _Pixels:
    """Pixels of a row: ``count`` of them, ``step`` apart, from ``first`` after ``row``."""

    row: Any
    first: int
    step: int
    count: int


def _squares(
    kb: tir.KernelBuilder,
    planes: Planes,
    memory: tuple[Any, Any],
    pixels: _Pixels,
    start: Any,
    group: Any,
    words: int,
) -> None:
    """All pixels by one group of words, square by square."""
    lanes, count = planes.lanes, pixels.count

    def square(block: Any, size: int) -> None:
        rows = []
        for i in range(lanes):
            column = pixels.first + (block + min(i, size - 1)) * pixels.step
            at = (pixels.row + column) * planes.words + group * lanes
            rows.append(kb.let(kb.load(memory[0], at, lanes), "row"))
        for word, column_of in enumerate(transposed(kb, rows)[:words]):
            at = start + (group * lanes + word) * planes.plane + block
            kb.store_first(memory[1], at, column_of, size)

    if count >= lanes:
        with kb.loop(0, count // lanes, "block") as i:
            square(kb.let(i * lanes, "block"), lanes)
    if count % lanes:  # the last block is set back, or a part of one
        square(max(count - lanes, 0), min(lanes, count))


def planes_step(planes: Planes, source: KernelArg, fill: str, scratch: int) -> KernelStep:
    """The step that stages ``source`` into buffer ``scratch``; ``fill`` names a constant."""
    key = name_key("planes", planes)
    return KernelStep(
        key,
        lambda: planes_function(key, planes),
        (source, ("const", fill), ("scratch", scratch)),
        planes.n * planes.rows * planes.stride[0],
        planes.seconds,
    )


# -- the way back ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Square:
    """How sums of ``lanes`` channels by as many pixels are finished.

    ``n``: channels of the output; ``packed``: to 8-bit codes while the pixels are still along the
    lanes, which needs products that fit an int32, and no residual.
    """

    n: int
    lanes: int
    out: OutType
    packed: bool


def packs(out: OutType, lanes: int, residual: object, fit: bool) -> bool:
    """Whether sums may be finished with the pixels along the lanes."""
    return out not in FLOATS and residual is None and fit and lanes == epilogue.BUNDLE_LANES


def finish_square(
    kb: tir.KernelBuilder,
    square: Square,
    out: epilogue.Pointers,
    sums: Any,
    places: list[Any],
    channel: Any,
    pixels: tuple[Any, Any],
    image: Any,
) -> None:
    """The epilogue of a square of sums.

    Args:
        kb: the kernel.
        square: what kind.
        out: the epilogue's parameters.
        sums: buffer of the accumulators.
        places: where each channel's vector lies there.
        channel: first channel.
        pixels: buffer of :func:`output_pixels`, and the place of the first pixel.
        image: first output pixel of the image.
    """
    lanes, tail = square.lanes, square.n % square.lanes
    vectors = [kb.let(kb.load(sums, place, lanes), "sum") for place in places]
    table, first = pixels
    if square.packed:
        made = _packed_rows(kb, square, out, vectors, channel)
    else:
        made = transposed(kb, vectors)
    channels = None if square.packed else epilogue.load_channels(kb, out, channel, lanes)
    order = [4 * (i % 4) + i // 4 for i in range(lanes)] if square.packed else list(range(lanes))
    for i, lane in enumerate(order):
        pixel = kb.let(kb.load(table, first + lane), "pixel")
        with kb.when(pixel >= 0):
            at = kb.let((image + pixel) * square.n + channel, "y_at")
            branches = [(True, lanes)]
            if tail:
                branches = [
                    (channel + lanes <= square.n, lanes),
                    (channel + lanes > square.n, tail),
                ]
            for condition, count in branches:
                with kb.when(condition):
                    if channels is None:
                        kb.store_first(out.y, at, made[i], count)
                    else:
                        epilogue.finish(kb, out, channels, made[i], at, count, square.out)


def _packed_rows(
    kb: tir.KernelBuilder, square: Square, out: epilogue.Pointers, sums: list[Any], channel: Any
) -> list[Any]:
    """Codes of 16 channels of pixels 0, 4, 8, 12, 1, 5, ... of a square."""
    words = []
    for quad in range(0, square.lanes, 4):
        codes = epilogue.finish_planes(kb, out, sums[quad : quad + 4], channel + quad, square.out)
        words.append(kb.let(codes, "codes"))
    shuffle, lane = tir.tirx.Shuffle, partial(tir.tirx.IntImm, "int32")
    low = [base + j for base in range(0, 16, 4) for j in (0, 16, 1, 17)]
    low, high = [[lane(j + half) for j in low] for half in (0, 2)]
    pairs = [
        [kb.let(shuffle(words[i : i + 2], half), "pair") for half in (low, high)] for i in (0, 2)
    ]
    both = [base + j for base in range(0, 16, 4) for j in (0, 1, 16, 17)]
    made = []
    for half in (0, 1):
        for shift in (0, 2):
            rows = [pairs[0][half], pairs[1][half]]
            row = kb.let(shuffle(rows, [lane(j + shift) for j in both]), "rows")
            made += [
                kb.reinterpret(kb.shuffle(row, range(at, at + 4)), str(out.y.dtype), 16)
                for at in range(0, 16, 4)
            ]
    return made
