"""What the emitters of ARM's kernels of panels share: loops over runs and steps, and stores.

The weights of a register block lie in the order in which it takes them, so that it reads one stream
and loads two vectors with one instruction: *panels* of as many channel blocks as a register block
has, ``[run][step][channel block][lane][k]`` (:func:`panels`).

Results are requantised four vectors at a time: narrowing with saturation to 16 bits, where the zero
point is added, and to bytes, where they are clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.arm_asm import held
from targets.kernels.arm_dot_code import loops
from targets.kernels.skeleton import (
    Block,
    Context,
    a_start,
    b_start,
    block_channels,
    runs,
    store_pixel,
)
from targets.kernels.spec import FLOATS, NUMPY

Place = tuple[Any, Any]
"""Where a step starts in A and in B."""

SIGN_BITS = 0x80
"""Flips codes to ``code - 128``."""

_BUNDLE = 4
"""Vectors that are requantised together: 16 bytes."""

_LANES = 4
"""32-bit lanes of a vector."""


def panels(packed: np.ndarray, channel_blocks: int) -> np.ndarray:
    """Weights of :func:`~targets.kernels.gemm.pack_weights` in panels; the last may be narrower.

    ``packed``: [groups, blocks, runs, steps, lanes, k]; the result is [groups, all the rest].
    """
    groups, blocks, count, steps, lanes, k = packed.shape
    vectors = packed.reshape(groups, blocks, count, steps, lanes * k)
    made = [
        vectors[:, at : at + channel_blocks].transpose(0, 2, 3, 1, 4).reshape(groups, -1)
        for at in range(0, blocks, channel_blocks)
    ]
    return np.concatenate(made, axis=1)


def distances(ctx: Context, channel_blocks: int) -> tuple[int, int]:
    """Elements between the steps of a channel block of B, and between its channel blocks.

    An operand that is packed at run time has no panels.
    """
    step = ctx.unit.lanes * ctx.unit.k
    if ctx.gemm.b_image:
        return step, ctx.b_block
    return channel_blocks * step, step


def pixels_of(block: Block) -> list[tuple[int, int]]:
    """Row and column of each pixel of a block."""
    return [(r, c) for r in range(block.height) for c in range(block.width)]


def pixel_at(ctx: Context, block: Block, row: int, col: int) -> Any:
    """The output pixel at a row and a column of a block, counted from the first image's first."""
    above = ctx.image * ctx.gemm.rows + block.row + row
    return above * ctx.gemm.cols + block.col + col


@contextmanager
def runs_of(ctx: Context, block: Block) -> Iterator[Place]:
    """The loops over runs: where the block's current one starts in A and in B."""
    side_by_side = 1 if ctx.gemm.b_image else block.channel_blocks
    with runs(ctx, a_start(ctx, block), b_start(ctx, block), side_by_side) as (a_run, b_run):
        yield ctx.kb.let(a_run, "a_run"), ctx.kb.let(b_run, "b_run")


def emit_steps(
    ctx: Context, block: Block, chunk: int, emit: Callable[[Place, int], None], unroll: int = 1
) -> None:
    """The reduction: ``emit(place, codes)`` for ``chunk`` steps at a time, and for the rest.

    ``codes``: of each pixel that are left to be multiplied, at most ``chunk`` steps'. ``unroll``:
    chunks that the loop's body has.
    """
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    b_step, _ = distances(ctx, nr)
    size = chunk * unit.k
    if gemm.run < 2 * unroll * size:
        unroll = 1
    whole = gemm.run // (unroll * size)
    with runs_of(ctx, block) as (a_run, b_run):
        if whole:
            with kb.loop(0, whole, "k") as k:
                a_at = kb.let(a_run + k * (unroll * size), "a_at")
                b_at = kb.let(b_run + k * (unroll * chunk * b_step), "b_at")
                for i in range(unroll):
                    emit((a_at + i * size, b_at + i * chunk * b_step), size)
        for at in range(whole * unroll * size, gemm.run, size):
            emit((a_run + at, b_run + at // unit.k * b_step), min(size, gemm.run - at))


def emit_products(
    ctx: Context,
    block: Block,
    acc: Any,
    chunk: int,
    emit: Callable[[Place, int], None],
    unroll: int = 1,
) -> None:
    """:func:`emit_steps`, by loops in assembly over the whole registers of codes where they fit.

    ``acc``: int32, room for the accumulators of such a loop (:func:`accumulators`).
    """
    kb, gemm, unit, nr = ctx.kb, ctx.gemm, ctx.unit, block.channel_blocks
    pixels = pixels_of(block)
    stream = not gemm.b_image or nr == 1
    made = loops(unit.kind, len(pixels), nr, gemm.run, flip=flips(ctx)) if stream else []
    if not made:
        emit_steps(ctx, block, chunk, emit, unroll)
        return
    b_step, _ = distances(ctx, nr)
    with runs_of(ctx, block) as (a_run, b_run):
        done = 0
        for loop, turns in made:
            kb.include(loop.name, loop.llvm())
            starts = [
                kb.address(ctx.a, a_run + done + (r * gemm.a_row + c * gemm.a_col))
                for r, c in pixels
            ]
            lanes = unit.lanes * held(loop.accumulators)
            weights = kb.address(ctx.b, b_run + done // unit.k * b_step)
            count = [] if loop.once else [kb.const(turns, "int32")]
            begin = kb.load(acc, 0, lanes)
            kb.store(acc, 0, kb.extern(loop.name, "int32", lanes, begin, *starts, weights, *count))
            done += turns * loop.codes
        size = chunk * unit.k
        for at in range(done, gemm.run, size):
            emit((a_run + at, b_run + at // unit.k * b_step), min(size, gemm.run - at))


def flips(ctx: Context) -> bool:
    """Whether codes are to be made signed when they are loaded; a staged copy has done it."""
    return ctx.unit.code_offset > 0 and ctx.gemm.a_dtype == "u8"


def load_signed(ctx: Context, index: Any, count: int) -> Any:
    """``count`` codes of A as int8, less what the unit takes off them."""
    kb = ctx.kb
    codes = kb.load(ctx.a, index, count)
    if flips(ctx):
        codes = tir.tirx.bitwise_xor(codes, kb.const(SIGN_BITS, "uint8", count))
    return kb.reinterpret(codes, "int8", count) if ctx.gemm.a_dtype == "u8" else codes


def store_results(ctx: Context, block: Block, values: list[Any], *, biased: bool) -> None:
    """The epilogue of a block.

    Args:
        ctx: the kernel.
        block: the block.
        values: the sums of pixel 0's channel blocks, then those of pixel 1, in row order.
        biased: the sums began with the bias.
    """
    kb, gemm, lanes, nr = ctx.kb, ctx.gemm, ctx.unit.lanes, block.channel_blocks
    parts = 1 if gemm.out in FLOATS else lanes // _LANES
    channels = _channels(ctx, block, parts)
    if biased:
        for channel in channels:
            channel.bias = None
    pixels = [kb.let(pixel_at(ctx, block, *place), "pixel") for place in pixels_of(block)]
    if gemm.out in FLOATS:
        for p, pixel in enumerate(pixels):
            own = values[p * nr : (p + 1) * nr]
            store_pixel(ctx, channels, own, pixel, block.channel_block, block.last)
        return
    offset = ctx.group * gemm.n + block.channel_block * lanes
    results = []
    for p, pixel in enumerate(pixels):
        at = kb.let(pixel * (gemm.groups * gemm.n) + offset, "y_at")
        term = None if ctx.terms is None else kb.splat(kb.load(ctx.terms, pixel), lanes)
        for j in range(nr):
            value = values[p * nr + j]
            value = value if term is None else value + term
            count = block.last if j == nr - 1 else lanes
            for part in range(-(-count * parts // lanes)):
                start, place = part * _LANES, j * parts + part
                own = value if parts == 1 else kb.shuffle(value, range(start, start + _LANES))
                size = min(_LANES, count - start)
                results.append(_Result(own, channels[place], at + place * _LANES, p, size))
    for first in range(0, len(results), _BUNDLE):
        _store_bundle(ctx, results[first : first + _BUNDLE])


def _channels(ctx: Context, block: Block, parts: int) -> list[epilogue.Channels]:
    """The per-channel vectors of a block, each channel block's in so many ``parts``."""
    kb, lanes, nr = ctx.kb, ctx.unit.lanes, block.channel_blocks
    if parts == 1:
        return block_channels(ctx, block.channel_block, nr)
    first = kb.let((ctx.group * ctx.blocks + block.channel_block) * lanes, "channel")
    return [
        epilogue.load_channels(kb, ctx.out, first + i * _LANES, _LANES) for i in range(nr * parts)
    ]


class _Result:
    """A vector of sums of one pixel, and where its first ``count`` results belong."""

    def __init__(
        self, value: Any, channels: epilogue.Channels, at: Any, pixel: int, count: int
    ) -> None:
        self.value, self.channels, self.at = value, channels, at
        self.pixel, self.count = pixel, count


def _pieces(results: list[_Result]) -> list[tuple[int, int, int]]:
    """Neighbours in memory: first and end of the results, and how many elements they have."""
    starts = [i for i, r in enumerate(results) if not i or r.pixel != results[i - 1].pixel]
    made = []
    for start, end in zip(starts, [*starts[1:], len(results)], strict=True):
        made.append((start, end, sum(r.count for r in results[start:end])))
    return made


def _store_bundle(ctx: Context, results: list[_Result]) -> None:
    """Requantises up to four vectors and stores them."""
    kb, out, lanes = ctx.kb, ctx.out, _LANES
    pieces = _pieces(results)
    added: list[Any] = [None] * len(results)
    if out.residual is not None:
        for start, end, count in pieces:
            added[start:end] = _residuals(ctx, results[start:end], count)
    wide = []
    for result, more in zip(results, added, strict=True):
        total = result.value
        if result.channels.bias is not None:
            total = total + result.channels.bias
        if more is not None:
            total = total + more
        wide.append(kb.cast(total, "float32") * result.channels.multiplier)
    wide += wide[-1:] * (_BUNDLE - len(wide))
    limits = (out.scalars[1], out.scalars[2])
    codes = kb.let(tir.neon.requantised(wide, out.scalars[0], limits, NUMPY[ctx.gemm.out]), "codes")
    for start, end, count in pieces:
        part = kb.shuffle(codes, range(start * lanes, end * lanes))
        kb.store_first(out.y, results[start].at, part, count)


def _residuals(ctx: Context, results: list[_Result], count: int) -> list[Any]:
    """The residual of neighbouring results, ``count`` elements, in units of the sums."""
    kb, out, lanes = ctx.kb, ctx.out, _LANES
    codes = kb.load_first(out.residual, results[0].at, len(results) * lanes, count)
    zero = kb.splat(kb.cast(kb.cast(out.scalars[3], "int32"), "uint8"), len(results) * lanes)
    centred = kb.let(kb.cast(codes, "int16") - kb.cast(zero, "int16"), "residual")
    made = []
    for i, result in enumerate(results):
        own = (
            kb.shuffle(centred, range(i * lanes, (i + 1) * lanes)) if len(results) > 1 else centred
        )
        scaled = kb.cast(kb.cast(own, "int32"), "float32") * result.channels.ratio
        made.append(kb.lrint(scaled))
    return made


def accumulators(ctx: Context, count: int) -> Any:
    """``count`` vectors of sums in the room that functions in assembly want for them."""
    return ctx.kb.alloc("int32", ctx.unit.lanes * held(count))


def zeros(kb: tir.KernelBuilder, count: int) -> Any:
    """``count`` accumulators of int32x4."""
    acc = kb.alloc("int32", 4 * count)
    for i in range(count):
        kb.store(acc, 4 * i, kb.const(0, "int32", 4))
    return acc
