"""One ONNX node against ONNX Runtime: what the tests of NN ops share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph
from tests.frontends.models import assert_same, model, tensor


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def import_node(
    op_type: str,
    x: np.ndarray,
    constants: Sequence[np.ndarray | None] = (),
    *,
    opset: int = 17,
    result: type = np.float32,
    **attrs: Any,
) -> tuple[Graph, Any, Mapping[str, np.ndarray]]:
    """A model of one node whose first operand is the input and whose others are initialisers.

    ``result`` is the element type of its output.
    """
    names = [f"c{i}" if a is not None else "" for i, a in enumerate(constants)]
    node = helper.make_node(op_type, ["x", *names], ["y"], name="node", **attrs)
    known = {n: a for n, a in zip(names, constants, strict=True) if a is not None}
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    out = tensor("y", None, helper.np_dtype_to_tensor_dtype(np.dtype(result)))
    source = model([node], [tensor("x", x.shape, kind)], [out], known, opset=opset)
    return import_onnx(source), source, {"x": x}


def agrees(
    op_type: str,
    x: np.ndarray,
    constants: Sequence[np.ndarray | None] = (),
    *,
    opset: int = 17,
    rtol: float = 1e-5,
    **attrs: Any,
) -> Graph:
    """Import the node and compare its reference with ONNX Runtime."""
    graph, source, feeds = import_node(op_type, x, constants, opset=opset, **attrs)
    assert_same(graph, source, feeds, rtol)
    return graph
