"""Signed activations become unsigned without a change of any real number."""

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.ir import I8, Affine, Graph, TensorType
from dlcc.lowering.lower import prepare
from dlcc.lowering.unsigned import unsigned_twin
from dlcc.ops import build
from tests.lowering.graphs import affine, conv, typed


def test_twin_holds_the_same_reals():
    signed = affine(0.5, -3, signed=True)
    codes = np.arange(-128, 128)
    twin = unsigned_twin(signed)
    assert not twin.signed
    assert np.array_equal(signed.dequantise(codes), twin.dequantise(codes + 128))


def test_a_signed_network_gives_the_same_results():
    graph = Graph("s8")
    x = graph.add_input("x", typed((1, 3, 6, 6)))
    inner = affine(0.04, -5, signed=True)
    q = build(graph, "quantize", [x], loc="q", types=[typed((1, 3, 6, 6), inner)]).output
    y = conv(graph, q, 4, out=affine(0.2, 3, signed=True), loc="c")
    back = build(graph, "dequantize", [y], loc="dq").output
    graph.set_outputs([back], ["y"])
    ready = prepare(graph)
    assert not any(
        isinstance(v.type.encoding, Affine) and v.type.encoding.signed
        for node in ready.nodes
        for v in node.outputs
    )
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    assert np.array_equal(execute(graph, feed)["y"], execute(ready, feed)["y"])


def test_the_callers_types_stay():
    graph = Graph("border")
    signed = affine(0.04, -5, signed=True)
    x = graph.add_input("x", typed((1, 3, 6, 6), signed))
    y = conv(graph, x, 4, out=affine(0.2, 3, signed=True), loc="c")
    graph.set_outputs([y], ["y"])
    ready = prepare(graph)
    assert ready.inputs[0].type.storage == I8
    assert ready.outputs[0].type.storage == I8
    feed = {"x": np.random.default_rng(0).integers(-128, 128, (1, 3, 6, 6)).astype(np.int8)}
    assert np.array_equal(execute(graph, feed)["y"], execute(ready, feed)["y"])


def test_reinterpreted_codes_are_not_shifted():
    graph = Graph("raw")
    x = graph.add_input("x", TensorType((1, 3, 6, 6), I8))
    signed = typed((1, 3, 6, 6), affine(0.04, -5, signed=True))
    codes = build(graph, "reinterpret", [x], loc="r", types=[signed]).output
    y = conv(graph, codes, 4, out=affine(0.2, 3, signed=True), loc="c")
    real = build(graph, "dequantize", [y], loc="dq").output
    graph.set_outputs([real], ["y"])
    feed = {"x": np.random.default_rng(0).integers(-128, 128, (1, 3, 6, 6)).astype(np.int8)}
    assert np.array_equal(execute(graph, feed)["y"], execute(prepare(graph), feed)["y"])
