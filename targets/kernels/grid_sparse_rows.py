"""Linear layers of few rows on a GPU by the weights that are not zero, wherever these are.

A group of lanes has an output: each lane reads four entries at a time, a weight and its column in
16 bits, and what they meet in the rows of activations, which the first-level cache holds; the
lanes' sums are added by exchanges. Entries of an output lie one behind the other (compressed sparse
rows), filled up to what the group reads at once, so an entry costs 2 bytes beside its weight: the
kernel gains where the dense one waits for weights and well below half of them are left. Products of
more rows are left to matrix instructions on decoded weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue
from targets.kernels.conv import fold_zero_point
from targets.kernels.direct import shared_epilogue
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.grid_sparse import weights_present
from targets.kernels.grid_stage import Columns, stage_step
from targets.kernels.spec import NUMPY, SHORT_FLOATS, SIZE, ConvSpec

EACH = 4
"""Entries that a lane reads at once."""

LANES = (8, 32)
"""Of an output."""

_THREADS = 128
_RESIDENT = 32
"""Warps of a multiprocessor, as far as registers go."""

_LATENCY = 800
"""Cycles from asking for entries to having what they meet."""

_GATHER = 8
"""Cycles in which a warp's gather occupies the first-level cache."""

_RAMP = 700
"""Cycles of a block beside its entries."""


@dataclass(frozen=True)
class Scattered:
    """What the kernel knows of a layer: ``lanes`` of a warp share an output."""

    rows: int
    depth: int
    outputs: int
    in_dtype: str
    epilogue: Any
    lanes: int

    @property
    def blocks(self) -> int:
        """Blocks of threads."""
        return -(-self.outputs * self.lanes // _THREADS)


def _steps(counts: np.ndarray, lanes: int) -> np.ndarray:
    """How often a group of lanes reads, for outputs of so many weights."""
    steps: np.ndarray = -(-counts // (EACH * lanes))
    return steps


def _best(spec: ConvSpec, weights: np.ndarray, machine: Machine) -> tuple[float, int]:
    """Predicted seconds, and lanes of an output."""
    counts = weights_present(weights).sum(axis=1)
    return min((_seconds(spec, counts, lanes, machine), lanes) for lanes in LANES)


def _seconds(spec: ConvSpec, counts: np.ndarray, lanes: int, machine: Machine) -> float:
    steps, rows = _steps(counts, lanes), spec.n * spec.h * spec.w
    entries = int(steps.sum()) * lanes * EACH
    moved = entries * (2 + SIZE[spec.in_dtype]) + 4 * spec.oc
    warps = -(-spec.oc * lanes // 32) / machine.multiprocessors
    waves = max(1.0, warps / _RESIDENT)
    waiting = waves * float(steps.mean() + steps.max()) / 2 * _LATENCY
    gathering = entries / 32 * rows * _GATHER / machine.multiprocessors
    cycles = max(waiting, gathering) + _RAMP
    copy = LAUNCH_SECONDS if _staged(spec) else 0.0
    return copy + LAUNCH_SECONDS + max(cycles / machine.clock, moved / machine.memory)


def _staged(spec: ConvSpec) -> bool:
    """Whether the activations are rounded first."""
    return spec.stored not in (None, spec.in_dtype)


def scattered_cost(spec: ConvSpec, weights: np.ndarray, machine: Machine) -> float:
    """Predicted seconds of :func:`grid_scattered`."""
    return _best(spec, weights, machine)[0]


def grid_scattered(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    lanes: int | None = None,
) -> KernelPlan:
    """The plan of a layer that :func:`targets.kernels.grid_gemv.gemv_refusal` lets pass.

    Args:
        spec: the layer.
        weights: ``[oc, c, 1, 1]``: int8 codes, float32, float16 or bits of bfloat16.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        lanes: of an output; None: the best.
    """
    integer, lanes = spec.in_dtype == "u8", lanes or _best(spec, weights, machine)[1]
    epi = shared_epilogue(spec.epilogue)
    layer = Scattered(spec.n * spec.h * spec.w, spec.c, spec.oc, spec.in_dtype, epi, lanes)
    steps: list[KernelStep] = []
    scratch: tuple[int, ...] = ()
    source: KernelArg = ("in", 0)
    if _staged(spec):
        columns = Columns.of(spec, written_out=False)
        steps.append(stage_step(columns, source, ("scratch", 0)))
        scratch, source = (columns.bytes,), ("scratch", 0)
    if integer:
        bias = fold_zero_point(bias, weights, spec.in_zero_point)
    entries = packed_entries(weights, lanes)
    constants = entries | {
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    names = (*entries, *epilogue.argument_names(integer, spec.epilogue.residual))
    residual: list[KernelArg] = [("in", 1)] if spec.epilogue.residual is not None else []
    args: tuple[KernelArg, ...] = (source, *(("const", n) for n in names), *residual, ("out", 0))
    key = name_key("grid_scattered", layer)
    launch = Launch((layer.blocks, 1, 1), (_THREADS, 1, 1))
    steps.append(KernelStep(key, _function(key, layer), args, layer.blocks, launch=launch))
    name = f"scattered weights, {lanes} lanes"
    return KernelPlan(tuple(steps), constants, scratch=scratch, kernel=name, compressed=True)


def packed_entries(weights: np.ndarray, lanes: int) -> dict[str, np.ndarray]:
    """The weights of ``[oc, c, 1, 1]`` that are not 0, output by output.

    Returns:
        ``starts``: int32 ``[oc + 1]``, in steps of a group of lanes; ``columns``: uint16, and
        ``values`` of the weights' type, of all entries.
    """
    matrix, present = weights.reshape(len(weights), -1), weights_present(weights)
    steps = _steps(present.sum(axis=1), lanes)
    starts = np.concatenate([[0], np.cumsum(steps)])
    each = lanes * EACH
    # one step more than there is, so that there always is one
    columns = np.zeros((int(starts[-1]) + 1) * each, np.uint16)
    values = np.zeros(len(columns), matrix.dtype)
    for output, start in enumerate(starts[:-1]):
        found = np.flatnonzero(present[output])
        if len(found):
            # what fills up reads what is read anyway: a number there that is not finite shows as it
            # does in a sum with all weights
            first, last = int(start) * each, int(starts[output + 1]) * each
            columns[first:last] = found[-1]
            columns[first : first + len(found)] = found
            values[first : first + len(found)] = matrix[output, found]
    return {"starts": starts.astype(np.int32), "columns": columns, "values": values}


def _function(key: str, layer: Scattered) -> Callable[[], Any]:
    def build() -> Any:
        from dlcc.tir.cuda import GridBuilder

        kb = GridBuilder(key, _THREADS)
        return _emit(kb, layer)

    return build


def _emit(kb: Any, layer: Scattered) -> Any:
    integer, dtype = layer.in_dtype == "u8", layer.in_dtype
    sum_type = "int32" if integer else "float32"
    weight_type = "int8" if integer else NUMPY[dtype]
    x = kb.pointer("x", NUMPY[dtype])
    starts, columns = kb.pointer("starts", "int32"), kb.pointer("columns", "uint16")
    values = kb.pointer("values", weight_type)
    at = epilogue.parameters(kb, integer, layer.epilogue.out, layer.epilogue.residual)
    each = _THREADS // layer.lanes
    output = kb.let(kb.block * each + kb.thread // layer.lanes, "output")
    inside = True if layer.outputs % each == 0 else output < layer.outputs
    lane = kb.let(kb.thread % layer.lanes, "lane")
    sums = kb.alloc(sum_type, layer.rows, "sums")
    for row in range(layer.rows):
        kb.store(sums, row, kb.const(0, sum_type))
    column, value = kb.alloc("uint16", EACH, "column"), kb.alloc(weight_type, EACH, "value")
    with (
        kb.when(inside),
        kb.loop(kb.load(starts, output), kb.load(starts, output + 1), "step") as step,
    ):
        entry = kb.let((step * layer.lanes + lane) * EACH, "entry")
        kb.call(f"dlcc_load{2 * EACH}", kb.address(column, 0), kb.address(columns, entry))
        size = EACH * SIZE[dtype]
        kb.call(f"dlcc_load{size}", kb.address(value, 0), kb.address(values, entry))
        for i in range(EACH):
            place = kb.let(kb.cast(kb.load(column, i), "int32"), "place")
            weight = _wide(kb, kb.load(value, i), dtype)
            for row in range(layer.rows):
                met = _wide(kb, kb.load(x, place + row * layer.depth), dtype)
                before = kb.load(sums, row)
                if integer:
                    kb.store(sums, row, before + met * weight)
                else:
                    kb.store(sums, row, kb.extern("dlcc_fma", "float32", 1, met, weight, before))
    suffix = "i32" if integer else "f32"
    for row in range(layer.rows):
        total = kb.load(sums, row)
        distance = layer.lanes // 2
        while distance:
            total = kb.let(total, "total")
            total = total + kb.extern(f"dlcc_exchange_{suffix}", sum_type, 1, total, distance)
            distance //= 2
        total = kb.let(total, "total")
        with kb.when(inside), kb.when(lane == row):
            channel = epilogue.Channels(kb.load(at.bias, output))
            if at.multiplier is not None:
                channel.multiplier = kb.load(at.multiplier, output)
            if at.ratio is not None:
                channel.ratio = kb.load(at.ratio, output)
            index = output + row * layer.outputs
            epilogue.finish(kb, at, channel, total, index, 1, layer.epilogue.out)
    return kb.build()


def _wide(kb: Any, value: Any, dtype: str) -> Any:
    """An operand as its products take it."""
    if dtype == "u8":
        return kb.let(kb.cast(value, "int32"), "operand")
    return kb.let(kb.widened(value) if dtype in SHORT_FLOATS else value, "operand")


__all__ = ["LANES", "grid_scattered", "packed_entries", "scattered_cost"]
