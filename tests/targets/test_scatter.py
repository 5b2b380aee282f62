"""Scatters by one pass over the updates, against the references."""

from __future__ import annotations

import numpy as np

import dlcc
from dlcc.ir import I64, DType, Graph, TensorType
from dlcc.ops import build
from targets.cpu.levels import LEVELS
from targets.rows.default import DefaultRow
from targets.rows.scatter import ScatterRow


def _graph() -> tuple[Graph, dict[str, np.ndarray]]:
    """Every reduction of both ops; indices repeat, count from the end, and lie in any order."""
    rng = np.random.default_rng(0)
    graph, feeds, outputs = Graph("scatters"), {}, []

    def given(name: str, array: np.ndarray):
        feeds[name] = array
        return graph.add_input(name, TensorType(array.shape, DType.of(array)))

    lines = given("lines", rng.integers(-5, 5, (3, 7, 2)))
    rows = given("rows", rng.integers(-4, 4, (6, 2)).astype(np.int32))
    for kind in (np.float32, np.int32):
        x = given(f"x_{kind.__name__}", (rng.normal(size=(4, 5, 3)) * 9).astype(kind))
        y = given(f"y_{kind.__name__}", (rng.normal(size=(4, 5, 3)) * 9).astype(kind))
        updates = given(f"u_{kind.__name__}", (rng.normal(size=(3, 7, 2)) * 9).astype(kind))
        runs = given(f"r_{kind.__name__}", (rng.normal(size=(6, 3)) * 9).astype(kind))
        for reduction in ("none", "add", "mul", "min", "max"):
            attrs = {"reduction": reduction}
            operands = [x, lines, updates]
            made = build(graph, "scatter_elements", operands, {"axis": 1, **attrs}, loc="lines")
            outputs.append(made.output)
            outputs.append(build(graph, "scatter_nd", [y, rows, runs], attrs, loc="rows").output)
    graph.set_outputs(outputs)
    return graph, feeds


def test_scatters_are_those_of_the_references(tmp_path):
    graph, feeds = _graph()
    dlcc.compile(graph, tmp_path, bits=32)
    got = dlcc.load(tmp_path).run(feeds)
    for name, wanted in dlcc.execute(graph, feeds).items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-6, err_msg=name)


def test_many_updates_are_not_looked_at_by_every_place():
    graph = Graph("g")
    x, updates = (graph.add_input(n, TensorType((s,))) for n, s in (("x", 4000), ("u", 1000)))
    indices = graph.add_input("i", TensorType((1000, 1), I64))
    node = build(graph, "scatter_nd", [x, indices, updates], loc="scatter")
    isa = LEVELS["avx2"]
    row, default = ScatterRow(isa), DefaultRow(isa)
    assert not row.refuses(node)
    assert row.cost(node) < default.cost(node) / 100
