"""Convolution and linear layers of scattered weights: pixels along the lanes.

Where neighbouring outputs do not share their zeros, a vector of outputs is of no use; a vector of
pixels is. Each stored weight (a float32, or four codes) is multiplied by some vectors of pixels of
its plane (:mod:`planes`) into the sums of one output, or of a few that share it (Elsen et al. 2020,
"Fast sparse ConvNets", section 3). As many outputs as there are lanes go through the planes
together, chunk by chunk of as many planes as the first cache holds; their sums are then turned over
for the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import arm_words, epilogue
from targets.kernels.gemm import ARM_STEPS, Unit, unit_for, word_unit
from targets.kernels.planes import (
    Planes,
    Square,
    finish_square,
    output_pixels,
    packs,
    planes_of,
    word_places,
)
from targets.kernels.skeleton import divide
from targets.kernels.sparse_layer import Layer, staged_plan
from targets.kernels.sparse_pack import entry_counts, find_entries, index_dtype, weight_matrix
from targets.kernels.spec import ConvSpec, ResidualType
from targets.kernels.tiles import L1_BYTES

MOST_VECTORS = 14
"""Vectors of pixels of a block at most."""

_PRODUCTS = 5
"""Registers of products that smull sums in 16 bits."""

CHUNK_BYTES = L1_BYTES * 5 // 8
"""Bytes of a chunk of planes: the sums and the weights want room beside it."""


@dataclass(frozen=True)
class SparsePanel:
    """What determines the code.

    Attributes:
        planes: the staged input.
        unit: how words are multiplied.
        rows: outputs that share an entry; ``vectors``: vectors of pixels of a block.
        chunk: planes that are gone through together; ``chunks``: how often.
        index: dtype of places.
        groups: groups of as many outputs as there are lanes; ``blocks``: blocks of an image.
        output: output pixels of an image.
        square: how sums are finished; ``residual``: dtype of what is added.
    """

    planes: Planes
    unit: Unit
    rows: int
    vectors: int
    chunk: int
    index: str
    groups: int
    blocks: int
    output: int
    square: Square
    residual: ResidualType | None

    @property
    def pixels(self) -> int:
        """Pixels of a block."""
        return self.vectors * self.unit.lanes

    @property
    def chunks(self) -> int:
        """Chunks of planes."""
        return ceil(self.planes.words / self.chunk)

    @property
    def per_group(self) -> int:
        """Block rows of a group of outputs."""
        return self.unit.lanes // self.rows

    @property
    def lists(self) -> int:
        """Lists of entries: of each group, chunk and block row."""
        return self.groups * self.chunks * self.per_group


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.in_dtype == "u8" and isa.dot == "madd":
        return "the instruction set cannot multiply words of codes"
    if spec.in_dtype == "u8" and spec.c % 4:
        return f"{spec.c} input channels are no multiple of 4"
    if not spec.input_slack:
        return "the bytes after the caller's input may not be read"
    return ""


# -- code --------------------------------------------------------------------------------------


def panel_function(name: str, kernel: SparsePanel) -> Any:
    """The PrimFunc: parameters x, values, index, groups, then the epilogue's, residual, y."""
    kb, unit = tir.KernelBuilder(name), kernel.unit
    word = "float32" if unit.kind == "fma" else "int32"
    x, values = kb.pointer("x", word), kb.pointer("values", word)
    index, table = kb.pointer("index", kernel.index), kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, unit.kind != "fma", kernel.square.out, kernel.residual)
    sums, sums_at = kb.alloc_aligned(unit.accumulator, unit.lanes * kernel.pixels)
    with kb.loop(kb.begin, kb.end, "item") as item:
        rest, group = divide(kb, item, kernel.groups, "group")
        image, block = divide(kb, rest, kernel.blocks, "block")
        group = group if kernel.groups > 1 else 0
        image = image if kernel.planes.n > 1 else 0
        pixel = kb.let(block * kernel.pixels if kernel.blocks > 1 else 0, "pixel")
        base = kb.let(pixel + image * kernel.planes.image, "base")
        for at in range(0, unit.lanes * kernel.pixels if kernel.chunks > 1 else 0, unit.lanes):
            kb.store(sums, sums_at + at, kb.const(0, unit.accumulator, unit.lanes))
        with kb.loop(0, kernel.chunks * kernel.per_group, "list") as turn:
            row = kb.let(turn % kernel.per_group, "row")
            bound = kb.let(group * (kernel.chunks * kernel.per_group) + turn, "bound")
            bounds = [kb.let(kb.load(table, bound + i), "entry") for i in range(2)]
            at = kb.let(sums_at + row * (kernel.rows * kernel.pixels), "sums_of")
            _accumulate(kb, kernel, (x, values, index), base, bounds, (sums, at))
        channel = kb.let(group * unit.lanes, "channel")
        with kb.loop(0, kernel.vectors, "vector") as vector:
            at = kb.let(sums_at + vector * unit.lanes, "at")
            places = [at + i * kernel.pixels for i in range(unit.lanes)]
            first = kb.let(pixel + vector * unit.lanes + (kernel.lists + 1), "first")
            square, first_out = kernel.square, image * kernel.output
            finish_square(kb, square, out, sums, places, channel, (table, first), first_out)
    return kb.build()


def _accumulate(
    kb: tir.KernelBuilder,
    kernel: SparsePanel,
    memory: tuple[Any, Any, Any],
    base: Any,
    bounds: list[Any],
    sums: tuple[Any, Any],
) -> None:
    """Adds a list of entries to the sums ``[rows, vectors, lanes]`` of a block of pixels."""
    (x, values, index), unit, size = memory, kernel.unit, kernel.rows * kernel.pixels
    acc = kb.alloc(unit.accumulator, size)
    for at in range(0, size, unit.lanes):
        start = kb.const(0, unit.accumulator, unit.lanes)
        if kernel.chunks > 1:
            start = kb.load(sums[0], sums[1] + at, unit.lanes)
        kb.store(acc, at, start)
    with kb.loop(bounds[0], bounds[1], "entry") as entry:
        place = kb.let(base + kb.cast(kb.load(index, entry), "int32"), "place")
        loaded = [kb.load(x, place + v * unit.lanes, unit.lanes) for v in range(kernel.vectors)]
        words = [kb.let(arm_words.as_factor(kb, unit, word), "x") for word in loaded]
        for row in range(kernel.rows):
            weight = kb.load(values, entry * kernel.rows + row)
            weight = kb.let(kb.splat(weight, unit.lanes), "w")
            for v, word in enumerate(words):
                at = row * kernel.pixels + v * unit.lanes
                total = kb.load(acc, at, unit.lanes)
                kb.store(acc, at, _product(kb, unit, total, word, weight))
    for at in range(0, size, unit.lanes):
        kb.store(sums[0], sums[1] + at, kb.load(acc, at, unit.lanes))


def _product(kb: tir.KernelBuilder, unit: Unit, total: Any, x: Any, weight: Any) -> Any:
    if unit.kind == "fma":
        if not unit.fused:
            return total + x * weight
        return kb.pure("llvm.fma", "float32", unit.lanes, x, weight, total)
    if unit.kind in arm_words.KINDS:
        size = 4 * unit.lanes
        codes = kb.reinterpret(x, "uint8" if unit.kind == "usdot" else "int8", size)
        return arm_words.multiply_add(kb, unit, total, codes, kb.reinterpret(weight, "int8", size))
    dot = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[unit.lanes]
    factors = (kb.reinterpret(v, "int8", 4 * unit.lanes) for v in (x, weight))
    return kb.pure(dot, "int32", unit.lanes, total, *factors)


# -- choice ------------------------------------------------------------------------------------


def _unit(spec: ConvSpec, isa: Isa, matrix: np.ndarray) -> Unit:
    """How words of these weights are multiplied."""
    unit = unit_for(isa, spec.in_dtype, amx=False)
    return arm_words.proven(word_unit(unit), matrix) if unit.kind in ARM_STEPS else unit


def _candidates(spec: ConvSpec, unit: Unit, fit: bool) -> list[SparsePanel]:
    """Rows and vectors that fit the registers."""
    epi = spec.epilogue
    planes = planes_of(spec, unit.lanes)
    index = index_dtype(planes.image)
    packed = packs(epi.out, unit.lanes, epi.residual, fit)
    square = Square(spec.oc, unit.lanes, epi.out, packed)
    made = []
    for rows in (1, 2, 4):
        for vectors in range(1, MOST_VECTORS + 1):
            shared = vectors if rows > 1 else 1
            shared += _PRODUCTS if unit.kind == "smull" else 0
            if rows <= unit.lanes and rows * vectors + shared + 1 < unit.registers:
                pixels = output_pixels(spec, planes, vectors * unit.lanes).size
                blocks, groups = pixels // (vectors * unit.lanes), ceil(spec.oc / unit.lanes)
                sizes = (groups, blocks, spec.oh * spec.ow)
                chunk = _chunk(planes, _reach(spec, planes, vectors * unit.lanes))
                made.append(
                    SparsePanel(
                        planes, unit, rows, vectors, chunk, index, *sizes, square, epi.residual
                    )
                )
    return made


def _chunk(planes: Planes, reach: int) -> int:
    """Planes of a chunk, ``reach`` words of each: all, or about as many each time as fit."""
    if 4 * reach * planes.words <= L1_BYTES:
        return planes.words
    most = max(1, CHUNK_BYTES // (4 * reach))
    return ceil(planes.words / ceil(planes.words / most))


def _reach(spec: ConvSpec, planes: Planes, pixels: int) -> int:
    """Words of a plane that a block of pixels reads."""
    return pixels + (spec.kh - 1) * spec.dilation[0] * planes.columns


def _seconds(spec: ConvSpec, isa: Isa, kernel: SparsePanel, entries: int) -> float:
    """Predicted time of all images, without staging."""
    products = kernel.rows * kernel.vectors
    # of a 3x3 window of floats two thirds of the loads cross a line
    crossing = kernel.chunks > 1 or (kernel.unit.kind == "fma" and spec.kw > 1)
    loads = kernel.vectors * (0.9 if crossing else 0.5) + kernel.rows * 0.5
    latency = 4.0 if kernel.unit.kind == "fma" else 5.0
    each = 0.5 if kernel.unit.fused else 1.0
    if kernel.unit.kind in arm_words.KINDS:
        each = arm_words.step_cycles(kernel.unit, kernel.vectors, kernel.rows) / products
    step = max(each * products, loads, latency) + 2.5
    lanes = kernel.unit.lanes
    finish = (110.0 if kernel.square.packed else 15.0 * lanes) * kernel.vectors * kernel.groups
    per_list = 12.0 if kernel.chunks == 1 else 20.0 + products
    cycles = entries * step + finish + per_list * kernel.lists
    cycles *= kernel.planes.n * kernel.blocks
    size = entries * (4 * kernel.rows + 2)
    return max(cycles / CLOCK, isa.read_seconds(size))


def _best(
    spec: ConvSpec, isa: Isa, matrix: np.ndarray, *, fit: bool = True
) -> tuple[SparsePanel, float]:
    depth = 4 if spec.in_dtype == "u8" else 1
    counts = {r: int(entry_counts(matrix, r, depth).sum()) for r in (1, 2, 4)}
    kernels = _candidates(spec, _unit(spec, isa, matrix), fit)
    ranked = [(kernel, _seconds(spec, isa, kernel, counts[kernel.rows])) for kernel in kernels]
    kernel, seconds = min(ranked, key=lambda entry: entry[1])
    return kernel, seconds + kernel.planes.seconds


def sparse_panel_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_panel` on one thread."""
    return _best(spec, isa, weight_matrix(weights))[1]


def _lists(
    kernel: SparsePanel, words: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the entries list by list, and the first of each list.

    ``words``: columns of the entries, in words; ``counts``: entries of each block row.
    """
    group, row = np.divmod(np.repeat(np.arange(counts.size), counts), kernel.per_group)
    chunk = words % kernel.planes.words // kernel.chunk
    found = (group * kernel.chunks + chunk) * kernel.per_group + row
    sizes = np.bincount(found, minlength=kernel.lists)
    return np.argsort(found, kind="stable"), np.concatenate([[0], np.cumsum(sizes)])


def sparse_panel(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a convolution or linear layer without groups."""
    spec, matrix = layer.spec, weight_matrix(layer.weights)
    kernel, _ = _best(spec, isa, matrix, fit=layer.products_fit)
    unit, depth = kernel.unit, 4 if spec.in_dtype == "u8" else 1
    entries = find_entries(matrix, kernel.rows, depth)
    order, starts = _lists(kernel, entries.columns[:, 0] // depth, entries.counts)
    pixels = output_pixels(spec, kernel.planes, kernel.pixels)
    places = word_places(spec, kernel.planes)[entries.columns[order, 0] // depth]
    constants = {
        "weight": entries.values[order],
        "index": places.astype(kernel.index),
        "groups": np.concatenate([starts, pixels]).astype(np.int32),
        **layer.channels(unit.lanes, code_offset=unit.code_offset),
    }
    key = name_key(f"sparse_panel_{unit.kind}", kernel)
    items = kernel.planes.n * kernel.blocks * kernel.groups

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(panel_function, key, kernel), args, items)

    name = f"sparse-panel-{unit.kind} {kernel.rows}x{depth} {kernel.vectors} vectors"
    return staged_plan(layer, isa, unit, kernel.planes, constants, step, name)
