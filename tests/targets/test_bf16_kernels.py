"""Kernels on bfloat16 against sums in float64, on every unit that has its own code for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.ir import BFLOAT16, FLOAT16
from dlcc.lowering.kernel import ARENA_SLACK
from targets.cpu.levels import AMX, AVX2, AVX512BF16, LEVELS
from targets.kernels.bfloat16 import spare_channels
from targets.kernels.conv import conv2d, conv2d_transpose, conv_cost, geometry
from targets.kernels.depthwise import depthwise
from targets.kernels.gemm import bf16_step, unit_for
from targets.kernels.matmul_short import matmul_short, matmul_short_cost
from targets.kernels.spec import NUMPY, ConvSpec, ConvTransposeSpec, Epilogue, MatmulSpec
from tests.targets.footprints import check_footprints
from tests.targets.reference import conv_accumulators, finish, transposed_accumulators
from tests.targets.running import Runner, isa_params

UNITS = ("sse4", "avx2", "avx512", "avx512bf16", "amx")
CLAMPED, RESIDUAL = Epilogue("bf16", -1.5, 2.5), Epilogue("bf16", -1.5, 2.5, residual="bf16")
CASES = {
    "uneven": ConvSpec(1, 9, 11, 13, 19, 3, 3, pads=(1, 0, 1, 2), epilogue=CLAMPED),
    "stem-f32-input": ConvSpec(
        1, 15, 22, 3, 16, 7, 7, (2, 2), pads=(3, 3, 3, 3), stored="f32", epilogue=CLAMPED
    ),
    "one-channel": ConvSpec(2, 12, 9, 1, 20, 5, 5, stored="f32", epilogue=CLAMPED),
    "five-channels": ConvSpec(2, 6, 11, 5, 16, pads=(1, 0, 0, 1), stored="f32", epilogue=CLAMPED),
    "seven-channels": ConvSpec(1, 6, 13, 7, 16, 3, 3, epilogue=CLAMPED),
    "narrower-than-a-step": ConvSpec(1, 8, 5, 3, 16, 3, 3, stored="f32", epilogue=CLAMPED),
    "one-channel-no-slack": ConvSpec(
        1, 7, 18, 1, 16, 3, 3, stored="f32", input_slack=False, epilogue=CLAMPED
    ),
    "three-channels-no-slack": ConvSpec(
        1, 9, 17, 3, 16, 3, 3, stored="f32", input_slack=False, epilogue=CLAMPED
    ),
    "flat-1x1-residual": ConvSpec(2, 7, 7, 64, 40, epilogue=RESIDUAL),
    "f32-residual": ConvSpec(1, 7, 7, 24, 40, epilogue=Epilogue("bf16", residual="f32")),
    "strided-1x1": ConvSpec(1, 8, 9, 36, 32, stride=(2, 2), epilogue=CLAMPED),
    "dilated": ConvSpec(
        1, 12, 13, 8, 24, 3, 3, dilation=(2, 3), pads=(2, 3, 2, 3), epilogue=CLAMPED
    ),
    "grouped-small": ConvSpec(2, 8, 9, 12, 24, 3, 2, (2, 1), groups=6, epilogue=CLAMPED),
    "grouped-odd": ConvSpec(1, 6, 7, 66, 80, 3, 3, pads=(1, 1, 1, 1), groups=2, epilogue=CLAMPED),
    "linear-m1-f32": ConvSpec(1, 1, 1, 203, 50, epilogue=Epilogue("f32")),
    "linear-m5": ConvSpec(1, 1, 5, 58, 33, epilogue=Epilogue("f32", -2.5, 3.0, residual="bf16")),
    "linear-f32-input": ConvSpec(1, 1, 3, 96, 33, stored="f32", epilogue=CLAMPED),
    "wide": ConvSpec(1, 3, 50, 64, 96, 3, 3, pads=(1, 1, 1, 1), epilogue=CLAMPED),
    "deep-few-pixels": ConvSpec(1, 5, 7, 72, 152, 3, 3, pads=(1, 1, 1, 1), epilogue=CLAMPED),
    "no-slack": ConvSpec(1, 5, 5, 6, 9, input_slack=False, epilogue=CLAMPED),
}
DEPTHWISE = {
    "depthwise-odd": ConvSpec(1, 9, 11, 19, 19, 3, 3, pads=(1, 0, 1, 2), groups=19),
    "depthwise-strided": ConvSpec(
        2, 9, 11, 64, 64, 5, 5, (2, 2), pads=(2, 2, 2, 2), groups=64, epilogue=RESIDUAL
    ),
    "depthwise-no-slack": ConvSpec(1, 6, 6, 5, 5, 3, 3, groups=5, input_slack=False),
}


ENCODINGS = {"bf16": BFLOAT16, "f16": FLOAT16}


def rounded(real: np.ndarray, short: str = "bf16") -> np.ndarray:
    """The numbers after rounding to 16 bits, as float32."""
    return ENCODINGS[short].rounded(real)


def bits(real: np.ndarray, short: str = "bf16") -> np.ndarray:
    return ENCODINGS[short].encode(real)["values"].view(NUMPY[short])


def stored(real: np.ndarray, dtype: str | None, short: str = "bf16") -> np.ndarray:
    """An operand in memory: as it is (f32), or in 16 bits."""
    return real if dtype == "f32" else bits(real, short)


def in_short(spec, short: str):
    """A layer of bfloat16 as one of other 16-bit floats."""
    swap = {"bf16": short}
    epilogue = spec.epilogue
    epilogue = replace(
        epilogue,
        out=swap.get(epilogue.out, epilogue.out),
        residual=swap.get(epilogue.residual, epilogue.residual),
    )
    return replace(spec, in_dtype=short, epilogue=epilogue)


def check(got: np.ndarray, want: np.ndarray, room: np.ndarray | float = 2e-5) -> None:
    """Sums in float32; a result of 16 bits is rounded once more, by 2^-8 or 2^-11 of itself.

    ``room``: of the sums.
    """
    assert len(np.unique(want)) > 5
    step = {np.dtype(np.uint16): 2**-8, np.dtype(np.float16): 2**-11}.get(got.dtype, 0.0)
    real = got.view(BFLOAT16.stored.numpy) if got.dtype == np.uint16 else got
    error = np.abs(real.astype(np.float64) - want)
    assert (error <= (step + 1e-5) * np.abs(want) + room).all(), error.max()


class Case:
    """Random data for a layer, its plan and its exact result."""

    def __init__(
        self, spec: ConvSpec, isa, seed: int = 0, plan=conv2d, short: str = "bf16"
    ) -> None:
        rng = np.random.default_rng(seed)
        spec = in_short(spec, short)
        x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
        w = rng.standard_normal((spec.oc, spec.c // spec.groups, spec.kh, spec.kw))
        w = (w / np.sqrt(w[0].size)).astype(np.float32)
        bias = rng.standard_normal(spec.oc).astype(np.float32)
        acc = conv_accumulators(rounded(x, short), rounded(w, short), spec)
        self.magnitudes = conv_accumulators(abs(rounded(x, short)), abs(rounded(w, short)), spec)
        self.inputs, residual = [stored(x, spec.stored, short)], None
        kind = spec.epilogue.residual
        if kind is not None:
            residual = rounded(rng.standard_normal(acc.shape).astype(np.float32), short)
            self.inputs.append(stored(residual, kind, short))
        self.want = finish(acc, spec.epilogue, bias, residual=residual)
        self.plan = plan(spec, isa, bits(w, short), bias)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])
        self.slack = ARENA_SLACK if spec.input_slack else 0


@pytest.fixture(scope="module", params=isa_params(*UNITS))
def table(request):
    """All cases planned for one ISA and compiled together."""
    cases = cases_on(request.param)
    return cases, Runner([case.plan for case in cases.values()], request.param)


def cases_on(isa, short: str = "bf16") -> dict[str, Case]:
    cases = {name: Case(spec, isa, short=short) for name, spec in CASES.items()}
    for name, spec in DEPTHWISE.items():
        epilogue = spec.epilogue if spec.epilogue != Epilogue() else CLAMPED
        spec = replace(spec, epilogue=epilogue)
        cases[name] = Case(spec, isa, plan=depthwise, short=short)
    return cases


@pytest.mark.parametrize("name", [*CASES, *DEPTHWISE])
def test_against_float64(table, name):
    cases, runner = table
    case = cases[name]
    check(runner.run(case.plan, case.inputs, case.out, slack=case.slack), case.want)


@pytest.mark.parametrize("name", [*CASES, *DEPTHWISE])
def test_items_touch_what_their_footprint_says(table, name):
    cases, runner = table
    check_footprints(runner, cases[name].plan, cases[name].inputs, cases[name].out)


@pytest.mark.parametrize("name", ["wide", "stem-f32-input", "linear-m5", "depthwise-strided"])
def test_any_split_gives_the_same_bytes(table, name):
    cases, runner = table
    case = cases[name]
    whole = runner.run(case.plan, case.inputs, case.out)
    for cuts in (2, 5, 16):
        assert runner.run(case.plan, case.inputs, case.out, cuts).tobytes() == whole.tobytes()


def test_nan_stays_in_the_windows_that_see_it(table):
    """What lies behind a run is multiplied by nothing: 0 * NaN would be NaN."""
    cases, runner = table
    for name in ("uneven", "stem-f32-input", "grouped-small", "depthwise-odd"):
        case, spec = cases[name], {**CASES, **DEPTHWISE}[name]
        x = case.inputs[0].copy()
        x[0, 2, 3] = np.nan if x.dtype == np.float32 else 0x7FC1
        clean = runner.run(case.plan, case.inputs, case.out)
        got = runner.run(case.plan, [x, *case.inputs[1:]], case.out)
        reached = np.zeros((spec.n, spec.h, spec.w, 1), np.float32)
        reached[0, 2, 3] = 1
        ones = np.ones((1, 1, spec.kh, spec.kw), np.float32)
        probe = replace(spec, c=1, oc=1, groups=1, in_dtype="f32")
        untouched = conv_accumulators(reached, ones, probe)[..., 0] == 0
        assert 0 < untouched.sum() < untouched.size
        np.testing.assert_array_equal(got[untouched], clean[untouched])


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512bf16", "amx"))
@pytest.mark.parametrize("channels", [8, 10])
def test_transposed(isa, channels):
    spec = ConvTransposeSpec(
        2, 5, 6, channels, 12, 3, 4, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0), 2, "bf16"
    )
    spec = replace(spec, epilogue=CLAMPED, stored="f32")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, 6, channels)).astype(np.float32)
    w = (rng.standard_normal((channels, 6, 3, 4)) / 8).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    want = finish(transposed_accumulators(rounded(x), rounded(w), spec), spec.epilogue, bias)
    plan = conv2d_transpose(spec, isa, bits(w), bias, amx=False)
    check(Runner([plan], isa).run(plan, [x], np.zeros(want.shape, np.uint16), 3), want)


PRODUCTS = {
    "even": MatmulSpec(3, 21, 64, 40, "bf16", epilogue=CLAMPED),
    "transposed": MatmulSpec(
        2, 21, 32, 37, "bf16", transpose_b=True, epilogue=CLAMPED, b_slack=False
    ),
    "odd": MatmulSpec(2, 7, 33, 20, "bf16", epilogue=Epilogue("f32")),
    "odd-transposed": MatmulSpec(2, 7, 33, 20, "bf16", transpose_b=True, epilogue=CLAMPED),
    "f32-operands": MatmulSpec(
        2, 5, 48, 21, "bf16", epilogue=CLAMPED, a_stored="f32", b_stored="f32", b_slack=False
    ),
    "bf16-without-slack": MatmulSpec(2, 5, 48, 21, "bf16", epilogue=CLAMPED, b_slack=False),
}


@pytest.mark.parametrize("isa", isa_params(*UNITS))
def test_products_of_activations(isa):
    rng = np.random.default_rng(1)
    made = []
    for spec in PRODUCTS.values():
        a = rng.standard_normal((spec.batch, spec.m, spec.k)).astype(np.float32)
        b = rng.standard_normal((spec.batch, spec.k, spec.n)).astype(np.float32) / 8
        want = np.clip(
            rounded(a).astype(np.float64) @ rounded(b), spec.epilogue.lo, spec.epilogue.hi
        )
        b = np.ascontiguousarray(b.swapaxes(1, 2)) if spec.transpose_b else b
        inputs = [stored(a, spec.a_stored), stored(b, spec.b_stored)]
        made.append((matmul_short(spec, isa), inputs, want, spec))
        assert 0 < matmul_short_cost(spec, isa) < 1e-3
    runner = Runner([plan for plan, *_ in made], isa)
    for plan, inputs, want, spec in made:
        out = np.zeros(want.shape, np.float32 if spec.epilogue.out == "f32" else np.uint16)
        slack = ARENA_SLACK if spec.b_slack else 0
        check(runner.run(plan, inputs, out, 3, slack=slack), want)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512bf16", "amx"))
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape(isa, data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kh, kw, groups = draw(1, 3), draw(1, 4), data.draw(st.sampled_from((1, 1, 3)))
    spec = ConvSpec(
        1, draw(4, 9), draw(4, 20), groups * draw(1, 23), groups * draw(2, 20), kh, kw,
        (draw(1, 2), draw(1, 2)), pads=(draw(0, 1), draw(0, 1), draw(0, 1), draw(0, 1)),
        groups=groups, epilogue=CLAMPED, stored=data.draw(st.sampled_from(("f32", "bf16"))),
    )  # fmt: skip
    case = Case(spec, isa, seed=draw(0, 99))
    check(Runner([case.plan], isa).run(case.plan, case.inputs, case.out, 2), case.want)


def test_steps_never_reach_past_a_run():
    assert [bf16_step(run) for run in (2, 6, 32, 48, 64, 144, 58)] == [2, 6, 32, 24, 32, 24, 2]
    stem = ConvSpec(1, 8, 8, 3, 8, 3, 3, in_dtype="bf16")
    assert spare_channels(stem, AMX, amx=True) == spare_channels(stem, AVX512BF16, amx=False) == 1
    assert spare_channels(replace(stem, c=58, kw=1), AMX, amx=True) == 6
    assert spare_channels(stem, AVX2, amx=True) == 0
    assert spare_channels(replace(stem, in_dtype="f32"), AMX, amx=True) == 0
    for isa in LEVELS.values():
        made = geometry(stem, isa)
        assert made.gemm.run % made.unit.k == 0


def test_only_what_multiplies_bfloat16_needs_its_features():
    assert unit_for(AMX, "bf16", run=64).kind == "amx"
    assert unit_for(AMX, "bf16", run=63).kind == "fma"
    assert "amx_bf16" not in AMX.tile_flags()
    assert "amx_int8" not in AMX.tile_flags(bfloat16=True)
    assert "avx512_bf16" not in AVX512BF16.vector_flags()
    assert "avx512_bf16" in AMX.vector_flags(bfloat16=True)
    assert set(AMX.tile_flags()) < set(AMX.flags)


def test_tiles_are_predicted_faster_than_vectors():
    spec = ConvSpec(1, 28, 28, 128, 128, 3, 3, pads=(1, 1, 1, 1), in_dtype="bf16")
    spec = replace(spec, epilogue=CLAMPED)
    assert conv_cost(spec, AMX) < conv_cost(spec, AMX, amx=False) / 4
