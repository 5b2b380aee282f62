"""Emits implicit-GEMM blocks in vector registers: FMA, vpdpbusd, vdpbf16ps or widened pmaddwd."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels import arm_words
from targets.kernels.blocking import L2_BYTES
from targets.kernels.code_panel import Unpacking
from targets.kernels.gemm import LINE, Unit
from targets.kernels.skeleton import (
    Block,
    Context,
    a_start,
    b_start,
    runs,
    store_block,
    store_registers,
)

UNROLLED = ("fma", "vnni")
"""Units whose steps are written out, and whose blocks are finished from registers."""

STEPS_AHEAD = 8
"""Steps whose weights a VNNI block fetches ahead into the first-level cache."""

LEAST_TURNS = 4
"""Register blocks with the same weights from which on they fetch the next weights meanwhile: the
fewer, the more fetches each would have to make."""

AHEAD = 64
"""Cache lines that a stream of weights is fetched ahead: a page of 4 KB (32 lines are slower, 128
are no faster)."""

_VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_MADD = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}


def load_a(ctx: Context, index: Any) -> Any:
    """One step of one pixel's run, in every lane."""
    kb, unit = ctx.kb, ctx.unit
    if unit.kind == "fma":
        return kb.let(kb.splat(kb.widened(kb.load(ctx.a, index)), unit.lanes), "a")
    word = kb.reinterpret(kb.load(ctx.a, index, unit.k), "int32")
    word = arm_words.as_factor(kb, unit, word)
    if unit.bf16:
        return kb.let(kb.splat(word, unit.lanes), "a")
    return kb.let(kb.reinterpret(kb.splat(word, unit.lanes), *word_type(unit)), "a")


def word_type(unit: Unit) -> tuple[str, int]:
    """Dtype and lanes of a vector of words of codes."""
    if unit.kind == "madd":
        return "int16", 2 * unit.lanes
    return "uint8" if unit.kind == "usdot" else "int8", 4 * unit.lanes


def load_b(ctx: Context, index: Any) -> Any:
    """One step of one channel block; s8 weights are widened for pmaddwd."""
    kb, unit = ctx.kb, ctx.unit
    value = kb.load(ctx.b, index, unit.lanes * unit.k)
    if unit.kind == "fma":
        value = kb.widened(value)
    elif unit.bf16:
        value = kb.reinterpret(value, "int32", unit.lanes)
    if unit.kind == "madd" and str(ctx.b.dtype) != "int16":
        value = kb.cast(value, "int16")
    return kb.let(value, "b")


def multiply_add(ctx: Context, acc: Any, a: Any, b: Any) -> Any:
    """``acc`` + the inner products of one step."""
    kb, unit = ctx.kb, ctx.unit
    if unit.kind == "fma":
        if not unit.fused:
            return acc + a * b
        return kb.pure("llvm.fma", "float32", unit.lanes, a, b, acc)
    if unit.bf16:
        return tir.bfloat16.dot(acc, a, b)
    if unit.kind == "vnni":
        return kb.pure(_VNNI[unit.lanes], "int32", unit.lanes, acc, a, b)
    if unit.kind in arm_words.KINDS:
        return arm_words.multiply_add(kb, unit, acc, a, b)
    return acc + kb.pure(_MADD[unit.lanes], "int32", unit.lanes, a, b)


def _step(
    ctx: Context,
    acc: Any,
    pixels: list[tuple[int, int]],
    nr: int,
    a_at: Any,
    b_at: Any,
    b_block: int = 0,
    held: list[Any] | None = None,
) -> None:
    """One reduction step of all pixels and channel blocks, which are ``b_block`` apart in B.

    ``held``: what :func:`load_a` would load, where the caller has loaded it.
    """
    kb, gemm, lanes = ctx.kb, ctx.gemm, ctx.unit.lanes
    b_block = b_block or ctx.b_block
    if ctx.unit.kind == "vnni" and len(pixels) > 1 and ctx.panel is None:
        # LLVM moves no load across a prefetch. Without one it loads the weights of several steps at
        # once, and spills accumulators to make room.
        kb.prefetch(ctx.b, b_at + STEPS_AHEAD * lanes * ctx.unit.k, level=1)
    weights = [load_b(ctx, b_at + j * b_block) for j in range(nr)]
    for i, (r, c) in enumerate(pixels):
        a = held[i] if held else load_a(ctx, a_at + (r * gemm.a_row + c * gemm.a_col))
        for j in range(nr):
            at = (i * nr + j) * lanes
            kb.store(acc, at, multiply_add(ctx, kb.load(acc, at, lanes), a, weights[j]))


def _steps(
    ctx: Context,
    acc: Any,
    pixels: list[tuple[int, int]],
    nr: int,
    a_at: Any,
    b_at: Any,
    count: int,
) -> None:
    """``count`` steps of all pixels and channel blocks."""
    kb, gemm, unit = ctx.kb, ctx.gemm, ctx.unit
    b_step, size = gemm.b_row or unit.lanes * unit.k, unit.elements
    whole = count - count % size if size > 1 else 0
    for first in range(0, whole, size):
        starts = [a_at + (r * gemm.a_row + c * gemm.a_col + first) for r, c in pixels]
        held = [kb.let(kb.widened(kb.load(ctx.a, start, size)), "a") for start in starts]
        for i in range(size):
            each = [kb.let(kb.shuffle(a, [i] * unit.lanes), "element") for a in held]
            _step(ctx, acc, pixels, nr, a_at, b_at + (first + i) * b_step, held=each)
    for i in range(whole, count):
        _step(ctx, acc, pixels, nr, a_at + i * unit.k, b_at + i * b_step)


class _NextWeights:
    """Fetches the weights of the next channels into the second-level cache.

    Weights of a large layer come from memory or a shared cache, and a panel of them is read by many
    blocks of pixels: all but the first find it close by. Each of these blocks fetches its share of
    the next panel, a few lines with every step of its loop, so that nobody waits for weights. What
    is fetched past the last panel is at most the next layer's, and never an error.
    """

    def __init__(self, ctx: Context, block: Block, first: Any) -> None:
        """``first``: element of B where the block's own weights start."""
        self.ctx, gemm, unit = ctx, ctx.gemm, ctx.unit
        self.channel_blocks = block.channel_blocks
        size = np.dtype(unit.packed).itemsize
        step = unit.unroll * unit.lanes * unit.k
        panel = block.channel_blocks * ctx.b_block
        self.lines = ceil(block.channel_blocks * step * size / ctx.turns / LINE)
        self.line, self.step, self.first = LINE // size, step, first
        share = ctx.b_block // step * self.lines * self.line
        constant = gemm.b_image == 0 and gemm.b_row == 0 and ctx.panel is None
        long = unit.kind in UNROLLED and gemm.run >= 4 * unit.unroll * unit.k
        self.wanted = long and constant and ctx.turns >= LEAST_TURNS
        if self.wanted:
            self.start = ctx.kb.let(first + panel + block.turn * share, "next")

    def run(self, b_run: Any) -> None:
        """Begins a run whose weights start at ``b_run``."""
        if self.wanted:
            done = tir.tirx.truncdiv(b_run - self.first, self.step)
            self.at = self.ctx.kb.let(self.start + done * (self.lines * self.line), "next")

    def fetch(self, k: Any) -> None:
        """The share of written-out step ``k`` of the run."""
        if not self.wanted:
            return
        kb = self.ctx.kb
        at = kb.let(self.at + k * (self.lines * self.line), "next")
        for i in range(self.lines):
            kb.prefetch(self.ctx.b, at + i * self.line)


def _emit_run(
    ctx: Context,
    acc: Any,
    pixels: list[tuple[int, int]],
    following: _NextWeights,
    a_run: Any,
    b_run: Any,
) -> None:
    """The steps of one run.

    Where weights that are read once are fetched ahead, the last steps fetch the first weights of
    the next block.
    """
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, following.channel_blocks
    b_step, steps = gemm.b_row or unit.lanes * unit.k, -(-gemm.run // unit.k)
    enough = 1 if unit.elements > 1 else 4
    unroll = unit.unroll if unit.kind in UNROLLED and steps >= enough * unit.unroll else 1
    line, fetching = LINE // np.dtype(unit.packed).itemsize, _reads_once(ctx)
    if fetching:
        unroll = max(1, line // b_step)
    whole = steps // unroll
    if whole:
        following.run(b_run)
    turn = max(0, whole - AHEAD * line // (unroll * b_step)) if fetching else whole
    for start, stop in ((0, turn), (turn, whole)):
        if start == stop:
            continue
        ahead = AHEAD * line + (ctx.b_block * (nr - 1) if stop > turn else 0)
        with kb.loop(start, stop, "k") as k:
            a_at = kb.let(a_run + k * (unroll * unit.k), "a_at")
            b_at = kb.let(b_run + k * (unroll * b_step), "b_at")
            following.fetch(k)
            for j in range(nr if fetching else 0):
                kb.prefetch(ctx.b, b_at + (j * ctx.b_block + ahead))
            _steps(ctx, acc, pixels, nr, a_at, b_at, unroll)
    done = whole * unroll
    _steps(ctx, acc, pixels, nr, a_run + done * unit.k, b_run + done * b_step, steps - done)


def emit_coded_run(
    ctx: Context,
    coded: Unpacking[Any],
    block: Block,
    run: tuple[Any, Any],
    emit: Callable[[Any, int], None],
) -> None:
    """The steps of one run whose weights are unpacked a chunk at a time.

    ``run``: where it starts in A and in the codes of the first channel block. ``emit(a, count)``:
    does ``count`` steps; their weights follow each other from the buffer's start, channel blocks a
    chunk apart.
    """
    kb, unit, panel, nr = ctx.kb, ctx.unit, coded.panel, block.channel_blocks
    step, steps = unit.lanes * unit.k, -(-ctx.gemm.run // unit.k)
    each = panel.chunk // step
    first = ctx.group * ctx.blocks + block.channel_block
    tables = [coded.load_tables(first + j) for j in range(nr)]

    def chunk(index: Any, count: int) -> None:
        get = kb.let(run[1] + index * panel.stored, "codes_at")
        a_at = kb.let(run[0] + index * (each * unit.k), "a_at")
        for j in range(nr):
            coded.chunk(tables[j], kb.let(get + j * ctx.b_block, "codes_at"), j * panel.chunk)
        emit(a_at, count)

    with kb.loop(0, steps // each, "chunk") as index:
        chunk(index, each)
    if steps % each:
        chunk(steps // each, steps % each)


def _reads_once(ctx: Context) -> bool:
    """Whether the kernel is one pass over more weights than the second-level cache holds.

    The hardware's prefetchers stop at the end of each 4 KB page. float32 weights come from memory
    rather than from the last-level cache, which fetching ahead has not made faster (measured).
    """
    gemm, blocking, unit = ctx.gemm, ctx.blocking, ctx.unit
    once = gemm.images * blocking.rows.count * blocking.cols.count == 1 and not gemm.b_image
    size = gemm.groups * ctx.blocks * ctx.b_block * np.dtype(unit.packed).itemsize
    once = once and gemm.runs == 1 and ctx.panel is None
    return once and size > L2_BYTES and unit.kind != "fma"


def emit_register_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and hands it to the epilogue."""
    kb, unit = ctx.kb, ctx.unit
    lanes, nr = unit.lanes, block.channel_blocks
    pixels = [(r, c) for r in range(block.height) for c in range(block.width)]
    dtype = unit.accumulator
    acc = kb.alloc(dtype, len(pixels) * nr * lanes)
    for i in range(len(pixels) * nr):
        kb.store(acc, i * lanes, kb.const(0, dtype, lanes))
    first = b_start(ctx, block)
    following = _NextWeights(ctx, block, first)
    with runs(ctx, a_start(ctx, block), first) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
        if ctx.panel is not None and ctx.panel.panel.form == "steps":
            apart, step = ctx.panel.panel.chunk, lanes * unit.k

            def emit(a_at: Any, count: int) -> None:
                for i in range(count):
                    _step(ctx, acc, pixels, nr, a_at + i * unit.k, i * step, apart)

            emit_coded_run(ctx, ctx.panel, block, (a_run, b_run), emit)
        else:
            _emit_run(ctx, acc, pixels, following, a_run, b_run)
    finish_registers(ctx, block, acc)


def finish_registers(ctx: Context, block: Block, acc: Any) -> None:
    """The epilogue of a block whose accumulators lie in registers, pixel by pixel."""
    kb, unit = ctx.kb, ctx.unit
    lanes, nr, pixels = unit.lanes, block.channel_blocks, block.height * block.width
    if unit.kind in UNROLLED and block.last == lanes:  # a partial vector is stored in pieces
        store_registers(ctx, block, acc)
        return
    spill, start = kb.alloc_aligned(unit.accumulator, pixels * nr * lanes)
    for i in range(pixels * nr):
        kb.store(spill, start + i * lanes, kb.load(acc, i * lanes, lanes))
    store_block(ctx, block, spill, block.width * nr * lanes, nr * lanes, lanes, start)
