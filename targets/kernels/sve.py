"""Emits implicit-GEMM blocks for ARM cores with SVE vectors of 256 bits or more.

Codes are multiplied by usmmla, 2x8 by 8x2 in each 128 bits: two pixels' codes, which ld1rqb repeats
in all of the vector, by those of four channels. float32 numbers are multiplied by element, four of
a pixel's run in each 128 bits. A load of weights serves all pixels of the block.

The whole reduction of a block is one piece of assembly (:mod:`sve_code`), which leaves the sums in
memory; NEON finishes them, as LLVM has no part in SVE.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from targets.kernels.arm_frame import pixels_of, store_results
from targets.kernels.gemm import Gemm, Unit
from targets.kernels.skeleton import Block, Context, a_start, b_start
from targets.kernels.spec import SIZE
from targets.kernels.sve_blocks import is_real
from targets.kernels.sve_code import CHANNEL_ORDER, Reduction


def reduction(gemm: Gemm, unit: Unit, pixels: int, channel_blocks: int) -> Reduction:
    """The loops of a block of this size."""
    size = SIZE[gemm.a_dtype]
    loops = tuple((count, distance * size) for count, distance in gemm.loops if count > 1)
    return Reduction(pixels, channel_blocks, loops, gemm.run, is_real(unit))


def in_order(packed: np.ndarray, unit: Unit) -> np.ndarray:
    """Weights ``[groups, blocks, runs, steps, lanes, k]`` with lanes as the block takes them."""
    return packed if is_real(unit) else packed[..., CHANNEL_ORDER, :]


def emit_sve_block(ctx: Context, block: Block) -> None:
    """Accumulates one block, codes from the bias on, and stores it."""
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    lanes, pixels = unit.lanes, pixels_of(block)
    loop = reduction(gemm, unit, len(pixels), nr)
    kb.include(loop.name, loop.llvm())
    sums = kb.alloc(unit.accumulator, len(pixels) * nr * lanes)
    first = a_start(ctx, block) + loop.start
    starts = [kb.address(ctx.a, first + (r * gemm.a_row + c * gemm.a_col)) for r, c in pixels]
    channel = (ctx.group * ctx.blocks + block.channel_block) * lanes
    kb.call(
        loop.name,
        kb.address(sums, 0),
        kb.address(ctx.out.bias, channel),
        kb.address(ctx.b, b_start(ctx, block)),
        *starts,
    )
    values: list[Any] = [kb.load(sums, i * lanes, lanes) for i in range(len(pixels) * nr)]
    store_results(ctx, block, values, biased=not is_real(unit))


__all__ = ["emit_sve_block", "in_order", "reduction"]
