"""Emits implicit-GEMM blocks by ARM's dot products: sdot, or usdot where i8mm is at hand.

Sixteen codes of a pixel's run are loaded at once and multiplied by element: ``sdot v.4s, v.16b,
v.4b[i]`` takes four of them, so a load serves four steps of all channel blocks. sdot multiplies
signed numbers; codes become ``code - 128`` by flipping their top bit, and 128 times the weights'
sum is in the bias (:attr:`Unit.code_offset`).
"""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.kernels.skeleton import Block, Context, a_start, b_start, runs, store_registers

LOADED = 4
"""Steps whose codes one load brings."""


def emit_dot_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and hands it to the epilogue."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    pixels = [(r, c) for r in range(block.height) for c in range(block.width)]
    acc = kb.alloc("int32", len(pixels) * nr * unit.lanes)
    for i in range(len(pixels) * nr):
        kb.store(acc, i * unit.lanes, kb.const(0, "int32", unit.lanes))
    steps = -(-gemm.run // unit.k)
    whole, rest = divmod(steps, LOADED)
    size = LOADED * unit.k
    with runs(ctx, a_start(ctx, block), b_start(ctx, block)) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
        if whole:
            with kb.loop(0, whole, "k") as k:
                a_at = kb.let(a_run + k * size, "a_at")
                b_at = kb.let(b_run + k * (size * unit.lanes), "b_at")
                _steps(ctx, acc, pixels, nr, a_at, b_at, LOADED)
        if rest:
            at = whole * size
            _steps(ctx, acc, pixels, nr, a_run + at, b_run + at * unit.lanes, rest)
    store_registers(ctx, block, acc)


def _steps(
    ctx: Context,
    acc: Any,
    pixels: list[tuple[int, int]],
    nr: int,
    a_at: Any,
    b_at: Any,
    count: int,
) -> None:
    """``count`` reduction steps of all pixels and channel blocks."""
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    step = lanes * ctx.unit.k
    codes = [load_codes(ctx, a_at + (r * gemm.a_row + c * gemm.a_col)) for r, c in pixels]
    for i in range(count):
        for j in range(nr):
            weights = kb.let(kb.load(ctx.b, b_at + (j * ctx.b_block + i * step), step), "b")
            for p, words in enumerate(codes):
                at = (p * nr + j) * lanes
                a = kb.reinterpret(kb.shuffle(words, [i] * lanes), "int8", step)
                kb.store(acc, at, _dot(ctx, kb.load(acc, at, lanes), a, weights))


def load_codes(ctx: Context, index: Any) -> Any:
    """Four steps of one pixel's run as int32x4, as the unit takes them."""
    kb, unit = ctx.kb, ctx.unit
    size = LOADED * unit.k
    codes = kb.load(ctx.a, index, size)
    if unit.code_offset:
        codes = tir.tirx.bitwise_xor(codes, kb.const(0x80, "uint8", size))
    return kb.let(kb.reinterpret(codes, "int32", LOADED), "a")


def _dot(ctx: Context, acc: Any, a: Any, b: Any) -> Any:
    name = f"llvm.aarch64.neon.{ctx.unit.kind}"
    return ctx.kb.pure(name, "int32", ctx.unit.lanes, acc, a, b)
