"""Emits implicit GEMMs on AMX tiles, software-pipelined.

The products are u8 x s8 -> s32 (tdpbusd) or bf16 x bf16 -> f32 (tdpbf16ps). A tile of A is up to 16
pixels, one row each at distance ``a_col``, by up to 64 bytes of a run; a tile of B is as many bytes
of 16 channels, packed as for VNNI. A *block* of up to three tiles (strips) of pixels
by up to four channel blocks is accumulated in *turns* of one or two channel blocks. Accumulators
reach vector registers through memory only, so the epilogue of a block is spread between the tile
instructions of the next one. A turn's tiles are stored while the next turn fills the other half of
the accumulators, where there are registers for two halves: a tile that is stored right after its
last product keeps the tile unit waiting.

Weights that come from beyond the second-level cache are fetched into it one group of channel blocks
ahead, spread over all steps; the last group fetches what follows it in memory, the first weights of
the next layer.

All blocks of a function have the same size. The last one of an image (or of its rows) starts early,
where it computes pixels of its neighbour again and leaves them unstored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.amx_codes import TileRing
from targets.kernels.gemm import LINE, TILE
from targets.kernels.skeleton import (
    Context,
    block_channels,
    channel_branches,
    divide,
    store_pixel,
)
from targets.kernels.spec import SIZE
from targets.kernels.tiles import TileShape, block_grid, tile_shape

MOST_FETCHING = 16
"""Blocks of pixels that share a group of weights, up to which the next group is fetched ahead: with
more there is time enough to wait for each group."""

LEAST_FETCHED = 64 << 10
"""Bytes of a layer's weights from which on they are taken to be beyond the second-level cache."""

_NEXT, _BASE = 0, 1  # of the block whose epilogue is due: next pixel, and where pixel 0 lies


def _tile(number: int) -> Any:
    return tir.tirx.IntImm("int8", number)


@dataclass
class _Pipeline:
    """The blocks of one group of channel blocks, in order.

    ``count``: channel blocks of the group; ``last``: valid lanes of the last one; ``first``: the
    first one (an expression); ``state``: ``_NEXT`` and ``_BASE``; ``acc``: accumulators of two
    blocks, pixel by pixel, from element ``aligned``; ``b_at``: where the group's operand starts;
    ``fetch``: where the current turn's steps fetch from; ``ring``: where the operand's tiles are
    unpacked to, if they are codes, and ``slot``: the slot of the current turn's first step.
    """

    ctx: Context
    shape: TileShape
    count: int
    last: int
    first: Any
    channels: list[epilogue.Channels]
    state: Any
    acc: Any
    aligned: Any
    b_at: Any
    fetch: Any = None
    ring: TileRing | None = None
    slot: Any = None

    @property
    def turns(self) -> int:
        """Turns of a block."""
        return -(-self.count // self.shape.turn)

    @property
    def halves(self) -> int:
        """2 if consecutive turns fill different accumulators."""
        return 2 if self.shape.alternates(self.count) else 1

    @property
    def pixels(self) -> int:
        """Pixels of a block."""
        return self.shape.strips * self.shape.rows

    @property
    def steps(self) -> int:
        """Steps of a turn."""
        gemm = self.ctx.gemm
        return gemm.runs * -(-gemm.run // self.ctx.unit.k)

    @property
    def ahead(self) -> int:
        """Cache lines of the next group's weights that a step fetches (0: none)."""
        gemm, count = self.ctx.gemm, self.ctx.blocking.cols.count
        if gemm.images > 1 or gemm.b_image or count > MOST_FETCHING or self.ctx.panel:
            return 0
        if gemm.groups * self.ctx.blocks * self.ctx.b_block * SIZE[gemm.a_dtype] < LEAST_FETCHED:
            return 0
        lines = self.ctx.unit.k * TILE * SIZE[gemm.a_dtype] // LINE
        return -(-lines * self.count // (count * self.turns))

    @property
    def line(self) -> int:
        """Elements of a cache line."""
        return LINE // SIZE[self.ctx.gemm.a_dtype]

    @property
    def bundle(self) -> int:
        """Pixels that are finished together."""
        return epilogue.PIXEL_BUNDLE if self.ctx.gemm.pixel_bundles else 1

    def turn_blocks(self, turn: int) -> range:
        """The channel blocks of a turn."""
        start = turn * self.shape.turn
        return range(start, min(start + self.shape.turn, self.count))

    def acc_tile(self, turn: int, strip: int, block: int) -> Any:
        """The accumulator tile of a strip and a channel block in a turn."""
        half = turn % self.halves
        number = (half * self.shape.strips + strip) * self.shape.turn + block % self.shape.turn
        return _tile(number)

    def half(self, index: Any) -> Any:
        """Where the accumulators of block ``index`` start."""
        odd = tir.tirx.bitwise_and(index, 1)
        return self.aligned + odd * (self.pixels * self.count * TILE)


def emit_tile_items(ctx: Context) -> None:
    """The whole body of a kernel on tiles.

    Work items are chunks of an image's blocks, for one group of channel blocks after the other, so
    that the items of a call are few long sequences of blocks.
    """
    kb, gemm, blocking = ctx.kb, ctx.gemm, ctx.blocking
    shape = tile_shape(gemm, blocking)
    _configure(ctx, shape)
    most = blocking.channels.first[1]
    acc, aligned = kb.alloc_aligned(
        ctx.unit.accumulator, 2 * shape.strips * shape.rows * most * TILE
    )
    chunks, blocks = -(-blocking.cols.count // blocking.strips), blocking.cols.count
    tail = gemm.n - (ctx.blocks - 1) * TILE
    low = kb.let(tir.tirx.truncdiv(kb.begin, chunks), "low")
    high = kb.let(tir.tirx.truncdiv(kb.end + (chunks - 1), chunks), "high")
    zero, whole = tir.tirx.IntImm("int32", 0), tir.tirx.IntImm("int32", blocks)
    with kb.loop(low, high, "sequence") as sequence:
        start = tir.tirx.max(kb.begin - sequence * chunks, zero) * blocking.strips
        stop = tir.tirx.min((kb.end - sequence * chunks) * blocking.strips, whole)
        start, stop = kb.let(start, "start"), kb.let(stop, "stop")
        rest, image = divide(kb, sequence, gemm.images, "image")
        group, part = divide(kb, rest, blocking.channels.count, "part")
        ctx.image, ctx.group = image, group if gemm.groups > 1 else 0
        if ctx.prepare is not None:
            ctx.prepare(image if gemm.images > 1 else 0)
        for inside, at, size, ends in channel_branches(blocking.channels, part, tail < TILE):
            with kb.when(inside):
                block = kb.let(at, "block")
                channels = block_channels(ctx, block, size)
                state, last = kb.alloc("int32", 2), tail if ends else TILE
                b_at = (ctx.group * ctx.blocks + block) * ctx.b_block + ctx.image * gemm.b_image
                b_at = kb.let(b_at, "b_start")
                pipe = _Pipeline(ctx, shape, size, last, block, channels, state, acc, aligned, b_at)
                if ctx.panel is not None:
                    first = kb.let(ctx.group * ctx.blocks + block, "first")
                    pipe.ring = TileRing(
                        ctx.panel, pipe.steps, pipe.turns, size, min(shape.turn, size), first
                    )
                    pipe.ring.start()
                _emit_blocks(pipe, start, stop)
    kb.effect("llvm.x86.tilerelease")  # so that context switches stay cheap


def _registers(shape: TileShape) -> tuple[int, int, int]:
    """Tile registers: of accumulators, of A, of B. Operands take turns in theirs."""
    used = shape.accumulators
    a = min(shape.strips, 7 - used)
    return used, a, min(shape.turn, 8 - used - a)


def _configure(ctx: Context, shape: TileShape) -> None:
    """Loads the tile configuration (palette 1); at the top of every call."""
    kb = ctx.kb
    config = kb.alloc("int8", 64)
    used, a, _ = _registers(shape)
    depth = ctx.unit.k * SIZE[ctx.gemm.a_dtype]  # bytes of a row of A; four of them a row of B
    content = [0] * 64
    content[0] = 1
    for tile in range(8):
        content[16 + 2 * tile] = depth if used <= tile < used + a else 64
        content[48 + tile] = depth // 4 if tile >= used + a else shape.rows
    for at in range(64):
        kb.store(config, at, kb.const(content[at], "int8"))
    kb.effect("llvm.x86.ldtilecfg", kb.address(config, 0))


def _emit_blocks(pipe: _Pipeline, start: Any, stop: Any) -> None:
    """All blocks ``[start, stop)`` of a group of channel blocks, and the epilogue of the last."""
    kb, gemm, shape = pipe.ctx.kb, pipe.ctx.gemm, pipe.shape
    _, across = block_grid(gemm, pipe.ctx.blocking)
    kb.store(pipe.state, _NEXT, kb.const(pipe.pixels, "int32"))  # there is no block before
    kb.store(pipe.state, _BASE, kb.const(0, "int32"))
    with kb.loop(start, stop, "t") as t:
        band, strip = divide(kb, t, across, "band")
        row, late_rows = _clipped(pipe, band, shape.height, gemm.rows)
        col, late_cols = _clipped(pipe, strip, shape.width, gemm.cols)
        a_at = row * gemm.a_row + col * gemm.a_col + gemm.a_start
        a_at = a_at + pipe.ctx.image * gemm.a_image + pipe.ctx.group * gemm.a_group
        a_at = kb.let(a_at, "a_start")
        _emit_block(pipe, t, a_at)
        kb.store(pipe.state, _NEXT, late_rows * shape.width + late_cols)
        base = col if gemm.pitch else (pipe.ctx.image * gemm.rows + row) * gemm.cols + col
        kb.store(pipe.state, _BASE, base)
    here = kb.let(pipe.half(stop - 1), "acc_at")
    if pipe.halves == 2:
        _store_turn(pipe, pipe.turns - 1, here)
    _finish_pixels(pipe, here)


def _clipped(pipe: _Pipeline, index: Any, size: int, length: int) -> tuple[Any, Any]:
    """Where piece ``index`` of ``size`` starts so that it ends within ``length``, and how early."""
    kb = pipe.ctx.kb
    at = index * size
    if length % size == 0:
        return kb.let(at, "at"), tir.tirx.IntImm("int32", 0)
    start = kb.let(tir.tirx.min(at, tir.tirx.IntImm("int32", length - size)), "at")
    return start, kb.let(at - start, "early")


def _emit_block(pipe: _Pipeline, t: Any, a_at: Any) -> None:
    """The products of block ``t``, and between them the epilogue of the block before."""
    kb, ctx = pipe.ctx.kb, pipe.ctx
    here, before = kb.let(pipe.half(t), "here"), kb.let(pipe.half(t + 1), "before")
    for turn in range(pipe.turns):
        if pipe.ring is not None:
            pipe.slot = pipe.ring.begin_turn()
        if pipe.ahead:
            done = (t * pipe.turns + turn) * (pipe.steps * pipe.ahead * pipe.line)
            pipe.fetch = kb.let(pipe.b_at + (pipe.count * ctx.b_block + done), "fetch")
        for strip in range(pipe.shape.strips):
            for block in pipe.turn_blocks(turn):
                kb.effect("llvm.x86.tilezero", pipe.acc_tile(turn, strip, block))
        _emit_step(pipe, turn, a_at, 0, before, here if turn else before)
        _emit_other_steps(pipe, turn, a_at, before)
        if pipe.halves == 1:
            _store_turn(pipe, turn, here)
    _finish_pixels(pipe, before)


def _emit_other_steps(pipe: _Pipeline, turn: int, a_at: Any, before: Any) -> None:
    """All steps of a turn but the first."""
    kb, gemm, a_step = pipe.ctx.kb, pipe.ctx.gemm, pipe.ctx.unit.k
    steps = -(-gemm.run // a_step)
    if steps > 1:
        with kb.loop(1, steps, "k") as k:
            _emit_step(pipe, turn, a_at + k * a_step, k, before)
    if gemm.runs == 1:
        return
    (_, distance), *inner = [loop for loop in gemm.loops if loop[0] > 1]
    with kb.loop(1, gemm.runs, "run") as run:
        offset = run * distance
        if inner:
            ((inner_count, inner_distance),) = inner
            outer, place = divide(kb, run, inner_count, "run")
            offset = outer * distance + place * inner_distance
        a_run, step = kb.let(a_at + offset, "a_run"), kb.let(run * steps, "step")
        with kb.loop(0, steps, "k") as k:
            _emit_step(pipe, turn, a_run + k * a_step, step + k, before)


def _emit_step(
    pipe: _Pipeline, turn: int, a_at: Any, step: Any, before: Any, stored: Any = None
) -> None:
    """The products of a turn's step (a tile's depth of a run), each followed by some epilogue.

    The scheduler looks some hundred instructions ahead: the tile unit only stays busy if its
    instructions stand that close together. ``stored``: where the accumulators of the turn before
    belong, if this is a turn's first step: the tile unit is done with them by now.
    """
    kb, ctx, gemm, shape = pipe.ctx.kb, pipe.ctx, pipe.ctx.gemm, pipe.shape
    used, a_count, b_count = _registers(shape)
    dot = "llvm.x86.tdpbf16ps" if ctx.unit.bf16 else "llvm.x86.tdpbusd"
    b_at = pipe.b_at + step * (ctx.unit.k * TILE)
    a_bytes = gemm.a_col * SIZE[gemm.a_dtype] if shape.rows > 1 else 64
    a_bytes = tir.tirx.IntImm("int64", a_bytes)
    b_bytes = tir.tirx.IntImm("int64", 64)
    along = gemm.a_row if shape.height > 1 else shape.rows * gemm.a_col

    def load_a(strip: int) -> Any:
        tile, at = _tile(used + strip % a_count), kb.address(ctx.a, a_at + strip * along)
        kb.effect("llvm.x86.tileloadd64", tile, at, a_bytes)
        return tile

    def load_b(block: int) -> Any:
        tile = _tile(used + a_count + block % b_count)
        place = b_at + block * ctx.b_block
        if ring is not None:
            place = ring.place(slot, block % ring.turn)
        kb.effect("llvm.x86.tileloadd64", tile, kb.address(ctx.b, place), b_bytes)
        return tile

    ring, blocks, done = pipe.ring, pipe.turn_blocks(turn), 0
    slot = None if ring is None else kb.let(pipe.slot + step, "slot")
    kept = [load_a(strip) for strip in range(shape.strips)] if a_count == shape.strips else []
    for at, block in enumerate(blocks):
        b = load_b(block)
        for strip in range(shape.strips):
            a = kept[strip] if kept else load_a(strip)
            kb.effect(dot, pipe.acc_tile(turn, strip, block), a, b)
            done += 1
            _emit_fetch(pipe, step, done, shape.strips * len(blocks))
            if ring is not None:
                ring.share(turn, step, slot, done, shape.strips * len(blocks))
            limit = pipe.pixels
            if stored is not None and pipe.halves == 2:
                last = (turn or pipe.turns) - 1
                _store_tile(pipe, last, strip, pipe.turn_blocks(last)[at], stored)
                if not turn:  # of the block before, so much is in memory
                    limit = (strip + 1) * shape.rows if block == blocks[-1] else 0
            _emit_share(pipe, done, shape.strips * len(blocks), limit, before)


def _emit_fetch(pipe: _Pipeline, step: Any, done: int, products: int) -> None:
    """What belongs after product ``done`` of ``products`` of a step of the fetching ahead."""
    kb, lines = pipe.ctx.kb, pipe.ahead
    for line in range(lines * (done - 1) // products, lines * done // products):
        kb.prefetch(pipe.ctx.b, pipe.fetch + (step * lines + line) * pipe.line)


def _store_turn(pipe: _Pipeline, turn: int, here: Any) -> None:
    """Stores the accumulators of a turn at ``here`` of ``acc``."""
    for strip in range(pipe.shape.strips):
        for block in pipe.turn_blocks(turn):
            _store_tile(pipe, turn, strip, block, here)


def _store_tile(pipe: _Pipeline, turn: int, strip: int, block: int, here: Any) -> None:
    kb = pipe.ctx.kb
    row_bytes = tir.tirx.IntImm("int64", pipe.count * TILE * 4)
    at = here + (strip * pipe.shape.rows * pipe.count + block) * TILE
    tile = pipe.acc_tile(turn, strip, block)
    kb.effect("llvm.x86.tilestored64", tile, kb.address(pipe.acc, at), row_bytes)


def _emit_share(pipe: _Pipeline, done: int, products: int, limit: int, before: Any) -> None:
    """What belongs after product ``done`` of ``products`` of a step of the epilogue that is due.

    ``limit``: pixels that may be finished by now.
    """
    kb, gemm = pipe.ctx.kb, pipe.ctx.gemm
    steps = pipe.turns * gemm.runs * -(-gemm.run // pipe.ctx.unit.k)
    share = -(-pipe.pixels // (steps * pipe.bundle))
    count = share * done // products - share * (done - 1) // products
    if not count or not limit:
        return
    with kb.loop(0, count, "share"):
        pixel = kb.let(kb.load(pipe.state, _NEXT), "pixel")
        if pipe.bundle > 1:
            with kb.when(pixel + pipe.bundle <= limit):
                _finish_bundle(pipe, pixel, before)
                kb.store(pipe.state, _NEXT, pixel + pipe.bundle)
            return
        with kb.when(pixel < limit):
            _finish_pixel(pipe, pixel, before)
            kb.store(pipe.state, _NEXT, pixel + 1)


def _finish_pixels(pipe: _Pipeline, at: Any) -> None:
    """The rest of the epilogue that is due."""
    kb = pipe.ctx.kb
    pixel = kb.let(kb.load(pipe.state, _NEXT), "next")
    if pipe.bundle > 1:
        whole = kb.let(tir.tirx.truncdiv(pipe.pixels - pixel, pipe.bundle), "whole")
        with kb.loop(0, whole, "bundle") as i:
            _finish_bundle(pipe, pixel + i * pipe.bundle, at)
        pixel = kb.let(pixel + whole * pipe.bundle, "next")
    with kb.loop(pixel, pipe.pixels, "pixel") as single:
        _finish_pixel(pipe, single, at)


def _finish_bundle(pipe: _Pipeline, pixel: Any, at: Any) -> None:
    """The epilogue of a bundle of pixels from ``pixel`` of the layer's only channel block."""
    ctx, kb, gemm = pipe.ctx, pipe.ctx.kb, pipe.ctx.gemm
    start = kb.let(at + pixel * TILE, "acc_at")
    values = [kb.load(pipe.acc, start + i * TILE, TILE) for i in range(pipe.bundle)]
    index = kb.let((kb.load(pipe.state, _BASE) + pixel) * gemm.n, "y_at")
    epilogue.finish_pixels(kb, ctx.out, pipe.channels[0], values, index, gemm.n, gemm.out)


def _finish_pixel(pipe: _Pipeline, pixel: Any, at: Any) -> None:
    """The epilogue of pixel ``pixel`` of the block whose accumulators lie at ``at``."""
    ctx, kb, gemm = pipe.ctx, pipe.ctx.kb, pipe.ctx.gemm
    place, kept = kb.let(kb.load(pipe.state, _BASE) + pixel, "place"), True
    if gemm.pitch:
        row, col = divide(kb, place, gemm.pitch, "row")
        rows = -(-gemm.cols // gemm.pitch)
        place, kept = (ctx.image * rows + row) * gemm.kept + col, col < gemm.kept
    with kb.when(kept):
        start = kb.let(at + pixel * (pipe.count * TILE), "acc_at")
        values = [kb.load(pipe.acc, start + j * TILE, TILE) for j in range(pipe.count)]
        store_pixel(ctx, pipe.channels, values, place, pipe.first, pipe.last)
