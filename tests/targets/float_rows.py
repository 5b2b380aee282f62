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
    n, k = node.input(1).type.shape
    rng = np.random.default_rng(n)
    inputs = [rng.standard_normal((1, k)).astype(np.float32)]
    if len(node.inputs) > 3:
        inputs.append(rng.standard_normal((1, n)).astype(np.float32))
    w, b = node.input(1).decoded().astype(np.float64), node.input(2).decoded()
    extra = inputs[1] if len(inputs) > 1 else 0
    want = np.maximum(inputs[0] @ w.T + b + extra, -30)
    largest = np.abs(w).max() * getattr(node.input(1).type.encoding, "stages", 1)
    products = np.abs(inputs[0]) @ np.abs(w).T if tight else np.abs(inputs[0]).sum() * largest
    size = products + np.abs(b) + np.abs(extra)
    got = runner.run(plan, inputs, np.full((1, n), 77, np.float32), cuts, 0)
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
    for node, plan in cases:
        for cuts in (1, 3):
            compare(node, plan, runner, cuts, tight=tight)
