"""Winograd convolution against numpy, on every ISA at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.lowering.target import Target
from targets import get_target
from targets.cpu.levels import AVX2, AVX512, LEVELS
from targets.kernels.conv import conv2d, conv_cost
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.winograd import (
    TILES,
    arrangements,
    refusal,
    shape_of,
    shape_text,
    winograd,
    winograd_cost,
)
from targets.kernels.winograd_code import products_blocking
from targets.kernels.winograd_transform import POINTS, matrices, transform_weights
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import Runner, isa_params

PADS = (1, 1, 1, 1)
RELU6 = Epilogue("f32", 0.0, 6.0)
CASES = {
    "whole-tiles": (ConvSpec(1, 8, 12, 32, 48, 3, 3, pads=PADS, epilogue=RELU6), 0),
    "odd-everything": (ConvSpec(1, 9, 11, 13, 19, 3, 3, pads=(1, 0, 1, 1)), 0),
    "batch2": (ConvSpec(2, 5, 8, 16, 21, 3, 3, pads=(2, 2, 0, 0)), 0),
    "residual": (
        ConvSpec(1, 13, 9, 24, 40, 3, 3, pads=PADS, epilogue=Epilogue("f32", -1.0, residual="f32")),
        0,
    ),
    "one-pixel": (ConvSpec(1, 1, 1, 20, 16, 3, 3, pads=PADS), 0),
    "bands": (ConvSpec(1, 27, 21, 20, 33, 3, 3, pads=PADS, epilogue=RELU6), 5),
    "bands-batch2": (
        ConvSpec(2, 14, 17, 16, 16, 3, 3, pads=PADS, epilogue=Epilogue("f32", residual="f32")),
        14,
    ),
}


class Case:
    """Random data for a layer, its plan and its reference output."""

    def __init__(self, spec: ConvSpec, isa, m: int, band: int) -> None:
        rng = np.random.default_rng(7)
        self.spec = spec
        self.w = rng.standard_normal((spec.oc, spec.c, 3, 3)).astype(np.float32)
        self.w /= np.float32(np.sqrt(9 * spec.c))  # accumulators of about 1
        self.bias = rng.standard_normal(spec.oc).astype(np.float32)
        self.inputs = [rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)]
        acc = conv_accumulators(self.inputs[0], self.w, spec)
        if spec.epilogue.residual:
            self.inputs.append(rng.standard_normal(acc.shape).astype(np.float32))
        residual = self.inputs[1] if spec.epilogue.residual else None
        self.want = finish(acc, spec.epilogue, self.bias, residual=residual)
        self.plan = winograd(spec, isa, self.w, self.bias, shape_of(spec, isa, m, band))
        self.out = np.full(acc.shape, 77, np.float32)

    def check(self, got: np.ndarray) -> None:
        """Within 1e-4 of the largest output by the contract, and in truth within 2e-5."""
        assert np.abs(got - self.want).max() <= 2e-5 * max(np.abs(self.want).max(), 1.0)


def float_spec(spec: ConvSpec) -> ConvSpec:
    return replace(spec, in_dtype="f32", epilogue=replace(spec.epilogue, out="f32"))


@pytest.fixture(scope="module", params=isa_params("sse4", "avx2", "avx512"))
def table(request):
    """All cases planned for one ISA and compiled together (the others have no float code of their
    own)."""
    cases = {
        (name, m): Case(float_spec(spec), request.param, m, band)
        for name, (spec, band) in CASES.items()
        for m in TILES
    }
    return cases, Runner([case.plan for case in cases.values()], request.param)


@pytest.mark.parametrize("m", TILES)
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(table, name, m):
    cases, runner = table
    case = cases[name, m]
    case.check(runner.run(case.plan, case.inputs, case.out, slack=0))


@pytest.mark.parametrize("name", ["odd-everything", "bands", "residual"])
def test_any_split_gives_the_same_bytes(table, name):
    cases, runner = table
    case = cases[name, 4]
    whole = runner.run(case.plan, case.inputs, case.out)
    for cuts in (2, 5):
        assert runner.run(case.plan, case.inputs, case.out, cuts).tobytes() == whole.tobytes()


@st.composite
def layers(draw):
    """3x3 layers of any size, padding and batch."""
    return ConvSpec(
        draw(st.integers(1, 2)),
        draw(st.integers(3, 15)),
        draw(st.integers(3, 20)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        3,
        3,
        pads=tuple(draw(st.integers(0, 1)) for _ in range(4)),
        in_dtype="f32",
        epilogue=Epilogue("f32", draw(st.sampled_from([-np.inf, 0.0]))),
    )


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(spec=layers(), m=st.sampled_from(TILES), band=st.sampled_from([0, 3, 14]))
def test_random_shapes(isa, spec, m, band):
    case = Case(spec, isa, m, band)
    runner = Runner([case.plan], isa)
    case.check(runner.run(case.plan, case.inputs, case.out, 2, slack=0))


@pytest.mark.parametrize("m", POINTS)
@given(data=st.data())
def test_matrices_make_the_minimal_algorithm(m, data):
    """``A^T [(G g) * (B^T d)]`` is the correlation of d with g, exactly."""
    a_t, g, b_t = (np.array(rows, dtype=object) for rows in matrices(m))
    numbers = st.lists(st.integers(-9, 9), min_size=m + 2, max_size=m + 2)
    pixels = np.array(data.draw(numbers), dtype=object)
    taps = np.array(data.draw(numbers)[:3], dtype=object)
    y = a_t @ ((g @ taps) * (b_t @ pixels))
    assert list(y) == [sum(pixels[i + k] * taps[k] for k in range(3)) for i in range(m)]


def test_transformed_weights():
    w = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    made = transform_weights(w, 4)
    assert made.shape == (36, 5, 4)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[0], w[..., 0, 0] / 16, rtol=1e-6)  # G[0] = [1/4, 0, 0]
    np.testing.assert_allclose(made[-1], w[..., 2, 2], rtol=1e-6)  # G[5] = [0, 0, 1]


def test_other_layers_are_refused():
    spec = ConvSpec(1, 8, 8, 16, 16, 3, 3, in_dtype="f32", epilogue=Epilogue())
    assert refusal(spec) == ""
    others = (
        replace(spec, in_dtype="u8"),
        replace(spec, stride=(2, 2)),
        replace(spec, dilation=(1, 2)),
        replace(spec, kw=1),
        replace(spec, groups=4),
    )
    for other in others:
        assert refusal(other)
        with pytest.raises(ValueError, match=refusal(other)):
            winograd(other, AVX2, np.zeros((16, 16, 3, 3)), np.zeros(16))


@pytest.mark.parametrize("isa", LEVELS.values(), ids=LEVELS)
def test_blocking_fits_the_registers(isa):
    for spec, band in CASES.values():
        shape = shape_of(float_spec(spec), isa, 4, band)
        cut, cycles = products_blocking(shape)
        tiles, vectors = max(cut.tiles.sizes), max(cut.channels.sizes)
        assert cycles > 0
        assert (tiles + 1) * vectors + 1 <= isa.registers


def test_cost_prefers_fewer_products_where_weights_are_few():
    big = ConvSpec(1, 56, 56, 64, 64, 3, 3, pads=PADS, in_dtype="f32", epilogue=Epilogue())
    best = arrangements(big, AVX512)[0]
    assert (best.m, best.band > 0) == (4, True)
    assert winograd_cost(big, AVX512) < conv_cost(big, AVX512) / 2
    deep = replace(big, h=7, w=7, c=512, oc=512)
    assert shape_text(arrangements(deep, AVX512)[0]) == "winograd-2x2"  # fewer weights to read
    stem = replace(big, c=1, oc=16)
    assert winograd_cost(stem, AVX512) > conv_cost(stem, AVX512)


def test_a_row_can_be_forbidden():
    target = get_target("cpu:avx2")
    assert isinstance(target, Target)
    fewer = target.without(("winograd",))
    assert {row.name for row in target.rows} - {row.name for row in fewer.rows} == {"winograd"}
    assert fewer.name == target.name


def test_error_is_of_the_order_of_the_direct_sum():
    """256 channels: the error that docs/numerics.md states, beside implicit GEMM's."""
    isa = next(iter(p.values[0] for p in isa_params("avx2")))
    spec = ConvSpec(1, 14, 14, 256, 16, 3, 3, pads=PADS, in_dtype="f32", epilogue=Epilogue())
    case = {m: Case(spec, isa, m, 0) for m in TILES}
    direct = conv2d(spec, isa, case[2].w, case[2].bias)
    runner = Runner([direct, *(c.plan for c in case.values())], isa)
    largest = np.abs(case[2].want).max()
    errors = {
        m: np.abs(runner.run(c.plan, c.inputs, c.out) - c.want).max() / largest
        for m, c in case.items()
    }
    plain = np.abs(runner.run(direct, case[2].inputs, case[2].out) - case[2].want).max() / largest
    assert plain < 2e-6
    assert errors[2] < 3e-6
    assert errors[4] < 2e-5
