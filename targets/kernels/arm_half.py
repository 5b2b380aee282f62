"""Emits implicit-GEMM blocks of half precision arithmetic (FEAT_FP16): ``fmla v.8h`` by element.

One instruction multiplies a vector of eight channels by one element of a pixel's run, twice what
``fmla v.4s`` does. Sums in half precision lose what their size makes too small for eleven bits, so
only :data:`TERMS` products are summed so, in a chain of fused operations; each such sum is widened
(fcvtl) and added to one in float32. That takes four instructions for every ``TERMS`` products of a
register.

The error of a result, with ``s`` the sum of its products' magnitudes, is at most
``(TERMS - 1) * 2**-11 * s`` beyond that of float32 sums; of random data it is about ``2**-12 *
sqrt(TERMS / 2)`` of the result's own spread. Partial sums above 65504 are infinite.

``fmlal`` (FEAT_FHM), which multiplies halves and sums in float32, does no more per instruction than
``fmla v.4s``, and the Cortex-A76 has none.
"""

from __future__ import annotations

from typing import Any

from targets.kernels.arm_frame import Place, distances, emit_steps, pixels_of, store_results
from targets.kernels.gemm import HALF_TERMS
from targets.kernels.skeleton import Block, Context

_PIECES = (8, 4, 1)
"""Elements of a run that are loaded at once: none behind its end."""


def emit_half_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in registers and hands it to the epilogue."""
    kb, lanes = ctx.kb, ctx.unit.lanes
    sums = block.height * block.width * block.channel_blocks
    acc = kb.alloc("float32", sums * lanes)
    for i in range(sums):
        kb.store(acc, i * lanes, kb.const(0.0, "float32", lanes))

    def add(place: Place, count: int) -> None:
        for i, total in enumerate(_short_sums(ctx, block, place, count)):
            wide = kb.load(acc, i * lanes, lanes) + kb.widened(total)
            kb.store(acc, i * lanes, wide)

    emit_steps(ctx, block, HALF_TERMS, add)
    values = [kb.let(kb.load(acc, i * lanes, lanes), "total") for i in range(sums)]
    store_results(ctx, block, values, biased=False)


def _short_sums(ctx: Context, block: Block, place: Place, count: int) -> list[Any]:
    """Sums of ``count`` products in half precision, for each pixel its channel blocks'."""
    kb, gemm, lanes, nr = ctx.kb, ctx.gemm, ctx.unit.lanes, block.channel_blocks
    a_at, b_at = place
    step, apart = distances(ctx, nr)
    pixels = pixels_of(block)
    sums: list[Any] = [None] * (len(pixels) * nr)
    at = 0
    while at < count:
        size = next(size for size in _PIECES if size <= count - at)
        starts = [a_at + (r * gemm.a_row + c * gemm.a_col + at) for r, c in pixels]
        held = [kb.let(kb.load(ctx.a, start, size), "a") for start in starts]
        for i in range(size):
            first = b_at + (at + i) * step
            weights = [kb.let(kb.load(ctx.b, first + j * apart, lanes), "b") for j in range(nr)]
            for p, a in enumerate(held):
                each = kb.shuffle(a, [i] * lanes) if size > 1 else kb.splat(a, lanes)
                each = kb.let(each, "element")
                for j, b in enumerate(weights):
                    total = sums[p * nr + j]
                    made = b * each
                    if total is not None:
                        made = kb.pure("llvm.fma", "float16", lanes, each, b, total)
                    sums[p * nr + j] = kb.let(made, "sum")
        at += size
    return sums
