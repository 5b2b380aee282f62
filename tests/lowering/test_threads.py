"""Threads per step: what pays alone, and what pays only because of its neighbours."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcc.lowering.threads import (
    FORK_SECONDS,
    PART_SECONDS,
    TRAVEL_BANDWIDTH,
    Work,
    worthwhile_threads,
)

BIG, SMALL = Work(100e-6, 4096), Work(0.1e-6, 4096)


def test_large_steps_take_all_threads_and_small_ones_the_callers():
    assert worthwhile_threads([BIG] * 3, 4) == [0, 0, 0]
    assert worthwhile_threads([SMALL] * 3, 4) == [1, 1, 1]
    assert worthwhile_threads([SMALL, BIG, SMALL], 4) == [1, 0, 1]
    assert worthwhile_threads([], 4) == []


def test_many_threads_are_bounded_by_the_work():
    assert worthwhile_threads([Work(10.5 * PART_SECONDS, 0)], 64) == [10]
    assert worthwhile_threads([Work(1e-3, 0)], 64) == [0]


def test_data_stays_where_it_is_if_moving_it_costs_more_than_the_fork():
    wide = int(20 * FORK_SECONDS * TRAVEL_BANDWIDTH)
    between = Work(FORK_SECONDS / 2, wide)
    assert worthwhile_threads([BIG, between, Work(BIG.seconds, wide)], 2) == [0, 0, 0]
    assert worthwhile_threads([BIG, Work(between.seconds, 0), BIG], 2) == [0, 1, 0]


def test_one_thread_has_no_choice():
    assert worthwhile_threads([BIG, SMALL], 1) == [0, 0]


def total(steps: list[Work], chosen: tuple[int, ...]) -> float:
    """The predicted time of a choice for two threads, by its definition."""
    seconds, before = 0.0, 1
    for step, threads in zip(steps, chosen, strict=True):
        seconds += step.seconds / threads + (FORK_SECONDS if threads > 1 else 0)
        seconds += step.bytes / TRAVEL_BANDWIDTH / 2 if threads != before else 0
        before = threads
    return seconds


@given(
    st.lists(st.builds(Work, st.floats(0, 20e-6), st.integers(0, 200_000)), min_size=1, max_size=7)
)
def test_no_other_choice_is_predicted_to_be_faster(steps):
    chosen = tuple(2 if threads == 0 else threads for threads in worthwhile_threads(steps, 2))
    best = min(total(steps, other) for other in product((1, 2), repeat=len(steps)))
    assert total(steps, chosen) == pytest.approx(best)
