"""Product of one row of activations and a block-sparse matrix, read at the speed of memory.

Lanes are outputs: a block row is some vectors of them, and its entries (:mod:`sparse_pack`) are
multiplied by a number, or a word of codes, of the input in every lane. One block row would wait for
its own sums, and one stream of loads does not keep the memory busy; so several block rows of nearly
equal length run side by side, each from a stretch of its own of the stored values (rows in order of
their length: Gale et al. 2020, "Sparse GPU kernels for deep learning", section V.C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import arm_words, epilogue
from targets.kernels.blocking import finish_cycles
from targets.kernels.gemm import Blocking, Cut, Gemm, Unit
from targets.kernels.registers import load_b, multiply_add, word_type
from targets.kernels.skeleton import Context
from targets.kernels.sparse_layer import Layer, frugal, staged_plan, word_geometry
from targets.kernels.sparse_pack import (
    Entries,
    entry_counts,
    find_entries,
    index_dtype,
    weight_matrix,
)
from targets.kernels.spec import SHORT_FLOATS, ConvSpec
from targets.kernels.stage import Stage

CHAINS = 8
"""Sums that are formed side by side: a multiplication waits four or five cycles for the last."""

AHEAD = 2048
"""Bytes that values are fetched ahead of their use."""


@dataclass(frozen=True)
class SparseGemv:
    """What determines the code.

    Attributes:
        n: outputs.
        vectors: vectors of a block row.
        streams: block rows side by side.
        pieces: places that an entry's columns come from.
        index: dtype of places.
    """

    n: int
    vectors: int
    streams: int
    pieces: int
    index: str
    gemm: Gemm
    unit: Unit

    @property
    def rows(self) -> int:
        """Outputs of a block row."""
        return self.vectors * self.unit.lanes

    @property
    def block_rows(self) -> int:
        """Block rows of the matrix."""
        return ceil(self.n / self.rows)

    @property
    def groups(self) -> int:
        """Groups of block rows that run side by side: the work items."""
        return ceil(self.block_rows / self.streams)

    @property
    def record(self) -> int:
        """Numbers that describe a group: common length; start, end and block row of each."""
        return 1 + 3 * self.streams


def _arrange(counts: np.ndarray, streams: int) -> np.ndarray:
    """Block rows ``[groups, streams]`` of similar length; -1 where there is none.

    Long and short groups take turns, so that any stretch of groups is about as much work.
    """
    order = np.argsort(-counts, kind="stable")
    groups = ceil(order.size / streams)
    rows = np.full(groups * streams, -1, np.int64)
    rows[: order.size] = order
    turns = np.empty(groups, np.int64)
    turns[0::2] = np.arange(ceil(groups / 2))
    turns[1::2] = np.arange(groups - 1, ceil(groups / 2) - 1, -1)
    return rows.reshape(groups, streams)[turns]


def _packed(kernel: SparseGemv, entries: Entries) -> dict[str, np.ndarray]:
    """Values, places and group records, in the order of the streams."""
    rows = _arrange(entries.counts, kernel.streams)
    present = rows >= 0
    lengths = np.where(present, entries.counts[rows], 0)
    ends = np.cumsum(lengths.T.reshape(-1)).reshape(lengths.T.shape).T
    starts = ends - lengths
    order = np.concatenate(
        [np.arange(entries.starts[row], entries.starts[row + 1]) for row in rows.T[present.T]]
    )
    common = lengths.min(axis=1, keepdims=True)
    table = np.concatenate([common, np.stack([starts, ends, rows], 2).reshape(len(rows), -1)], 1)
    width = kernel.unit.k // kernel.pieces
    return {
        "weight": entries.values[order],
        "index": (entries.columns[order] // width).astype(kernel.index),
        "groups": table.astype(np.int32),
    }


def _word(ctx: Context, kernel: SparseGemv, x: Any, index: Any, entry: Any) -> Any:
    """The input of one entry, in every lane."""
    kb, unit = ctx.kb, kernel.unit
    width = unit.k // kernel.pieces
    at = [
        kb.let(kb.cast(kb.load(index, entry * kernel.pieces + i), "int32") * width, "at")
        for i in range(kernel.pieces)
    ]
    if unit.kind == "fma":
        return kb.let(kb.splat(kb.load(x, at[0]), unit.lanes), "x")
    bits = 32 // kernel.pieces
    word = None
    for i, place in enumerate(at):
        piece = kb.reinterpret(kb.load(x, place, width), f"uint{bits}" if bits < 32 else "int32")
        piece = kb.cast(piece, "int32") if bits < 32 else piece
        piece = tir.tirx.shift_left(piece, kb.const(bits * i, "int32")) if i else piece
        word = piece if word is None else tir.tirx.bitwise_or(word, piece)
    word = kb.let(arm_words.as_factor(kb, unit, word), "word")
    return kb.let(kb.reinterpret(kb.splat(word, unit.lanes), *word_type(unit)), "x")


def _multiply(ctx: Context, kernel: SparseGemv, acc: Any, stream: int, x: Any, entry: Any) -> None:
    """Adds one entry's products to the sums of a stream."""
    kb, unit = ctx.kb, kernel.unit
    step = unit.lanes * unit.k
    at = kb.let(entry * (kernel.vectors * step), "at")
    for v in range(kernel.vectors):
        place = (stream * kernel.vectors + v) * unit.lanes
        total = kb.load(acc, place, unit.lanes)
        kb.store(acc, place, multiply_add(ctx, total, x, load_b(ctx, at + v * step)))


def gemv_function(name: str, kernel: SparseGemv) -> Any:
    """The PrimFunc: parameters x, values, index, groups, then the epilogue's, residual, y."""
    kb, unit = tir.KernelBuilder(name), kernel.unit
    x = kb.pointer("x", _NUMPY[unit.kind], align=1)
    values = kb.pointer("values", unit.packed)
    index = kb.pointer("index", kernel.index)
    groups = kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, kernel.gemm.integer, kernel.gemm.out, kernel.gemm.residual)
    whole = Blocking(Cut((1, 1)), Cut((1, 1)), Cut((1, 1)), 1, 1, False)
    ctx = Context(kb, kernel.gemm, unit, whole, x, values, None, out)
    with kb.loop(kb.begin, kb.end, "group") as group:
        record = kb.let(group * kernel.record, "record")
        common = kb.let(kb.load(groups, record), "common")
        bounds = [
            [kb.let(kb.load(groups, record + 1 + 3 * s + i), "bound") for i in range(3)]
            for s in range(kernel.streams)
        ]
        acc = kb.alloc(unit.accumulator, kernel.streams * kernel.rows)
        for place in range(0, kernel.streams * kernel.rows, unit.lanes):
            kb.store(acc, place, kb.const(0, unit.accumulator, unit.lanes))
        with kb.loop(0, common, "i") as i:
            for s, (start, _, _) in enumerate(bounds):
                entry = kb.let(start + i, "entry")
                _fetch(ctx, kernel, entry)
                _multiply(ctx, kernel, acc, s, _word(ctx, kernel, x, index, entry), entry)
        for s, (start, end, _) in enumerate(bounds):
            with kb.loop(start + common, end, "entry") as entry:
                _multiply(ctx, kernel, acc, s, _word(ctx, kernel, x, index, entry), entry)
        for s, (_, _, row) in enumerate(bounds):
            _finish(ctx, kernel, acc, s, row)
    return kb.build()


_NUMPY = {
    "fma": "float32",
    "madd": "int16",
    "vnni": "uint8",
    **dict.fromkeys(arm_words.KINDS, "uint8"),
}


def _fetch(ctx: Context, kernel: SparseGemv, entry: Any) -> None:
    """Asks for the values some entries later."""
    kb, unit = ctx.kb, kernel.unit
    step = kernel.vectors * unit.lanes * unit.k
    size = np.dtype(unit.packed).itemsize
    for line in range(0, max(step * size, 64), 64):
        kb.prefetch(ctx.b, entry * step + (AHEAD + line) // size, level=1)


def _finish(ctx: Context, kernel: SparseGemv, acc: Any, stream: int, row: Any) -> None:
    """The epilogue of one block row, if there is one."""
    kb, lanes = ctx.kb, kernel.unit.lanes
    last = kernel.block_rows - 1
    tail = kernel.n - last * kernel.rows
    branches = [(tir.tirx.all(row >= 0, row < last), kernel.rows), (row == last, tail)]
    if tail == kernel.rows:
        branches = [(row >= 0, kernel.rows)]
    for inside, outputs in branches:
        with kb.when(inside):
            first = kb.let(row * kernel.rows, "first")
            for v in range(ceil(outputs / lanes)):
                at = first + v * lanes
                channel = epilogue.load_channels(kb, ctx.out, at, lanes)
                total = kb.load(acc, (stream * kernel.vectors + v) * lanes, lanes)
                count = min(lanes, outputs - v * lanes)
                epilogue.finish(kb, ctx.out, channel, total, at, count, kernel.gemm.out)


def _candidates(spec: ConvSpec, isa: Isa) -> list[SparseGemv]:
    """The blocks that the matrix may be cut into."""
    geo = word_geometry(spec, isa)
    unit, lanes = geo.unit, geo.unit.lanes
    made = []
    for vectors in (1, 2, 4):
        if vectors > 1 and (vectors - 1) * lanes >= spec.oc:
            continue
        for pieces in (1, 2, 4)[: unit.k.bit_length()]:
            index = index_dtype(ceil(spec.c / (unit.k // pieces)))
            streams = min(CHAINS // vectors, ceil(spec.oc / (vectors * lanes)))
            made.append(SparseGemv(spec.oc, vectors, streams, pieces, index, geo.gemm, unit))
    return made


def refusal(spec: ConvSpec) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.n * spec.oh * spec.ow != 1 or spec.kh * spec.kw != 1 or spec.groups != 1:
        return "it is no product of one row of activations and a matrix"
    if spec.in_dtype in SHORT_FLOATS:
        return "the activations are floats of 16 bits"
    return ""


def _predicted(kernel: SparseGemv, counts: np.ndarray, isa: Isa) -> tuple[SparseGemv, float, int]:
    """With seconds, of bytes from memory or of instructions, and bytes."""
    unit, entries = kernel.unit, int(counts.sum())
    step = kernel.rows * unit.k * np.dtype(unit.packed).itemsize
    size = entries * (step + kernel.pieces * np.dtype(kernel.index).itemsize)
    if isa.arch == "x86":
        words = 1.5 if kernel.pieces == 1 else 3.0 * kernel.pieces
        loads = kernel.vectors * (1.5 if unit.kind == "madd" else 0.7)
        finish = 8.0 + 6.0 * kernel.vectors
    else:
        words = 0.5 * kernel.pieces**2  # places are found beside the products
        loads = arm_words.step_cycles(unit, 1, kernel.vectors)
        finish = 4.0 + finish_cycles(kernel.gemm, unit, 1, kernel.vectors)
    cycles = entries * (words + loads) + kernel.block_rows * finish
    return kernel, max(cycles / CLOCK, isa.read_seconds(size)), size


def _best(spec: ConvSpec, isa: Isa, matrix: np.ndarray) -> tuple[SparseGemv, float]:
    ranked = []
    for made in _candidates(spec, isa):
        kernel = replace(made, unit=arm_words.proven(made.unit, matrix))
        counts = entry_counts(matrix, kernel.rows, kernel.unit.k, kernel.pieces)
        ranked.append(_predicted(kernel, counts, isa))
    return frugal(ranked)


def sparse_gemv_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_gemv` on one thread."""
    geo = word_geometry(spec, isa)
    staged = geo.stage.seconds if geo.stage is not None else 0.0
    return _best(spec, isa, weight_matrix(weights))[1] + staged


def sparse_gemv(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a linear layer of one row."""
    spec, matrix = layer.spec, weight_matrix(layer.weights)
    geo = word_geometry(spec, isa)
    kernel, _ = _best(spec, isa, matrix)
    unit = kernel.unit
    constants = _packed(kernel, find_entries(matrix, kernel.rows, unit.k, kernel.pieces))
    key = name_key(f"sparse_gemv_{unit.kind}", kernel)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(gemv_function, key, kernel), args, kernel.groups)

    stage = geo.stage if isinstance(geo.stage, Stage) else None
    constants |= layer.channels(kernel.rows, code_offset=unit.code_offset)
    name = f"sparse-gemv-{unit.kind} {kernel.rows}x{unit.k // kernel.pieces}"
    return staged_plan(layer, isa, unit, stage, constants, step, name)
