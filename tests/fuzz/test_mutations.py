"""Mutated models, graphs and artifacts. ``DLCC_FUZZ_MUTATIONS`` is the number of the slow run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.fuzz import compiled, worker
from tests.fuzz.hostile import kinds, prepared, run
from tests.fuzz.seeds import Corpus

MUTATIONS = int(os.environ.get("DLCC_FUZZ_MUTATIONS", "1000000"))


@pytest.fixture(scope="module")
def narrow() -> Iterator[Corpus]:
    with prepared(wide=False) as seeds:
        yield seeds


def _no_fault(findings: worker.Findings) -> None:
    assert not findings.faults, "\n".join(kinds(findings))


def test_mutated_input_is_refused_or_right(narrow: Corpus) -> None:
    findings = run(narrow, range(480))
    _no_fault(findings)
    told = findings.stages
    assert told.total() == 480
    for stage in ("file", "border", "names", "node"):
        assert told[f"importer: refused, {stage}"] > 10, stage
    assert told["importer: accepted"] > 40
    assert told["importer: accepted, executed"] > 20
    assert told["text: refused, grammar"] > 20
    assert told["manifest: refused"] > 10
    assert told["damage: refused"] > 5


@pytest.mark.slow
def test_much_mutated_input() -> None:
    with prepared(wide=True) as seeds:
        _no_fault(run(seeds, range(10**9, 10**9 + MUTATIONS)))


@pytest.mark.slow
def test_accepted_mutants_are_compiled_right() -> None:
    with prepared(wide=True) as seeds:
        graphs, findings = compiled.run(seeds, 200_000_000, 2)
    assert graphs > 60
    _no_fault(findings)


def _attempt(number: int) -> tuple[str, str]:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        time.sleep(60)
    if number == 7:
        try:
            bytes(worker.MEMORY + (1 << 28))
        except MemoryError:
            return "refused", "out of memory"
    return "accepted", ""


def test_what_kills_or_stops_a_worker_is_told_by_number() -> None:
    findings = worker.run(range(12), _attempt, size=8, seconds=0.3)
    assert sorted(findings.faults) == [3, 5, 7]
    assert "ended by signal SIGKILL" in findings.faults[3]
    assert "longer than 0.3 s" in findings.faults[5]
    assert findings.faults[7] == "out of memory"
