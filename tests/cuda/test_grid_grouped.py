"""Grouped convolution on GPUs against numpy, on the emulated one, and its machine code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from targets.kernels.grid_grouped import best_grouped, grid_grouped, grouped_refusal
from targets.kernels.grid_pixels import Share
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.cuda.machine_code import assert_has, machine_code
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_kernels import AMPERE, check
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short
from tests.targets.test_gemm_kernels import Case, typed

SPECS = {
    "residual": ConvSpec(
        2, 6, 7, 32, 32, 3, 3, pads=(1, 1, 1, 1), groups=4,
        epilogue=Epilogue("u8", 3, 250, 10, "u8", 7),
    ),
    "narrow": ConvSpec(1, 9, 10, 12, 24, 3, 2, stride=(2, 2), pads=(0, 1, 1, 0), groups=3),
    "deep": ConvSpec(1, 5, 6, 96, 16, 1, 3, dilation=(1, 2), pads=(0, 2, 0, 2), groups=2),
    "pointwise": ConvSpec(1, 5, 5, 24, 48, groups=3, epilogue=Epilogue("s8", -100, 100, -5)),
}  # fmt: skip
SHARES = (Share(4, 4), Share(8, 2), Share(4, 1))


def by(share: Share | None):
    return lambda spec, _isa, *constants: grid_grouped(spec, *constants, AMPERE, share)


def cases(names, dtypes, several) -> dict[object, Case]:
    return {
        (name, dtype, share): Case(typed(SPECS[name], dtype), None, plan=by(share))
        for name in names
        for dtype in dtypes
        for share in several
        if SPECS[name].oc // SPECS[name].groups % share.channels == 0
    }


def test_against_numpy():
    check(cases(["residual"], ["u8"], SHARES[:1]) | cases(["narrow"], ["f32"], SHARES[1:2]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_61", "sm_90"])
def test_every_share(architecture):
    check(cases(SPECS, ["u8", "f32"], SHARES), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_short_floats(dtype):
    jobs, rng = [], np.random.default_rng(3)
    for stored in (dtype, "f32"):
        epilogue = Epilogue(stored, -1.5, 2.5)
        spec = replace(SPECS["residual"], in_dtype=dtype, stored=stored, epilogue=epilogue)
        x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
        w = rng.standard_normal((spec.oc, 8, 3, 3)).astype(np.float32) / 8
        bias = rng.standard_normal(spec.oc).astype(np.float32)
        sums = conv_accumulators(rounded(x, dtype), rounded(w, dtype), spec)
        plan = grid_grouped(spec, bits(w, dtype), bias, None, None, AMPERE)
        given = bits(x, dtype) if stored == dtype else x
        jobs.append((plan, given, finish(sums, epilogue, bias), stored))
    runner = GridRunner([plan for plan, *_ in jobs])
    for plan, x, want, stored in jobs:
        check_short(runner.run(plan, [x], np.zeros(want.shape, NUMPY[stored])), want)


def test_refusals():
    spec = SPECS["residual"]
    assert "no groups" in grouped_refusal(replace(spec, groups=1))
    assert "no groups" in grouped_refusal(replace(spec, groups=32))
    assert "multiple of 4" in grouped_refusal(replace(spec, oc=24))
    assert "fill no word" in grouped_refusal(replace(spec, c=24))
    assert "2 GiB" in grouped_refusal(replace(spec, n=64, h=1024, w=1024))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "wanted"), [("u8", ("IDP.4A.U8.S8", "LDG.E.128")), ("f16", ("FFMA", "LDG.E.128"))]
)
def test_instructions(dtype, wanted):
    spec = ConvSpec(
        64, 56, 56, 128, 128, 3, 3, pads=(1, 1, 1, 1), groups=8, in_dtype=dtype,
        epilogue=Epilogue(dtype),
    )  # fmt: skip
    weights = np.zeros((128, 16, 3, 3), "int8" if dtype == "u8" else NUMPY[dtype])
    factor = np.ones(128, np.float32) if dtype == "u8" else None
    assert best_grouped(spec, AMPERE).pixels > 1
    plan = grid_grouped(spec, weights, np.zeros(128), factor, None, AMPERE)
    (found,) = machine_code(plan, "sm_80")
    assert_has(found, *wanted)
