"""The frame that all implicit-GEMM kernels share: work items, branches, runs, stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.cpu.kernels import epilogue
from targets.cpu.kernels.gemm import Blocking, Cut, Gemm, Unit, bundles


@dataclass
class Context:
    """One kernel being emitted: its shape, its parameters and where the current block is."""

    kb: tir.KernelBuilder
    gemm: Gemm
    unit: Unit
    blocking: Blocking
    a: Any
    b: Any
    terms: Any
    out: epilogue.Pointers
    image: Any = 0
    group: Any = 0

    @property
    def b_block(self) -> int:
        """Distance of channel blocks in the second operand, in elements."""
        if self.gemm.b_row:
            return self.unit.lanes
        steps = -(-self.gemm.run // self.unit.k)
        return self.gemm.runs * steps * self.unit.k * self.unit.lanes

    @property
    def blocks(self) -> int:
        """Channel blocks of a group."""
        return -(-self.gemm.n // self.unit.lanes)


@dataclass(frozen=True)
class Block:
    """The block being emitted: static size, and where it starts (expressions)."""

    height: int
    width: int
    channel_blocks: int
    row: Any
    col: Any
    channel_block: Any
    last: int
    """Valid lanes of the block's last channel block."""


EmitBlock = Callable[[Context, Block], None]


def divide(kb: tir.KernelBuilder, value: Any, by: int, name: str) -> tuple[Any, Any]:
    """Quotient and remainder of ``value`` by a constant, named; nothing emitted for 1."""
    if by == 1:
        return value, 0
    floordiv, floormod = tir.tirx.truncdiv, tir.tirx.truncmod
    return kb.let(floordiv(value, by), name), kb.let(floormod(value, by), name)


@contextmanager
def _pieces(kb: tir.KernelBuilder, cut: Cut, index: Any, second: bool) -> Iterator[tuple[int, Any]]:
    """The branch for pieces of the first or second size: their size and start expression."""
    (count, size), (rest, rest_size) = cut.first, cut.rest
    if not rest:
        yield size, index * size
    elif second:
        with kb.when(index >= count):
            yield rest_size, index * rest_size + count * (size - rest_size)
    else:
        with kb.when(index < count):
            yield size, index * size


def _sides(cut: Cut) -> tuple[bool, ...]:
    return (False, True) if cut.rest[0] else (False,)


def emit_items(ctx: Context, emit: EmitBlock) -> None:
    """The loop over work items and, inside an item, over its blocks."""
    kb, gemm, blocking = ctx.kb, ctx.gemm, ctx.blocking
    along_m, along_n = blocking.item_counts(gemm)
    chunks = -(-blocking.cols.count // blocking.strips)
    groups_of_blocks = -(-blocking.channels.count // blocking.blocks)
    with kb.loop(kb.begin, kb.end, "item") as item:
        if blocking.m_major:
            m, n = divide(kb, item, along_n, "m")
        else:
            n, m = divide(kb, item, along_m, "n")
        rest, chunk = divide(kb, m, chunks, "chunk")
        ctx.image, band = divide(kb, rest, blocking.rows.count, "band")
        ctx.group, part = divide(kb, n, groups_of_blocks, "part")
        ctx.image = ctx.image if gemm.images > 1 else 0
        ctx.group = ctx.group if gemm.groups > 1 else 0
        band = band if blocking.rows.count > 1 else 0
        with (
            _span(kb, part, blocking.blocks, blocking.channels.count) as block,
            _span(kb, chunk, blocking.strips, blocking.cols.count) as strip,
        ):
            _branches(ctx, emit, band, strip, block)


@contextmanager
def _span(kb: tir.KernelBuilder, index: Any, size: int, count: int) -> Iterator[Any]:
    """A loop over pieces ``[index * size, min((index + 1) * size, count))``."""
    if size == 1:
        yield index if count > 1 else 0
        return
    if size >= count:
        with kb.loop(0, count) as at:
            yield at
        return
    start = kb.let(index * size, "start")
    stop = start + size
    if count % size:
        stop = tir.tirx.min(stop, tir.tirx.IntImm("int32", count))
    with kb.loop(start, stop) as at:
        yield at


def _branches(ctx: Context, emit: EmitBlock, band: Any, strip: Any, block: Any) -> None:
    """One statically sized block for every combination of piece sizes, chosen at run time."""
    kb, blocking, gemm = ctx.kb, ctx.blocking, ctx.gemm
    tail = gemm.n - (ctx.blocks - 1) * ctx.unit.lanes
    for row_side in _sides(blocking.rows):
        for col_side in _sides(blocking.cols):
            with (
                _pieces(kb, blocking.rows, band, row_side) as (height, row),
                _pieces(kb, blocking.cols, strip, col_side) as (width, col),
            ):
                for cut, first in _channel_cuts(blocking.channels, tail < ctx.unit.lanes):
                    (count, size), start = cut.first, first * blocking.channels.first[1]
                    ends = first + count == blocking.channels.count
                    inside = True if count == blocking.channels.count else (block >= first)
                    if inside is not True and not ends:
                        inside = block < first + count
                    with kb.when(inside):
                        at = kb.let((block - first) * size + start, "block")
                        last = tail if ends else ctx.unit.lanes
                        emit(ctx, Block(height, width, size, row, col, at, last))


def _channel_cuts(channels: Cut, partial: bool) -> list[tuple[Cut, int]]:
    """Groups of channel blocks by what their code looks like, with each one's first index.

    The last group has code of its own if it is smaller or if its last channel block is partial.
    """
    (count, size), (rest, rest_size) = channels.first, channels.rest
    if rest:
        return [(Cut((count, size)), 0), (Cut((rest, rest_size)), count)]
    if partial and count > 1:
        return [(Cut((count - 1, size)), 0), (Cut((1, size)), count - 1)]
    return [(Cut((count, size)), 0)]


def a_start(ctx: Context, block: Block) -> Any:
    """Element of A where the block's first pixel starts."""
    gemm = ctx.gemm
    index = block.row * gemm.a_row + block.col * gemm.a_col
    index = index + ctx.image * gemm.a_image + ctx.group * gemm.a_group
    return ctx.kb.let(index, "a_start")


def b_start(ctx: Context, block: Block) -> Any:
    """Element of B where the block's first channel block starts."""
    index = (ctx.group * ctx.blocks + block.channel_block) * ctx.b_block
    return ctx.kb.let(index + ctx.image * ctx.gemm.b_image, "b_start")


@contextmanager
def runs(ctx: Context, a_index: Any, b_index: Any) -> Iterator[tuple[Any, Any]]:
    """Loops over the runs; gives where the current run starts in A and in B."""
    kb, gemm = ctx.kb, ctx.gemm
    length = ctx.b_block // max(gemm.runs, 1)
    loops = [(count, distance) for count, distance in gemm.loops if count > 1]
    if not loops:
        yield a_index, b_index
        return
    (count, distance), *inner = loops
    with kb.loop(0, count, "run") as i:
        if not inner:
            yield a_index + i * distance, b_index + i * length
            return
        (inner_count, inner_distance), *more = inner
        if more:
            raise ValueError("more than two loops over runs")
        with kb.loop(0, inner_count, "run") as j:
            at = kb.let(a_index + i * distance + j * inner_distance, "a_run")
            yield at, b_index + (i * inner_count + j) * length


def store_block(
    ctx: Context,
    block: Block,
    acc: Any,
    row_step: int,
    col_step: int,
    block_step: int,
    start: Any,
) -> None:
    """The epilogue over all pixels of a block whose accumulators lie in memory.

    ``acc`` holds pixel (r, c), channel block j at
    ``start + r * row_step + c * col_step + j * block_step``.
    """
    kb = ctx.kb
    channels = _channels(ctx, block)
    bundle = epilogue.PIXEL_BUNDLE
    whole = block.width // bundle if ctx.gemm.pixel_bundles else 0
    if whole:
        with kb.loop(0, block.height, "r") as r, kb.loop(0, whole, "bundle") as i:
            base = kb.let(r * row_step + i * (bundle * col_step) + start, "acc_at")
            values = [kb.load(acc, base + j * col_step, ctx.unit.lanes) for j in range(bundle)]
            _finish_bundle(ctx, block, channels[0], (r, i * bundle), values)
    if whole * bundle == block.width:
        return
    with (
        kb.loop(0, block.height, "r") as r,
        kb.loop(whole * bundle, block.width, "c") as c,
    ):
        base = kb.let(r * row_step + c * col_step + start, "acc_at")
        at = [base + j * block_step for j in range(block.channel_blocks)]
        _finish_pixel(ctx, block, channels, (r, c), [(acc, i) for i in at])


def _finish_bundle(
    ctx: Context,
    block: Block,
    channel: epilogue.Channels,
    at: tuple[Any, Any],
    values: list[Any],
) -> None:
    """The epilogue of a bundle of pixels from ``at`` (row, column) of the only channel block."""
    kb, gemm = ctx.kb, ctx.gemm
    pixel, _ = _pixel(ctx, block.row + at[0], block.col + at[1])
    index = kb.let(pixel * gemm.n, "y_at")
    epilogue.finish_pixels(kb, ctx.out, channel, values, index, gemm.n, gemm.out)


def store_registers(ctx: Context, block: Block, acc: Any) -> None:
    """The epilogue of a block whose accumulators lie in registers, written out.

    ``acc`` holds the vectors of pixel 0's channel blocks, then those of pixel 1, in row order.
    """
    channels = _channels(ctx, block)
    lanes, nr = ctx.unit.lanes, block.channel_blocks
    for r in range(block.height):
        for c in range(block.width):
            first = (r * block.width + c) * nr
            at = [(acc, (first + j) * lanes) for j in range(nr)]
            _finish_pixel(ctx, block, channels, (r, c), at)


def _channels(ctx: Context, block: Block) -> list[epilogue.Channels]:
    """The per-channel vectors of all channel blocks."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    first = kb.let((ctx.group * ctx.blocks + block.channel_block) * lanes, "channel")
    own = ctx.image * gemm.bias_image
    return [
        epilogue.load_channels(kb, ctx.out, first + j * lanes, lanes, own)
        for j in range(block.channel_blocks)
    ]


def _finish_pixel(
    ctx: Context,
    block: Block,
    channels: list[epilogue.Channels],
    at: tuple[Any, Any],
    sums: list[tuple[Any, Any]],
) -> None:
    """The epilogue of the block's pixel ``at`` (row, column); ``sums``: buffer and element."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    pixel, kept = _pixel(ctx, block.row + at[0], block.col + at[1])
    with kb.when(kept):
        offset = ctx.group * gemm.n + block.channel_block * lanes
        index = kb.let(pixel * (gemm.groups * gemm.n) + offset, "y_at")
        values = [kb.load(buffer, where, lanes) for buffer, where in sums]
        if ctx.terms is not None:
            term = kb.splat(kb.load(ctx.terms, pixel), lanes)
            values = [value + term for value in values]
        _store_pixel(ctx, channels, values, index, block.last)


def _store_pixel(
    ctx: Context, channels: list[epilogue.Channels], values: list[Any], index: Any, last: int
) -> None:
    """The epilogue of one pixel's channel blocks; ``last``: valid lanes of the last block."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    j, end = 0, len(values)
    for size in bundles(end, gemm.interleave):
        at, stop = index + j * lanes, j + size
        count = (size - 1) * lanes + (last if stop == end else lanes)
        if size > 1:
            bundle = (channels[j:stop], values[j:stop])
            epilogue.finish_bundle(kb, ctx.out, *bundle, at, count, gemm.out)
        else:
            epilogue.finish(kb, ctx.out, channels[j], values[j], at, count, gemm.out)
        j = stop


def _pixel(ctx: Context, row: Any, col: Any) -> tuple[Any, Any]:
    """The output pixel at (row, col) of the current image, and whether it is kept."""
    kb, gemm = ctx.kb, ctx.gemm
    if not gemm.pitch:
        return kb.let((ctx.image * gemm.rows + row) * gemm.cols + col, "pixel"), True
    row, col = divide(kb, kb.let(col, "col"), gemm.pitch, "row")
    rows = -(-gemm.cols // gemm.pitch)
    return kb.let((ctx.image * rows + row) * gemm.kept + col, "pixel"), col < gemm.kept
