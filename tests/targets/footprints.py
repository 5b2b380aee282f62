"""Checks that a kernel's footprint tells the truth: each work item alone, on ruined memory."""

from __future__ import annotations

import numpy as np

from dlcc.lowering.kernel import KernelPlan
from tests.targets.running import ARENA_SLACK, Runner

MARK = 0x5A


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def check_footprints(
    runner: Runner, plan: KernelPlan, inputs: list[np.ndarray], output: np.ndarray
) -> None:
    """Every step of ``plan``, item by item.

    An item sees random bytes outside the spans it says it reads, must leave alone what is outside
    the spans it says it writes, and all items together must make what the whole step makes.
    """
    rng = np.random.default_rng(0)
    for step, arrays in runner.memory(plan, inputs, output, ARENA_SLACK):
        assert step.footprint is not None
        footprint = step.footprint()
        for at in footprint.writes:
            _bytes(arrays[at])[:] = MARK
        runner.library.call(step.name_key, arrays, 0, step.work_items)
        whole = {at: _bytes(arrays[at]).copy() for at in footprint.writes}
        merged = {at: np.full_like(made, MARK) for at, made in whole.items()}
        sources = {at: _bytes(arrays[at]).copy() for at in footprint.reads}
        for spans in (*footprint.reads.values(), *footprint.writes.values()):
            assert spans.shape == (step.work_items, 2)
        for item in range(step.work_items):
            for at, spans in footprint.reads.items():
                low, high = spans[item]
                ruined = rng.integers(0, 256, sources[at].size, dtype=np.uint8)
                ruined[low:high] = sources[at][low:high]
                _bytes(arrays[at])[:] = ruined
            for at in whole:
                _bytes(arrays[at])[:] = MARK
            runner.library.call(step.name_key, arrays, item, item + 1)
            for at, spans in footprint.writes.items():
                low, high = spans[item]
                made = _bytes(arrays[at])
                assert (made[:low] == MARK).all(), f"item {item} writes below its span"
                assert (made[high:] == MARK).all(), f"item {item} writes above its span"
                np.copyto(merged[at], made, where=made != MARK)
        for at, saved in (sources | whole).items():
            _bytes(arrays[at])[:] = saved
        for at, made in whole.items():
            assert np.array_equal(merged[at], made), "the items do not add up to the step"
