"""Emits implicit-GEMM blocks by ARM's dot products: sdot, or usdot where i8mm is at hand.

Sixteen codes of a pixel's run are loaded at once and multiplied by element: ``sdot v.4s, v.16b,
v.4b[i]`` takes four of them, so a load serves four steps of all channel blocks. sdot multiplies
signed numbers; codes become ``code - 128`` by flipping their top bit, and 128 times the weights'
sum is in the bias (:attr:`Unit.code_offset`).
"""

from __future__ import annotations

from itertools import product
from typing import Any

from targets.kernels.arm_frame import (
    Place,
    accumulators,
    distances,
    emit_products,
    load_signed,
    pixels_of,
    store_results,
)
from targets.kernels.skeleton import Block, Context, block_channels

LOADED = 4
"""Steps whose codes one load brings."""

UNROLL = 2
"""Loads of a pixel's run in the loop: two neighbours are one instruction. More make LLVM spill."""


def emit_dot_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers, from the bias on, and stores it."""
    kb, lanes, nr = ctx.kb, ctx.unit.lanes, block.channel_blocks
    pixels = pixels_of(block)
    acc = accumulators(ctx, len(pixels) * nr)
    for j, channel in enumerate(block_channels(ctx, block.channel_block, nr)):
        for p in range(len(pixels)):
            kb.store(acc, (p * nr + j) * lanes, channel.bias)
    emit_products(
        ctx, block, acc, LOADED, lambda at, codes: _steps(ctx, block, acc, at, codes), UNROLL
    )
    values = [kb.load(acc, i * lanes, lanes) for i in range(len(pixels) * nr)]
    store_results(ctx, block, values, biased=True)


def _steps(ctx: Context, block: Block, acc: Any, at: Place, codes: int) -> None:
    """The steps of up to 16 codes of each pixel."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    lanes, size = unit.lanes, unit.lanes * unit.k
    b_step, b_block = distances(ctx, nr)
    words = [
        kb.let(_words(ctx, at[0] + (r * gemm.a_row + c * gemm.a_col)), "a")
        for r, c in pixels_of(block)
    ]
    order = list(product(range(-(-codes // unit.k)), range(nr)))
    for first in range(0, len(order), 2):  # neighbours, which one instruction loads
        pair = order[first : first + 2]
        weights = [
            kb.let(kb.load(ctx.b, at[1] + (i * b_step + j * b_block), size), "b") for i, j in pair
        ]
        for (i, j), b in zip(pair, weights, strict=True):
            for p, word in enumerate(words):
                slot = (p * nr + j) * lanes
                a = kb.reinterpret(kb.shuffle(word, [i] * lanes), "int8", size)
                kb.store(acc, slot, _dot(ctx, kb.load(acc, slot, lanes), a, b))


def _words(ctx: Context, index: Any) -> Any:
    """Four steps of one pixel's run as int32x4."""
    size = LOADED * ctx.unit.k
    return ctx.kb.reinterpret(load_signed(ctx, index, size), "int32", LOADED)


def _dot(ctx: Context, acc: Any, a: Any, b: Any) -> Any:
    name = f"llvm.aarch64.neon.{ctx.unit.kind}"
    operands = (a, b) if ctx.unit.kind == "usdot" else (b, a)  # as its form by element wants them
    return ctx.kb.pure(name, "int32", ctx.unit.lanes, acc, *operands)
