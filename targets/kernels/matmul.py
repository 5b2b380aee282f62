"""Batched products of two activations, f32 or u8 with both zero points."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels.blocking import choose_blocking
from targets.kernels.conv import channel_constants, features_of, gemm_step
from targets.kernels.gemm import Gemm, Unit, unit_for
from targets.kernels.pack import (
    Pack,
    pack_function,
    row_sums_function,
    terms_constant,
    transpose_function,
)
from targets.kernels.spec import MatmulSpec
from targets.kernels.stage import Stage, fill_constant, rows_stage, stage_step


@dataclass(frozen=True)
class _Plan:
    """How a product is reduced to an implicit GEMM."""

    gemm: Gemm
    unit: Unit
    stage: Stage | None
    pack: Pack | None
    copy_b: Stage | None
    """A copy of ``b`` with readable slack, which is read (or packed) in its place."""


def _reduce(spec: MatmulSpec, isa: Isa, amx: bool) -> _Plan:
    """The GEMM, the staged copy of ``a`` and the packed copy of ``b`` that it needs."""
    if spec.epilogue.residual is not None:
        raise ValueError("a product of two activations takes no residual")
    unit = unit_for(isa, spec.in_dtype, amx=amx, pixels=spec.m)
    stage = pack = None
    a_dtype: str = spec.in_dtype
    if unit.kind == "madd":
        a_dtype = "i16"
    if a_dtype == "i16" or (unit.k > 1 and not spec.a_slack):
        stage = rows_stage(spec.batch * spec.m, spec.k, spec.in_dtype, a_dtype)
    partial = spec.n % unit.lanes != 0 and not spec.b_slack
    if spec.in_dtype == "u8" or spec.transpose_b:
        inner = 4 if unit.kind == "amx" else unit.k
        dtype = {"fma": "float32", "madd": "int16"}.get(unit.kind, "int8")
        pack = Pack(spec.batch, spec.k, spec.n, spec.transpose_b, unit.lanes, inner, unit.k, dtype)
    integer = spec.in_dtype == "u8"
    copy_b = None
    if partial and not spec.transpose_b:
        copy_b = rows_stage(spec.batch * spec.k, spec.n, spec.in_dtype, spec.in_dtype)
    gemm = product_gemm(
        spec,
        a_dtype,
        pack,
        row_terms=integer and unit.kind != "madd" and spec.b_zero_point != 128,
        bias_image=pack.blocks * unit.lanes if pack and integer else 0,
    )
    return _Plan(gemm, unit, stage, pack, copy_b)


def product_gemm(
    spec: MatmulSpec,
    a_dtype: str,
    pack: Pack | None,
    *,
    row_terms: bool = False,
    bias_image: int = 0,
) -> Gemm:
    """The implicit GEMM of a batched product: one row of ``m`` pixels and one run of ``k`` each.

    Args:
        spec: the product.
        a_dtype: what is read of ``a``.
        pack: how ``b`` is packed; None: its rows are read in place.
        row_terms: as :attr:`Gemm.row_terms`.
        bias_image: as :attr:`Gemm.bias_image`.
    """
    return Gemm(
        spec.batch,
        1,
        spec.m,
        spec.m * spec.k,
        0,
        spec.k,
        (),
        spec.k,
        spec.n,
        groups=1,
        a_group=0,
        a_dtype=a_dtype,
        out=spec.epilogue.out,
        residual=None,
        b_image=pack.elements if pack else spec.k * spec.n,
        b_row=0 if pack else spec.n,
        row_terms=row_terms,
        bias_image=bias_image,
    )


def matmul(
    spec: MatmulSpec, isa: Isa, multiplier: float | None = None, *, amx: bool = True
) -> KernelPlan:
    """Plans ``y[b] = a[b] @ b[b]``; the plan's inputs are 0 ``a`` and 1 ``b``.

    Args:
        spec: the layer.
        isa: the instruction set.
        multiplier: f32, for u8 operands: accumulator -> output units.
        amx: use AMX tiles where the instruction set has them; else its vector unit.
    """
    made = _reduce(spec, isa, amx)
    gemm, unit, lanes = made.gemm, made.unit, made.unit.lanes
    steps: list[KernelStep] = []
    scratch: list[int] = []
    a: KernelArg = ("in", 0)
    bias: KernelArg = ("const", "bias")
    row_terms: KernelArg | None = None
    factors = None if multiplier is None else np.full(spec.n, multiplier, np.float32)
    zeros = np.zeros(spec.n, np.int32 if spec.in_dtype == "u8" else np.float32)
    constants = channel_constants(spec.epilogue, 1, lanes, zeros, factors, None)
    if spec.in_dtype == "u8":
        if multiplier is None:
            raise ValueError("u8 operands need a multiplier")
        shift = spec.b_zero_point if unit.kind == "madd" else 128
        zero_points = (spec.a_zero_point, spec.b_zero_point)
        constants["terms"] = terms_constant(*zero_points, shift, spec.k, unit.code_offset)
    if made.stage is not None:
        constants["fill"] = fill_constant(spec.a_zero_point, spec.in_dtype)
        a = _new(scratch, made.stage.bytes)
        steps.append(stage_step(made.stage, isa, ("in", 0), "fill", len(scratch) - 1))
    b: KernelArg = ("in", 1)
    if made.copy_b is not None:
        constants.setdefault("fill", fill_constant(0, spec.in_dtype))
        b = _new(scratch, made.copy_b.bytes)
        steps.append(stage_step(made.copy_b, isa, ("in", 1), "fill", len(scratch) - 1))
    if made.pack is not None and spec.in_dtype == "u8":
        size, source = {"int8": 1, "int16": 2}[made.pack.dtype], b
        b = _new(scratch, made.pack.batch * made.pack.elements * size)
        bias = _new(scratch, made.pack.items * lanes * 4)
        del constants["bias"]
        steps.append(_pack_step(made.pack, source, b, bias))
    elif made.pack is not None:
        b = _new(scratch, made.pack.batch * made.pack.elements * 4)
        steps.append(_transpose_step(made.pack, b))
    if gemm.row_terms:
        row_terms = _new(scratch, spec.batch * spec.m * 4)
        steps.append(_row_sums_step(spec, row_terms))
    steps.append(gemm_step(gemm, unit, a, b, bias, row_terms))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=tuple(scratch),
        features=features_of(isa, unit),
        kernel=f"matmul-{unit.kind}",
    )


def _new(scratch: list[int], size: int) -> KernelArg:
    """Adds a scratch buffer; returns the argument that names it."""
    scratch.append(size)
    return ("scratch", len(scratch) - 1)


def _pack_step(pack: Pack, b: KernelArg, y: KernelArg, bias: KernelArg) -> KernelStep:
    key = name_key("pack", pack)
    args: tuple[KernelArg, ...] = (b, ("const", "terms"), y, bias)
    return KernelStep(key, lambda: pack_function(key, pack), args, pack.items)


def _transpose_step(pack: Pack, y: KernelArg) -> KernelStep:
    key = name_key("pack_f32", pack)
    return KernelStep(key, lambda: transpose_function(key, pack), (("in", 1), y), pack.items)


def _row_sums_step(spec: MatmulSpec, y: KernelArg) -> KernelStep:
    key = name_key("row_sums", spec.k)
    args: tuple[KernelArg, ...] = (("in", 0), ("const", "terms"), y)
    return KernelStep(key, lambda: row_sums_function(key, spec.k), args, spec.batch * spec.m)


def matmul_cost(spec: MatmulSpec, isa: Isa, *, amx: bool = True) -> float:
    """Predicted seconds of :func:`matmul` on one thread (only good for comparison)."""
    made = _reduce(spec, isa, amx)
    _, cycles = choose_blocking(made.gemm, made.unit)
    seconds = cycles / CLOCK
    if made.stage is not None:
        seconds += made.stage.seconds
    if made.pack is not None:
        seconds += spec.batch * spec.k * spec.n * (1.0 if spec.transpose_b else 0.25) / CLOCK
    if made.gemm.row_terms:
        seconds += spec.batch * spec.m * (ceil(spec.k / 16) + 20) / CLOCK
    return seconds
