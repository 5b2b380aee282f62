"""fold-constants, eliminate-dead-code, eliminate-common-subexpressions."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcc.ir import Affine
from dlcc.ops import build


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_constant_operands_are_computed(net: Any, golden: Any) -> None:
    w = net.op("transpose", net.random(4, 3), perm=(1, 0), loc="t")
    w = net.op("mul", w, net.const(2.0), loc="m")
    golden(net.done(net.op("linear", net.input(2, 4), w, loc="fc")), "fold-constants")


def test_results_that_grow_are_refused(net: Any, run: Any) -> None:
    big = net.op("expand", net.const([1.0]), shape=(100,), loc="big")
    graph = net.done(net.op("add", net.input(100), big))
    result = run(graph, "fold-constants{growth=100}")
    assert not result.modified
    assert "396 bytes more" in result.remarks[0].message
    assert run(graph, "fold-constants{growth=396}").modified
    assert ops(graph) == ["add"]


def test_folding_does_not_undo_compression(net: Any, run: Any) -> None:
    values = np.ones((4, 3), np.float32)
    w = net.graph.add_constant(values, encoding=Affine.symmetric(8, np.float32([0.1]), None))
    dense = w.type.with_(encoding=net.input(1).type.encoding)
    real = build(net.graph, "dequantize", [w], types=[dense], loc="dq").output
    graph = net.done(net.op("linear", net.input(2, 3, name="z"), real))
    result = run(graph, "fold-constants")
    assert not result.modified
    assert "stored as affine" in result.remarks[0].message


def test_integer_constants_fold_to_codes(net: Any, run: Any) -> None:
    encoding = Affine.per_tensor(8, True, 0.5, 0)
    w = net.graph.add_constant(np.float32([[1, 2, 3]]), encoding=encoding)
    moved = build(net.graph, "reshape", [w], {"shape": (3,)}, types=[w.type.with_(shape=(3,))])
    graph = net.done(moved.output)
    run(graph, "fold-constants")
    assert ops(graph) == []
    assert graph.outputs[0].type.encoding == encoding
    np.testing.assert_array_equal(graph.outputs[0].decoded(), np.float32([1, 2, 3]))


def test_unused_nodes_vanish_with_what_only_they_need(net: Any, golden: Any) -> None:
    x = net.input(2, 3)
    net.op("exp", net.op("add", x, net.random(3), loc="a"), loc="b")
    golden(net.done(net.op("neg", x, loc="c")), "eliminate-dead-code")


def test_equal_nodes_are_computed_once(net: Any, golden: Any) -> None:
    x, y = net.input(2, 3), net.input(2, 3, name="z")
    a = net.op("exp", net.op("add", x, y, loc="a1"), loc="e1")
    b = net.op("exp", net.op("add", y, x, loc="a2"), loc="e2")
    golden(net.done(net.op("sub", a, b, loc="s")), "eliminate-common-subexpressions")


def test_nodes_that_differ_stay(net: Any, run: Any) -> None:
    x, y = net.input(2, 3), net.input(2, 3, name="z")
    values = [
        net.op("sub", x, y),
        net.op("sub", y, x),
        net.op("clip", x, min=0.0),
        net.op("clip", x, min=1.0),
        net.op("clip", x, max=1.0),
    ]
    graph = net.done(*values)
    assert not run(graph, "eliminate-common-subexpressions").modified


def test_a_repeated_output_stays_an_output_of_its_name(net: Any, run: Any) -> None:
    x = net.input(2)
    graph = net.done(net.op("exp", x), net.op("exp", x))
    run(graph, "eliminate-common-subexpressions")
    assert ops(graph) == ["exp"]
    assert graph.output_names == ["y0", "y1"]
