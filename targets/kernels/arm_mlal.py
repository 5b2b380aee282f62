"""Emits implicit-GEMM blocks by NEON's widening multiplications, for cores without dot products.

Each pixel and channel has an accumulator of its own: smull multiplies eight codes by eight weights
of one channel, smlal adds products of following codes in 16 bits, and sadalp adds neighbours of
these sums to four sums of 32 bits. In the end each four sums become one.

How many products a 16-bit lane may hold before sadalp follows from the weights
(:func:`proven_products`): codes are ``code - 128``, so two always fit unless both weights are -128.
Two make 16 multiply-accumulates in three instructions, four 32 in five.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.analysis.accumulators import Bounds, of_parts
from targets.kernels.arm_frame import (
    Place,
    distances,
    emit_steps,
    load_signed,
    pixels_of,
    store_results,
    zeros,
)
from targets.kernels.skeleton import Block, Context

PRODUCTS = 8
"""Products of one multiplication."""

UNROLL = 2

USUAL_PRODUCTS = 2
"""Products of a lane that fit 16 bits for all weights but -128."""

_BITS = 16
_CODES = Bounds(-128, 127)
_CHAINS = (2, 4, 6, 8)
"""Products of a lane that may be added up, beside one."""


def proven_products(packed: np.ndarray) -> int:
    """The most products whose sum provably fits 16 bits in every lane, whatever the codes: 1 to 8.

    ``packed``: weights [groups, blocks, runs, steps, lanes, 16] as the kernel takes them.
    """
    *_, steps, lanes, k = packed.shape
    halves = packed.reshape(-1, steps, lanes, k // PRODUCTS, PRODUCTS)
    proven = 1
    for length in _CHAINS:
        size = length * PRODUCTS // k
        if size > max(1, steps):
            break
        filled = np.pad(halves, ((0, 0), (0, -steps % size), *[(0, 0)] * 3)).astype(np.int32)
        chains = filled.reshape(len(halves), -1, size, *halves.shape[2:])
        positive = np.maximum(chains, 0).sum(axis=(2, 4))
        negative = np.minimum(chains, 0).sum(axis=(2, 4))
        if not of_parts(positive, negative, _CODES).all.fits(_BITS):
            break
        proven = length
    return proven


def emit_mlal_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and stores it."""
    kb, unit = ctx.kb, ctx.unit
    vectors = block.height * block.width * block.channel_blocks
    wide = zeros(kb, vectors * unit.lanes)
    chunk = max(1, unit.sums * PRODUCTS // unit.k)
    emit_steps(ctx, block, chunk, lambda at, codes: _steps(ctx, block, wide, at, codes), UNROLL)
    values = []
    for i in range(vectors):
        parts = [kb.load(wide, 4 * (i * unit.lanes + j), 4) for j in range(unit.lanes)]
        pairs = [tir.neon.add_pairs(*parts[:2]), tir.neon.add_pairs(*parts[2:])]
        values.append(kb.let(tir.neon.add_pairs(*pairs), "sums"))
    store_results(ctx, block, values, biased=False)


def _steps(ctx: Context, block: Block, wide: Any, at: Place, codes: int) -> None:
    """The products of up to :attr:`Unit.sums` times eight codes of each pixel."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    b_step, b_block = distances(ctx, nr)
    steps, products = ceil(codes / unit.k), ceil(codes / PRODUCTS)
    loaded = [
        [
            kb.let(
                load_signed(ctx, at[0] + (r * gemm.a_row + c * gemm.a_col + i * unit.k), unit.k),
                "a",
            )
            for i in range(steps)
        ]
        for r, c in pixels_of(block)
    ]
    channels = nr * unit.lanes
    side_by_side = 2 if unit.registers > 16 else 1  # loaded by one instruction
    for first in range(0, channels, side_by_side):
        group = range(first, first + side_by_side)
        weights = []
        for channel in group:
            j, lane = divmod(channel, unit.lanes)
            b_at = at[1] + (j * b_block + lane * unit.k)
            weights.append(
                [kb.let(kb.load(ctx.b, b_at + i * b_step, unit.k), "b") for i in range(steps)]
            )
        for channel, b in zip(group, weights, strict=True):
            for p, a in enumerate(loaded):
                slot = 4 * (p * channels + channel)
                total = kb.load(wide, slot, 4)
                for start in range(0, products, unit.sums):
                    halves = range(start, min(start + unit.sums, products))
                    total = tir.neon.accumulate_pairs(total, _chain(a, b, halves))
                kb.store(wide, slot, total)


def _chain(a: list[Any], b: list[Any], halves: range) -> Any:
    """The sum of the products of these halves of vectors, in 16 bits."""
    products = [
        tir.neon.multiply_long(*(tir.neon.half(v[h // 2], h % 2) for v in (a, b))) for h in halves
    ]
    return sum(products[1:], products[0])
