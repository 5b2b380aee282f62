"""Emits implicit-GEMM blocks by usmmla, ARM's product of 2x8 codes and 8x2 weights.

An accumulator holds two pixels by two channels. Of each two pixels sixteen codes are loaded and
their halves put together; in the end the rows of the accumulators are put apart.
"""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.kernels.arm_frame import (
    Place,
    accumulators,
    distances,
    emit_products,
    pixel_at,
    pixels_of,
    store_results,
)
from targets.kernels.epilogue import Channels
from targets.kernels.skeleton import Block, Context, block_channels
from targets.kernels.spec import FLOATS, NUMPY

LOADED = 2
"""Steps whose codes one load brings."""

UNROLL = 2
"""Loads of a pixel's run in the loop: two neighbours are one instruction."""

_TOGETHER = 4
"""Channel blocks that are requantised together: 16 bytes of each of two pixels."""

_NAME = "llvm.aarch64.neon.usmmla"


def emit_mmla_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers, from the bias on, and stores it."""
    kb, lanes, nr = ctx.kb, ctx.unit.lanes, block.channel_blocks
    pixels = block.height * block.width
    pairs = -(-pixels // 2)
    acc = accumulators(ctx, pairs * nr * 2)
    for j, channel in enumerate(block_channels(ctx, block.channel_block, nr)):
        for side in range(2):
            bias = kb.let(kb.shuffle(channel.bias, [2 * side, 2 * side + 1] * 2), "bias")
            for p in range(pairs):
                kb.store(acc, _slot(p, nr, j, side), bias)
    emit_products(
        ctx, block, acc, LOADED, lambda at, codes: _steps(ctx, block, acc, at, codes), UNROLL
    )
    if ctx.gemm.out not in FLOATS:
        _store_codes(ctx, block, acc)
        return
    values = []
    for pixel in range(pixels):
        p, row = divmod(pixel, 2)
        for j in range(nr):
            left, right = (kb.load(acc, _slot(p, nr, j, side), lanes) for side in range(2))
            order = [2 * row, 2 * row + 1, lanes + 2 * row, lanes + 2 * row + 1]
            values.append(kb.shuffle(left, order, right))
    store_results(ctx, block, values, biased=True)


def _slot(pair: int, nr: int, channel_block: int, side: int) -> int:
    """Where two pixels' sums of half a channel block are."""
    return ((pair * nr + channel_block) * 2 + side) * 4


def _steps(ctx: Context, block: Block, acc: Any, at: Place, codes: int) -> None:
    """The steps of up to 16 codes of each pixel."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    b_step, b_block = distances(ctx, nr)
    size = LOADED * unit.k
    count = -(-codes // unit.k)
    loaded = [
        kb.let(kb.load(ctx.a, at[0] + (r * gemm.a_row + c * gemm.a_col), size), "a")
        for r, c in pixels_of(block)
    ]
    loaded += loaded[-1:] * (len(loaded) % 2)
    rows = []
    for p in range(0, len(loaded), 2):
        halves = [kb.reinterpret(a, "int64", 2) for a in loaded[p : p + 2]]
        for i in range(count):
            joined = kb.shuffle(halves[0], [i, LOADED + i], halves[1])
            rows.append(kb.let(kb.reinterpret(joined, "int8", size), "rows"))
    for i in range(count):
        for j in range(nr):
            b_at = at[1] + (i * b_step + j * b_block)
            sides = [kb.let(kb.load(ctx.b, b_at + side * size, size), "b") for side in range(2)]
            for side, b in enumerate(sides):
                for p in range(len(loaded) // 2):
                    slot = _slot(p, nr, j, side)
                    total = kb.pure(
                        _NAME, "int32", 4, kb.load(acc, slot, 4), rows[p * count + i], b
                    )
                    kb.store(acc, slot, total)


def _store_codes(ctx: Context, block: Block, acc: Any) -> None:
    """The epilogue: sums of two pixels are requantised as they lie, and their bytes put apart."""
    kb, nr, lanes = ctx.kb, block.channel_blocks, ctx.unit.lanes
    channels = [
        [_both(ctx, channel, side) for side in range(2)]
        for channel in block_channels(ctx, block.channel_block, nr)
    ]
    offset = ctx.group * ctx.gemm.n + block.channel_block * lanes
    pixels = pixels_of(block)
    for p in range(0, len(pixels), 2):
        rows = [kb.let(pixel_at(ctx, block, *place), "pixel") for place in pixels[p : p + 2]]
        starts = [kb.let(row * (ctx.gemm.groups * ctx.gemm.n) + offset, "y_at") for row in rows]
        term = _terms(ctx, rows)
        for first in range(0, nr, _TOGETHER):
            some = range(first, min(first + _TOGETHER, nr))
            count = lanes * len(some) - (lanes - block.last if some[-1] == nr - 1 else 0)
            places = [start + first * lanes for start in starts]
            added = _residuals(ctx, places, len(some), count)
            wide = []
            for i, (j, side) in enumerate((j, side) for j in some for side in range(2)):
                total = kb.load(acc, _slot(p // 2, nr, j, side), lanes)
                total = total if term is None else total + term
                if added is not None:
                    scaled = kb.cast(added[i], "float32") * channels[j][side].ratio
                    total = total + kb.lrint(scaled)
                wide.append(kb.cast(total, "float32") * channels[j][side].multiplier)
            _store_apart(ctx, places, wide, count)


def _both(ctx: Context, channel: Channels, side: int) -> Channels:
    """Half of a channel block's numbers for each of two pixels, as an accumulator has them."""
    kb, order = ctx.kb, [2 * side, 2 * side + 1] * 2
    numbers = (channel.multiplier, channel.ratio)
    return Channels(None, *(x if x is None else kb.let(kb.shuffle(x, order)) for x in numbers))


def _terms(ctx: Context, rows: list[Any]) -> Any:
    """What is added to the sums of each of up to two pixels."""
    if ctx.terms is None:
        return None
    kb, lanes = ctx.kb, ctx.unit.lanes
    one, two = (kb.splat(kb.load(ctx.terms, rows[i]), lanes) for i in (0, -1))
    return kb.let(kb.shuffle(one, [0, 1, lanes, lanes + 1], two), "term")


def _residuals(ctx: Context, places: list[Any], blocks: int, count: int) -> list[Any] | None:
    """The residual of up to two pixels, ``count`` channels, int32x4 in the sums' order."""
    kb, out, lanes = ctx.kb, ctx.out, ctx.unit.lanes
    if out.residual is None:
        return None
    size = blocks * lanes
    loaded = [kb.let(kb.load_first(out.residual, at, size, count), "r") for at in places]
    order = [row * size + at + i for at in range(0, size, 2) for row in range(2) for i in range(2)]
    joined = kb.let(kb.shuffle(loaded[0], order, loaded[-1]), "residual")
    zero = kb.splat(kb.cast(kb.cast(out.scalars[3], "int32"), "uint8"), 2 * size)
    centred = kb.let(kb.cast(joined, "int16") - kb.cast(zero, "int16"), "residual")
    return [
        kb.cast(kb.shuffle(centred, range(at, at + lanes)), "int32")
        for at in range(0, 2 * size, lanes)
    ]


def _store_apart(ctx: Context, places: list[Any], wide: list[Any], count: int) -> None:
    """Requantises the sums of up to two pixels, ``count`` channels each, and stores them."""
    kb, out, lanes = ctx.kb, ctx.out, ctx.unit.lanes
    limits = (out.scalars[1], out.scalars[2])
    size = len(wide) * lanes // 2
    wide = wide + wide[-1:] * (-len(wide) % 4)
    codes = [
        kb.let(
            tir.neon.requantised(wide[i : i + 4], out.scalars[0], limits, NUMPY[ctx.gemm.out]),
            "codes",
        )
        for i in range(0, len(wide), 4)
    ]
    for row, at in enumerate(places):
        order = [2 * i + 2 * row + n for i in range(0, size, 2) for n in range(2)]
        kb.store_first(out.y, at, kb.shuffle(codes[0], order, codes[-1]), count)
