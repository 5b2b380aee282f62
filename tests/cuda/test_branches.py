"""Branches of a network side by side: what orders steps, and that nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlcc
from dlcc.artifact import write_artifact
from dlcc.artifact.check import check_program
from dlcc.errors import DlccError
from dlcc.ir import Graph, TensorType
from dlcc.lowering.order import Touch, dependencies, levels
from dlcc.ops import build
from dlcc.program import Program, Step
from tests.cuda.emulator import Emulator, compiled_for_cpu
from tests.cuda.programs import rows_program, rows_reference, some_rows
from tests.lowering.graphs import conv
from tests.test_end_to_end import check

touches = st.builds(
    lambda memory, begin, size, written: Touch(memory, begin, begin + size, written),
    st.sampled_from("ab"),
    st.integers(0, 12),
    st.integers(0, 6),
    st.booleans(),
)


def _conflict(one: Sequence[Touch], other: Sequence[Touch]) -> bool:
    return any(
        a.memory == b.memory and max(a.begin, b.begin) < min(a.end, b.end)
        for a in one
        for b in other
        if a.written or b.written
    )


@given(st.lists(st.lists(touches, max_size=3), max_size=12))
def test_what_conflicts_is_ordered(steps: list[list[Touch]]) -> None:
    """Two steps are ordered if, and only if, a chain of conflicts leads from one to the other."""
    wanted: list[set[int]] = []
    for number, step in enumerate(steps):
        direct = {other for other in range(number) if _conflict(steps[other], step)}
        wanted.append(direct.union(*(wanted[other] for other in direct)))
    after = dependencies(steps)
    reached: list[set[int]] = []
    for number, edges in enumerate(after):
        assert all(_conflict(steps[edge], steps[number]) for edge in edges)
        rest = set().union(*(reached[edge] for edge in edges))
        assert not rest & set(edges)  # none that others imply
        reached.append(rest | set(edges))
    assert reached == wanted
    assert all(levels(after)[a] > levels(after)[b] for a in range(len(steps)) for b in after[a])


def test_levels() -> None:
    assert levels([(), (0,), (0,), (2,), (1, 3)]) == [1, 2, 2, 3, 4]


def _branches() -> Graph:
    """Four branches of unlike length from one layer, joined."""
    graph = Graph("branches")
    x = graph.add_input("x", TensorType((1, 8, 9, 9)))
    stem = conv(graph, x, 16, loc="stem", kernel=1)
    ends = []
    for branch in range(4):
        value = stem
        for depth in range(branch + 1):
            value = conv(graph, value, 16, loc=f"b{branch}.{depth}", pads=(1, 1, 1, 1))
            value = build(graph, "relu", [value], loc=f"r{branch}.{depth}").output
        ends.append(value)
    graph.set_outputs([build(graph, "concat", ends, {"axis": 1}, loc="join").output], ["y"])
    return graph


@pytest.mark.parametrize("bits", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_branches_run_side_by_side(emulator: Emulator, tmp_path: Path, bits: int) -> None:
    with compiled_for_cpu():
        check(_branches(), tmp_path / "out", bits=bits, target="cuda:sm_80")
    steps = dlcc.load(tmp_path / "out").artifact.manifest["steps"]
    number = {step["layer"]: i for i, step in enumerate(steps)}
    first = [steps[number[f"b{branch}.0"]]["after"] for branch in range(4)]
    assert first == [[number["stem"]]] * 4
    longest = [number[f"b3.{depth}"] for depth in range(4)]
    for before, step in zip(longest[1:], longest, strict=False):
        assert step in steps[before]["after"]  # and those whose memory it takes
    with emulator.reversed(), dlcc.load(tmp_path / "out") as model:
        x = np.ones((1, 8, 9, 9), np.float32)
        one = model(x)
        assert all(np.array_equal(model(x), one) for _ in range(5))


def _without(program: Program, number: int) -> Program:
    """The program without the edges of a step."""
    steps = [replace(s, after=()) if i == number else s for i, s in enumerate(program.steps)
             if isinstance(s, Step)]  # fmt: skip
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_edge_is_seen(emulator: Emulator, tmp_path: Path, number: int) -> None:
    artifact = write_artifact(_without(rows_program(), number), tmp_path / "out")
    with dlcc.load(artifact.folder) as model:
        assert not np.array_equal(model(some_rows()), rows_reference(some_rows()))


def test_edges_lead_forward() -> None:
    program = rows_program()
    steps = (replace(program.steps[0], after=(1,)), *program.steps[1:])
    with pytest.raises(DlccError, match="a step comes after a later one"):
        check_program(replace(program, steps=steps))
