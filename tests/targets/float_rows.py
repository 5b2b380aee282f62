"""Float layers of one row by compressed weights: a kernel row's plan against numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dlcc.ir import Graph, Node, Value
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from dlcc.ops import build
from targets.isa import Isa
from tests.lowering.graphs import typed
from tests.targets.running import Runner

FLOAT_ULPS = 8
"""Bound of a sum: so many ulps of the sum of |activations| times the layer's largest |weight|."""


def float_layer(graph: Graph, w: Value, rng: np.random.Generator, *, residual: bool) -> Graph:
    """``graph``, which holds the weight [n, k], as a float layer of one row with a bias."""
    n, k = w.type.shape
    x = graph.add_input("x", typed((1, k)))
    b = graph.add_constant(rng.standard_normal(n).astype(np.float32), name="b")
    more = [graph.add_input("r", typed((1, n)))] if residual else []
    node = build(graph, "linear", [x, w, b, *more], {"act_min": -30.0}, loc="layer")
    graph.set_outputs([node.output], ["y"])
    return graph


def compare(
    node: Node, plan: KernelPlan, runner: Runner, cuts: int, *, tight: bool = False
) -> None:
    """A plan's result within the bound of sums in any order.

    ``tight``: of the sum of |products|, for kernels that form each by itself.
    """
    inputs, out = arrays_of(node)
    check_result(node, inputs, runner.run(plan, inputs, out, cuts, 0), tight=tight)


def arrays_of(node: Node) -> tuple[list[np.ndarray], np.ndarray]:
    """Seeded inputs, and what the output holds before."""
    n, k = node.input(1).type.shape
    rng = np.random.default_rng(n)
    inputs = [rng.standard_normal((1, k)).astype(np.float32)]
    if len(node.inputs) > 3:
        inputs.append(rng.standard_normal((1, n)).astype(np.float32))
    return inputs, np.full((1, n), 77, np.float32)


def check_result(
    node: Node, inputs: list[np.ndarray], got: np.ndarray, *, tight: bool = False
) -> None:
    """:func:`compare` of a result that is there."""
    n, k = node.input(1).type.shape
    w, b = node.input(1).decoded().astype(np.float64), node.input(2).decoded()
    extra = inputs[1] if len(inputs) > 1 else 0
    want = np.maximum(inputs[0] @ w.T + b + extra, -30)
    largest = np.abs(w).max() * getattr(node.input(1).type.encoding, "stages", 1)
    products = np.abs(inputs[0]) @ np.abs(w).T if tight else np.abs(inputs[0]).sum() * largest
    size = products + np.abs(b) + np.abs(extra)
    error = np.abs(got - want)
    assert np.all(error <= FLOAT_ULPS * np.finfo(np.float32).eps * size), (
        node.input(1).type.encoding,
        k,
        n,
    )


def check_row(row: KernelRow, nodes: Iterable[Node], isa: Isa, *, tight: bool = False) -> None:
    """The row serves all of the layers, and computes them in one part and in three."""
    cases = []
    for node in nodes:
        assert row.serves(node)
        assert not row.refuses(node), node.input(1).type.encoding
        assert row.cost(node) > 0
        cases.append((node, row.plan(node)))
    runner = Runner([plan for _, plan in cases], isa)
    jobs = [(plan, *arrays_of(node)) for node, plan in cases]
    for cuts in (1, 3):
        made = runner.run_all(jobs, cuts, 0)
        for (node, _), (_, inputs, _), got in zip(cases, jobs, made, strict=True):
            check_result(node, inputs, got, tight=tight)
