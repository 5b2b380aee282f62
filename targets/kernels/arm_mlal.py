"""Emits implicit-GEMM blocks by NEON's widening multiplications, for cores without dot products.

Each pixel and channel has an accumulator of its own: smull multiplies eight codes by eight weights
of one channel, smlal adds products of following codes in 16 bits, and sadalp adds neighbours of
these sums to four sums of 32 bits. In the end each four sums become one.

How many products a 16-bit lane may hold before sadalp follows from the weights
(:func:`proven_unit`): codes are ``code - 128``, so two always fit unless both weights are -128.
Two make 16 multiply-accumulates in three instructions, four 32 in five.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.analysis.accumulators import Bounds, of_parts
from dlcc.lowering.kernel import ARENA_SLACK
from targets.kernels.arm_asm import held
from targets.kernels.arm_frame import (
    Place,
    distances,
    flips,
    load_signed,
    pixels_of,
    runs_of,
    store_results,
    zeros,
)
from targets.kernels.arm_mlal_code import VECTOR, Products
from targets.kernels.gemm import Unit
from targets.kernels.skeleton import Block, Context

PRODUCTS = 8
"""Products of one multiplication."""

MOST_TOGETHER = 4
"""Accumulators of one go: as many as multiplications take cycles on in-order cores."""

USUAL_PRODUCTS = 2
"""Products of a lane that fit 16 bits for all weights but -128."""

_BITS = 16
_CODES = Bounds(-128, 127)
SUMS = (2, 4, 6, 8)
"""Products of a lane that may be added up, beside one."""


def proven_unit(unit: Unit, weights: np.ndarray, block: tuple[int, int, int] | None = None) -> Unit:
    """``unit`` with the longest sums in 16 bits that these weights allow, whatever the codes.

    A step takes the codes of such a sum.

    Args:
        unit: of 32-bit accumulators by sums of 16 bits.
        weights: int8 [groups, n, runs, run].
        block: rows, columns and channel blocks that registers must be left for (None: any).
    """
    pixels, channel_blocks = (1, 1) if block is None else (block[0] * block[1], block[2])
    run = weights.shape[-1]
    flat = weights.reshape(-1, run).astype(np.int32)
    for length in SUMS:
        size = length * PRODUCTS
        if run <= unit.sums * PRODUCTS:
            break
        filled = np.pad(flat, ((0, 0), (0, -run % size))).reshape(len(flat), -1, length, PRODUCTS)
        positive = np.maximum(filled, 0).sum(axis=2)
        negative = np.minimum(filled, 0).sum(axis=2)
        if not of_parts(positive, negative, _CODES).all.fits(_BITS):
            break
        longer = replace(unit, sums=length, k=max(VECTOR, length * PRODUCTS))
        if products(longer, pixels, channel_blocks) is None:
            break
        unit = longer
    return unit


def products(unit: Unit, pixels: int, channel_blocks: int) -> Products | None:
    """The loop over chunks of a register block; None if it takes more registers than there are.

    As many channels are multiplied side by side as a multiplication takes cycles on in-order
    cores, and what comes next is loaded ahead, where there are registers for it.
    """
    channels, halves = channel_blocks * unit.lanes, max(2, unit.sums)
    for ahead in (True, False):
        for together in (4, 2, 1):
            chunks = 2 if ahead else 1
            made = Products(
                pixels, channels, together, halves, unit.sums, unit.registers > 16, chunks, ahead
            )
            past = together * made.vectors * VECTOR if ahead else 0  # read after the last weights
            fits = made.registers <= unit.registers and past <= ARENA_SLACK
            if fits and pixels * together <= MOST_TOGETHER:
                return made
    return None


def emit_mlal_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and stores it."""
    kb, unit = ctx.kb, ctx.unit
    pixels, channels = block.height * block.width, block.channel_blocks * unit.lanes
    loop = products(unit, pixels, block.channel_blocks)
    if loop is not None and not flips(ctx):
        loop = replace(loop, flip=False)
    if loop is None:
        raise ValueError(f"{unit} has no registers for {pixels} x {channels}")
    wide = zeros(kb, held(pixels * channels))
    with runs_of(ctx, block) as (a_run, b_run):
        _run(ctx, block, loop, wide, (a_run, b_run))
    values = []
    for p in range(pixels):
        for first in range(0, channels, unit.lanes):
            parts = [
                kb.load(wide, 4 * (channel * pixels + p), 4)
                for channel in range(first, first + unit.lanes)
            ]
            pairs = [tir.neon.add_pairs(*parts[:2]), tir.neon.add_pairs(*parts[2:])]
            values.append(kb.let(tir.neon.add_pairs(*pairs), "sums"))
    store_results(ctx, block, values, biased=False)


def _run(ctx: Context, block: Block, loop: Products, wide: Any, at: Place) -> None:
    """The products of one run."""
    kb, gemm, unit = ctx.kb, ctx.gemm, ctx.unit
    b_step, _ = distances(ctx, block.channel_blocks)
    size = loop.chunks * unit.k
    whole = gemm.run // size if not gemm.b_image or block.channel_blocks == 1 else 0
    if whole:
        kb.include(loop.name, loop.llvm())
        starts = [
            kb.address(ctx.a, at[0] + (r * gemm.a_row + c * gemm.a_col))
            for r, c in pixels_of(block)
        ]
        room = 4 * held(loop.pixels * loop.channels)
        begin = kb.load(wide, 0, room)
        count = kb.const(whole, "int32")
        weights = kb.address(ctx.b, at[1])
        total = kb.extern(loop.name, "int32", room, begin, *starts, weights, count)
        kb.store(wide, 0, total)
    for first in range(whole * size, gemm.run, unit.k):
        place = (at[0] + first, at[1] + first // unit.k * b_step)
        codes = min(unit.k, gemm.run - first)
        _chunk(ctx, block, wide, loop.together, place, codes)


def _chunk(ctx: Context, block: Block, wide: Any, together: int, at: Place, codes: int) -> None:
    """The products of up to a step's codes of each pixel, ``together`` channels at a time."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    _, b_block = distances(ctx, nr)
    pixels = pixels_of(block)
    halves = ceil(codes / PRODUCTS)
    made = Products(len(pixels), together, together, halves, unit.sums, unit.registers > 16)
    kb.include(made.name, made.llvm())
    places = [VECTOR * i for i in range(made.vectors)]
    loaded = []
    for r, c in pixels:
        a_at = at[0] + (r * gemm.a_row + c * gemm.a_col)
        loaded += [kb.let(load_signed(ctx, a_at + place, VECTOR), "a") for place in places]
    own, lanes = 4 * together * len(pixels), 4 * held(together * len(pixels))
    for first in range(0, nr * unit.lanes, together):
        weights = []
        for channel in range(first, first + together):
            j, lane = divmod(channel, unit.lanes)
            b_at = at[1] + (j * b_block + lane * unit.k)
            weights += [kb.let(kb.load(ctx.b, b_at + place, VECTOR), "b") for place in places]
        slot = 4 * first * len(pixels)
        sums = kb.alloc("int32", lanes)
        kb.store(sums, 0, kb.load(wide, slot, own))
        total = kb.extern(made.name, "int32", lanes, kb.load(sums, 0, lanes), *loaded, *weights)
        kb.store(sums, 0, total)
        kb.store(wide, slot, kb.load(sums, 0, own))
