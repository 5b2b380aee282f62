"""Weights and accumulators of the quantise pass: bounds by brute force, rounding, scales."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine
from passes import PassContext, PassManager
from passes.quantization import weights
from passes.quantization.equalise import equalise
from passes.quantization.grids import uniform
from passes.quantization.observe import observe
from passes.quantization.ranges import asymmetric, lattice, on_lattice
from passes.quantization.rounding import Metric, round_weights
from passes.quantization.samples import cut
from passes.quantization.structure import analyse
from passes.quantization.synthetic import noise
from tests.passes.conftest import Net

# -- accumulators ------------------------------------------------------------------------------

small = st.integers(-4, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(small, min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(0, 7),
    st.lists(st.integers(-50, 50), min_size=3, max_size=3),
    st.lists(st.integers(0, 20), min_size=3, max_size=3),
)
def test_accumulator_bound_is_reached_and_never_passed(
    rows: list[list[int]], zero: int, bias: list[int], extra: list[int]
) -> None:
    codes = np.array(rows)
    source = Affine.per_tensor(3, False, 1.0, zero)
    b, e = np.array(bias[: len(rows)]), np.array(extra[: len(rows)])
    bound = weights.accumulator_bound(codes, source, b, e)
    inputs = np.array(list(itertools.product(range(8), repeat=2))) - zero
    sums = inputs @ codes.T + b
    largest = max(np.abs(sums + e).max(), np.abs(sums - e).max())
    assert bound == largest


def test_accumulator_bound_does_not_overflow_itself() -> None:
    codes = np.full((1, 70_000), 127, np.int8)
    source = Affine.per_tensor(8, False, 1.0, 0)
    assert weights.accumulator_bound(codes, source, None, None) == 70_000 * 127 * 255


@pytest.mark.parametrize(("depth", "integer"), [(60_000, True), (80_000, False)])
def test_sums_that_do_not_fit_stay_float(net: Net, depth: int, integer: bool) -> None:
    ones = net.const(np.ones((2, depth), np.float32) * (0.5 if integer else 1.0))
    graph = net.done(net.op("linear", net.input(1, depth), ones, loc="deep"))
    # half of all products is what a bias and a residual leave of the accumulator
    plan = analyse(graph, (), 8, 8)
    if depth * 127 * 255 < 1 << 30:
        assert plan.integer
    else:
        assert "32-bit accumulators" in plan.refused[graph.nodes[0].output.name]


def test_many_small_weights_fit_where_their_number_alone_would_not(net: Net) -> None:
    row = np.full((1, 40_000), 0.01, np.float32)
    row[0, 0] = 1.0
    graph = net.done(net.op("linear", net.input(1, 40_000), net.const(row)))
    assert analyse(graph, (), 8, 8).integer


def test_dead_channel_with_a_large_bias(net: Net) -> None:
    x = net.input(1, 4)
    weight = np.array([[1, 0.377, -0.51234, 2], [0, 0, 0, 0], [1e-9, 0, 0, 0]], np.float32)
    bias = np.array([0.5, -700.0, 9.0], np.float32)
    hidden = net.op("linear", x, net.const(weight), net.const(bias), loc="dead")
    graph = net.done(net.linear(hidden, 2))
    before = graph.copy()
    data = [{"x": net.rng.standard_normal((1, 4)).astype(np.float32)} for _ in range(16)]
    context = PassContext(calibration=lambda: iter(data))
    result = PassManager("quantize").run(graph, context)
    for feed in data:
        (want,), (got,) = (execute(g, feed).values() for g in (before, graph))
        np.testing.assert_allclose(got, want, rtol=0.02, atol=4.0)
    assert any("enlarged" in r.message for r in result.remarks if r.loc == "dead")


def test_a_residual_that_overflows_the_accumulator_is_an_error(net: Net) -> None:
    a, b = net.input(1, 4, 8, name="a"), net.input(1, 8, 4, name="b")
    residual = net.input(1, 4, 4, name="r")
    product = net.op("matmul", a, b, residual, loc="tiny product")
    graph = net.done(net.linear(product, 2))
    feed = {
        v.name: net.rng.standard_normal(v.type.shape).astype(np.float32) * scale
        for v, scale in zip(graph.inputs, np.float32([1e-4, 1e-4, 100.0]), strict=True)
    }
    with pytest.raises(DlccError) as caught:
        PassManager("quantize").run(graph, PassContext(calibration=lambda: iter([feed])))
    assert caught.value.code is ExitCode.PASS
    assert caught.value.where == "tiny product"
    assert "exclude=[tiny product]" in caught.value.fix


# -- rounding ----------------------------------------------------------------------------------


def _layer(seed: int, outputs: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((depth, depth))
    x = rng.standard_normal((4000, depth)) @ mixing
    x -= x.mean(axis=0)
    return rng.standard_normal((outputs, depth)), x


def _rounded(
    w: np.ndarray, scales: np.ndarray, second: np.ndarray, bits: int, how: Any = "gptq"
) -> np.ndarray:
    """Codes at fixed scales."""
    groups = len(second)
    shape = (groups, len(w) // groups, -1)
    grid = uniform(scales.reshape(shape), bits, w.shape[1])
    found = round_weights(w.reshape(shape), grid, Metric.of(second), how, refit=False)
    return found.codes.reshape(w.shape)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_with_data_beats_nearest_on_the_output(seed: int) -> None:
    w, x = _layer(seed, 12, 100)
    scales = np.abs(w).max(axis=1) / 7
    covariance = (x.T @ x / len(x))[None]
    near = _rounded(w, scales, covariance, 4, "nearest")
    adaptive = _rounded(w, scales, covariance, 4)
    assert np.abs(adaptive).max() <= 7
    assert (adaptive == np.rint(adaptive)).all()

    def error(codes: np.ndarray) -> float:
        return float(np.square(x @ (codes * scales[:, None] - w).T).mean())

    assert error(adaptive) < 0.6 * error(near)


def test_rounding_works_group_by_group() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((6, 9))
    scales = np.abs(w).max(axis=1) / 127
    x = rng.standard_normal((6, 500, 9)) * rng.uniform(0.1, 2, (6, 1, 9))
    second = x.transpose(0, 2, 1) @ x / 500
    together = _rounded(w, scales, second, 8)
    for g in range(6):
        alone = _rounded(w[g : g + 1], scales[g : g + 1], second[g : g + 1], 8)
        np.testing.assert_array_equal(together[g], alone[0])


def test_rounding_takes_a_singular_covariance() -> None:
    w = np.random.default_rng(6).standard_normal((3, 8))
    scales = np.abs(w).max(axis=1) / 127
    zero = np.zeros((1, 8, 8))
    codes = _rounded(w, scales, zero, 8)
    np.testing.assert_array_equal(codes, _rounded(w, scales, zero, 8, "nearest"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 6, 8]))
def test_codes_stay_in_range_and_within_half_a_step(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((4, 7)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    result = weights.quantise_weight(w, bits, np.zeros(4), None)
    assert np.abs(result.codes.astype(int)).max() <= (1 << (bits - 1)) - 1
    assert (np.abs(result.real - w) <= 0.5001 * result.scales[:, None]).all()


def test_weights_that_were_quantised_before_lose_nothing() -> None:
    codes = np.random.default_rng(7).integers(-100, 101, (8, 30))
    w = (codes * 0.0173).astype(np.float32)
    result = weights.quantise_weight(w, 8, np.zeros(8), None)
    assert result.exact
    np.testing.assert_array_equal(result.codes, codes)


# -- encodings ---------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e6, 0, allow_subnormal=False),
    st.floats(0, 1e6, allow_subnormal=False),
    st.sampled_from([4, 8]),
)
def test_asymmetric_encodings(low: float, high: float, bits: int) -> None:
    encoding = asymmetric(low, high, bits)
    assert 0.0 in encoding.dequantise(np.array([encoding.zero_point]))
    if low == 0.0:
        assert encoding.zero_point == 0
    bottom, top = encoding.real_range
    assert bottom <= low + 0.51 * encoding.scale
    assert top >= high - 0.51 * encoding.scale
    if high - low > 1e-20:
        assert encoding.scale <= (high - low) / ((1 << bits) - 1) * 1.001


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e3), st.lists(st.integers(-100, 120), min_size=3, max_size=50))
def test_lattices_are_found_and_hold_every_value(step: float, codes: list[int]) -> None:
    points = np.array([0, 1, *codes])
    values = (points * np.float64(step)).astype(np.float32)
    found = lattice(values, 256)
    assert found == pytest.approx(step, rel=1e-4)
    encoding = on_lattice(found, float(values.min()), float(values.max()), 8)
    assert encoding is not None
    error = np.abs(encoding.dequantise(encoding.quantise(values)) - values)
    assert error.max() <= 1e-3 * step


def test_no_lattice_in_random_numbers() -> None:
    assert lattice(np.random.default_rng(8).standard_normal(100), 256) is None


# -- equalisation, synthetic inputs ------------------------------------------------------------


def test_equalisation_keeps_the_function_and_levels_the_ranges(net: Net) -> None:
    x = net.input(1, 3, 10, 10)
    a = net.op("clip", net.conv(x, 6), min=0.0)
    weight = a.producer.input(0).producer.input(1)  # type: ignore[union-attr]
    uneven = weight.decoded() * np.array([1, 30, 0.05, 4, 0.5, 9]).reshape(-1, 1, 1, 1)
    a.producer.input(0).producer.set_input(1, net.const(uneven))  # type: ignore[union-attr]
    d = net.op("clip", net.conv(a, 6, groups=6), min=0.0)
    graph = net.done(net.conv(d, 4, 1))
    PassManager("fuse-epilogues").run(graph)
    before = graph.copy()
    plan = analyse(graph, (), 8, 8)
    feed = {"x": net.rng.standard_normal((8, 3, 10, 10)).astype(np.float32)}
    samples = cut(graph, feed, 8)
    seen = observe(samples, set(), lambda _: None)
    assert equalise(graph, plan, seen) == 2
    one = {"x": feed["x"][:1]}
    (want,), (got,) = (execute(g, one).values() for g in (before, graph))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())

    def spread(g: object) -> float:
        many = rebatched(g, 8)  # type: ignore[arg-type]
        assert many is not None
        peaks = observe(cut(g, feed, 8), set(), lambda _: None)  # type: ignore[arg-type]
        high = peaks.channels[graph.nodes[0].output.name].high
        return float(high.max() / high.min())

    assert spread(graph) < spread(before) / 4


def test_clamps_at_a_finite_value_are_not_equalised(net: Net) -> None:
    x = net.input(1, 3, 10, 10)
    a = net.op("clip", net.conv(x, 6), min=0.0, max=6.0)
    graph = net.done(net.conv(a, 6, groups=6))
    PassManager("fuse-epilogues").run(graph)
    feed = {"x": net.rng.standard_normal((4, 3, 10, 10)).astype(np.float32)}
    seen = observe(cut(graph, feed, 4), set(), lambda _: None)
    assert equalise(graph, analyse(graph, (), 8, 8), seen) == 0


def test_image_noise_has_a_falling_spectrum() -> None:
    x = noise((4, 3, 32, 32), np.random.default_rng(9))
    power = np.abs(np.fft.rfft2(x)) ** 2
    assert power[..., 1:3, 1:3].mean() > 20 * power[..., 12:16, 12:16].mean()
    assert x.std() == pytest.approx(1.0)
