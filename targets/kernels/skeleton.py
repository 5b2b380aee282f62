"""The frame that all implicit-GEMM kernels share: work items, branches, runs, stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.code_panel import Unpacking
from targets.kernels.gemm import Blocking, Cut, Gemm, Unit, bundles


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
    prepare: Callable[[Any], None] | None = None
    """Emits what a work item of the image does before its blocks."""
    panel: Unpacking[Any] | None = None
    """What makes the second operand."""
    extra: tuple[Any, ...] = ()
    """Buffers of extra steps (:mod:`pairs`): starts, places, weights."""
    image: Any = 0
    group: Any = 0

    @property
    def b_block(self) -> int:
        """Distance of channel blocks in the second operand, in elements."""
        if self.gemm.b_row:
            return self.unit.lanes
        if self.panel is not None and self.panel.panel.form == "steps":  # of the codes
            return int(self.gemm.runs * self.panel.chunks * self.panel.panel.stored)
        steps = -(-self.gemm.run // self.unit.k)
        return self.gemm.runs * steps * self.unit.k * self.unit.lanes

    @property
    def blocks(self) -> int:
        """Channel blocks of a group."""
        return -(-self.gemm.n // self.unit.lanes)

    @property
    def item_by_item(self) -> bool:
        """Whether consecutive work items go on with the same channels."""
        return not self.blocking.m_major and self.blocking.blocks == 1

    @property
    def turns(self) -> int:
        """Register blocks that take the same channels before the next channels' turn comes."""
        blocking = self.blocking
        if self.item_by_item:
            return self.gemm.images * blocking.rows.count * blocking.cols.count
        return min(blocking.strips, blocking.cols.count)


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
    turn: Any = 0
    """Its place among the :attr:`Context.turns` blocks that take these channels in succession."""


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
        bands = -(-blocking.rows.count // blocking.bands)
        ctx.image, band = divide(kb, rest, bands, "band")
        ctx.group, part = divide(kb, n, groups_of_blocks, "part")
        ctx.image = ctx.image if gemm.images > 1 else 0
        ctx.group = ctx.group if gemm.groups > 1 else 0
        band = band if bands > 1 else 0
        if ctx.prepare is not None:
            ctx.prepare(ctx.image)
        unpack_group(ctx, n, part)
        with (
            _span(kb, band, blocking.bands, blocking.rows.count) as band,
            _span(kb, part, blocking.blocks, blocking.channels.count) as block,
            _span(kb, chunk, blocking.strips, blocking.cols.count) as strip,
        ):
            _branches(ctx, emit, band, strip, block)


def unpack_group(ctx: Context, index: Any, part: Any) -> None:
    """Has the panel hold group ``part`` of the channel blocks, the ``index``-th of all groups."""
    if ctx.panel is None or ctx.panel.panel.form != "panel":
        return
    kb, size = ctx.kb, ctx.blocking.channels.first[1]
    count = tir.tirx.min(tir.tirx.IntImm("int32", size), ctx.blocks - part * size)
    first = kb.let(ctx.group * ctx.blocks + part * size, "first")
    ctx.panel.ensure(index, first, kb.let(count, "count") if ctx.blocks % size else size)


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
                branches = channel_branches(blocking.channels, block, tail < ctx.unit.lanes)
                for inside, at, size, ends in branches:
                    with kb.when(inside):
                        last = tail if ends else ctx.unit.lanes
                        at = kb.let(at, "block")
                        turn = _turn(ctx, band, strip)
                        emit(ctx, Block(height, width, size, row, col, at, last, turn))


def _turn(ctx: Context, band: Any, strip: Any) -> Any:
    """:attr:`Block.turn` of the block at these indices."""
    blocking = ctx.blocking
    if ctx.item_by_item:
        return (ctx.image * blocking.rows.count + band) * blocking.cols.count + strip
    return divide(ctx.kb, strip, blocking.strips, "turn")[1] if blocking.strips > 1 else 0


def channel_branches(
    channels: Cut, index: Any, partial: bool
) -> Iterator[tuple[Any, Any, int, bool]]:
    """What group ``index`` of channel blocks may be, one for each code that it takes.

    Yields the condition, the group's first channel block, how many there are, and whether the
    layer's last one is among them, which ``partial`` says to be incomplete.
    """
    for cut, first in _channel_cuts(channels, partial):
        (count, size), start = cut.first, first * channels.first[1]
        ends = first + count == channels.count
        inside = True if count == channels.count else (index >= first)
        if inside is not True and not ends:
            inside = index < first + count
        yield inside, (index - first) * size + start, size, ends


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
    index = block.row * gemm.a_row + block.col * gemm.a_col + gemm.a_start
    index = index + ctx.image * gemm.a_image + ctx.group * gemm.a_group
    return ctx.kb.let(index, "a_start")


def b_start(ctx: Context, block: Block) -> Any:
    """Element of B where the block's first channel block starts."""
    if ctx.panel is not None and ctx.panel.panel.form == "panel":
        return tir.tirx.IntImm("int32", 0)
    index = (ctx.group * ctx.blocks + block.channel_block) * ctx.b_block
    return ctx.kb.let(index + ctx.image * ctx.gemm.b_image, "b_start")


@contextmanager
def runs(ctx: Context, a_index: Any, b_index: Any, blocks: int = 1) -> Iterator[tuple[Any, Any]]:
    """Loops over the runs; gives where the current run starts in A and in B.

    ``blocks``: channel blocks of which B holds the same run side by side.
    """
    kb, gemm = ctx.kb, ctx.gemm
    length = blocks * ctx.b_block // max(gemm.runs, 1)
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
    channels = block_channels(ctx, block.channel_block, block.channel_blocks)
    with kb.loop(0, block.height, "r") as r, kb.loop(0, block.width, "c") as c:
        base = kb.let(r * row_step + c * col_step + start, "acc_at")
        at = [base + j * block_step for j in range(block.channel_blocks)]
        _finish_pixel(ctx, block, channels, (r, c), [(acc, i) for i in at])


def store_registers(ctx: Context, block: Block, acc: Any) -> None:
    """The epilogue of a block whose accumulators lie in registers, written out.

    ``acc`` holds the vectors of pixel 0's channel blocks, then those of pixel 1, in row order.
    """
    channels = block_channels(ctx, block.channel_block, block.channel_blocks)
    lanes, nr = ctx.unit.lanes, block.channel_blocks
    for r in range(block.height):
        for c in range(block.width):
            first = (r * block.width + c) * nr
            at = [(acc, (first + j) * lanes) for j in range(nr)]
            _finish_pixel(ctx, block, channels, (r, c), at)


def block_channels(ctx: Context, channel_block: Any, count: int) -> list[epilogue.Channels]:
    """The per-channel vectors of ``count`` channel blocks."""
    kb, lanes = ctx.kb, ctx.unit.lanes
    first = kb.let((ctx.group * ctx.blocks + channel_block) * lanes, "channel")
    own = ctx.image * ctx.gemm.bias_image
    return [
        epilogue.load_channels(kb, ctx.out, first + j * lanes, lanes, own) for j in range(count)
    ]


def _finish_pixel(
    ctx: Context,
    block: Block,
    channels: list[epilogue.Channels],
    at: tuple[Any, Any],
    sums: list[tuple[Any, Any]],
) -> None:
    """The epilogue of the block's pixel ``at`` (row, column); ``sums``: buffer and element."""
    kb, gemm = ctx.kb, ctx.gemm
    row, col = ctx.image * gemm.rows + block.row + at[0], block.col + at[1]
    pixel = kb.let(row * gemm.cols + col, "pixel")
    values = [kb.load(buffer, where, ctx.unit.lanes) for buffer, where in sums]
    store_pixel(ctx, channels, values, pixel, block.channel_block, block.last)


def store_pixel(
    ctx: Context,
    channels: list[epilogue.Channels],
    values: list[Any],
    pixel: Any,
    channel_block: Any,
    last: int,
) -> None:
    """The epilogue of one output pixel's channel blocks; ``last``: valid lanes of the last one."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    offset = ctx.group * gemm.n + channel_block * lanes
    index = kb.let(pixel * (gemm.groups * gemm.n) + offset, "y_at")
    if ctx.terms is not None:
        term = kb.splat(kb.load(ctx.terms, pixel), lanes)
        values = [value + term for value in values]
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
