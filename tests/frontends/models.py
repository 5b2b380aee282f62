"""Small ONNX models for the importer's tests, and their outputs by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dlcc.analysis.execute import execute
from dlcc.ir import Graph


def tensor(name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str | onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    **more: Any,
) -> onnx.ModelProto:
    """A model; outputs given by name have no declared shape."""
    made = [tensor(o, None) if isinstance(o, str) else o for o in outputs]
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "net", list(inputs), made, tensors)
    imports = [helper.make_opsetid("", opset), *more.pop("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def feed(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the graph's types."""
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.standard_normal(v.type.shape).astype(v.type.dtype.numpy) for v in graph.inputs
    }


def runtime(source: onnx.ModelProto | str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs by ONNX Runtime, without its graph rewrites."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = source if isinstance(source, str) else source.SerializeToString()
    return onnxruntime.InferenceSession(data, options).run(None, dict(inputs))


def assert_same(
    graph: Graph, source: onnx.ModelProto | str, inputs: Mapping[str, np.ndarray], rtol: float
) -> None:
    """The graph's reference agrees with ONNX Runtime, relative to the largest output."""
    ours = list(execute(graph, inputs).values())
    theirs = runtime(source, inputs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() <= rtol * np.abs(b).max()


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]
