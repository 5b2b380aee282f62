"""Transposed convolutions by phases, on the emulated GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from targets.kernels.grid_machine import Machine
from targets.kernels.grid_transposed import (
    Line,
    grid_transposed,
    phases,
    transposed_refusal,
)
from targets.kernels.spec import NUMPY, ConvTransposeSpec, Epilogue
from tests.cuda.machine_code import assert_has, machine_code
from tests.cuda.running import GridRunner
from tests.targets.reference import finish, transposed_accumulators
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short

AMPERE = Machine(108, 1.4e9, mma=True, shared_bytes=163 << 10)
SPECS = {
    "doubled": ConvTransposeSpec(2, 5, 6, 16, 24, 4, 4, (2, 2), pads=(1, 1, 1, 1)),
    "uneven": ConvTransposeSpec(1, 4, 5, 20, 12, 3, 5, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0)),
    "dilated": ConvTransposeSpec(1, 5, 4, 16, 8, 3, 3, (2, 1), (2, 3), (2, 3, 2, 3), (1, 0)),
    "same": ConvTransposeSpec(1, 6, 5, 16, 20, 3, 3, pads=(1, 1, 1, 1)),
    "cropped": ConvTransposeSpec(1, 6, 6, 16, 4, 6, 6, (2, 2), pads=(5, 4, 3, 4)),
}  # fmt: skip


def job(spec: ConvTransposeSpec, dtype: str):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (spec.n, spec.h, spec.w, spec.c), dtype=np.uint8)
    w = rng.integers(-127, 128, (spec.c, spec.oc, spec.kh, spec.kw), dtype=np.int8)
    bias = rng.integers(-500, 500, spec.oc).astype(np.int32)
    if dtype == "u8":
        spec = replace(spec, in_zero_point=11, epilogue=Epilogue("u8", 3, 250, 10))
        factor = rng.uniform(2e-4, 4e-4, spec.oc).astype(np.float32)
        acc = transposed_accumulators(x.astype(np.int64) - 11, w, spec)
        want = finish(acc, spec.epilogue, bias, factor)
        return grid_transposed(spec, w, bias, factor, AMPERE), x, want
    spec = replace(spec, in_dtype=dtype, epilogue=Epilogue(dtype, -1.0, 90.0))
    x, w, bias = x.astype(np.float32) / 64, w.astype(np.float32) / 640, bias / np.float32(500)
    if dtype != "f32":
        acc = transposed_accumulators(rounded(x, dtype), rounded(w, dtype), spec)
        want = finish(acc, spec.epilogue, bias)
        return grid_transposed(spec, bits(w, dtype), bias, None, AMPERE), bits(x, dtype), want
    want = finish(transposed_accumulators(x, w, spec), spec.epilogue, bias)
    return grid_transposed(spec, w, bias, None, AMPERE), x, want


def check(names, dtypes) -> None:
    jobs = [(name, dtype, *job(SPECS[name], dtype)) for name in names for dtype in dtypes]
    runner = GridRunner([plan for *_, plan, _, _ in jobs])
    for name, dtype, plan, x, want in jobs:
        got = runner.run(plan, [x], np.zeros(want.shape, NUMPY[dtype]), aligned=True)
        if dtype == "u8":
            assert len(np.unique(want)) > 20
            np.testing.assert_array_equal(got, want, err_msg=name)
        elif dtype == "f32":
            np.testing.assert_allclose(got, want, rtol=3e-5, atol=3e-5, err_msg=name)
        else:
            check_short(got, want)


def test_doubled():
    check(["doubled"], ["u8"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["u8", "f32", "f16", "bf16"])
def test_against_numpy(dtype):
    check(SPECS, [dtype])


def test_phases_of_a_line():
    """Kernel 4, stride 2, pad 1: taps 3 and 1 of inputs -1 and 0, then 2 and 0 of 0 and 1."""
    even, odd = Line.of(SPECS["doubled"], 0)
    assert (even.taps, even.first, odd.taps, odd.first) == ((3, 1), -1, (2, 0), 0)
    assert len(phases(SPECS["doubled"])) == 4
    taps = [len(r.taps) * len(c.taps) for r, c in phases(SPECS["doubled"])]
    assert sum(taps) == 4 * 4, "no product is made twice, and none with zeros"


@pytest.mark.slow
def test_instructions():
    *products, together = machine_code(job(SPECS["doubled"], "u8")[0], "sm_80")
    for found in products:
        assert_has(found, "IMMA.16832.U8.S8", "LDGSTS.E.BYPASS.128")
    assert_has(together, "LDG.E.64", "STG.E.64")


def test_refusals():
    spec = SPECS["doubled"]
    assert "2 groups" in transposed_refusal(replace(spec, groups=2))
    assert "by no tap" in transposed_refusal(replace(spec, kh=1, kw=1, pads=(0, 0, 0, 0)))
    assert "25 phases" in transposed_refusal(replace(spec, kh=5, kw=5, stride=(5, 5)))
    codes = replace(spec, oc=3, epilogue=Epilogue("u8"))
    assert "no word" in transposed_refusal(codes)
    assert "2 GiB" in transposed_refusal(replace(spec, h=8192, w=8192))
