"""Emits implicit-GEMM blocks by NEON's widening multiplications, for cores without dot products.

Each pixel and channel has an accumulator of its own: smull multiplies eight codes by eight weights
of one channel, smlal2 adds the next eight products in 16 bits, and sadalp adds neighbours of these
sums to four sums of 32 bits: 16 multiply-accumulates in three instructions. In the end each four
sums become one. Codes are ``code - 128``, at most 128 in size, and weights at most 127, so two
products always fit 16 bits.
"""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.kernels.skeleton import Block, Context, a_start, b_start, runs, store_registers

HALF = 8
"""Products of one multiplication."""


def emit_mlal_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and hands it to the epilogue."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    pixels = [(r, c) for r in range(block.height) for c in range(block.width)]
    channels, sums = nr * unit.lanes, unit.lanes
    wide = kb.alloc("int32", len(pixels) * channels * sums)
    for i in range(len(pixels) * channels):
        kb.store(wide, i * sums, kb.const(0, "int32", sums))
    whole, rest = divmod(gemm.run, unit.k)
    with runs(ctx, a_start(ctx, block), b_start(ctx, block)) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
        if whole:
            with kb.loop(0, whole, "k") as k:
                a_at = kb.let(a_run + k * unit.k, "a_at")
                b_at = kb.let(b_run + k * (unit.k * unit.lanes), "b_at")
                _step(ctx, wide, pixels, nr, a_at, b_at, unit.k // HALF)
        if rest:
            at = whole * unit.k
            halves = -(-rest // HALF)
            _step(ctx, wide, pixels, nr, a_run + at, b_run + at * unit.lanes, halves)
    acc = kb.alloc("int32", len(pixels) * channels)
    for i in range(len(pixels) * nr):
        parts = [kb.load(wide, (i * unit.lanes + j) * sums, sums) for j in range(unit.lanes)]
        pairs = [tir.neon.add_pairs(*parts[:2]), tir.neon.add_pairs(*parts[2:])]
        kb.store(acc, i * unit.lanes, tir.neon.add_pairs(*pairs))
    store_registers(ctx, block, acc)


def _step(
    ctx: Context,
    wide: Any,
    pixels: list[tuple[int, int]],
    nr: int,
    a_at: Any,
    b_at: Any,
    halves: int,
) -> None:
    """One reduction step of all pixels and channels, or the first half of one."""
    kb, gemm, unit = ctx.kb, ctx.gemm, ctx.unit
    sums = unit.lanes
    codes = [load_codes(ctx, a_at + (r * gemm.a_row + c * gemm.a_col)) for r, c in pixels]
    for channel in range(nr * unit.lanes):
        j, lane = divmod(channel, unit.lanes)
        at = b_at + (j * ctx.b_block + lane * unit.k)
        weights = kb.let(kb.load(ctx.b, at, unit.k), "b")
        for p, a in enumerate(codes):
            products = [
                tir.neon.multiply_long(tir.neon.half(a, h), tir.neon.half(weights, h))
                for h in range(halves)
            ]
            total = sum(products[1:], products[0])
            slot = (p * nr * unit.lanes + channel) * sums
            held = kb.load(wide, slot, sums)
            kb.store(wide, slot, tir.neon.accumulate_pairs(held, total))


def load_codes(ctx: Context, index: Any) -> Any:
    """One step of one pixel's run, signed."""
    kb, k = ctx.kb, ctx.unit.k
    codes = tir.tirx.bitwise_xor(kb.load(ctx.a, index, k), kb.const(0x80, "uint8", k))
    return kb.let(kb.reinterpret(codes, "int8", k), "a")
