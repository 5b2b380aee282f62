"""Inputs that are quantised at once become integers; results stay the same."""

from __future__ import annotations

import numpy as np

import dlcc
from dlcc.ir import Affine, Graph, TensorType
from dlcc.lowering.lower import lower
from dlcc.ops.base import build
from passes import PassManager
from targets import get_target

CODES = Affine(8, False, (0.05,), (17,))


def quantised_image() -> Graph:
    graph = Graph("image")
    x = graph.add_input("x", TensorType((1, 3, 4, 5)))
    codes = build(graph, "quantize", [x], types=[x.type.with_(encoding=CODES)], loc="q").output
    pooled = build(graph, "max_pool2d", [codes], {"kernel": (2, 2)}, loc="pool").output
    graph.set_outputs([build(graph, "dequantize", [pooled], loc="real").output], ["y"])
    return graph


def test_codes_with_channels_last_give_the_same_result():
    before, after = quantised_image(), quantised_image()
    result = PassManager("integer-inputs{nhwc=true}").run(after)
    assert [node.op for node in after.nodes] == ["transpose", "max_pool2d", "dequantize"]
    assert after.inputs[0].type.shape == (1, 4, 5, 3)
    assert "real = 0.050000001 * (code - 17)" in str(result.records[-1].remarks[0])
    real = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    codes = CODES.quantise(real).transpose(0, 2, 3, 1)
    expected = dlcc.execute(before, {"x": real})["y"]
    np.testing.assert_array_equal(dlcc.execute(after, {"x": codes})["y"], expected)


def test_an_image_with_channels_last_is_not_moved():
    graph = quantised_image()
    PassManager("integer-inputs{nhwc=true}").run(graph)
    program = lower(graph, get_target("cortex-m4"), lambda _functions, _target: b"")
    assert [step.layer for step in program.steps] == ["pool", "real"]
    assert program.inputs[0].dtype == "uint8"


def test_what_is_not_only_quantised_stays():
    graph = quantised_image()
    (x,) = graph.inputs
    graph.set_outputs([*graph.outputs, build(graph, "relu", [x], loc="relu").output])
    result = PassManager("integer-inputs").run(graph)
    assert "not only quantised" in str(result.records[-1].remarks[0])
    assert graph.inputs[0].type.is_dense
