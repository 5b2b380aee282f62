"""The streaming statistic against exact numpy on all data at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.statistics import BINS, MOMENTUM, TensorStatistic
from dlcc.errors import DlccError, ExitCode
from dlcc.ir.encodings import Array


def fed(*batches: Array) -> TensorStatistic:
    statistic = TensorStatistic("t")
    for batch in batches:
        statistic.update(batch)
    return statistic


# numbers that would underflow when divided by the bin width belong to the bins beside 0 either way
finite = st.floats(-(2.0**40), 2.0**40, width=32).map(lambda v: v if abs(v) > 2.0**-60 else 0.0)
batches = st.lists(st.lists(finite, min_size=1, max_size=30), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(batches)
def test_streaming_equals_all_at_once(parts: list[list[float]]) -> None:
    arrays = [np.array(p, np.float32) for p in parts]
    everything = np.concatenate(arrays)
    statistic = fed(*arrays)
    assert statistic.count == everything.size
    assert statistic.zeros == np.count_nonzero(everything == 0)
    assert (statistic.minimum, statistic.maximum) == (everything.min(), everything.max())
    assert statistic.histogram.sum() + statistic.zeros == everything.size
    assert statistic.histogram.shape == (BINS,)
    mean = everything.mean(dtype=np.float64)
    np.testing.assert_allclose(statistic.mean, mean, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(batches)
def test_histogram_is_numpys_on_its_own_bins(parts: list[list[float]]) -> None:
    arrays = [np.array(p, np.float32) for p in parts]
    statistic = fed(*arrays)
    everything = np.concatenate(arrays).astype(np.float64)
    nonzero = everything[everything != 0]
    if not nonzero.size:
        return
    # bins are aligned to a power of two: merging pairs never moves a border
    index = np.floor(nonzero / statistic.width).astype(np.int64) - statistic.first
    expected = np.bincount(index, minlength=BINS)
    np.testing.assert_array_equal(statistic.histogram, expected)


def test_at_least_half_the_bins_cover_the_range() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.0, 1.0), (-3.0, 7.0), (-1e-4, 0.0), (0.0, 1e6)):
        statistic = fed(rng.uniform(low, high, 5000).astype(np.float32))
        assert (high - low) / statistic.width > BINS / 2 * 0.9


def test_memory_does_not_grow_with_the_range() -> None:
    statistic = TensorStatistic("t")
    for power in range(-30, 60):
        statistic.update(np.array([2.0**power, -(2.0**power) / 3], np.float32))
    assert statistic.histogram.nbytes == BINS * 8
    assert statistic.with_zero() == (-(np.float32(2.0**59 / 3)), 2.0**59)


def test_moving_average() -> None:
    statistic = fed(np.array([-1.0, 2.0]), np.array([-3.0, 1.0]))
    low, high = statistic.moving_average_range()
    assert low == pytest.approx(MOMENTUM * -1 + (1 - MOMENTUM) * -3)
    assert high == pytest.approx(MOMENTUM * 2 + (1 - MOMENTUM) * 1)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_numpys_to_one_bin(percentile: float) -> None:
    x = np.random.default_rng(1).standard_normal(100_000)
    statistic = fed(x[:40_000], x[40_000:])
    low, high = statistic.percentile_range(percentile)
    tail = (100 - percentile) / 2
    exact_low, exact_high = np.percentile(x, [tail, 100 - tail])
    assert abs(low - exact_low) <= 2 * statistic.width
    assert abs(high - exact_high) <= 2 * statistic.width


def test_percentile_of_one_sided_data_cuts_one_side() -> None:
    x = np.abs(np.random.default_rng(2).standard_normal(50_000))
    statistic = fed(x)
    low, high = statistic.percentile_range(99.0)
    assert low == 0.0
    assert abs(high - np.percentile(x, 99.0)) <= 2 * statistic.width


@pytest.mark.parametrize("norm", [2.0, 4.0])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu"])
def test_error_range_is_as_good_as_a_search_on_the_data(name: str, norm: float) -> None:
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.standard_normal(20_000),
        "laplace": rng.laplace(size=20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0),
    }[name]
    statistic = fed(x)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 15
        zero = round(-low / scale)
        codes = np.clip(np.rint(x / scale) + zero, 0, 15)
        return float((np.abs((codes - zero) * scale - x) ** norm).mean())

    found = error(*statistic.error_range(16, norm))
    exact_low, exact_high = statistic.with_zero()
    fractions = np.linspace(0.25, 1, 24)
    lows = fractions * exact_low if exact_low < 0 else [0.0]
    best = min(error(a, b) for a in lows for b in fractions * exact_high)
    assert found <= best * 1.05
    assert found < error(exact_low, exact_high)


def test_entropy_range_cuts_outliers_and_keeps_the_body() -> None:
    rng = np.random.default_rng(4)
    x = np.append(rng.standard_normal(200_000), [40.0])
    low, high = fed(x).entropy_range(256)
    assert -6 < low < -1.5
    assert 3 < high < 20


def test_ranges_hold_zero() -> None:
    statistic = fed(np.array([5.0, 6.0, 7.0]))
    for low, high in (
        statistic.with_zero(),
        statistic.moving_average_range(),
        statistic.percentile_range(99.0),
        statistic.error_range(256),
        statistic.entropy_range(256),
    ):
        assert low <= 0.0 <= high


@pytest.mark.parametrize("values", [[], [0.0, 0.0]])
def test_nothing_but_zeros(values: list[float]) -> None:
    statistic = fed(np.array(values, np.float32))
    assert statistic.with_zero() == (0.0, 0.0)
    assert statistic.error_range(256) == (0.0, 0.0)
    assert statistic.entropy_range(256) == (0.0, 0.0)
    assert statistic.percentile_range(99.0) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_no_range_holds(bad: float) -> None:
    with pytest.raises(DlccError) as caught:
        fed(np.array([1.0, bad], np.float32))
    assert caught.value.code is ExitCode.DATA
    assert caught.value.where == "t"
