"""Kernels on half precision against sums in float64, on every unit that computes with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from targets.arm import LEVELS
from targets.kernels.conv import conv2d, conv2d_transpose
from targets.kernels.gemm import HALF_TERMS, unit_for
from targets.kernels.matmul_short import matmul_short
from targets.kernels.softmax import SoftmaxSpec, softmax
from targets.kernels.spec import ConvSpec, ConvTransposeSpec, Epilogue
from tests.targets.reference import conv_accumulators, finish, transposed_accumulators
from tests.targets.running import Runner, isa_params
from tests.targets.test_bf16_kernels import (
    PRODUCTS,
    bits,
    cases_on,
    check,
    in_short,
    rounded,
    stored,
)

UNITS = ("avx2", "neon", "dotprod")
CLAMPED = Epilogue("f16", -1.5, 2.5)
EPSILON = 2.0**-11


def room(isa, magnitudes: np.ndarray) -> np.ndarray:
    """Allowed error of sums of products: of float32, and of so many terms in half precision."""
    terms = HALF_TERMS if unit_for(isa, "f16").kind == "half" else 0
    return 2e-5 + terms * EPSILON * magnitudes


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_layers(isa):
    cases = list(cases_on(isa, "f16").values())
    runner = Runner([case.plan for case in cases], isa)
    for slack in (0, ARENA_SLACK):
        some = [case for case in cases if case.slack == slack]
        made = runner.run_all([(case.plan, case.inputs, case.out) for case in some], 2, slack)
        for case, got in zip(some, made, strict=True):
            check(got, case.want, room(isa, case.magnitudes))


@pytest.mark.parametrize("isa", isa_params("dotprod"))
def test_half_sums_err_little(isa):
    """A long sum is as good as short ones: the error does not grow with the sum's length."""
    rng = np.random.default_rng(0)
    errors = []
    for depth in (64, 4096):
        spec = ConvSpec(1, 1, 4, depth, 40, in_dtype="f16", epilogue=Epilogue("f32"))
        x = rng.standard_normal((1, 1, 4, depth)).astype(np.float16)
        w = (rng.standard_normal((40, depth, 1, 1)) / np.sqrt(depth)).astype(np.float16)
        plan = conv2d(spec, isa, w, np.zeros(40, np.float32))
        got = Runner([plan], isa).run(plan, [x], np.zeros((1, 1, 4, 40), np.float32))
        want = conv_accumulators(x.astype(np.float32), w.astype(np.float32), spec)
        errors.append(np.sqrt(np.mean((got - want) ** 2)) / want.std())
    assert 0 < max(errors) < 2 * 2**-12 * np.sqrt(HALF_TERMS / 2)


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_ends_of_the_range(isa):
    """Denormal numbers take part as they are; results round half to even, or become infinite."""
    smallest = 2.0**-24
    x = np.array([smallest, 3 * smallest, 2.0**-14, 65504.0, 1.0, -0.0], np.float16)
    x = x.reshape(1, 1, 6, 1)
    factors = np.array([0.5, 1.0, 1.5, 2.0**-10, 2.0, 1.0009765625, -1.0, 512.0], np.float16)
    spec = ConvSpec(1, 1, 6, 1, 8, in_dtype="f16", epilogue=Epilogue("f16"))
    plan = conv2d(spec, isa, factors.reshape(8, 1, 1, 1), np.zeros(8, np.float32))
    got = Runner([plan], isa).run(plan, [x], np.zeros((1, 1, 6, 8), np.float16))
    with np.errstate(over="ignore"):
        products = x.astype(np.float32).reshape(6, 1) * factors.astype(np.float32)
        want = (products + np.float32(0)).astype(np.float16)
    np.testing.assert_array_equal(got.reshape(6, 8), want)
    assert np.isinf(want).any()
    assert (want[0] != 0).any()


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_transposed(isa):
    spec = ConvTransposeSpec(
        2, 5, 6, 10, 12, 3, 4, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0), 2, "f16",
        epilogue=CLAMPED, stored="f32",
    )  # fmt: skip
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 6, 10)).astype(np.float32)
    w = (rng.standard_normal((10, 6, 3, 4)) / 8).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    factors = rounded(x, "f16"), rounded(w, "f16")
    want = finish(transposed_accumulators(*factors, spec), spec.epilogue, bias)
    plan = conv2d_transpose(spec, isa, bits(w, "f16"), bias)
    got = Runner([plan], isa).run(plan, [x], np.zeros(want.shape, np.float16), 3)
    magnitudes = transposed_accumulators(abs(factors[0]), abs(factors[1]), spec)
    check(got, want, room(isa, magnitudes))


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_products_of_activations(isa):
    rng = np.random.default_rng(1)
    made = []
    for given in PRODUCTS.values():
        spec = in_short(given, "f16")
        a = rng.standard_normal((spec.batch, spec.m, spec.k)).astype(np.float32)
        b = rng.standard_normal((spec.batch, spec.k, spec.n)).astype(np.float32) / 8
        want = rounded(a, "f16").astype(np.float64) @ rounded(b, "f16")
        want = np.clip(want, spec.epilogue.lo, spec.epilogue.hi)
        b = np.ascontiguousarray(b.swapaxes(1, 2)) if spec.transpose_b else b
        inputs = [stored(a, spec.a_stored, "f16"), stored(b, spec.b_stored, "f16")]
        out = np.zeros(want.shape, np.float32 if spec.epilogue.out == "f32" else np.float16)
        made.append((spec, want, (matmul_short(spec, isa), inputs, out)))
    runner = Runner([job[0] for *_, job in made], isa)
    for slack in (False, True):
        some = [one for one in made if one[0].b_slack == slack]
        results = runner.run_all([job for *_, job in some], 3, ARENA_SLACK if slack else 0)
        for (_, want, _), got in zip(some, results, strict=True):
            check(got, want)


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_softmax(isa):
    spec = SoftmaxSpec(5, 37, "f16", "f16")
    x = (np.random.default_rng(2).standard_normal((5, 37)) * 3).astype(np.float16)
    plan = softmax(spec, isa)
    got = Runner([plan], isa).run(plan, [x], np.zeros((5, 37), np.float16))
    powers = np.exp(x.astype(np.float64))
    check(got, powers / powers.sum(1, keepdims=True))


def test_which_levels_multiply_halves():
    kinds = {name: unit_for(isa, "f16").kind for name, isa in LEVELS.items()}
    assert kinds["neon"] == "fma"
    assert kinds["dotprod"] == kinds["i8mm"] == "half"
    for name, isa in LEVELS.items():
        assert ("asimdhp" in isa.flags) == (kinds[name] == "half")
    plain = replace(LEVELS["dotprod"], float16="widen")
    assert unit_for(plain, "f16").kind == "fma"
