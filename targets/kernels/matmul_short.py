"""Batched products of two activations of 16 bits, bfloat16 or float16.

Where the CPU multiplies pairs of bfloat16, the second operand is packed in pairs of rows; elsewhere
both are widened to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels.blocking import choose_blocking
from targets.kernels.conv import channel_constants, features_of, gemm_step
from targets.kernels.gemm import Gemm, Unit, fma_unit, unit_for
from targets.kernels.matmul import product_gemm
from targets.kernels.pack import Pack, transpose_function
from targets.kernels.skeleton import divide
from targets.kernels.spec import NUMPY, SIZE, MatmulSpec, rounding
from targets.kernels.stage import Stage, fill_constant, rows_stage, stage_step


@dataclass(frozen=True)
class _Plan:
    """The GEMM, and the copies of both operands that it reads (None: in place)."""

    gemm: Gemm
    unit: Unit
    a: Stage | None
    b: Stage | None
    pack: Pack | None


def _reduce(spec: MatmulSpec, isa: Isa, amx: bool) -> _Plan:
    if spec.epilogue.residual is not None:
        raise ValueError("a product of two activations takes no residual")
    short = spec.in_dtype
    unit = unit_for(isa, short, amx=amx, run=spec.k)
    unit = fma_unit(isa, short=short) if unit.kind == "half" else unit  # its weights are constant
    reads = "f32" if unit.kind == "fma" else short
    a_stored, b_stored = spec.a_stored or short, spec.b_stored or short
    a = b = pack = None
    rounded = rounding(a_stored, short)
    if a_stored != reads or rounded:
        a = rows_stage(spec.batch * spec.m, spec.k, a_stored, reads, rounded=rounded)
    unreadable = spec.n % unit.lanes != 0 and not spec.b_slack and not spec.transpose_b
    rounded = rounding(b_stored, short)
    if unit.kind == "fma" or unreadable or rounded:
        rows, length = (spec.n, spec.k) if spec.transpose_b else (spec.k, spec.n)
        b = rows_stage(spec.batch * rows, length, b_stored, reads, rounded=rounded)
    if unit.kind == "fma":
        unit = replace(unit, short="")  # on copies in float32
        if spec.transpose_b:
            pack = Pack(spec.batch, spec.k, spec.n, True, unit.lanes, 1, 1, "float32")
    else:
        pack = Pack(
            spec.batch, spec.k, spec.n, spec.transpose_b, unit.lanes, 2, unit.k, NUMPY["bf16"]
        )
    return _Plan(product_gemm(spec, reads, pack), unit, a, b, pack)


def matmul_short(spec: MatmulSpec, isa: Isa, *, amx: bool = True) -> KernelPlan:
    """Plans ``y[b] = a[b] @ b[b]``; the plan's inputs are 0 ``a`` and 1 ``b``.

    Args:
        spec: the layer, with ``in_dtype`` bf16 or f16.
        isa: the instruction set.
        amx: use AMX tiles where the instruction set has them; else its vector unit.
    """
    made = _reduce(spec, isa, amx)
    unit = made.unit
    zeros = np.zeros(spec.n, np.float32)
    constants = channel_constants(spec.epilogue, 1, unit.lanes, zeros, None, None)
    steps: list[KernelStep] = []
    scratch: list[int] = []
    operands: list[KernelArg] = [("in", 0), ("in", 1)]
    for index, stage in enumerate((made.a, made.b)):
        if stage is not None:
            constants["fill"] = fill_constant(0, "f32")
            steps.append(stage_step(stage, isa, operands[index], "fill", len(scratch)))
            operands[index] = ("scratch", len(scratch))
            scratch.append(stage.bytes)
    if made.pack is not None:
        packed: KernelArg = ("scratch", len(scratch))
        size = SIZE["f32" if unit.kind == "fma" else "bf16"]
        scratch.append(made.pack.batch * made.pack.elements * size)
        steps.append(_pack_step(made.pack, operands[1], packed))
        operands[1] = packed
    steps.append(gemm_step(made.gemm, unit, *operands))
    pairs = spec.in_dtype == "bf16" and (unit.kind != "fma" or isa.bfloat16 != "widen")
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=tuple(scratch),
        features=features_of(isa, replace(unit, short="bf16" if pairs else "")),
        kernel=f"matmul-{unit.kind}",
    )


def _pack_step(pack: Pack, b: KernelArg, y: KernelArg) -> KernelStep:
    if pack.step == 1:
        key = name_key("pack_f32", pack)
        return KernelStep(key, lambda: transpose_function(key, pack), (b, y), pack.items)
    key = name_key("pack_bf16", pack)
    return KernelStep(key, lambda: pack_pairs_function(key, pack), (b, y), pack.items)


def pack_pairs_function(name: str, pack: Pack) -> Any:
    """Packs a bf16 operand in pairs along k: parameters b, y (pairs as 32-bit words)."""
    kb = tir.KernelBuilder(name)
    b = kb.pointer("b", "int32" if pack.transposed else NUMPY["bf16"], align=2)
    y = kb.pointer("y", "int32")
    lanes, pairs = pack.lanes, pack.k // 2
    size = pack.k * pack.n
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, block = divide(kb, item, pack.blocks, "block")
        column = kb.let(block * lanes if pack.blocks > 1 else 0, "column")
        put = kb.let(item * (pairs * lanes), "put")
        if pack.transposed:
            at = kb.let((image * (size // 2) if pack.batch > 1 else 0) + column * pairs, "at")
            valid = kb.let(tir.tirx.min(pack.n - column, tir.tirx.IntImm("int32", lanes)), "valid")
            with kb.loop(0, valid, "lane") as lane, kb.loop(0, pairs, "k") as k:
                kb.store(y, put + k * lanes + lane, kb.load(b, at + lane * pairs + k))
        else:
            at = kb.let((image * size if pack.batch > 1 else 0) + column, "at")
            with kb.loop(0, pairs, "k") as k:
                halves = [
                    kb.cast(kb.load(b, at + (k * 2 + i) * pack.n, lanes), "int32") for i in (0, 1)
                ]
                upper = tir.tirx.shift_left(halves[1], kb.const(16, "int32", lanes))
                kb.store(y, put + k * lanes, tir.tirx.bitwise_or(halves[0], upper))
    return kb.build()


def matmul_short_cost(spec: MatmulSpec, isa: Isa, *, amx: bool = True) -> float:
    """Predicted seconds of :func:`matmul_short` on one thread (only good for comparison)."""
    made = _reduce(spec, isa, amx)
    _, cycles = choose_blocking(made.gemm, made.unit)
    copies = sum(stage.seconds for stage in (made.a, made.b) if stage is not None)
    packed = spec.batch * ceil(spec.k / 2) * spec.n * (1.0 if spec.transpose_b else 0.15)
    return (cycles + (packed if made.pack else 0.0)) / CLOCK + copies
