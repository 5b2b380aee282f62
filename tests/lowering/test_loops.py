"""Random loops in loops: layouts, hoisting and the memory plan against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.frontends.fold import remove_dead
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import BOOL, I32, Graph, TensorType, Value
from dlcc.lowering.loops import Trips, hold_over, trips_of
from dlcc.lowering.lower import prepare
from dlcc.lowering.memory import Span
from dlcc.ops.base import build
from tests.frontends.models import runtime
from tests.portable.source import Network

ROW = TensorType((5,), I32)
DEEPEST = 2


def number(graph: Graph, value: int) -> Value:
    return graph.add_constant(np.asarray(value, np.int32))


def grow(graph: Graph, rng: np.random.Generator, pool: list[Value], count: int, depth: int) -> None:
    """Nodes over any values so far: arithmetic, views, constants, and loops."""
    for _ in range(count):
        kind = int(rng.integers(0, 7))
        a, b = (pool[i] for i in rng.integers(0, len(pool), 2))
        if kind == 0 and depth < DEEPEST:
            pool += turning(graph, rng, pool, depth + 1)
        elif kind == 1:
            column = build(graph, "reshape", [a], {"shape": (5, 1)}).output
            pool.append(build(graph, "reshape", [column], {"shape": (5,)}).output)
        elif kind == 2:
            known = graph.add_constant(rng.integers(-5, 5, 5).astype(np.int32))
            pool.append(build(graph, "add", [a, known]).output)
        else:
            op = ("add", "sub", "maximum", "minimum")[kind % 4]
            pool.append(build(graph, op, [a, b]).output)


def turning(graph: Graph, rng: np.random.Generator, pool: list[Value], depth: int) -> list[Value]:
    """A loop of up to 4 trips; what it carries may be any values of its body, twice or swapped."""
    body, carried, fixed = Graph("body"), int(rng.integers(1, 4)), int(rng.integers(0, 4))
    left = body.add_input("left", TensorType((), I32))
    given = [body.add_input(f"v{k}", ROW) for k in range(carried + fixed)]
    made = [*given, body.add_constant(np.arange(5, dtype=np.int32))]
    grow(body, rng, made, int(rng.integers(1, 7)), depth)
    fewer = build(body, "sub", [left, number(body, 1)]).output
    again = build(body, "less", [number(body, 0), fewer]).output
    body.set_outputs([again, fewer, *(made[i] for i in rng.integers(0, len(made), carried))],
                     [f"o{k}" for k in range(2 + carried)])  # fmt: skip
    remove_dead(body)
    trips = int(rng.integers(0, 5))
    first = graph.add_constant(np.asarray(True))
    if trips == 0 or rng.integers(0, 2):
        first = build(graph, "less", [number(graph, 0), number(graph, trips)]).output
    chosen = [pool[i] for i in rng.integers(0, len(pool), carried + fixed)]
    operands = [first, number(graph, trips), *chosen]
    return build(graph, "loop", operands, {"body": body}, outputs=1 + carried).outputs[1:]


def random_loops(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    graph = Graph("loops")
    pool = [graph.add_input(f"x{k}", ROW) for k in range(3)]
    grow(graph, rng, pool, int(rng.integers(2, 10)), 0)
    pool += turning(graph, rng, pool, 1)
    grow(graph, rng, pool, int(rng.integers(0, 6)), 1)
    outputs = [*(pool[i] for i in rng.integers(0, len(pool), 3)), pool[-1]]
    graph.set_outputs(outputs, [f"y{k}" for k in range(4)])
    verify(graph)
    return graph


@pytest.mark.parametrize(
    "seed", [*range(3, 8), *(pytest.param(k, marks=pytest.mark.slow) for k in range(8, 160))]
)
def test_random_loops(seed: int, tmp_path: Path) -> None:
    """On one thread, on two, and as C source."""
    graph, rng = random_loops(seed), np.random.default_rng(seed)
    as_source = seed % 4 == 3
    options = {"target": "c"} if as_source else {"threads": 1 + seed % 2}
    artifact = dlcc.compile(graph, tmp_path, bits=32, name="loops", **options).artifact
    run = Network(artifact) if as_source else dlcc.load(tmp_path).run
    for _ in range(2):
        feed = {v.name: rng.integers(-9, 9, 5).astype(np.int32) for v in graph.inputs}
        got = run(feed)
        for name, want in execute(graph, feed).items():
            np.testing.assert_array_equal(got[name], want)


def test_loops_are_exported() -> None:
    """To Loop, in loops too; read again they give the same numbers, and so does ONNX Runtime."""
    for seed in range(3, 9):
        graph, rng = random_loops(seed), np.random.default_rng(seed)
        model = to_onnx(graph)
        onnx.checker.check_model(model, full_check=True)
        again = import_onnx(model)
        feed = {v.name: rng.integers(-9, 9, 5).astype(np.int32) for v in graph.inputs}
        wanted, found = execute(graph, feed), execute(again, feed)
        for (name, want), by_peer in zip(wanted.items(), runtime(model, feed), strict=True):
            np.testing.assert_array_equal(found[name], want)
            np.testing.assert_array_equal(by_peer, want)


def test_what_is_the_same_in_every_trip_is_computed_before_them() -> None:
    body = Graph("body")
    left, x = body.add_input("left", ROW), body.add_input("x", ROW)
    double = build(body, "add", [x, x], loc="fixed").output
    body.set_outputs(
        [body.add_constant(np.asarray(True)), build(body, "sub", [left, double]).output],
        ["again", "left"],
    )
    graph = Graph("net")
    x, go = graph.add_input("x", ROW), graph.add_input("go", TensorType((), BOOL))
    node = build(graph, "loop", [go, x, x], {"body": body}, loc="loop")
    graph.set_outputs([node.output])
    ready = prepare(graph)
    order = [n.op for n in ready.nodes]
    assert order.index("add") < order.index("loop_enter") < order.index("sub")
    marks = [n for n in ready.nodes if n.op.startswith("loop_")]
    assert trips_of([None, marks[0], None, marks[1]]) == [Trips(2, 3)]
    assert Trips(2, 3).jumps == ((1, 4, False), (3, 2, True))


def test_values_from_before_a_loop_live_until_after_it() -> None:
    within, before, beyond = Span(1, 4, 5), Span(1, 1, 4), Span(1, 1, 9)
    hold_over([(3, 6)], [within, before, beyond])
    assert [(s.first, s.last) for s in (within, before, beyond)] == [(4, 5), (1, 7), (1, 9)]
