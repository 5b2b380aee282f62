"""Product of one row of float32 activations and scattered weights of few values.

Pruned weights that share values (Han et al. 2016, "Deep Compression", section 3), and ternary and
binary ones. The steps and lanes are those of :mod:`sparse_gather`; what stands for a weight is a
code, in one record of 8 or 16 bits with the distance from the weight before. Code 0 stands for 0: a
step that bridges a long distance, or a lane that has no more weights.

A code picks from a table that all lanes share; or, where each output has two values of its own, a
positive and a negative one, code 1 is the first and code 2 the second.
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
from targets.kernels.gemm import unit_for
from targets.kernels.sparse_gather import (
    AHEAD,
    UNROLL,
    SparseGather,
    finish_lanes,
    gathered,
    lane_constants,
    pack_steps,
)
from targets.kernels.sparse_gather import refusal as gather_refusal
from targets.kernels.sparse_layer import Layer, staged_plan
from targets.kernels.sparse_pack import find_entries
from targets.kernels.spec import ConvSpec
from targets.kernels.tables import LANES, load_table, look_up

STEP_CYCLES = {16: 5.0, 8: 3.2}
"""Cycles of a step by lanes, without the look-up."""

MOST_VALUES = 256
"""Values of a shared table, 0 apart."""

PAIR_BITS = 2
"""Bits of a code for one of two values of an output."""


@dataclass(frozen=True)
class SparseCodes:
    """What determines the code.

    Attributes:
        gather: lanes, places and epilogue.
        code: bits of a code.
        record: bits of a code and a distance: 8 or 16.
        pairs: each output has two values of its own.
    """

    gather: SparseGather
    code: int
    record: int
    pairs: bool

    @property
    def furthest(self) -> int:
        """Longest distance between two steps."""
        return (1 << (self.record - self.code)) - 1

    @property
    def entries(self) -> int:
        """Numbers of the shared table."""
        return max(16, 1 << self.code)

    @property
    def dtype(self) -> str:
        """Of a record."""
        return f"uint{self.record}"


def codes_function(name: str, kernel: SparseCodes, groups: int) -> Any:
    """The PrimFunc: parameters x, records, table, groups, the epilogue's, residual, y."""
    kb, gather = tir.KernelBuilder(name), kernel.gather
    lanes = gather.unit.lanes
    x = kb.pointer("x", "float32", align=4)
    records = kb.pointer("records", kernel.dtype)
    table = kb.pointer("table", "float32")
    bounds = kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, False, gather.out, gather.residual)
    state, acc = kb.alloc("int32", lanes), kb.alloc("float32", lanes)
    shared = [] if kernel.pairs else load_table(kb, table, 0, kernel.entries, lanes)
    with kb.loop(kb.begin, kb.end, "group") as group:
        start, end = (kb.let(kb.load(bounds, group + i), "bound") for i in range(2))
        kb.store(state, 0, kb.const(0, "int32", lanes))
        kb.store(acc, 0, kb.const(0.0, "float32", lanes))
        own = []
        if kernel.pairs:
            at = kb.let(group * (2 * lanes), "own")
            own = [kb.let(kb.load(table, at + i * lanes, lanes), "value") for i in range(2)]
        with kb.loop(0, tir.tirx.truncdiv(end - start, UNROLL), "i") as i:
            for part in range(UNROLL):
                step = kb.let((start + i * UNROLL + part) * lanes, "step")
                kb.prefetch(records, step + AHEAD * 8 // kernel.record, level=1)
                word = kb.let(kb.cast(kb.load(records, step, lanes), "int32"), "record")
                moved = tir.tirx.shift_right(word, kb.const(kernel.code, "int32", lanes))
                place = kb.let(kb.load(state, 0, lanes) + moved, "place")
                kb.store(state, 0, place)
                if kernel.pairs:
                    weight = _own_value(kb, word, own)
                else:
                    mask = kb.const((1 << kernel.code) - 1, "int32", lanes)
                    code = kb.let(tir.tirx.bitwise_and(word, mask), "code")
                    weight = look_up(kb, table, 0, shared, code, kernel.entries)
                real = kb.reinterpret(gathered(kb, gather, x, place), "float32", lanes)
                total = kb.load(acc, 0, lanes)
                kb.store(acc, 0, kb.pure("llvm.fma", "float32", lanes, real, weight, total))
        finish_lanes(kb, gather, out, bounds, groups, group, kb.load(acc, 0, lanes))
    return kb.build()


def _own_value(kb: tir.KernelBuilder, word: Any, own: list[Any]) -> Any:
    """The first or second of each lane's values, or 0."""
    lanes = tir.lanes_of(word)
    value = kb.const(0.0, "float32", lanes)
    for bit, mine in enumerate(own):
        some = tir.tirx.bitwise_and(word, kb.const(1 << bit, "int32", lanes))
        value = tir.tirx.Select(some != kb.const(0, "int32", lanes), mine, value)
    return kb.let(value, "weight")


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.in_dtype != "f32" or spec.epilogue.out != "f32":
        return "the activations are not float32"
    if isa.lanes not in LANES:
        return "the instruction set cannot gather"
    return gather_refusal(spec, isa)


def _kernel(spec: ConvSpec, isa: Isa, code: int, pairs: bool, density: float) -> SparseCodes:
    """Records of a byte where the distances mostly fit beside the code."""
    unit, epi = unit_for(isa, "f32", amx=False), spec.epilogue
    gather = SparseGather(1, 1, unit, epi.out, epi.residual)
    small = SparseCodes(gather, code, 8, pairs)
    bridged = (1.0 - density) ** small.furthest if code < 8 else 1.0
    return small if bridged < 0.05 else replace(small, record=16)


def sparse_codes_cost(
    spec: ConvSpec, isa: Isa, weights: np.ndarray, code: int, pairs: bool
) -> float:
    """Predicted seconds of :func:`sparse_codes` on one thread.

    ``code``: bits of a code; ``pairs``: each output has two values of its own.
    """
    kept = int(np.count_nonzero(weights))
    density = kept / max(1, weights.size)
    kernel = _kernel(spec, isa, code, pairs, density)
    bridged = (1.0 - density) ** kernel.furthest
    steps = kept / max(1e-3, 1.0 - bridged) / isa.lanes
    found = 0.5 if pairs else max(2.0, (1 << code) / 16) if isa.lanes == 16 else 5.8
    cycles = steps * (STEP_CYCLES[isa.lanes] + found) + ceil(spec.oc / isa.lanes) * 60.0
    return max(cycles / CLOCK, isa.read_seconds(int(steps * isa.lanes * kernel.record / 8)))


@dataclass(frozen=True)
class FewValues:
    """The weights of a layer as codes.

    Attributes:
        codes: int ``[outputs, columns]``, 0 for no weight.
        table: float32 [values] of codes 1, 2, ..., or ``[2, outputs]``: each output's own.
    """

    codes: np.ndarray
    table: np.ndarray

    @property
    def pairs(self) -> bool:
        """Whether each output has two values of its own."""
        return self.table.ndim == 2

    @property
    def bits(self) -> int:
        """Of a code."""
        return PAIR_BITS if self.pairs else code_bits(self.table.size)


def code_bits(values: int) -> int:
    """Bits of a code for so many values and 0."""
    return max(1, values).bit_length()


def sparse_codes(layer: Layer, isa: Isa, weights: FewValues) -> KernelPlan:
    """Plans a linear layer of one row; the numbers of ``layer.weights`` are those of the codes."""
    spec, gather_codes = layer.spec, weights.codes.astype(np.uint16)
    density = np.count_nonzero(gather_codes) / max(1, gather_codes.size)
    kernel = _kernel(spec, isa, weights.bits, weights.pairs, float(density))
    unit = kernel.gather.unit
    entries = find_entries(gather_codes, 1, 1)
    packed = pack_steps(kernel.gather, entries, spec.oc, kernel.furthest)
    code = packed["weight"].reshape(packed["index"].shape).astype(np.uint32)
    records = packed["index"].astype(np.uint32) << np.uint32(kernel.code) | code
    groups = ceil(spec.oc / unit.lanes)
    outputs = packed["groups"][groups + 1 :]
    constants = {"records": records.astype(kernel.dtype), "groups": packed["groups"]}
    constants["table"] = _table(kernel, weights, outputs)
    constants |= lane_constants(layer, outputs, unit)
    key = name_key("sparse_codes", kernel, groups)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(codes_function, key, kernel, groups), args, groups)

    name = f"sparse-codes {kernel.code} of {kernel.record} bits"
    stored = ("records", "table", "groups")
    return staged_plan(layer, isa, unit, None, constants, step, name, stored)


def _table(kernel: SparseCodes, weights: FewValues, outputs: np.ndarray) -> np.ndarray:
    """The shared table, or the two values of each lane, group by group."""
    if not kernel.pairs:
        table = np.zeros(kernel.entries, np.float32)
        table[1 : 1 + weights.table.size] = weights.table
        return table
    own = np.where(outputs >= 0, weights.table[:, outputs], 0).astype(np.float32)
    lanes = kernel.gather.unit.lanes
    return np.ascontiguousarray(own.reshape(2, -1, lanes).swapaxes(0, 1))


__all__ = ["FewValues", "code_bits", "refusal", "sparse_codes", "sparse_codes_cost"]
