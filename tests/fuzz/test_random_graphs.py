"""Random graphs, compiled at 32 and 8 bits. ``DLCC_FUZZ_GRAPHS`` is the number of the slow run."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

from tests.fuzz.check import check, difference
from tests.fuzz.graphs import random_model

BATCH = 50
NIGHTLY = int(os.environ.get("DLCC_FUZZ_GRAPHS", "10000"))


def _no_mismatch(first: int, count: int, bits: int, *, small: bool = False) -> Counter[str]:
    found, wrong = Counter[str](), {}
    for start in range(first, first + count, BATCH):
        findings = check(range(start, min(start + BATCH, first + count)), bits, small=small)
        found += findings.count
        wrong |= findings.wrong
    assert not wrong, "\n".join(f"{seed}: {why}" for seed, why in sorted(wrong.items()))
    assert found["graphs"] == count
    return found


@pytest.mark.parametrize(("bits", "whole", "small"), [(32, 30, 190), (8, 10, 70)])
def test_random_graphs(bits: int, whole: int, small: int) -> None:
    """300 graphs, most of them of 2 or 3 nodes: kernels are what compiling takes its time for."""
    first = 0 if bits == 32 else 100_000
    found = _no_mismatch(first, whole, bits)
    found += _no_mismatch(first + 50_000, small, bits, small=True)
    assert found["exact"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
def test_many_random_graphs(bits: int) -> None:
    _no_mismatch(1_000_000 if bits == 32 else 2_000_000, NIGHTLY // 2, bits)


def test_the_generator_reaches_the_op_set() -> None:
    samples = [random_model(seed) for seed in range(300)]
    ops = {n.op_type for s in samples for n in s.model.graph.node}
    assert len(ops) > 150
    assert {m.version for s in samples for m in s.model.opset_import} == set(range(7, 29))
    assert {len(s.model.graph.output) for s in samples} >= {1, 2, 3, 4}
    again = random_model(7)
    assert again.model.SerializeToString() == samples[7].model.SerializeToString()


def test_differences_are_seen() -> None:
    want = np.array([1, -2, np.inf, np.nan], np.float32)
    assert difference(want.copy(), want) == ""
    assert difference(want + np.float32(1e-4), want) == ""
    assert "differs by" in difference(want + np.float32(3e-4), want)
    assert "instead of" in difference(want + np.float32(1e-4), want, 0.0)
    assert difference(np.zeros(4, np.float32), want)
    assert difference(np.array([3]), np.array([4])) == "3 instead of 4 at (0,), 1 differ"
