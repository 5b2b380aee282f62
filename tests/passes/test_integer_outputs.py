"""Outputs that are made of codes become integers."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ops.base import build
from passes import PassContext, PassManager

CODES = Affine(8, False, (0.05,), (17,))


def pooled_image() -> Graph:
    graph = Graph("image")
    x = graph.add_input("x", TensorType((1, 3, 4, 6)))
    codes = build(graph, "quantize", [x], types=[x.type.with_(encoding=CODES)], loc="q").output
    pooled = build(graph, "max_pool2d", [codes], {"kernel": (2, 2)}, loc="pool").output
    graph.set_outputs([build(graph, "dequantize", [pooled], loc="real").output], ["y"])
    return graph


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_the_codes_stand_for_the_same_numbers(nhwc, signed):
    before, after = pooled_image(), pooled_image()
    options = f"nhwc={str(nhwc).lower()} signed={str(signed).lower()}"
    result = PassManager(f"integer-outputs{{{options}}}").run(after)
    assert "dequantize" not in [node.op for node in after.nodes]
    encoding = after.outputs[0].type.affine
    assert (encoding.zero_point, encoding.signed) == ((-111, True) if signed else (17, False))
    assert f"(code - {encoding.zero_point})" in str(result.records[-1].remarks[0])
    real = np.random.default_rng(0).normal(0, 4, size=(1, 3, 4, 6)).astype(np.float32)
    codes = dlcc.execute(after, {"x": real})["y"]
    assert codes.dtype == (np.int8 if signed else np.uint8)
    if nhwc:
        codes = codes.transpose(0, 3, 1, 2)
    expected = dlcc.execute(before, {"x": real})["y"]
    np.testing.assert_array_equal(encoding.dequantise(codes), expected)


def test_what_is_not_made_of_codes_of_its_own_stays():
    graph = pooled_image()
    (real,) = graph.outputs
    assert real.producer is not None
    codes = real.producer.input(0)
    again = build(graph, "dequantize", [codes], loc="again").output
    relu = build(graph, "relu", [real], loc="relu").output
    graph.set_outputs([real, again, relu], ["y", "again", "relu"])
    result = PassManager("integer-outputs").run(graph)
    told = [str(remark) for remark in result.records[-1].remarks]
    assert "gives codes" in told[0]
    assert "another output" in told[1]
    assert "not made of codes" in told[2]
    assert [v.type.is_dense for v in graph.outputs] == [False, True, True]
    assert [n.op for n in graph.nodes].count("dequantize") == 2


@pytest.mark.parametrize("last", ["linear", "softmax"])
def test_results_become_codes_on_request(net, last):
    x = net.input(1, 4, 5, 5)
    y = net.linear(net.op("reshape", net.conv(x, 3), shape=(1, 27)), 6)
    plain = net.done(net.op("softmax", y) if last == "softmax" else y)
    coded = plain.copy()
    rng = np.random.default_rng(0)
    feeds = [{x.name: rng.normal(size=(1, 4, 5, 5)).astype("f4")} for _ in range(8)]
    context = PassContext(calibration=lambda: iter(feeds))
    PassManager("quantize").run(plain, context)
    assert plain.outputs[0].type.is_dense
    PassManager("quantize{outputs=true},integer-outputs").run(coded, context)
    encoding = coded.outputs[0].type.affine
    assert coded.nodes[-1].op == last
    (name,) = coded.output_names
    # softmax of codes of logits is as coarse as these are
    steps = 1.5 if last == "linear" else 30
    for feed in feeds:
        real = encoding.dequantise(dlcc.execute(coded, feed)[name])
        close = dlcc.execute(plain, feed)[name]
        np.testing.assert_allclose(real, close, atol=steps * encoding.scale)
