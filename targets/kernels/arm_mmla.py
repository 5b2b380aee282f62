"""Emits implicit-GEMM blocks by usmmla, ARM's product of 2x8 codes and 8x2 weights.

An accumulator holds two pixels by two channels. Of each two pixels sixteen codes are loaded and
their halves put together; in the end the rows of the accumulators are put apart.
"""

from __future__ import annotations

from typing import Any

from targets.kernels.arm_frame import Place, distances, emit_steps, pixels_of, store_results
from targets.kernels.skeleton import Block, Context, block_channels

LOADED = 2
"""Steps whose codes one load brings."""

UNROLL = 2
"""Loads of a pixel's run in the loop: two neighbours are one instruction."""

_NAME = "llvm.aarch64.neon.usmmla"


def emit_mmla_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers, from the bias on, and stores it."""
    kb, lanes, nr = ctx.kb, ctx.unit.lanes, block.channel_blocks
    pixels = block.height * block.width
    pairs = -(-pixels // 2)
    acc = kb.alloc("int32", pairs * nr * 2 * lanes)
    for j, channel in enumerate(block_channels(ctx, block.channel_block, nr)):
        for side in range(2):
            bias = kb.let(kb.shuffle(channel.bias, [2 * side, 2 * side + 1] * 2), "bias")
            for p in range(pairs):
                kb.store(acc, _slot(p, nr, j, side), bias)
    emit_steps(ctx, block, LOADED, lambda at, codes: _steps(ctx, block, acc, at, codes), UNROLL)
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
