"""Recurrent layers as ONNX: ONNX Runtime computes what the reference computes."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import F32, I32, Graph, TensorType
from dlcc.ops.base import OPS, build
from dlcc.ops.recurrent import Recurrent
from tests.cli.test_onnx_export import by_onnxruntime

UNITS = 3


def layer(name, given, attrs=None, steps=4, batch=2):
    """A layer whose operands in ``given`` are inputs; the others are absent."""
    op = OPS[name]
    assert isinstance(op, Recurrent)
    graph, width = Graph("recurrent"), op.gates * UNITS
    shapes = {
        "recurrent": (width, UNITS), "bias": (UNITS,), "h0": (batch, UNITS), "c0": (batch, UNITS),
        "peephole": (3 * UNITS,), "lengths": (batch,), "products": (1, batch, width),
    }  # fmt: skip
    operands = [graph.add_input("gates", TensorType((steps, batch, width)))]
    for operand in (o.rstrip("?") for o in op.operands[1:]):
        type_ = TensorType(shapes[operand], I32 if operand == "lengths" else F32)
        operands.append(graph.add_input(operand, type_) if operand in given else None)
    made = build(graph, name, operands, attrs, outputs=1 + op.states, loc="layer")
    graph.set_outputs(made.outputs, [f"y{k}" for k in range(len(made.outputs))])
    return graph


def check(graph):
    rng = np.random.default_rng(1)
    feed = {v.name: rng.normal(size=v.type.shape).astype(np.float32) for v in graph.inputs}
    if "lengths" in feed:
        feed["lengths"] = np.array([4, 2], np.int32)
    expected, found = execute(graph, feed), by_onnxruntime(graph, feed)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "given", "attrs"),
    [
        ("lstm", ("recurrent", "h0", "c0", "peephole", "lengths"), {"reverse": True, "clip": 0.5}),
        ("lstm", ("recurrent",), {"activations": ("hard_sigmoid", "elu", "leaky_relu"),
                                  "alpha": (0.3, 0.7, 0.1), "beta": (0.4, 0.0, 0.0)}),
        ("gru", ("recurrent", "bias", "h0"), {"reset_after": True}),
        ("gru", ("recurrent", "lengths"), {"clip": 1.0}),
        ("rnn", ("recurrent", "h0"), {"activations": ("affine",), "alpha": (0.5,), "beta": (0.1,)}),
    ],
)  # fmt: skip
def test_layers(name, given, attrs):
    check(layer(name, given, attrs))


def test_a_single_step_whose_product_is_a_layer():
    check(layer("lstm", ("products", "c0"), steps=1))
    check(layer("rnn", (), steps=1))
    with pytest.raises(DlccError, match="a layer of its own"):
        to_onnx(layer("gru", ("products",), {"reset_after": True}, steps=1))
