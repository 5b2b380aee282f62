"""Bounds on accumulators: brute force, attainment, and the closed forms of the literature."""

from __future__ import annotations

from itertools import combinations, product
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.accumulators import (
    Bounds,
    Overflow,
    of_ranges,
    of_results,
    of_weights,
    signed_bits,
    widest,
)


def code_range(bits: int, signed: bool) -> Bounds:
    return (
        Bounds(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else Bounds(0, (1 << bits) - 1)
    )


def numbers(bounds: Bounds) -> range:
    return range(bounds.low, bounds.high + 1)


def subset_sums(terms: list[int]) -> list[int]:
    sizes = range(len(terms) + 1)
    return [sum(chosen) for size in sizes for chosen in combinations(terms, size)]


WIDTHS = [
    (k, bw, sw, bx, sx)
    for k in (1, 2, 3)
    for bw, sw, bx, sx in product((1, 2, 3), (True, False), (1, 2, 3), (True, False))
    if (1 << (bw * k)) * (1 << (bx * k)) <= 1 << 12
]


@pytest.mark.parametrize(("k", "bw", "sw", "bx", "sx"), WIDTHS)
def test_of_ranges_by_brute_force(k: int, bw: int, sw: bool, bx: int, sx: bool) -> None:
    weights, data = code_range(bw, sw), code_range(bx, sx)
    sums, partial = set(), set()
    for ws in product(numbers(weights), repeat=k):
        for xs in product(numbers(data), repeat=k):
            terms = [w * x for w, x in zip(ws, xs, strict=True)]
            sums.add(sum(terms))
            partial.update(subset_sums(terms))
    assert of_ranges(k, weights, data) == Bounds(min(sums), max(sums))
    assert of_ranges(k, weights, data, Overflow.SATURATE) == Bounds(min(partial), max(partial))


@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    st.integers(-3, 3),
    st.integers(0, 4),
    st.integers(-20, 20),
)
@settings(max_examples=150, deadline=None)
def test_of_weights_by_brute_force(row: list[int], low: int, span: int, offset: int) -> None:
    data = Bounds(low, low + span)
    sums, partial = set(), set()
    for xs in product(numbers(data), repeat=len(row)):
        terms = [w * x for w, x in zip(row, xs, strict=True)]
        sums.add(sum(terms) + offset)
        partial.update(s + offset for s in subset_sums(terms))
    codes, start = np.array([row]), np.array([offset])
    assert of_weights(codes, data, start).all == Bounds(min(sums), max(sums))
    saturating = of_weights(codes, data, start, Overflow.SATURATE).all
    assert saturating == Bounds(min(partial), max(partial))


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 1 << 40))
def test_bits_are_the_fewest(low: int, span: int) -> None:
    bounds = Bounds(low, low + span)
    assert bounds.fits(bounds.bits)
    assert -(1 << (bounds.bits - 1)) <= bounds.low
    assert bounds.high < 1 << (bounds.bits - 1)
    if bounds.bits > 1:
        assert not bounds.fits(bounds.bits - 1)


def test_signed_bits() -> None:
    assert [signed_bits(v) for v in (0, -1, 1, -2, 2, 127, -128, 128)] == [1, 1, 2, 2, 3, 8, 8, 9]
    assert Bounds(0, 255).unsigned_bits == 8
    with pytest.raises(ValueError, match="unsigned"):
        _ = Bounds(-1, 3).unsigned_bits
    with pytest.raises(ValueError, match="above"):
        Bounds(1, 0)


def phi(alpha: float) -> float:
    return log2(1 + 2.0**-alpha)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("k", [1, 3, 16, 27, 64, 576, 4608])
def test_never_wider_than_the_closed_forms(k: int, signed: bool) -> None:
    """Colbert, Pappalardo and Petri-Koenig 2023 (A2Q), equations 8 to 13."""
    rng = np.random.default_rng(k)
    for bw, bx in product(range(2, 9), range(1, 9)):
        data = code_range(bx, signed)
        alpha = log2(k) + bx + bw - 1 - signed
        by_type = ceil(alpha + phi(alpha) + 1)
        weights = code_range(bw, True)
        for overflow in Overflow:
            assert of_ranges(k, weights, data, overflow).bits <= by_type
        codes = rng.integers(weights.low, weights.high + 1, (3, k))
        codes[:, 0] = weights.high  # no row of zeros, which has no logarithm
        for row in codes:
            beta = log2(np.abs(row).sum()) + bx - signed
            by_norm = ceil(beta + phi(beta) + 1)
            for overflow in Overflow:
                found = of_weights(row[None], data, overflow=overflow).all.bits
                assert found <= by_norm
                assert found <= of_ranges(k, weights, data, overflow).bits


def test_of_results_keeps_zero_and_rounds_outwards() -> None:
    assert of_results(5, 10, 0.25) == Bounds(0, 13)
    assert of_results(-10, -5, 0.25) == Bounds(-13, 0)
    assert of_results(-7, 9, 0.0) == Bounds(-7, 9)
    assert of_results(0, 1 << 60, 0.5) == Bounds(0, 3 << 59)
    with pytest.raises(ValueError, match="margin"):
        of_results(0, 1, -0.1)


def test_sums_beyond_64_bits_are_refused() -> None:
    codes = np.full((1, 4), 1 << 40)
    with pytest.raises(ValueError, match="64 bits"):
        of_weights(codes, Bounds(0, 1 << 30))
    with pytest.raises(ValueError, match=r"\[O, K\]"):
        of_weights(np.zeros(3, np.int64), Bounds(0, 1))
    with pytest.raises(ValueError, match="-1 terms"):
        of_ranges(-1, Bounds(0, 1), Bounds(0, 1))


def test_no_weights_need_one_bit() -> None:
    assert of_weights(np.zeros((0, 5), np.int8), Bounds(0, 255)).all == Bounds(0, 0)
    assert of_weights(np.zeros((2, 0), np.int8), Bounds(0, 255)).all.bits == 1


def test_widest_pairs() -> None:
    pairs = [(8, 2), (7, 3), (7, 2), (4, 6), (4, 4), (2, 6)]
    assert widest(pairs) == [(8, 2), (7, 3), (4, 6)]
