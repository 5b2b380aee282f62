"""Block-sparse convolution and linear layers of 8-bit codes on AMX tiles, by gathering.

A tile product takes 64 bytes of the reduction of 16 outputs. Blocks of 32 outputs by 4 columns
leave, for each block row, a list of such columns, and 16 of them fill a tile: the weights of the 16
lie side by side (tile rows are outputs), and their words of 16 pixels, a cache line each in the
planes of the input (:mod:`planes`), are copied below each other as the other operand. The copies of
a step run two steps ahead of its products, and the epilogue of a block of pixels between the
products of the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import epilogue
from targets.kernels.conv import TILE_SETUP
from targets.kernels.gemm import TILE, unit_for
from targets.kernels.planes import (
    Planes,
    Square,
    finish_square,
    output_pixels,
    packs,
    planes_of,
    word_places,
)
from targets.kernels.skeleton import divide
from targets.kernels.sparse_layer import Layer, staged_plan
from targets.kernels.sparse_pack import entry_counts, find_entries, index_dtype, weight_matrix
from targets.kernels.spec import ConvSpec, ResidualType

STRIPS = 2
"""Tiles of pixels, and of outputs, that are multiplied with each other."""

ROWS = STRIPS * TILE
"""Outputs of a block row."""

PIXELS = STRIPS * TILE
"""Pixels of a block."""

BUFFERS = 4
"""Gathered operands that are kept: of this step, the next ones, and the last."""

AHEAD = 2
"""Steps between a copy and its product: a tile cannot be loaded from stores under way."""

ITEM_CYCLES = 20000
"""Work items take about so long."""

_HALF = STRIPS * TILE * TILE  # words of a gathered operand
_SUMS = ROWS * PIXELS


@dataclass(frozen=True)
class SparseTiles:
    """What determines the code.

    Attributes:
        planes: the staged input.
        index: dtype of places.
        block_rows: block rows of the weights; ``blocks``: blocks of pixels of an image.
        images: how many; ``output``: output pixels of one.
        chunk: blocks of pixels of a work item.
        square: how sums are finished; ``residual``: dtype of what is added.
    """

    planes: Planes
    index: str
    block_rows: int
    blocks: int
    images: int
    output: int
    chunk: int
    square: Square
    residual: ResidualType | None

    @property
    def parts(self) -> int:
        """Work items of a block row and an image."""
        return ceil(self.blocks / self.chunk)

    @property
    def items(self) -> int:
        """Work items."""
        return self.images * self.block_rows * self.parts


def refusal(spec: ConvSpec) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.in_dtype != "u8":
        return "the activations are not 8-bit codes"
    if spec.c % 4:
        return f"{spec.c} input channels are no multiple of 4"
    if not spec.input_slack:
        return "the bytes after the caller's input may not be read"
    return ""


# -- code --------------------------------------------------------------------------------------


@dataclass
class _Pipeline:
    """One block row over some blocks of pixels of ``image``.

    ``state``: the next of the epilogue's squares that are due, and the first of their pixels.
    ``channel``: first one of the block row; ``bounds``: its first step and the end of the last.
    """

    kb: tir.KernelBuilder
    kernel: SparseTiles
    x: Any
    values: Any
    index: Any
    table: Any
    out: epilogue.Pointers
    gathered: Any
    gathered_at: Any
    sums: Any
    sums_at: Any
    state: Any
    channel: Any = 0
    bounds: Any = ()
    image: Any = 0
    base: Any = 0


def tiles_function(name: str, kernel: SparseTiles) -> Any:
    """The PrimFunc: parameters x, values, index, groups, then the epilogue's, residual, y."""
    kb = tir.KernelBuilder(name)
    x, values = kb.pointer("x", "int32"), kb.pointer("values", "int8")
    index, table = kb.pointer("index", kernel.index), kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, True, kernel.square.out, kernel.residual)
    _configure(kb)
    gathered, sums = kb.alloc_aligned("int32", BUFFERS * _HALF), kb.alloc_aligned("int32", _SUMS)
    state = kb.alloc("int32", 2)
    pipe = _Pipeline(kb, kernel, x, values, index, table, out, *gathered, *sums, state)
    with kb.loop(kb.begin, kb.end, "item") as item:
        rest, part = divide(kb, item, kernel.parts, "part")
        row, image = divide(kb, rest, kernel.images, "row")
        pipe.image = image if kernel.images > 1 else 0
        first = kb.let(part * kernel.chunk, "first")
        last = tir.tirx.min(first + kernel.chunk, tir.tirx.IntImm("int32", kernel.blocks))
        pipe.bounds = [kb.let(kb.load(table, row + i), "bound") for i in range(2)]
        pipe.channel = kb.let(row * ROWS, "channel")
        kb.store(state, 0, kb.const(STRIPS * STRIPS, "int32"))
        pipe.base = kb.let(image * kernel.planes.image if kernel.images > 1 else 0, "base")
        for ahead in range(AHEAD):
            _gather(pipe, pipe.bounds[0] + ahead, first * PIXELS, ahead)
        with kb.loop(first, kb.let(last, "last"), "block") as block:
            _block(pipe, kb.let(block - first, "turn"), kb.let(block * PIXELS, "pixel"))
        _finish_rest(pipe)
    kb.effect("llvm.x86.tilerelease")
    return kb.build()


def _tile(number: int) -> Any:
    return tir.tirx.IntImm("int8", number)


def _configure(kb: tir.KernelBuilder) -> None:
    """All eight tiles are 16 rows of 64 bytes."""
    config = kb.alloc("int8", 64)
    content = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [TILE] * 8 + [0] * 8
    for at, value in enumerate(content):
        kb.store(config, at, kb.const(value, "int8"))
    kb.effect("llvm.x86.ldtilecfg", kb.address(config, 0))


def _i32(value: int) -> Any:
    return tir.tirx.IntImm("int32", value)


def _block(pipe: _Pipeline, turn: Any, pixel: Any) -> None:
    """All products of a block of pixels; between them the epilogue of the block before.

    The last steps copy what the first ones of the next block multiply.
    """
    kb = pipe.kb
    start, end = pipe.bounds
    done = kb.let(turn * (end - start) - start, "done")
    for tile in range(STRIPS * STRIPS):
        kb.effect("llvm.x86.tilezero", _tile(tile))
    with kb.loop(start, end, "step") as step:
        after = kb.let(step + AHEAD, "after")
        wraps = kb.let(after >= end, "wraps")
        after = kb.let(tir.tirx.Select(wraps, after - end + start, after), "after")
        where = kb.let(pixel + tir.tirx.Select(wraps, _i32(PIXELS), _i32(0)), "where")
        _gather(pipe, after, where, done + step + AHEAD)
        _multiply(pipe, step, done + step)
        _finish_one(pipe)
    _finish_rest(pipe)
    for tile in range(STRIPS * STRIPS):
        strip, column = divmod(tile, STRIPS)
        at = pipe.sums_at + (strip * TILE * PIXELS + column * TILE)
        row_bytes = tir.tirx.IntImm("int64", 4 * PIXELS)
        kb.effect("llvm.x86.tilestored64", _tile(tile), kb.address(pipe.sums, at), row_bytes)
    kb.store(pipe.state, 0, kb.const(0, "int32"))
    kb.store(pipe.state, 1, pixel)


def _buffer(pipe: _Pipeline, number: Any) -> Any:
    """Where gathered operand ``number`` of an item starts."""
    return pipe.gathered_at + tir.tirx.bitwise_and(number, _i32(BUFFERS - 1)) * _HALF


def _gather(pipe: _Pipeline, step: Any, pixel: Any, number: Any) -> None:
    """Copies the words of a step's 16 places below each other, of pixels from ``pixel``."""
    kb = pipe.kb
    put = kb.let(_buffer(pipe, number), "put")
    base = kb.let(pipe.base + pixel, "from")
    for i in range(TILE):
        place = kb.cast(kb.load(pipe.index, step * TILE + i), "int32")
        get = kb.let(base + place, "get")
        for strip in range(STRIPS):
            words = kb.load(pipe.x, get + strip * TILE, TILE)
            kb.store(pipe.gathered, put + strip * TILE * TILE + i * TILE, words)


def _multiply(pipe: _Pipeline, step: Any, number: Any) -> None:
    """The products of one step with gathered operand ``number``."""
    kb, row_bytes = pipe.kb, tir.tirx.IntImm("int64", 64)
    get = kb.let(_buffer(pipe, number), "get")
    used = STRIPS * STRIPS
    for strip in range(STRIPS):
        at = kb.address(pipe.values, step * (ROWS * 64) + strip * 1024)
        kb.effect("llvm.x86.tileloadd64", _tile(used + strip), at, row_bytes)
    for column in range(STRIPS):
        operand = _tile(used + STRIPS + column)
        at = kb.address(pipe.gathered, get + column * TILE * TILE)
        kb.effect("llvm.x86.tileloadd64", operand, at, row_bytes)
        for strip in range(STRIPS):
            total = _tile(strip * STRIPS + column)
            kb.effect("llvm.x86.tdpbsud", total, _tile(used + strip), operand)


def _finish_one(pipe: _Pipeline) -> None:
    """One square of the epilogue that is due, if there is one left."""
    kb, kernel = pipe.kb, pipe.kernel
    due = kb.let(kb.load(pipe.state, 0), "due")
    with kb.when(due < STRIPS * STRIPS):
        strip, column = divide(kb, due, STRIPS, "strip")
        channel = kb.let(pipe.channel + strip * TILE, "channel")
        with kb.when(channel < kernel.square.n):
            at = kb.let(pipe.sums_at + strip * TILE * PIXELS + column * TILE, "at")
            places = [at + i * PIXELS for i in range(TILE)]
            first = kb.load(pipe.state, 1) + column * TILE + (kernel.block_rows + 1)
            pixels = (pipe.table, kb.let(first, "first"))
            image = pipe.image * kernel.output
            finish_square(kb, kernel.square, pipe.out, pipe.sums, places, channel, pixels, image)
        kb.store(pipe.state, 0, due + 1)


def _finish_rest(pipe: _Pipeline) -> None:
    """The rest of the epilogue that is due."""
    kb = pipe.kb
    due = kb.let(kb.load(pipe.state, 0), "due")
    with kb.loop(due, STRIPS * STRIPS, "rest"):
        _finish_one(pipe)


# -- choice ------------------------------------------------------------------------------------


def _steps(counts: np.ndarray) -> np.ndarray:
    """Steps of block rows: no fewer than are copied ahead, unless there are none."""
    return np.asarray(np.where(counts > 0, np.maximum(-(-counts // TILE), AHEAD), 0))


def _block_cycles(steps: float, packed: bool) -> float:
    """Cycles of a block of pixels and a block row."""
    return 128.0 * steps + (300.0 if packed else 800.0)


def sparse_tiles_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_tiles` on one thread."""
    steps = _steps(entry_counts(weight_matrix(weights), ROWS, 4))
    planes = planes_of(spec, isa.lanes)
    blocks = output_pixels(spec, planes, PIXELS).size // PIXELS * planes.n
    packed = packs(spec.epilogue.out, isa.lanes, spec.epilogue.residual, fit=True)
    cycles = blocks * sum(_block_cycles(float(count), packed) for count in steps)
    size = int(steps.sum()) * (ROWS * 64 + 2 * TILE)
    return max(cycles / CLOCK, isa.read_seconds(size)) + planes.seconds + TILE_SETUP


def _packed_weights(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles ``[steps, 2, 16, 64]``, first column of each entry of each step, first steps."""
    entries = find_entries(weight_matrix(layer.weights), ROWS, 4)
    steps = _steps(entries.counts)
    starts = np.concatenate([[0], np.cumsum(steps)])
    rows = np.repeat(np.arange(entries.counts.size), entries.counts)
    slot = np.arange(rows.size) - entries.starts[rows] + starts[rows] * TILE
    tiles = np.zeros((int(starts[-1]) * TILE, ROWS, 4), np.int8)
    columns = np.zeros(((int(starts[-1]) + AHEAD) * TILE,), np.int64)  # some steps are read ahead
    tiles[slot], columns[slot] = entries.values, entries.columns[:, 0]
    split = tiles.reshape(-1, TILE, STRIPS, TILE, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(split).reshape(-1, STRIPS, TILE, 64), columns, starts


def sparse_tiles(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a convolution or linear layer without groups."""
    spec, planes = layer.spec, planes_of(layer.spec, isa.lanes)
    places, pixels = word_places(spec, planes), output_pixels(spec, planes, PIXELS)
    values, columns, starts = _packed_weights(layer)
    packed = packs(spec.epilogue.out, isa.lanes, spec.epilogue.residual, layer.products_fit)
    blocks = pixels.size // PIXELS
    cycles = _block_cycles(float(np.diff(starts).mean()), packed)
    kernel = SparseTiles(
        planes,
        index_dtype(int(places.max())),
        starts.size - 1,
        blocks,
        planes.n,
        spec.oh * spec.ow,
        max(1, min(blocks, round(ITEM_CYCLES / cycles))),
        Square(spec.oc, TILE, spec.epilogue.out, packed),
        spec.epilogue.residual,
    )
    constants = {
        "weight": values,
        "index": places[columns // 4].astype(kernel.index),
        "groups": np.concatenate([starts, pixels]).astype(np.int32),
        **layer.channels(ROWS),
    }
    key = name_key("sparse_tiles", kernel)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(tiles_function, key, kernel), args, kernel.items)

    unit = unit_for(isa, "u8")
    return staged_plan(layer, isa, unit, planes, constants, step, f"sparse-tiles {ROWS}x4")
