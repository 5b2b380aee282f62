"""Emits implicit-GEMM blocks of layers with one channel block, by vpdpbusd of AVX-512.

With at most 16 output channels there are no channel blocks to requantise together, so four pixels
are: their accumulators are packed as the four blocks of a bundle are, and one permutation of
32-bit words brings each pixel's channels back together. Accumulators start with the bias and go
to the epilogue in registers.
"""

from __future__ import annotations

from typing import Any

from targets.kernels import epilogue
from targets.kernels.registers import load_a, load_b, multiply_add
from targets.kernels.skeleton import Block, Context, a_start, b_start, runs

BUNDLE = epilogue.PIXEL_BUNDLE

UNROLL = 160
"""Most multiply-accumulate instructions of a block that are written out instead of looped over."""


def emit_narrow_block(ctx: Context, block: Block) -> None:
    """Accumulates one block of one channel block and stores it, four pixels at a time."""
    kb, gemm, unit = ctx.kb, ctx.gemm, ctx.unit
    lanes = unit.lanes
    pixels = [(r, c) for r in range(block.height) for c in range(block.width)]
    channels = epilogue.load_channels(kb, ctx.out, 0, lanes)
    acc = kb.alloc("int32", len(pixels) * lanes)
    for i in range(len(pixels)):
        kb.store(acc, i * lanes, channels.bias)
    channels.bias = None
    steps = -(-gemm.run // unit.k)
    a_at, b_at = a_start(ctx, block), b_start(ctx, block)
    if gemm.runs * steps * len(pixels) <= UNROLL:
        for run, distance in enumerate(_distances(ctx)):
            for k in range(steps):
                a_k, b_k = a_at + (distance + k * unit.k), (run * steps + k) * lanes * unit.k
                _step(ctx, acc, pixels, a_k, b_at + b_k)
    else:
        with runs(ctx, a_at, b_at) as (a_run, b_run):
            a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
            with kb.loop(0, steps, "k") as k:
                a_k, b_k = kb.let(a_run + k * unit.k, "a_at"), b_run + k * (lanes * unit.k)
                _step(ctx, acc, pixels, a_k, kb.let(b_k, "b_at"))
    for r in range(block.height):
        row = (ctx.image * gemm.rows + block.row + r) * gemm.cols + block.col
        index = kb.let(row * gemm.n, "y_at")
        values = [kb.load(acc, (r * block.width + c) * lanes, lanes) for c in range(block.width)]
        whole = block.width - block.width % BUNDLE
        for c in range(0, whole, BUNDLE):
            bundle = values[c : c + BUNDLE]
            at = index + c * gemm.n
            epilogue.finish_pixels(kb, ctx.out, channels, bundle, at, gemm.n, gemm.out)
        for c in range(whole, block.width):
            at = index + c * gemm.n
            epilogue.finish(kb, ctx.out, channels, values[c], at, gemm.n, gemm.out)


def _distances(ctx: Context) -> list[int]:
    """Where each run of A starts, from the first one."""
    distances = [0]
    for count, distance in ctx.gemm.loops:
        distances = [at + i * distance for at in distances for i in range(count)]
    return distances


def _step(ctx: Context, acc: Any, pixels: list[tuple[int, int]], a_at: Any, b_at: Any) -> None:
    """One reduction step of all pixels."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    weights = load_b(ctx, b_at)
    for i, (r, c) in enumerate(pixels):
        a = load_a(ctx, a_at + (r * gemm.a_row + c * gemm.a_col))
        kb.store(acc, i * lanes, multiply_add(ctx, kb.load(acc, i * lanes, lanes), a, weights))
