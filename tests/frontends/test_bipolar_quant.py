"""QONNX's BipolarQuant: weights become binary constants, activations are packed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlcc
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.ir import Binary
from passes import PassContext, PassManager


def model(tmp_path, scales: np.ndarray, domain: str, x_scale: float = 0.5):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[0, 0, 0, 0] = 0
    arrays = {"w": weight, "sw": scales, "sx": np.float32(x_scale)}
    nodes = [
        helper.make_node("BipolarQuant", ["w", "sw"], ["wq"], "wq", domain=domain),
        helper.make_node("BipolarQuant", ["x", "sx"], ["xq"], "xq", domain=domain),
        helper.make_node("Conv", ["xq", "wq"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "bipolar",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 5, 5])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    path = tmp_path / "bipolar.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path, weight


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_and_activations(tmp_path, domain, per_channel):
    scales = np.full((6, 1, 1, 1), 0.25, np.float32) if per_channel else np.float32(0.25)
    path, weight = model(tmp_path, scales, domain)
    graph = dlcc.load_graph(str(path))
    layer = next(n for n in graph.nodes if n.op == "conv2d")
    assert isinstance(layer.input(1).type.encoding, Binary)
    np.testing.assert_array_equal(layer.input(1).decoded(), np.where(weight >= 0, 0.25, -0.25))
    x = np.round(np.random.default_rng(1).standard_normal((1, 4, 5, 5)), 1).astype(np.float32)
    before = execute(graph, {"x": x})["y"]
    result = PassManager("binarize-activations").run(graph, PassContext())
    assert result.records[0].statistics["layers"] == 1
    assert [n.op for n in graph.nodes] == ["quantize", "conv2d"]
    np.testing.assert_array_equal(execute(graph, {"x": x})["y"], before)


@pytest.mark.parametrize(
    ("scales", "x_scale", "why"),
    [
        (np.float32(0), 0.5, "must be positive"),
        (np.float32(1), -1.0, "must be positive"),
        (np.ones((1, 4, 1, 1), np.float32), 0.5, "scales of shape"),
    ],
)
def test_other_scales_are_refused(tmp_path, scales, x_scale, why):
    path, _ = model(tmp_path, scales, "qonnx.custom_op.general", x_scale)
    with pytest.raises(DlccError, match=why):
        dlcc.load_graph(str(path))
