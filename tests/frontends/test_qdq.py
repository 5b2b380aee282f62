"""QDQ models: whole networks quantised by ONNX Runtime, and the shapes NNCF and Brevitas write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Affine, Graph
from tests.frontends.models import model, ops, runtime, tensor

F = np.float32


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (rng(seed).normal(size=shape) * scale).astype(F)


def network() -> onnx.ModelProto:
    """Convolutions (plain, depthwise, 1x1), residual, pools, concat, flatten, two dense layers."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        make("Relu", ["c0"], ["r0"], name="relu0"),
        make("MaxPool", ["r0"], ["p0"], name="pool0", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p0", "w1", "b1"], ["c1"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        make("Clip", ["c1", "zero", "six"], ["r1"], name="relu6"),
        make("Conv", ["r1", "w2"], ["c2"], name="pointwise"),
        make("Add", ["c2", "p0"], ["a"], name="residual"),
        make("Relu", ["a"], ["r2"], name="relu2"),
        make("Concat", ["r2", "p0"], ["k"], name="concat", axis=1),
        make("GlobalAveragePool", ["k"], ["g"], name="mean"),
        make("Flatten", ["g"], ["f"], name="flatten"),
        make("Gemm", ["f", "w3", "b3"], ["h"], name="dense", transB=1),
        make("Sigmoid", ["h"], ["s"], name="sigmoid"),
        make("MatMul", ["s", "w4"], ["y"], name="logits"),
    ]
    constants = {
        "w0": floats(8, 3, 3, 3, seed=1, scale=0.3), "b0": floats(8, seed=2, scale=0.2),
        "w1": floats(8, 1, 3, 3, seed=3, scale=0.4), "b1": floats(8, seed=4, scale=0.2),
        "w2": floats(8, 8, 1, 1, seed=5, scale=0.4), "zero": np.asarray(0, F),
        "six": np.asarray(6, F), "w3": floats(12, 16, seed=6, scale=0.4),
        "b3": floats(12, seed=7, scale=0.2), "w4": floats(12, 5, seed=8, scale=0.6),
    }  # fmt: skip
    return model(nodes, [tensor("x", (1, 3, 12, 12))], [tensor("y", (1, 5))], constants)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter([{"x": floats(1, 3, 12, 12, seed=s)} for s in range(12)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qdq") / "float.onnx"
    onnx.save(network(), path)
    return path


def quantised(source: Path, name: str, **options: Any) -> str:
    """The network quantised by ONNX Runtime."""
    logging.getLogger().setLevel(logging.ERROR)
    path = source.with_name(f"{name}.onnx")
    quantize_static(source, path, Reader(), **options)
    return str(path)


def compare(graph: Graph, path: str, step: float, steps: float = 1.0) -> float:
    """Largest difference from ONNX Runtime over some inputs, at most ``steps`` output codes.

    Returns the share of exactly equal outputs.
    """
    same: list[np.ndarray] = []
    for seed in range(100, 120):
        x = floats(1, 3, 12, 12, seed=seed)
        (want,) = runtime(path, {"x": x})
        (got,) = execute(graph, {"x": x}).values()
        assert np.abs(got - want).max() <= steps * step + 1e-6
        same.append(np.abs(got - want) <= step / 100)
    return float(np.mean(same))


def output_step(path: str) -> float:
    """Scale of the last QuantizeLinear or DequantizeLinear: one output code."""
    proto = onnx.load(path)
    known = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    last = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"][-1]
    return float(known[last.input[1]].max())


CHOICES = {
    "u8s8_per_channel": {"per_channel": True},
    "u8s8": {},
    "s8s8": {"activation_type": QuantType.QInt8},
    "qoperator": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "s8_qoperator": {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QInt8},
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_network_becomes_integer_and_keeps_its_numbers(source, name):
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    path = quantised(source, name, **{**options, **CHOICES[name]})
    remarks: list[str] = []
    graph = import_onnx(path, remarks=remarks)
    assert not remarks
    verify(graph)
    dense = [n.op for n in graph.nodes if n.output.type.is_dense and n.output.type.rank]
    assert dense == ["dequantize"]  # only the way out of the network
    assert ops(graph).count("quantize") == 1
    assert not {"relu", "clip"} & set(ops(graph))
    for node in graph.nodes:
        for value in node.outputs:
            encoding = value.type.encoding
            assert not isinstance(encoding, Affine) or not encoding.signed
    # one code of the output, and of what flows into the last layer
    assert compare(graph, path, output_step(path), steps=2.0) > 0.8


def test_asymmetric_weights_stay_float_and_exact(source):
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
    path = quantised(source, "u8u8", **options)
    remarks: list[str] = []
    graph = import_onnx(path, remarks=remarks)
    assert any("conv0" in r and "zero points" in r for r in remarks)
    verify(graph)
    assert all(n.output.type.is_dense for n in graph.nodes if n.op in ("conv2d", "linear"))
    assert compare(graph, path, output_step(path), steps=2.0) > 0.9


def test_dynamic_quantisation_keeps_its_numbers(source):
    path = source.with_name("dynamic.onnx")
    quantize_dynamic(source, path, op_types_to_quantize=["MatMul", "Gemm"])
    graph = import_onnx(path)
    verify(graph)
    x = floats(1, 3, 12, 12, seed=5)
    (got,) = execute(graph, {"x": x}).values()
    np.testing.assert_allclose(got, runtime(str(path), {"x": x})[0], rtol=1e-4, atol=1e-4)


# -- single shapes -----------------------------------------------------------------------------


def qdq(name: str, value: str, scale: str, zero: str, **attrs: Any) -> list[onnx.NodeProto]:
    """``value`` -> QuantizeLinear -> DequantizeLinear -> ``name``."""
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [f"{name}_q"], **attrs),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [name], **attrs),
    ]


def imported(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int], constants: Mapping[str, np.ndarray],
    **more: Any,
) -> tuple[Graph, onnx.ModelProto]:  # fmt: skip
    proto = model(nodes, [tensor("x", shape)], ["y"], constants, **more)
    graph = import_onnx(proto)
    verify(graph)
    return graph, proto


def agree(graph: Graph, proto: onnx.ModelProto, x: np.ndarray, step: float) -> None:
    (got,) = execute(graph, {"x": x}).values()
    (want,) = runtime(proto, {"x": x})
    assert np.abs(got - want).max() <= step * 1.01
    assert (np.abs(got - want) < step / 100).mean() > 0.97


SCALES = {
    "sx": np.asarray(0.03, F), "zx": np.asarray(120, np.uint8), "sy": np.asarray(0.07, F),
    "zy": np.asarray(90, np.uint8),
}  # fmt: skip


def test_nncf_quantises_float_weights_in_the_graph():
    scales = np.linspace(0.01, 0.02, 4).astype(F)
    constants = {**SCALES, "w": floats(4, 3, 3, 3), "sw": scales, "zw": np.zeros(4, np.int8)}
    constants["b"] = floats(4, seed=3)
    nodes = [
        *qdq("xd", "x", "sx", "zx"),
        *qdq("wd", "w", "sw", "zw", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        *qdq("y", "r", "sy", "zy"),
    ]
    graph, proto = imported(nodes, (1, 3, 8, 8), constants)
    assert ops(graph) == ["quantize", "conv2d", "dequantize"]
    (layer,) = [n for n in graph.nodes if n.op == "conv2d"]
    assert layer.attrs["act_min"] == 0.0
    assert layer.input(1).stored().dtype == np.int8
    assert layer.input(2).type.affine.bits == 32
    agree(graph, proto, floats(1, 3, 8, 8, seed=4), 0.07)


def test_brevitas_clips_the_codes_of_low_bit_widths():
    """QCDQ: 4-bit weights and activations as clipped 8-bit codes, the weight transposed."""
    constants = {
        "sx": np.asarray(0.3, F), "zx": np.asarray(0, np.uint8), "w": floats(5, 6),
        "sw": np.asarray(0.2, F), "zw": np.asarray(0, np.int8), "sy": np.asarray(0.25, F),
        "zy": np.asarray(0, np.int8), "low": np.asarray(-7, np.int8),
        "high": np.asarray(7, np.int8), "none": np.asarray(0, np.uint8),
        "most": np.asarray(15, np.uint8),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        make("Clip", ["xq", "none", "most"], ["xc"], name="clip_x"),
        make("DequantizeLinear", ["xc", "sx", "zx"], ["xd"]),
        make("QuantizeLinear", ["w", "sw", "zw"], ["wq"]),
        make("Clip", ["wq", "low", "high"], ["wc"], name="clip_w"),
        make("DequantizeLinear", ["wc", "sw", "zw"], ["wd"]),
        make("Transpose", ["wd"], ["wt"], perm=[1, 0], name="transpose"),
        make("MatMul", ["xd", "wt"], ["m"], name="matmul"),
        make("QuantizeLinear", ["m", "sy", "zy"], ["yq"]),
        make("Clip", ["yq", "low", "high"], ["yc"], name="clip_y"),
        make("DequantizeLinear", ["yc", "sy", "zy"], ["y"]),
    ]
    graph, proto = imported(nodes, (3, 6), constants)
    assert ops(graph) == ["clip", "quantize", "linear", "dequantize"]
    clip, _, layer, _ = graph.nodes
    assert (clip.attrs["min"], clip.attrs["max"]) == (0.0, pytest.approx(15 * 0.3))
    assert np.abs(layer.input(1).stored()).max() <= 7
    assert layer.attrs["act_min"] == pytest.approx(-7 * 0.25)
    assert layer.attrs["act_max"] == pytest.approx(7 * 0.25)
    x = np.abs(floats(3, 6, seed=1)) * 3
    x[0] = 100.0  # beyond the 4-bit range
    agree(graph, proto, x, 0.25)


def test_movement_between_quantize_and_layer_works_on_codes():
    constants = {**SCALES, "w": rng().integers(-127, 128, (4, 12)).astype(np.int8)}
    constants.update(sw=np.asarray(0.01, F), zw=np.asarray(0, np.int8))
    constants["shape"] = np.asarray([2, 12], np.int64)
    make = helper.make_node
    nodes = [
        *qdq("xd", "x", "sx", "zx"),
        make("MaxPool", ["xd"], ["p"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        make("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1], name="transpose"),
        make("Reshape", ["t", "shape"], ["f"], name="flatten"),
        make("DequantizeLinear", ["w", "sw", "zw"], ["wd"]),
        make("Gemm", ["f", "wd"], ["g"], transB=1, name="dense"),
        make("Reshape", ["g", "back"], ["s"], name="back"),
        *qdq("y", "s", "sy", "zy"),
    ]
    constants["back"] = np.asarray([8], np.int64)
    graph, proto = imported(nodes, (2, 3, 4, 4), constants)
    assert ops(graph) == [
        "quantize", "max_pool2d", "transpose", "reshape", "linear", "reshape", "dequantize",
    ]  # fmt: skip
    agree(graph, proto, floats(2, 3, 4, 4), 0.07)


def test_a_layer_without_quantized_output_gives_float():
    constants = {**SCALES, "w": rng().integers(-127, 128, (4, 6)).astype(np.int8)}
    constants.update(sw=np.linspace(0.01, 0.02, 4).astype(F), zw=np.zeros(4, np.int8))
    nodes = [
        *qdq("xd", "x", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd"], ["g"], transB=1, name="dense"),
        helper.make_node("Relu", ["g"], ["y"], name="relu"),
    ]
    graph, proto = imported(nodes, (2, 6), constants)
    assert ops(graph) == ["quantize", "linear"]
    x = floats(2, 6)
    (got,) = execute(graph, {"x": x}).values()
    np.testing.assert_allclose(got, runtime(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_two_activations_multiply_and_tables_replace_functions():
    make = helper.make_node
    nodes = [
        *qdq("xd", "x", "sx", "zx"),
        make("Transpose", ["xd"], ["t"], perm=[0, 2, 1], name="transpose"),
        make("MatMul", ["xd", "t"], ["m"], name="scores"),
        *qdq("md", "m", "sy", "zy"),
        make("Softmax", ["md"], ["s"], axis=-1, name="softmax"),
        *qdq("sd", "s", "sp", "zp"),
        make("HardSwish", ["sd"], ["h"], name="swish"),
        *qdq("y", "h", "sp", "zp"),
    ]
    constants = {**SCALES, "sp": np.asarray(1 / 256, F), "zp": np.asarray(0, np.uint8)}
    graph, proto = imported(nodes, (2, 5, 4), constants)
    assert ops(graph) == [
        "quantize", "transpose", "matmul", "softmax", "hard_swish", "dequantize",
    ]  # fmt: skip
    agree(graph, proto, floats(2, 5, 4), 1 / 256)


def test_shared_values_are_quantised_once_and_not_lost():
    """A value read by a quantize and as float keeps its float form."""
    nodes = [
        *qdq("xd", "x", "sx", "zx"),
        helper.make_node("Sigmoid", ["xd"], ["s"], name="sigmoid"),
        *qdq("sd", "s", "sy", "zy"),
        helper.make_node("Add", ["sd", "s"], ["y"], name="add"),
    ]
    graph, proto = imported(nodes, (3, 4), SCALES)
    (sigmoid,) = [n for n in graph.nodes if n.op == "sigmoid"]
    assert sigmoid.output.type.is_dense
    agree(graph, proto, floats(3, 4), 0.07)


def test_integer_graph_inputs_and_outputs_keep_their_type():
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"], name="relu"),
        helper.make_node("QuantizeLinear", ["r", "s2", "z"], ["y"]),
    ]
    constants = {"s": np.asarray(0.1, F), "z": np.asarray(-3, np.int8), "s2": np.asarray(0.05, F)}
    out = tensor("y", (2, 3), TensorProto.INT8)
    proto = model(nodes, [tensor("x", (2, 3), TensorProto.INT8)], [out], constants)
    graph = import_onnx(proto)
    verify(graph)
    x = rng().integers(-128, 128, (2, 3)).astype(np.int8)
    assert graph.inputs[0].type.storage.numpy == np.int8
    (got,) = execute(graph, {"x": x}).values()
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, runtime(proto, {"x": x})[0])


def test_models_without_quantisation_are_left_alone():
    graph, _ = imported([helper.make_node("Relu", ["x"], ["y"], name="r")], (2, 3), {})
    assert ops(graph) == ["relu"]


@pytest.mark.data
def test_a_residual_network_agrees_with_onnx_runtime(models_dir, tmp_path):
    path = models_dir / "cifar10_resnet20.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    feeds = [{"input": floats(1, 3, 32, 32, seed=s)} for s in range(4)]

    class Images(CalibrationDataReader):
        left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    target = tmp_path / "q.onnx"
    quantize_static(path, target, Images(), per_channel=True, weight_type=QuantType.QInt8)
    graph = import_onnx(target)
    assert all(not n.output.type.is_dense for n in graph.nodes if n.op != "dequantize")
    for feed in feeds:
        (want,) = runtime(str(target), feed)
        (got,) = execute(graph, feed).values()
        assert got.argmax() == want.argmax()
        assert np.abs(got - want).max() <= 1.01 * output_step(str(target))
