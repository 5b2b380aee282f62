"""ONNX's own test cases of single nodes, compiled and run: hundreds of them in one library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

import dlcc
from dlcc.errors import DlccError
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from tests.onnx_backend.cases import DIFFERENT, Case, node_cases
from tests.onnx_backend.merge import merged

BATCHES = 40
"""The default run compiles the first of them; each holds every 40th case."""

_BATCH = [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, BATCHES))]


@cache
def _imported(batch: int) -> list[tuple[Case, Graph, dict[str, Array]]]:
    found = []
    for case in list(node_cases().values())[batch::BATCHES]:
        try:
            found.append((case, *case.imported()))
        except DlccError:
            continue  # test_reference.py looks at what is refused, and why
    return found


def _compiled(
    cases: Sequence[tuple[Case, Graph, dict[str, Array]]], folder: Path, target: str
) -> tuple[dict[str, Array], dict[str, str]]:
    """The outputs of all cases by name and place, and the errors of those that no kernel serves."""
    graphs, refused = {case.name: graph for case, graph, _ in cases}, {}
    while True:
        try:
            dlcc.compile(merged(graphs), folder, bits=32, threads=1, target=target)
        except DlccError as error:
            name = error.where.split("/")[0]
            if name not in graphs:
                raise
            refused[name] = str(error)
            del graphs[name]
            continue
        feeds = {f"{c.name}.{k}": a for c, _, fed in cases for k, a in fed.items()}
        return dlcc.load(folder).run({k: feeds[k] for k in _inputs(graphs)}), refused


def _inputs(graphs: Mapping[str, Graph]) -> list[str]:
    return [f"{name}.{v.name}" for name, graph in graphs.items() for v in graph.inputs]


def wrong_cases(batch: int, folder: Path, target: str = "cpu") -> list[str]:
    """The cases of a batch that are refused or give other numbers, and why."""
    cases = _imported(batch)
    assert len(cases) > 30
    results, refused = _compiled(cases, folder, target)
    wrong = [f"{n}: {e}" for n, e in refused.items()]
    for case, graph, _ in cases:
        if case.name in refused or case.name in DIFFERENT:
            continue
        why = case.difference(
            {name: results[f"{case.name}.{k}"] for k, name in enumerate(graph.output_names)}
        )
        if why:
            wrong.append(f"{case.name}: {why}")
    return wrong


@pytest.mark.parametrize("batch", _BATCH)
def test_compiled_cases_give_the_standards_numbers(batch: int, tmp_path: Path) -> None:
    wrong = wrong_cases(batch, tmp_path / "all")
    assert not wrong, "\n".join(wrong)
