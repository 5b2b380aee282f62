"""Block-sparse convolution and linear layers as implicit GEMM in vector registers.

As in the dense kernel a block of output pixels by vectors of output channels is accumulated in
registers, over the same padded image. The reduction runs over the stored entries of a block row
alone: each says where in the window its columns lie, and that distance is the same for all pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import arm_words, epilogue
from targets.kernels.blocking import (
    choose_blocking,
    finish_cycles,
    ranked_blocks,
    step_cycles,
)
from targets.kernels.conv import Geometry, gemm_footprint
from targets.kernels.gemm import Blocking, Gemm, Unit, channel_order
from targets.kernels.registers import finish_registers, load_a, load_b, multiply_add
from targets.kernels.skeleton import Block, Context, a_start, emit_items
from targets.kernels.sparse_layer import Layer, staged_plan, word_geometry
from targets.kernels.sparse_pack import (
    column_places,
    entry_counts,
    find_entries,
    index_dtype,
    weight_matrix,
)
from targets.kernels.spec import FLOATS, NUMPY, ConvSpec
from targets.kernels.stage import Stage

ENTRY_CYCLES = 1.0
"""Cycles of an entry beyond its products: its place, and the loop."""

BROADCAST_CYCLES = 0.13
"""More of each pixel where a float32 broadcast serves one product alone."""


@dataclass(frozen=True)
class SparseGemm:
    """What determines the code.

    ``gemm`` is the dense layer, cut into blocks of ``gemm.block``; a block row is as many vectors
    of channels as such a block has. ``index``: dtype of places, which count steps of ``unit.k``.
    """

    gemm: Gemm
    unit: Unit
    index: str

    @property
    def vectors(self) -> int:
        """Vectors of a block row."""
        assert self.gemm.block is not None
        return self.gemm.block[2]

    @property
    def rows(self) -> int:
        """Channels of a block row."""
        return self.vectors * self.unit.lanes

    @property
    def block_rows(self) -> int:
        """Block rows of the matrix."""
        return ceil(self.gemm.n / self.rows)

    @property
    def blocking(self) -> Blocking:
        """How pixels and channels are cut."""
        return choose_blocking(self.gemm, self.unit)[0]


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    k = word_geometry(spec, isa).unit.k
    if spec.kh * spec.kw > 1 and spec.c % k:
        return f"{spec.c} input channels are no multiple of {k}"
    return ""


def _emit_block(kernel: SparseGemm, index: Any, groups: Any, ctx: Context, block: Block) -> None:
    """Accumulates one block over the entries of its block row; then the epilogue."""
    kb, gemm, unit = ctx.kb, kernel.gemm, kernel.unit
    lanes, nr = unit.lanes, block.channel_blocks
    pixels = list(product(range(block.height), range(block.width)))
    acc = kb.alloc(unit.accumulator, len(pixels) * nr * lanes)
    for i in range(len(pixels) * nr):
        kb.store(acc, i * lanes, kb.const(0, unit.accumulator, lanes))
    row = kb.let(tir.tirx.truncdiv(block.channel_block, kernel.vectors), "block_row")
    start, end = (kb.let(kb.load(groups, row + i), "bound") for i in range(2))
    window = a_start(ctx, block)
    with kb.loop(start, end, "entry") as entry:
        place = kb.cast(kb.load(index, entry), "int32") * unit.k
        a_at = kb.let(window + place, "a_at")
        b_at = kb.let(entry * (kernel.rows * unit.k), "b_at")
        weights = [load_b(ctx, b_at + j * (lanes * unit.k)) for j in range(nr)]
        for i, (r, c) in enumerate(pixels):
            a = load_a(ctx, a_at + (r * gemm.a_row + c * gemm.a_col))
            for j in range(nr):
                at = (i * nr + j) * lanes
                kb.store(acc, at, multiply_add(ctx, kb.load(acc, at, lanes), a, weights[j]))
    finish_registers(ctx, block, acc)


def sparse_gemm_function(name: str, kernel: SparseGemm) -> Any:
    """The PrimFunc: parameters a, values, index, groups, then the epilogue's, residual, y."""
    kb, gemm = tir.KernelBuilder(name), kernel.gemm
    a = kb.pointer("a", NUMPY[gemm.a_dtype], align=1)
    values = kb.pointer("values", kernel.unit.packed)
    index, groups = kb.pointer("index", kernel.index), kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, gemm.integer, gemm.out, gemm.residual)
    ctx = Context(kb, gemm, kernel.unit, kernel.blocking, a, values, None, out)
    emit_items(ctx, partial(_emit_block, kernel, index, groups))
    return kb.build()


def _places(spec: ConvSpec, geo: Geometry) -> np.ndarray:
    """Where each column of the weights reads, from where column 0 does."""
    width = geo.stage.out_w if isinstance(geo.stage, Stage) and any(spec.pads) else spec.padded[1]
    return column_places(spec, width)


def _step_cycles(unit: Unit, pixels: int, vectors: int, mean: int) -> float:
    """Cycles of the products of an entry."""
    if unit.kind in arm_words.KINDS:
        return max(arm_words.step_cycles(unit, pixels, vectors), arm_words.LATENCY)
    step = step_cycles(unit, pixels, vectors, mean)
    return step + (BROADCAST_CYCLES * pixels if unit.kind == "fma" and vectors == 1 else 0.0)


def _cycles(kernel: SparseGemm, entries: int) -> float:
    """Predicted cycles of all images."""
    unit, blocking, total = kernel.unit, kernel.blocking, 0.0
    mean = ceil(entries / kernel.block_rows)
    sides = ((cut.first, cut.rest) for cut in (blocking.rows, blocking.cols))
    for (rows, height), (cols, width) in product(*sides):
        if rows * cols:
            pixels = height * width
            step = _step_cycles(unit, pixels, kernel.vectors, mean) + ENTRY_CYCLES
            finish = finish_cycles(kernel.gemm, unit, pixels, kernel.vectors)
            total += rows * cols * (entries * step + kernel.block_rows * finish)
    return total * kernel.gemm.images


def _best(spec: ConvSpec, isa: Isa, matrix: np.ndarray) -> tuple[SparseGemm, Geometry, float]:
    """The register block with the least predicted time, and that time."""
    geo = word_geometry(spec, isa)
    unit, gemm = arm_words.proven(geo.unit, matrix), replace(geo.gemm, pixel_bundles=False)
    index = index_dtype(int(_places(spec, geo).max()) // unit.k)
    counts: dict[int, int] = {}
    ranked = []
    for block in ranked_blocks(gemm, unit):
        kernel = SparseGemm(replace(gemm, block=block), unit, index)
        if kernel.vectors not in counts:
            counts[kernel.vectors] = int(entry_counts(matrix, kernel.rows, unit.k).sum())
        entries = counts[kernel.vectors]
        size = entries * (kernel.rows * unit.k * np.dtype(unit.packed).itemsize + 2)
        ranked.append((kernel, max(_cycles(kernel, entries) / CLOCK, isa.read_seconds(size))))
    kernel, seconds = min(ranked, key=lambda entry: entry[1])
    staged = geo.stage.seconds if geo.stage is not None else 0.0
    return kernel, geo, seconds + staged


def occupied(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Part of the blocks of one vector of outputs that hold a weight other than 0."""
    unit, matrix = word_geometry(spec, isa).unit, weight_matrix(weights)
    counts = entry_counts(matrix, unit.lanes, unit.k)
    blocks = counts.size * ceil(matrix.shape[1] / unit.k)
    return float(counts.sum() / blocks)


def sparse_conv_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_conv` on one thread."""
    return _best(spec, isa, weight_matrix(weights))[2]


def sparse_conv(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a convolution or linear layer without groups."""
    spec, matrix = layer.spec, weight_matrix(layer.weights)
    kernel, geo, _ = _best(spec, isa, matrix)
    unit, interleave = kernel.unit, 1
    bundled = kernel.vectors in (2, 4) and unit.lanes == epilogue.BUNDLE_LANES
    if bundled and layer.products_fit and kernel.gemm.out not in FLOATS:
        interleave = kernel.vectors
        kernel = replace(kernel, gemm=replace(kernel.gemm, interleave=interleave))
    order = channel_order(ceil(spec.oc / unit.lanes), unit.lanes, interleave)
    padded = np.zeros((order.size, matrix.shape[1]), matrix.dtype)
    padded[: spec.oc] = matrix
    entries = find_entries(padded[order], kernel.rows, unit.k)
    constants = {
        "weight": entries.values.reshape(-1, kernel.vectors, unit.lanes, unit.k),
        "index": (_places(spec, geo)[entries.columns[:, 0]] // unit.k).astype(kernel.index),
        "groups": entries.starts.astype(np.int32),
        **layer.channels(unit.lanes, interleave=interleave, code_offset=unit.code_offset),
    }
    key = name_key(f"sparse_gemm_{unit.kind}", kernel)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(
            key,
            partial(sparse_gemm_function, key, kernel),
            args,
            kernel.blocking.items(kernel.gemm),
            footprint=partial(gemm_footprint, kernel.gemm, unit, kernel.blocking, None, len(args)),
        )

    stage = geo.stage if isinstance(geo.stage, Stage) else None
    name = f"sparse-conv-{unit.kind} {kernel.rows}x{unit.k}"
    return staged_plan(layer, isa, unit, stage, constants, step, name)
