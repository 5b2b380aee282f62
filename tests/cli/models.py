"""Tiny ONNX models and data files for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

INPUT_SHAPE = (1, 3, 8, 8)
CLASSES = 10


def _init(rng: np.random.Generator, name: str, *shape: int, low: float = -1.0, high: float = 1.0):
    return nh.from_array(rng.uniform(low, high, shape).astype(np.float32), name)


def model(nodes, inputs, outputs, initializers=(), *, opset: int = 17, domains=()):
    opsets = [h.make_opsetid("", opset), *(h.make_opsetid(d, 1) for d in domains)]
    graph = h.make_graph(nodes, "net", inputs, outputs, list(initializers))
    return h.make_model(graph, opset_imports=opsets, ir_version=8)


def residual_cnn(path: Path) -> Path:
    """Conv, batch norm, residual add, pooling, classifier; symbolic batch dimension N."""
    rng = np.random.default_rng(7)
    nodes = [
        h.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        h.make_node("BatchNormalization", ["c1", "s", "t", "m", "v"], ["n1"], name="bn1"),
        h.make_node("Relu", ["n1"], ["r1"], name="relu1"),
        h.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        h.make_node("Add", ["c2", "r1"], ["a"], name="add1"),
        h.make_node("Relu", ["a"], ["r2"], name="relu2"),
        h.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        h.make_node("Flatten", ["p"], ["f"], name="flat"),
        h.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    initializers = [
        _init(rng, "w1", 4, 3, 3, 3), _init(rng, "b1", 4),
        _init(rng, "s", 4, low=0.5), _init(rng, "t", 4), _init(rng, "m", 4),
        _init(rng, "v", 4, low=0.5, high=2.0),
        _init(rng, "w2", 4, 4, 3, 3), _init(rng, "w3", CLASSES, 4), _init(rng, "b3", CLASSES),
    ]  # fmt: skip
    inputs = [h.make_tensor_value_info("x", T.FLOAT, ["N", *INPUT_SHAPE[1:]])]
    outputs = [h.make_tensor_value_info("y", T.FLOAT, ["N", CLASSES])]
    onnx.save(model(nodes, inputs, outputs, initializers), path)
    return path


def unsupported(path: Path) -> Path:
    """Two nodes that no importer knows."""
    nodes = [
        h.make_node("Frobnicate", ["x"], ["a"], name="frob", domain="com.example"),
        h.make_node("ImageDecoder", ["a"], ["y"], name="decode"),
    ]
    inputs = [h.make_tensor_value_info("x", T.FLOAT, [1, 4, 4])]
    outputs = [h.make_tensor_value_info("y", T.INT64, [1, 3])]
    onnx.save(model(nodes, inputs, outputs, domains=["com.example"]), path)
    return path


def data(path: Path, count: int = 6, *, labels: bool = False, seed: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.standard_normal((count, *INPUT_SHAPE[1:])).astype(np.float32)}
    if labels:
        arrays["labels"] = rng.integers(0, CLASSES, count)
    np.savez(path, **arrays)
    return path
