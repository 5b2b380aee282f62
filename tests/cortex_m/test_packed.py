"""Kernels of Cortex-M that read packed weights, against numpy, on emulated boards."""

from __future__ import annotations

import numpy as np
import pytest

from targets.cortex_m import CORES
from targets.kernels.dsp_conv import dsp_conv
from targets.kernels.dsp_depthwise import dsp_depthwise
from targets.kernels.dsp_packed import stored_codes, sums_fit
from targets.kernels.packed_bits import Codes
from targets.kernels.spec import ConvSpec, Epilogue
from tests.cortex_m.board import BOARDS, QEMU
from tests.cortex_m.cases import run_plans
from tests.cortex_m.test_kernels import CONVS, DEPTHWISE, U8
from tests.targets.test_code_panels import CodedCase

SIGNS = Codes.signs()
CODES = {"signs": SIGNS, **{f"int{bits}": Codes.signed(bits) for bits in (4, 2, 3)}}
KINDS = tuple(CODES)

SHAPES = CONVS | {
    "whole-words": ConvSpec(1, 1, 4, 64, 10, in_zero_point=200, epilogue=U8),
    "filled-up": ConvSpec(1, 3, 5, 12, 7, 3, 3, pads=(1, 1, 1, 1), in_zero_point=3, epilogue=U8),
    "one-row": ConvSpec(1, 1, 1, 100, 14, in_zero_point=5, epilogue=Epilogue("f32")),
}
TWICE = {"pointwise", "stem", "padded-residual", "whole-words", "one-row"}
"""Shapes that are tried with two kinds of codes."""


def _plan(case: CodedCase, core: str):
    constants = (case.w, case.bias, case.factor, case.ratio)
    if case.spec.groups > 1:
        return dsp_depthwise(case.spec, *constants, packed=True)
    return dsp_conv(case.spec, *constants, mve=CORES[core].helium, codes=case.codes)


@pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")
@pytest.mark.parametrize(
    "core", [pytest.param(c, marks=[pytest.mark.slow] * (c[-1] in "73")) for c in BOARDS]
)
def test_against_numpy(core, tmp_path):
    cases = {
        (name, kind): CodedCase(spec, CODES[kind], seed)
        for seed, (name, spec) in enumerate(SHAPES.items())
        for kind in (KINDS[seed % 4], KINDS[(seed + 2) % 4])[: 2 if name in TWICE else 1]
    }
    seeds = enumerate(DEPTHWISE.items())
    cases |= {(n, "depthwise"): CodedCase(spec, Codes.signed(4), seed) for seed, (n, spec) in seeds}
    plans = [(_plan(case, core), case.inputs, case.out) for case in cases.values()]
    assert all(plan.compressed for plan, _, _ in plans)
    wrong = []
    for (key, case), got in zip(cases.items(), run_plans(plans, core, tmp_path), strict=True):
        if not np.array_equal(got, case.want):
            wrong.append((*key, float((got != case.want).mean())))
    assert not wrong


@pytest.mark.parametrize(
    ("codes", "columns", "bits"),
    [
        (Codes.signed(4), 9, 4),
        (Codes.signed(3), 9, 4),
        (Codes.signed(2), 9, 2),
        (SIGNS, 12, 1),
        (SIGNS, 9, 2),  # a sign cannot fill up a group whose activations are another pixel's
        (Codes.signed(5), 8, None),
    ],
)
def test_digits_that_codes_are_stored_as(codes, columns, bits):
    stored = stored_codes(codes, columns, 4)
    assert (stored and stored.bits) == bits
    if stored is not None and codes.bits == 1:
        rows = np.resize(np.array([-1, 1], np.int8), (2, 12))
        digits = stored.unsigned(rows).astype(int)
        np.testing.assert_array_equal(stored.base + stored.step * digits, rows)


@pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")
def test_two_sums_are_told_apart_up_to_the_bound(tmp_path):
    """The largest codes and activations of the longest sums that are taken."""
    columns = max(k for k in range(30_000, 40_000, 16) if sums_fit(k))
    assert not sums_fit(columns + 16)
    rng = np.random.default_rng(0)
    x = np.full((1, 1, 1, columns), 255, np.uint8)
    w = np.where(rng.random((2, columns, 1, 1)) < 0.01, -8, 7).astype(np.int8)
    w[1] = 7
    spec = ConvSpec(1, 1, 1, columns, 2, epilogue=Epilogue("f32"))
    bias, factor = np.array([5, -5], np.int32), np.full(2, 2.0**-8, np.float32)
    plan = dsp_conv(spec, w, bias, factor, None, codes=Codes.signed(4))
    want = (x.astype(np.int64)[0, 0, 0] @ w[:, :, 0, 0].T.astype(np.int64) + bias) * 2.0**-8
    want = want.astype(np.float32).reshape(1, 1, 1, 2)
    (got,) = run_plans([(plan, [x], want)], "cortex-m4", tmp_path)
    np.testing.assert_array_equal(got, want)


def test_what_has_no_packed_form_is_refused():
    """By the row, with words; the generator takes nothing else either."""
    spec = ConvSpec(1, 1, 1, 8, 4)
    w = np.zeros((4, 8, 1, 1), np.int8)
    with pytest.raises(ValueError, match="5 bits have no packed form"):
        dsp_conv(spec, w, np.zeros(4, np.int32), np.ones(4), None, codes=Codes.signed(5))
