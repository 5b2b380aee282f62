"""LSTM, GRU and RNN: all time steps of some sequences in one call.

A work item is a few sequences, whose states stay in memory of the thread. In each step every
vector of units sums, gate beside gate, the products of the state before and the recurrent weights,
which are packed so that a unit's gates follow each other; then it becomes the new state at once.
With several sequences an item, a weight that is loaded is multiplied for each of them. A GRU whose
reset gate comes before the product runs twice over its units in a step: first the two gates, then
the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels.gemm import Unit
from targets.kernels.recurrent_cell import Cell, Function, Products, RealProducts
from targets.kernels.recurrent_codes import (
    CodedProducts,
    code_unit,
    packed_codes,
    state_dtype,
    unit_constants,
)
from targets.kernels.recurrent_spec import Block, RecurrentSpec, block_of

FUNCTION_CYCLES = 20.0
"""Predicted cycles of one activation of a vector."""


def packed_weights(spec: RecurrentSpec, block: Block, weights: np.ndarray) -> list[np.ndarray]:
    """[G*H,H] for each phase as [vectors / block.vectors, H, gates, block.vectors, lanes]."""
    units, padded = spec.units, block.padded(spec.units)
    by_gate = np.zeros((spec.gates, padded, units), np.float32)
    by_gate[:, :units] = weights.reshape(spec.gates, units, units)
    out = []
    for phase in spec.phases:
        part = by_gate[list(phase)].reshape(len(phase), -1, block.vectors, block.lanes, units)
        out.append(np.ascontiguousarray(part.transpose(1, 4, 0, 2, 3)).reshape(-1))
    return out


def _parameters(spec: RecurrentSpec, unit: Unit | None) -> list[str]:
    weights = [f"weights{k}" for k in range(len(spec.phases)) if "recurrent" in spec.given]
    others = [name for name in spec.given if name != "recurrent"]
    coded = []
    if unit is not None:
        coded = ["multipliers", *(["starts"] if unit.kind == "vnni" else []), "codes"]
    return ["gates", *weights, *others, "y", *("y_h", "y_c")[: spec.states], "state", *coded]


def _dtype(parameter: str, unit: Unit | None) -> str:
    if parameter in ("lengths", "starts"):
        return "int32"
    if unit is not None and parameter.startswith("weights"):
        return "int8"
    return state_dtype(unit) if unit is not None and parameter == "codes" else "float32"


def recurrent_function(
    name: str,
    spec: RecurrentSpec,
    block: Block,
    functions: Sequence[Function],
    unit: Unit | None = None,
) -> Any:
    """The kernel; parameters in the order of the plan's arguments. ``unit``: of coded weights."""
    kb = tir.KernelBuilder(name)
    pointers = {key: kb.pointer(key, _dtype(key, unit), align=4) for key in _parameters(spec, unit)}
    products: Products
    if unit is None:
        products = RealProducts(kb, spec, block, pointers)
    else:
        products = CodedProducts(kb, spec, block, pointers, unit)
    cell = Cell(kb, spec, block, functions, pointers, products)
    with kb.loop(kb.begin, kb.end, "item") as item:
        first = kb.let(item * block.item, "first")
        whole, left = divmod(spec.batch, block.item)
        if whole:
            with kb.when(item < whole if left else True):
                cell.sequences(first, block.item)
        if left:
            with kb.when(item >= whole):
                cell.sequences(first, left)
    return kb.build()


def pack_function(name: str, spec: RecurrentSpec, block: Block, phase: int) -> Any:
    """Packs recurrent weights of the run time; a work item is a block of units."""
    kb = tir.KernelBuilder(name)
    source, target = kb.pointer("weights", "float32", align=4), kb.pointer("packed", "float32")
    gates, lanes = spec.phases[phase], block.lanes
    per_block = block.vectors * lanes
    with kb.loop(kb.begin, kb.end, "block") as item, kb.loop(0, spec.units, "k") as k:
        start = kb.let((item * spec.units + k) * (len(gates) * per_block), "start")
        for j, gate in enumerate(gates):
            with kb.loop(0, per_block, "unit") as unit:
                row = kb.let(item * per_block + unit, "row")
                to = start + j * per_block + unit
                kb.store(target, to, kb.const(0.0, "float32"))
                with kb.when(row < spec.units if spec.units % per_block else True):
                    at = (row + gate * spec.units) * spec.units + k
                    kb.store(target, to, kb.load(source, at))
    return kb.build()


def recurrent(
    spec: RecurrentSpec,
    isa: Isa,
    functions: Sequence[Function],
    places: dict[str, KernelArg],
    constants: dict[str, np.ndarray],
) -> KernelPlan:
    """Plans the layer.

    Args:
        spec: the layer.
        isa: the instruction set.
        functions: the activations.
        places: operands that are computed, by name.
        constants: operands that are known, by name, in their shapes; of a coded layer the codes
            of ``recurrent``, and ``multipliers`` of their rows' accumulators (float32).
    """
    unit = code_unit(isa) if spec.coded else None
    block = block_of(spec, isa)
    args = dict(places)
    known = _packed(spec, block, constants, unit)
    steps, scratch = _packing(spec, block, args)
    args.update({name: ("const", name) for name in known})
    args.update({"y": ("out", 0), "y_h": ("out", 1), "y_c": ("out", 2)})
    args.update({"state": ("thread_scratch", 0), "codes": ("thread_scratch", 1)})
    state = block.item * block.padded(spec.units)
    two_phases = len(spec.phases) > 1
    threads = [4 * (5 if two_phases else 3) * state]
    if unit is not None:
        threads.append(np.dtype(state_dtype(unit)).itemsize * (3 if two_phases else 2) * state)
    key = name_key("recurrent", spec, block, isa.arch, isa.fma, unit)
    steps.append(
        KernelStep(
            key,
            partial(recurrent_function, key, spec, block, functions, unit),
            tuple(args[name] for name in _parameters(spec, unit)),
            ceil(spec.batch / block.item),
            seconds=recurrent_cost(spec, isa),
        )
    )
    how = "" if unit is None else f" {unit.kind}"
    return KernelPlan(
        tuple(steps),
        known,
        scratch=tuple(scratch),
        thread_scratch=tuple(threads),
        features=isa.vector_flags(),
        kernel=f"{spec.kind}{how}, {block.item} of {spec.batch} sequences at once",
        compressed=spec.coded,
    )


def _packed(
    spec: RecurrentSpec, block: Block, constants: dict[str, np.ndarray], unit: Unit | None
) -> dict[str, np.ndarray]:
    """What is known of the layer, as the kernel reads it."""
    known = dict(constants)
    weights = known.pop("recurrent", None)
    if weights is None:
        return known
    if unit is None:
        packed = packed_weights(spec, block, weights)
    else:
        packed = packed_codes(spec, block, weights, unit)
        known.update(unit_constants(spec, block, weights, known.pop("multipliers"), unit))
    return known | {f"weights{k}": part for k, part in enumerate(packed)}


def _packing(
    spec: RecurrentSpec, block: Block, args: dict[str, KernelArg]
) -> tuple[list[KernelStep], list[int]]:
    """Steps that pack weights of the run time, and the scratch they fill; updates ``args``."""
    steps: list[KernelStep] = []
    scratch: list[int] = []
    if "recurrent" not in args:
        return steps, scratch
    padded, source = block.padded(spec.units), args.pop("recurrent")
    for k, phase in enumerate(spec.phases):
        name = name_key("recurrent_pack", spec.units, spec.gates, phase, block)
        steps.append(
            KernelStep(
                name,
                partial(pack_function, name, spec, block, k),
                (source, ("scratch", k)),
                padded // (block.vectors * block.lanes),
            )
        )
        args[f"weights{k}"] = ("scratch", k)
        scratch.append(4 * len(phase) * padded * spec.units)
    return steps, scratch


def recurrent_cost(spec: RecurrentSpec, isa: Isa) -> float:
    """Predicted seconds on one thread."""
    block = block_of(spec, isa)
    vectors = ceil(spec.units / block.lanes)
    items = ceil(spec.batch / block.item)
    functions = spec.batch * vectors * len(spec.functions) * FUNCTION_CYCLES / CLOCK
    if "recurrent" not in spec.given:
        return spec.steps * functions
    each = code_unit(isa).k if spec.coded else 1
    products = spec.batch * spec.gates * vectors * ceil(spec.units / each) / (2 * CLOCK)
    weights = spec.weight_bytes * spec.gates * block.padded(spec.units) * spec.units
    return spec.steps * (max(products, items * isa.read_seconds(weights)) + functions)
