"""Depthwise convolution kernels against numpy, on every ISA at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.lowering.kernel import ARENA_SLACK
from targets.cpu.levels import AVX2, AVX512, LEVELS
from targets.kernels.depthwise import depthwise, depthwise_cost, is_depthwise
from targets.kernels.spec import ConvSpec, Epilogue
from tests.targets.footprints import check_footprints
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import Case, typed

CASES = {
    "odd": ConvSpec(1, 9, 11, 19, 19, 3, 3, pads=(1, 0, 1, 2), groups=19),
    "strided-s8-residual": ConvSpec(
        2,
        9,
        11,
        64,
        64,
        5,
        5,
        (2, 2),
        pads=(2, 2, 2, 2),
        groups=64,
        epilogue=Epilogue("s8", -100, 100, -5, "u8", 3),
    ),
    "dilated": ConvSpec(2, 9, 31, 33, 33, 3, 7, dilation=(1, 2), groups=33),
    "few-rows": ConvSpec(1, 4, 4, 160, 160, 3, 3, (1, 2), pads=(1, 1, 1, 1), groups=160),
    "row": ConvSpec(1, 1, 40, 8, 8, 1, 9, pads=(0, 4, 0, 4), groups=8),
    "few-channels": ConvSpec(2, 9, 29, 8, 8, 3, 3, pads=(1, 1, 1, 1), groups=8),
    "few-channels-strided": ConvSpec(
        1, 13, 27, 16, 16, 3, 3, (2, 2), pads=(0, 0, 1, 1), groups=16, input_slack=False
    ),
    "few-channels-dilated": ConvSpec(
        1, 8, 70, 4, 4, 2, 5, (3, 3), (1, 2), pads=(1, 3, 0, 6), groups=4
    ),
    "no-slack": ConvSpec(1, 6, 6, 5, 5, 3, 3, groups=5, input_slack=False),
    "int32-accumulator": ConvSpec(1, 25, 26, 5, 5, 23, 23, groups=5, epilogue=Epilogue("f32")),
}


@pytest.fixture(
    scope="module", params=isa_params("sse4", "avx2", "avxvnni", "avx512", "avx512vnni")
)
def table(request):
    """All cases planned for one ISA and compiled together."""
    cases = {
        (name, dtype): case_of(name, dtype, request.param)
        for name in CASES
        for dtype in ("u8", "f32")
    }
    return cases, Runner([case.plan for case in cases.values()], request.param)


def case_of(name: str, dtype: str, isa, largest: int = 127) -> Case:
    """One of the cases, with codes of weights up to ``largest``."""
    spec = CASES[name]
    spec = replace(typed(spec, dtype), epilogue=_epilogue(spec, dtype))
    return Case(spec, isa, plan=depthwise, largest=largest)


def _epilogue(spec: ConvSpec, dtype: str) -> Epilogue:
    given = spec.epilogue if spec.epilogue != Epilogue() else Epilogue("u8", 3, 250, 10)
    return given if dtype == "u8" else typed(spec, dtype).epilogue


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(table, name, dtype):
    cases, runner = table
    case = cases[name, dtype]
    slack = ARENA_SLACK if CASES[name].input_slack else 0
    case.check(runner.run(case.plan, case.inputs, case.out, slack=slack))


@pytest.mark.parametrize("name", ["odd", "few-rows"])
def test_any_split_gives_the_same_bytes(table, name):
    cases, runner = table
    case = cases[name, "u8"]
    whole = runner.run(case.plan, case.inputs, case.out)
    for cuts in (2, 3, 16):
        assert runner.run(case.plan, case.inputs, case.out, cuts).tobytes() == whole.tobytes()


@st.composite
def layers(draw):
    """Small depthwise layers of any stride, dilation and padding, zero point 0 included."""
    c = draw(st.one_of(st.integers(2, 40), st.sampled_from([4, 8, 16])))
    return ConvSpec(
        draw(st.integers(1, 2)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 40)),
        c,
        c,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        tuple(draw(st.integers(2, 5)) for _ in range(4)),
        c,
        "u8",
        draw(st.sampled_from([0, 131])),
        Epilogue(draw(st.sampled_from(["u8", "f32"]))),
    )


@pytest.mark.parametrize("isa", isa_params("avx2", "avxvnni", "avx512", "avx512vnni"))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(spec=layers())
def test_random_shapes(isa, spec):
    case = Case(spec, isa, seed=1, plan=depthwise)
    got = Runner([case.plan], isa).run(case.plan, case.inputs, case.out, 2)
    np.testing.assert_array_equal(got, case.want)


def test_worst_sums_stay_exact():
    """Largest products of one sign: f32 accumulation must still be exact."""
    spec = ConvSpec(1, 22, 23, 16, 16, 22, 23, groups=16, epilogue=Epilogue("f32"))
    x = np.full((1, 22, 23, 16), 255, np.uint8)
    w = np.full((16, 1, 22, 23), -127, np.int8)
    w[:, 0, 0, 0] = np.arange(-127, -111)
    bias, one = np.zeros(16, np.int32), np.ones(16, np.float32)
    plan = depthwise(spec, AVX2, w, bias, one)
    got = Runner([plan], AVX2).run(plan, [x], np.zeros((1, 1, 1, 16), np.float32))
    want = (w.astype(np.int64).sum(axis=(1, 2, 3)) * 255).astype(np.float32)
    np.testing.assert_array_equal(got.reshape(-1), want)


def test_layers_it_serves():
    assert is_depthwise(CASES["odd"])
    assert not is_depthwise(ConvSpec(1, 4, 4, 8, 16, groups=8))
    with pytest.raises(ValueError, match="equal"):
        depthwise_cost(ConvSpec(1, 4, 4, 8, 16, groups=8), AVX2)
    big = ConvSpec(1, 56, 56, 64, 64, 3, 3, pads=(1, 1, 1, 1), groups=64)
    assert depthwise_cost(big, AVX512) < depthwise_cost(big, AVX2)
    assert depthwise_cost(big, AVX2) < depthwise_cost(big, LEVELS["sse4"])


@pytest.mark.parametrize("isa", isa_params("avx512vnni"))
def test_products_beyond_int32_take_the_other_kernel(isa):
    spec = replace(CASES["odd"], in_zero_point=7, epilogue=Epilogue("u8", 0, 255, 128))
    case = Case(spec, isa, plan=depthwise)
    assert case.plan.kernel == "depthwise-vnni"
    huge = np.full(19, 1e6, np.float32)
    plan = depthwise(spec, isa, case.w, case.bias, huge)
    assert plan.kernel == "depthwise"
    got = Runner([plan], isa).run(plan, case.inputs, case.out)
    want = finish(conv_accumulators(case.x, case.w, spec), spec.epilogue, case.bias, huge)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_items_touch_what_their_footprint_says(table, name, dtype):
    cases, runner = table
    case = cases[name, dtype]
    check_footprints(runner, case.plan, case.inputs, case.out)
