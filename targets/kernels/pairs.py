"""Products summed in 16 bits: vpmaddubsw where the weights prove that no sum can overflow.

vpmaddubsw multiplies four codes of a channel by four weights and adds them up in pairs, into two
16-bit numbers, with saturation; vpaddw adds those of following steps, modulo 2^16; vpmaddwd by ones
adds the two halves into 32 bits. That is half the instructions of widening both operands first.

It is right only if no pair of products saturates and if the sum of each *run of steps* between two
vpmaddwd fits 16 bits, for any codes that the layer's input can hold. Both are bounds of
:func:`dlcc.analysis.accumulators.of_parts` on the actual weights, exact integers:
:func:`proven_steps`. What happens to a sum on its way does not matter, for vpaddw wraps.

Of a pair that could saturate, :func:`separated` moves one weight to an *extra step*, which the
kernel does after the others: the same four codes times the moved weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.analysis.accumulators import Bounds, of_parts
from targets.kernels.code_panel import Unpacking
from targets.kernels.gemm import Gemm, Unit
from targets.kernels.registers import emit_coded_run, finish_registers, load_a, load_b
from targets.kernels.skeleton import Block, Context, a_start, b_start, runs, store_block

BITS = 16
"""Width of the sums of a run of steps."""

WRITTEN_OUT = 4
"""Steps up to which a run of them is written out; the sums of longer ones have registers."""

EXTRA_STEPS = (("extra_start", "int32"), ("extra_at", "int32"), ("extra_weight", "int8"))
"""The constants of extra steps and their dtypes, in parameter order."""

ANY_CODES = Bounds(0, 255)
"""What 8-bit activations hold."""

EXTRA_CYCLES = {4: 1.4, 8: 1.4, 16: 2.5}
"""Cycles of an extra step of one pixel, by the lanes of a vector: AVX-512 has two ports for it."""

EXTRA_BYTES = 4.5
"""Bytes of an extra step for each lane: four weights, and its share of where they belong."""

_LENGTHS = (1, 2, 4, 8, 16)
"""Steps after which sums may be emptied into 32 bits, beside a whole kernel row and all."""

_BLOCK_NUMBERS = 1 << 20
"""Weights that are looked at in one go."""

_LARGEST = (1 << 31) // 255
"""Sums of weights up to this, times any code, are exact in int32."""

_PAIRS = {
    16: "llvm.x86.avx512.pmaddubs.w.512",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
}
_WIDEN = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}


# -- proofs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairSums:
    """How the products of a layer are summed in 16 bits.

    Attributes:
        steps: steps whose sums are proven to fit 16 bits; they are emptied into 32 bits after it.
        extra: extra steps of all channel blocks.
        data: range of the codes for which that holds.
    """

    steps: int
    extra: int = 0
    data: Bounds = ANY_CODES


def _parts(packed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums of the positive and of the negative weights of every pair, some blocks at a time.

    ``packed``: as :func:`~targets.kernels.gemm.pack_weights` makes them, 4 weights a step. Both
    are int32 [blocks, runs, steps, pairs].
    """
    *_, runs_, steps, lanes, inner = packed.shape
    blocks = packed.reshape(-1, runs_, steps, lanes * inner // 2, 2)
    size = max(1, _BLOCK_NUMBERS // max(1, blocks[0].size))
    for at in range(0, len(blocks), size):
        wide = blocks[at : at + size].astype(np.int32)
        positive, negative = np.maximum(wide, 0), np.minimum(wide, 0)
        yield positive[..., 0] + positive[..., 1], negative[..., 0] + negative[..., 1]


def _fit(positive: np.ndarray, negative: np.ndarray, data: Bounds) -> bool:
    """Whether sums of these weights fit whatever the codes are."""
    return of_parts(positive, negative, data).all.fits(BITS)


def _doubled(sums: np.ndarray) -> np.ndarray:
    """Each two neighbours along the steps added up."""
    even = np.pad(sums, ((0, 0), (0, 0), (0, sums.shape[2] % 2), (0, 0)))
    return np.asarray(even[:, :, 0::2] + even[:, :, 1::2])


def _lengths(runs_: int, steps: int) -> list[int]:
    """Steps after which sums may be emptied, rising."""
    rising = [*(n for n in _LENGTHS if n < steps), steps]
    return [*rising, runs_ * steps] if runs_ > 1 else rising


def _proven(positive: np.ndarray, negative: np.ndarray, data: Bounds, most: int) -> int:
    """:func:`proven_steps` of some blocks, at most ``most``."""
    _, runs_, steps, _ = positive.shape
    if positive.size and int(max(positive.max(), -negative.min())) * runs_ * steps > _LARGEST:
        positive, negative = positive.astype(np.int64), negative.astype(np.int64)
    proven, parts = 0, (positive, negative)
    for length in _lengths(runs_, steps):
        if length > most:
            break
        if length < steps and length > 1:
            parts = (_doubled(parts[0]), _doubled(parts[1]))
        elif length == steps:
            parts = (positive.sum(axis=2), negative.sum(axis=2))
        elif length > steps:
            parts = (positive.sum(axis=(1, 2)), negative.sum(axis=(1, 2)))
        if not _fit(*parts, data):
            break
        proven = length
    return proven


def proven_steps(packed: np.ndarray, data: Bounds) -> int:
    """The most steps whose sums provably fit 16 bits; 0 if a single pair may not.

    Args:
        packed: weights [groups, blocks, runs, steps, lanes, 4], int8.
        data: range of every code that they are multiplied by.
    """
    *_, runs_, steps, _, _ = packed.shape
    proven = int(runs_ * steps)
    for positive, negative in _parts(packed):
        proven = _proven(positive, negative, data, proven)
        if not proven:
            break
    return proven


@dataclass(frozen=True, eq=False)
class ExtraSteps:
    """Weights that were moved out of pairs.

    Attributes:
        starts: int32 [blocks + 1], where the steps of each channel block start.
        steps: int32 [count, 2], run and step whose codes are multiplied.
        weights: int8 [count, lanes, 4].
    """

    starts: np.ndarray
    steps: np.ndarray
    weights: np.ndarray


def separated(packed: np.ndarray, data: Bounds) -> tuple[np.ndarray, ExtraSteps]:
    """``packed`` without the second weights of pairs that may not fit 16 bits, and those.

    Arguments as for :func:`proven_steps`. A single product of a code and a weight always fits.
    """
    *_, runs_, steps, lanes, inner = packed.shape
    kept = packed.reshape(-1, runs_ * steps, lanes * inner // 2, 2).copy()
    moved, chosen, last = [], [], (1 << (BITS - 1)) - 1
    start = 0
    for positive, negative in _parts(packed):
        bounds = of_parts(positive, negative, data)
        wide = (bounds.high > last) | (bounds.low < -last - 1)
        wide = wide.reshape(len(positive), runs_ * steps, -1)
        part = kept[start : start + len(positive)]
        extra = np.zeros_like(part)
        extra[wide, 1] = part[wide, 1]
        part[wide, 1] = 0
        block, step = np.nonzero(wide.any(axis=2))
        chosen.append(np.stack([block + start, step], axis=1))
        moved.append(extra[block, step].reshape(-1, lanes, inner))
        start += len(positive)
    places = np.concatenate(chosen)
    starts = np.searchsorted(places[:, 0], np.arange(start + 1))
    where = np.stack(np.divmod(places[:, 1], steps), axis=1)
    return kept.reshape(packed.shape), ExtraSteps(
        starts.astype(np.int32), where.astype(np.int32), np.concatenate(moved)
    )


def best_sums(packed: np.ndarray, data: Bounds) -> PairSums:
    """How to sum the products of ``packed``: without extra steps where no pair needs one."""
    proven = proven_steps(packed, data)
    if proven:
        return PairSums(proven, data=data)
    return PairSums(1, len(separated(packed, data)[1].steps), data)


def summed_text(sums: PairSums | None) -> str:
    """What the report says of it."""
    if sums is None:
        return ""
    extra = f", {sums.extra} extra steps" if sums.extra else ""
    return f" 16-bit sums of {4 * sums.steps}{extra}"


def pair_constants(packed: np.ndarray, sums: PairSums, gemm: Gemm) -> dict[str, np.ndarray]:
    """The weights as the kernel takes them, with extra steps if there are any.

    Raises:
        ValueError: 16 bits are not proven to hold the sums.
    """
    made = {"weight": packed}
    if sums.extra:
        made["weight"], extra = separated(packed, sums.data)
        made["extra_start"] = extra.starts
        made["extra_at"] = _offsets(gemm)[tuple(extra.steps.T)]
        made["extra_weight"] = extra.weights
        if proven_steps(extra.weights[None, :, None, None], sums.data) < 1:
            raise ValueError("an extra step may saturate")
    if proven_steps(made["weight"], sums.data) < sums.steps:
        raise ValueError(f"sums of {sums.steps} steps are not proven to fit {BITS} bits")
    return made


def _offsets(gemm: Gemm) -> np.ndarray:
    """Elements of A from a pixel's first to each [run, step], int32."""
    at = np.zeros(1, np.int64)
    for count, distance in gemm.loops:
        at = (at[:, None] + np.arange(count) * distance).reshape(-1)
    return (at[:, None] + np.arange(ceil(gemm.run / 4)) * 4).astype(np.int32)


# -- code ------------------------------------------------------------------------------------------


@dataclass
class _Emitter:
    """The block being emitted: its pixels, and its accumulators of 32 bits."""

    ctx: Context
    nr: int
    pixels: list[tuple[int, int]]
    ones: Any

    @property
    def unit(self) -> Unit:
        return self.ctx.unit

    def codes(self, index: Any, pixel: tuple[int, int]) -> Any:
        gemm = self.ctx.gemm
        return load_a(self.ctx, index + (pixel[0] * gemm.a_row + pixel[1] * gemm.a_col))

    def products(self, a: Any, b: Any) -> Any:
        lanes = self.unit.lanes
        return self.ctx.kb.pure(_PAIRS[lanes], "int16", 2 * lanes, a, b)

    def widened(self, sums: Any) -> Any:
        lanes = self.unit.lanes
        return self.ctx.kb.pure(_WIDEN[lanes], "int32", lanes, sums, self.ones)

    def add(self, buffer: Any, slot: int, value: Any, start: Any = 0) -> None:
        kb, lanes = self.ctx.kb, tir.lanes_of(value)
        at = start + slot * lanes
        kb.store(buffer, at, kb.load(buffer, at, lanes) + value)

    def written_out(self, acc: Any, a_at: Any, b_at: Any, steps: int, apart: int = 0) -> None:
        """The sums of some steps, straight into the accumulators.

        ``apart``: of the channel blocks' weights (0: as packed).
        """
        ctx, lanes = self.ctx, self.unit.lanes
        weights = [
            [
                load_b(ctx, b_at + (i * 4 * lanes + j * (apart or ctx.b_block)))
                for j in range(self.nr)
            ]
            for i in range(steps)
        ]
        for p, pixel in enumerate(self.pixels):
            codes = [self.codes(a_at + 4 * i, pixel) for i in range(steps)]
            for j in range(self.nr):
                total = self.products(codes[0], weights[0][j])
                for i in range(1, steps):
                    total = total + self.products(codes[i], weights[i][j])
                self.add(acc, p * self.nr + j, self.widened(total))

    def in_registers(self, narrow: Any, a_at: Any, b_at: Any, steps: int) -> None:
        """Some steps added to sums that have registers of their own."""
        ctx, lanes = self.ctx, self.unit.lanes
        for i in range(steps):
            weights = [
                load_b(ctx, b_at + (i * 4 * lanes + j * ctx.b_block)) for j in range(self.nr)
            ]
            for p, pixel in enumerate(self.pixels):
                a = self.codes(a_at + 4 * i, pixel)
                for j in range(self.nr):
                    self.add(narrow, p * self.nr + j, self.products(a, weights[j]))

    def cleared(self, buffer: Any, dtype: str, lanes: int, start: Any = 0) -> None:
        for i in range(len(self.pixels) * self.nr):
            at = start + i * lanes
            self.ctx.kb.store(buffer, at, self.ctx.kb.const(0, dtype, lanes))


def _loop(em: _Emitter, a_run: Any, b_run: Any, steps: int, chunk: int, emit: Any) -> None:
    """``emit(a, b, n)`` for all steps, ``chunk`` at a time; some chunks are written in a row."""
    kb, size = em.ctx.kb, 4 * em.unit.lanes
    row = max(1, WRITTEN_OUT // chunk) if steps >= 2 * WRITTEN_OUT else 1
    whole = steps // (chunk * row)
    with kb.loop(0, whole, "k") as k:
        a_at = kb.let(a_run + k * (4 * chunk * row), "a_at")
        b_at = kb.let(b_run + k * (size * chunk * row), "b_at")
        for i in range(row):
            emit(a_at + 4 * chunk * i, b_at + size * chunk * i, chunk)
    for at in range(whole * chunk * row, steps, chunk):
        emit(a_run + 4 * at, b_run + size * at, min(chunk, steps - at))


def emit_pair_block(ctx: Context, block: Block) -> None:
    """Accumulates one block and hands it to the epilogue."""
    kb, unit, nr = ctx.kb, ctx.unit, block.channel_blocks
    pixels = [(r, c) for r in range(block.height) for c in range(block.width)]
    em = _Emitter(ctx, nr, pixels, kb.const(1, "int16", 2 * unit.lanes))
    steps = ceil(ctx.gemm.run / 4)
    first, b_first = a_start(ctx, block), b_start(ctx, block)
    coded = ctx.panel if ctx.panel is not None and ctx.panel.panel.form == "steps" else None
    if WRITTEN_OUT < unit.sums < steps * ctx.gemm.runs and coded is None:
        _emit_emptied(em, block, first, b_first)
        return
    acc = kb.alloc("int32", len(pixels) * nr * unit.lanes)
    em.cleared(acc, "int32", unit.lanes)
    whole = unit.sums == steps * ctx.gemm.runs and coded is None
    narrow = kb.alloc("int16", len(pixels) * nr * 2 * unit.lanes) if whole else acc
    if whole:
        em.cleared(narrow, "int16", 2 * unit.lanes)
    with runs(ctx, first, b_first) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
        if whole:
            _loop(em, a_run, b_run, steps, 1, lambda a, b, n: em.in_registers(narrow, a, b, n))
        elif coded is not None:
            _emit_coded(em, coded, block, acc, (a_run, b_run))
        else:
            emit = lambda a, b, n: em.written_out(acc, a, b, n)  # noqa: E731
            _loop(em, a_run, b_run, steps, unit.sums, emit)
    if whole:
        for i in range(len(pixels) * nr):
            sums = kb.load(narrow, 2 * i * unit.lanes, 2 * unit.lanes)
            kb.store(acc, i * unit.lanes, em.widened(sums))
    if unit.extra:
        _extra_steps(em, block, acc, first)
    finish_registers(ctx, block, acc)


def _emit_coded(
    em: _Emitter, coded: Unpacking[Any], block: Block, acc: Any, run: tuple[Any, Any]
) -> None:
    """A run whose weights are unpacked a chunk at a time."""
    size, chunk = 4 * em.unit.lanes, coded.panel.chunk
    at_once = min(em.unit.sums, WRITTEN_OUT)

    def emit(a_at: Any, count: int) -> None:
        for at in range(0, count, at_once):
            em.written_out(acc, a_at + 4 * at, at * size, min(at_once, count - at), chunk)

    emit_coded_run(em.ctx, coded, block, run, emit)


def _emit_emptied(em: _Emitter, block: Block, a_first: Any, b_first: Any) -> None:
    """Sums in registers, emptied every ``sums`` steps into accumulators in memory."""
    ctx, kb, unit, nr = em.ctx, em.ctx.kb, em.unit, em.nr
    steps, lanes = ceil(ctx.gemm.run / 4), em.unit.lanes
    acc, start = kb.alloc_aligned("int32", len(em.pixels) * nr * lanes)
    em.cleared(acc, "int32", lanes, start)
    with runs(ctx, a_first, b_first) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")

        def emit(a: Any, b: Any, count: int) -> None:
            narrow = kb.alloc("int16", len(em.pixels) * nr * 2 * lanes)
            em.cleared(narrow, "int16", 2 * lanes)
            a, b = kb.let(a, "a_chunk"), kb.let(b, "b_chunk")
            _loop(em, a, b, count, 1, lambda x, y, n: em.in_registers(narrow, x, y, n))
            for i in range(len(em.pixels) * nr):
                em.add(acc, i, em.widened(kb.load(narrow, 2 * i * lanes, 2 * lanes)), start)

        _loop(em, a_run, b_run, steps, unit.sums, emit)
    store_block(ctx, block, acc, block.width * nr * lanes, nr * lanes, lanes, start)


def _extra_steps(em: _Emitter, block: Block, acc: Any, a_first: Any) -> None:
    """The products of moved weights; how many there are is told by the constants."""
    ctx, kb, size = em.ctx, em.ctx.kb, 4 * em.unit.lanes
    starts, places, weights = ctx.extra
    for j in range(em.nr):
        at = kb.let(ctx.group * ctx.blocks + block.channel_block + j, "extra_block")
        low, high = kb.let(kb.load(starts, at), "low"), kb.let(kb.load(starts, at + 1), "high")
        with kb.loop(low, high, "extra") as i:
            a_at = kb.let(a_first + kb.load(places, i), "a_at")
            b = kb.let(kb.load(weights, i * size, size), "b")
            for p, pixel in enumerate(em.pixels):
                value = em.widened(em.products(em.codes(a_at, pixel), b))
                em.add(acc, p * em.nr + j, value)
