"""Product of one row of activations and a matrix with scattered zeros: gathers along the lanes.

Each lane sums an output of its own; where rows share their zeros, blocks of ``rows`` lanes do. The
stored weights stand step by step, a number (or four codes) for each lane, and beside them how far
the place of each block is from that of the step before, in a byte. A distance that needs more is
bridged by stored zeros, as in Han et al. 2016 ("Deep Compression", section 2). Outputs of similar
length share a group of lanes, which all take the steps of the longest.
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
from targets.kernels import epilogue
from targets.kernels.gemm import Unit, unit_for
from targets.kernels.sparse_gemv import refusal as gemv_refusal
from targets.kernels.sparse_layer import Layer, frugal, staged_plan
from targets.kernels.sparse_pack import Entries, entry_counts, find_entries, weight_matrix
from targets.kernels.spec import NUMPY, ConvSpec, OutType, ResidualType
from targets.kernels.stage import Stage, rows_stage

FURTHEST = 255
"""Longest distance between two steps."""

AHEAD = 2048
"""Bytes that weights are fetched ahead of their use."""

UNROLL = 2
"""Steps that are written out."""

GATHER_CYCLES = {16: 9.0, 8: 6.0}
"""Cycles of a step by lanes: the gather takes a load for each."""


@dataclass(frozen=True)
class SparseGather:
    """What determines the code.

    Attributes:
        rows: lanes that share a place.
        depth: columns of a place: numbers (float32: 1) or codes (1 or 4).
        unit: of the instruction set; its lanes are the outputs of a group.
        out: dtype of the output; ``residual``: of what is added.
    """

    rows: int
    depth: int
    unit: Unit
    out: OutType
    residual: ResidualType | None

    @property
    def integer(self) -> bool:
        """Whether the operands are codes."""
        return self.unit.kind != "fma"

    @property
    def places(self) -> int:
        """Places of a step."""
        return self.unit.lanes // self.rows


_GATHER = {16: "llvm.x86.avx512.gather.dpi.512", 8: "llvm.x86.avx2.gather.d.d.256"}


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if isa.lanes not in _GATHER:
        return "the instruction set cannot gather"
    return gemv_refusal(spec)


# -- packing -----------------------------------------------------------------------------------


def _steps(
    entries: Entries, depth: int, furthest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step of each entry in its block row, distance to the step before, steps of block rows.

    Zeros that bridge long distances take steps in between, of ``furthest`` each.
    """
    rows = np.repeat(np.arange(entries.counts.size), entries.counts)
    place = entries.columns[:, 0] // depth
    distance = np.diff(place, prepend=0)
    first = entries.starts[:-1][entries.counts > 0]
    distance[first] = place[first]
    bridges = np.maximum(distance - 1, 0) // furthest
    ends = np.cumsum(1 + bridges)
    before = np.concatenate([[0], ends])[entries.starts]
    return ends - 1 - before[:-1][rows], distance - furthest * bridges, np.diff(before)


def pack_steps(
    kernel: SparseGather, entries: Entries, outputs: int, furthest: int = FURTHEST
) -> dict[str, np.ndarray]:
    """Weights, distances, group bounds, and the output of each lane (-1: none).

    ``furthest``: longest distance between two steps.
    """
    step, distance, lengths = _steps(entries, kernel.depth, furthest)
    order = np.argsort(-lengths, kind="stable")
    groups, places = ceil(order.size / kernel.places), kernel.places
    slot = np.empty(order.size, np.int64)  # of each block row among all groups' places
    slot[order] = np.arange(order.size)
    most = np.zeros(groups * places, np.int64)
    most[: order.size] = lengths[order]
    steps = -(-most.reshape(groups, places).max(axis=1) // UNROLL) * UNROLL
    starts = np.concatenate([[0], np.cumsum(steps)])
    rows = np.repeat(np.arange(entries.counts.size), entries.counts)
    at, place = starts[slot[rows] // places] + step, slot[rows] % places
    index = np.zeros((int(starts[-1]), places), np.min_scalar_type(furthest))
    _bridge(index, at, place, step, distance, rows, furthest)
    shape = (int(starts[-1]), places, kernel.rows, kernel.depth)
    values = np.zeros(shape, entries.values.dtype)
    values[at, place] = entries.values
    lanes = np.full((groups * places, kernel.rows), -1, np.int32)
    lanes[slot] = np.arange(order.size * kernel.rows).reshape(-1, kernel.rows)
    lanes[lanes >= outputs] = -1
    bounds = np.concatenate([starts.astype(np.int32), lanes.reshape(-1)])
    return {"weight": values, "index": index, "groups": bounds.astype(np.int32)}


def _bridge(
    index: np.ndarray,
    at: np.ndarray,
    place: np.ndarray,
    step: np.ndarray,
    distance: np.ndarray,
    rows: np.ndarray,
    furthest: int,
) -> None:
    """Puts the distances of all entries, and those of the zeros before them, into ``index``."""
    index[at, place] = distance
    gap = np.diff(step, prepend=-1)
    new = np.diff(rows, prepend=-1) != 0
    gap[new] = step[new] + 1
    for back in range(1, int(gap.max(initial=1))):
        some = gap > back
        index[at[some] - back, place[some]] = furthest


# -- code --------------------------------------------------------------------------------------


def gathered(kb: tir.KernelBuilder, kernel: SparseGather, x: Any, index: Any) -> Any:
    """32 bits of the input for each lane, from element ``index`` (in units of ``depth``)."""
    lanes = kernel.unit.lanes
    scale = kernel.depth if kernel.integer else 4
    zero, base = kb.const(0, "int32", lanes), kb.address(x, 0)
    if lanes == 16:
        mask, size = kb.const(-1, "int16"), kb.const(scale, "int32")
    else:
        mask, size = kb.const(-1, "int32", lanes), kb.const(scale, "int8")
    return kb.let(kb.pure(_GATHER[lanes], "int32", lanes, zero, base, index, mask, size), "x")


def _product(kb: tir.KernelBuilder, kernel: SparseGather, acc: Any, x: Any, w: Any) -> Any:
    """``acc`` plus the products of one step."""
    lanes = kernel.unit.lanes
    if not kernel.integer:
        real = kb.reinterpret(x, "float32", lanes)
        return kb.pure("llvm.fma", "float32", lanes, real, w, acc)
    if kernel.unit.kind == "vnni":
        if kernel.depth == 1:  # the other three codes that came along meet zeros
            w = kb.reinterpret(
                kb.cast(kb.reinterpret(w, "uint8", lanes), "uint32"), "int8", 4 * lanes
            )
        dot = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[lanes]
        return kb.pure(dot, "int32", lanes, acc, kb.reinterpret(x, "int8", 4 * lanes), w)
    madd = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[lanes]

    def dot2(codes: Any, weights: Any) -> Any:
        pairs = (kb.reinterpret(v, "int16", 2 * lanes) for v in (codes, weights))
        return kb.pure(madd, "int32", lanes, *pairs)

    if kernel.depth == 1:
        low = tir.tirx.bitwise_and(x, kb.const(255, "int32", lanes))
        return acc + dot2(low, kb.cast(w, "int32"))
    eight, odd = kb.const(8, "int16", 2 * lanes), kb.const(255, "int16", 2 * lanes)
    x, w = kb.reinterpret(x, "uint16", 2 * lanes), kb.reinterpret(w, "int16", 2 * lanes)
    shift, down = tir.tirx.shift_left, tir.tirx.shift_right
    even = dot2(
        tir.tirx.bitwise_and(kb.reinterpret(x, "int16", 2 * lanes), odd),
        down(shift(w, eight), eight),
    )
    return acc + even + dot2(down(x, kb.cast(eight, "uint16")), down(w, eight))


def gather_function(name: str, kernel: SparseGather, groups: int) -> Any:
    """The PrimFunc: parameters x, values, index, groups, then the epilogue's, residual, y."""
    kb, unit = tir.KernelBuilder(name), kernel.unit
    lanes, size = unit.lanes, unit.lanes * kernel.depth
    x = kb.pointer("x", "uint8" if kernel.integer else "float32", align=1)
    values = kb.pointer("values", unit.packed)
    index = kb.pointer("index", "uint8")
    bounds = kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, kernel.integer, kernel.out, kernel.residual)
    state = kb.alloc("int32", lanes)
    acc = kb.alloc(unit.accumulator, lanes)
    with kb.loop(kb.begin, kb.end, "group") as group:
        start, end = (kb.let(kb.load(bounds, group + i), "bound") for i in range(2))
        kb.store(state, 0, kb.const(0, "int32", lanes))
        kb.store(acc, 0, kb.const(0, unit.accumulator, lanes))
        with kb.loop(0, tir.tirx.truncdiv(end - start, UNROLL), "i") as i:
            for part in range(UNROLL):
                step = kb.let(start + i * UNROLL + part, "step")
                kb.prefetch(index, step * kernel.places + AHEAD, level=1)
                for line in range(0, size * np.dtype(unit.packed).itemsize, 64):
                    ahead = (AHEAD + line) // np.dtype(unit.packed).itemsize
                    kb.prefetch(values, step * size + ahead, level=1)
                moved = kb.cast(kb.load(index, step * kernel.places, kernel.places), "int32")
                if kernel.rows > 1:
                    moved = _repeated(kb, moved, kernel)
                place = kb.let(kb.load(state, 0, lanes) + moved, "place")
                kb.store(state, 0, place)
                w = kb.let(kb.load(values, step * size, size), "w")
                word = gathered(kb, kernel, x, place)
                kb.store(acc, 0, _product(kb, kernel, kb.load(acc, 0, lanes), word, w))
        finish_lanes(kb, kernel, out, bounds, groups, group, kb.load(acc, 0, lanes))
    return kb.build()


def _repeated(kb: tir.KernelBuilder, value: Any, kernel: SparseGather) -> Any:
    """Each lane of ``value`` ``rows`` times."""
    order = [lane // kernel.rows for lane in range(kernel.unit.lanes)]
    if kernel.places == 1:
        return kb.splat(value, kernel.unit.lanes)
    return kb.shuffle(kb.let(value, "moved"), order)


def finish_lanes(
    kb: tir.KernelBuilder,
    kernel: SparseGather,
    out: epilogue.Pointers,
    bounds: Any,
    groups: int,
    group: Any,
    total: Any,
) -> None:
    """The epilogue in the order of the lanes, and each result to its place."""
    lanes, first = kernel.unit.lanes, kb.let(group * kernel.unit.lanes, "first")
    rows = [kb.let(kb.load(bounds, first + (groups + 1 + i)), "row") for i in range(lanes)]
    made = replace(out, y=kb.alloc(NUMPY[kernel.out], lanes))
    if kernel.residual is not None:
        made.residual = kb.alloc(NUMPY[kernel.residual], lanes)
        for i, row in enumerate(rows):
            with kb.when(row >= 0):
                kb.store(made.residual, i, kb.load(out.residual, row))
    channel = epilogue.load_channels(kb, out, first, lanes)
    epilogue.finish(kb, made, channel, total, 0, lanes, kernel.out)
    for i, row in enumerate(rows):
        with kb.when(row >= 0):
            kb.store(out.y, row, kb.load(made.y, i))


# -- choice ------------------------------------------------------------------------------------


def _unit(spec: ConvSpec, isa: Isa) -> Unit:
    return unit_for(isa, spec.in_dtype, amx=False)


def _predicted(
    kernel: SparseGather, counts: np.ndarray, isa: Isa
) -> tuple[SparseGather, float, int]:
    """With seconds, of bytes from memory or of gathers, and bytes."""
    unit, steps = kernel.unit, int(counts.sum()) / kernel.places
    size = kernel.places + unit.lanes * kernel.depth * np.dtype(unit.packed).itemsize
    extra = 3.0 if unit.kind == "madd" and kernel.depth > 1 else 1.0
    cycles = steps * (GATHER_CYCLES[unit.lanes] + extra)
    cycles += ceil(counts.size / kernel.places) * 60.0
    stored = int(steps * size)
    return kernel, max(cycles / CLOCK, isa.read_seconds(stored)), stored


def _best(spec: ConvSpec, isa: Isa, matrix: np.ndarray) -> tuple[SparseGather, float]:
    unit, epi = _unit(spec, isa), spec.epilogue
    ranked = []
    for rows in (1, 2, 4, 8):
        for depth in (1, 4) if spec.in_dtype == "u8" else (1,):
            if rows <= unit.lanes:
                kernel = SparseGather(rows, depth, unit, epi.out, epi.residual)
                ranked.append(_predicted(kernel, entry_counts(matrix, rows, depth), isa))
    return frugal(ranked)


def lane_constants(layer: Layer, outputs: np.ndarray, unit: Unit) -> dict[str, np.ndarray]:
    """The epilogue's constants in the order of the lanes; ``outputs`` of each, -1 for none."""
    made = {}
    for name, array in layer.channels(unit.lanes).items():
        moved = array if name == "scalars" else np.where(outputs >= 0, array[outputs], 0)
        made[name] = moved.astype(array.dtype)
    return made


def _stage(spec: ConvSpec) -> Stage | None:
    """A copy where a gather would read past the caller's input."""
    if spec.in_dtype == "f32" or spec.input_slack:
        return None
    return rows_stage(1, spec.c, "u8", "u8")


def sparse_gather_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_gather` on one thread."""
    stage = _stage(spec)
    return _best(spec, isa, weight_matrix(weights))[1] + (stage.seconds if stage else 0.0)


def sparse_gather(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a linear layer of one row."""
    spec, matrix = layer.spec, weight_matrix(layer.weights)
    kernel, _ = _best(spec, isa, matrix)
    unit = kernel.unit
    constants = pack_steps(kernel, find_entries(matrix, kernel.rows, kernel.depth), spec.oc)
    groups = ceil(ceil(spec.oc / kernel.rows) / kernel.places)
    constants |= lane_constants(layer, constants["groups"][groups + 1 :], unit)
    key = name_key(f"sparse_gather_{unit.kind}", kernel, groups)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(gather_function, key, kernel, groups), args, groups)

    name = f"sparse-gather-{unit.kind} {kernel.rows}x{kernel.depth}"
    return staged_plan(layer, isa, unit, _stage(spec), constants, step, name)
