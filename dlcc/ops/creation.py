"""ONNX ops that are known at import: constants, shapes, identities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcc.bounds import check_shape
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import DType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.cast import onnx_dtype
from dlcc.ops.shape import integers

_LARGEST = 1 << 28
"""Elements of a created constant beyond which the model is refused."""


def _check_created(node: OnnxNode, shape: Sequence[int], itemsize: int) -> None:
    """Refuse a constant that is larger than a model's own could well be."""
    check_shape(shape, itemsize, node.name)
    if math.prod(shape) > _LARGEST:
        raise Unsupported(f"a constant of shape {list(shape)} is too large")


def _constant(node: OnnxNode, values: Array) -> list[Value]:
    return [node.graph.add_constant(values, name=node.name)]


@onnx_op("Constant")
def _constant_node(node: OnnxNode) -> Sequence[Value]:
    kinds: dict[str, Any] = {
        "value": None,
        "sparse_value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for key, dtype in kinds.items():
        if key in node.attrs:
            return _constant(node, np.asarray(node.attrs[key], dtype))
    raise Unsupported(f"a constant of kind {', '.join(node.attrs) or 'nothing'}")


@onnx_op("ConstantOfShape", since=9)
def _constant_of_shape(node: OnnxNode) -> Sequence[Value]:
    shape = integers(node.constant(0, "the shape"))
    value = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(-1)[0]
    _check_created(node, shape, value.itemsize)
    return _constant(node, np.full(shape, value))


@onnx_op("Shape")
def _shape(node: OnnxNode) -> Sequence[Value]:
    shape = node.input(0).type.shape
    part = shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    return _constant(node, np.asarray(part, np.int64))


@onnx_op("Size")
def _size(node: OnnxNode) -> Sequence[Value]:
    return _constant(node, np.asarray(node.input(0).type.elements, np.int64))


@onnx_op("Range", since=11)
def _range(node: OnnxNode) -> Sequence[Value]:
    length = _length_beyond(_scalar(node.input(0)), _scalar(node.input(1)))
    if length is not None:
        return _range_from(node, length)
    ends = [node.constant(k, what) for k, what in enumerate(("the start", "the end", "the step"))]
    start, limit, step = (v.reshape(-1)[0] for v in ends)
    steps = (float(limit) - float(start)) / float(step) if step else math.nan
    if not abs(steps) <= _LARGEST:
        raise Unsupported(f"a range from {start} to {limit} by {step}")
    count = max(0, math.ceil(steps))
    return _constant(node, (start + np.arange(count) * step).astype(start.dtype))


def _scalar(value: Value) -> Value:
    """``value`` before reshapes."""
    while value.producer is not None and value.producer.op == "reshape":
        value = value.producer.input(0)
    return value


def _length_beyond(start: Value, limit: Value) -> int | None:
    """N of a limit that is computed as start + n, integers of the run time."""
    total = limit.producer
    if start.is_constant or total is None or total.op != "add" or not start.type.dtype.is_integer:
        return None
    terms = [_scalar(total.input(k)) for k in (0, 1)]
    for mine, other in (terms, terms[::-1]):
        if mine is start and other.is_constant and other.type.elements == 1:
            return int(other.decoded().reshape(-1)[0])
    return None


def _range_from(node: OnnxNode, length: int) -> list[Value]:
    """The integers from a start of the run time on, ``length`` far."""
    start, step = node.input(0), int(node.constant(2, "the step").reshape(-1)[0])
    if step == 0 or length // step > _LARGEST:
        raise Unsupported(f"a range of length {length} by {step}")
    places = np.arange(0, length, step).astype(start.type.dtype.numpy)
    if start.type.rank != 1:
        (start,) = node.build("reshape", [start], {"shape": (1,)}, suffix="/start")
    offsets = node.graph.add_constant(places, name=f"{node.name}/offsets")
    return node.build("add", [start, offsets])


@onnx_op("EyeLike", since=9)
def _eye_like(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0).type
    dtype = onnx_dtype(node.attrs["dtype"], node.doubles) if "dtype" in node.attrs else x.dtype
    _check_created(node, x.shape, dtype.numpy.itemsize)
    return _constant(
        node, np.eye(x.shape[0], x.shape[1], k=node.attrs.get("k", 0), dtype=dtype.numpy)
    )


@onnx_op("Identity")
def _identity(node: OnnxNode) -> Sequence[Value]:
    return [node.input(0)]


@onnx_op("Dropout")
def _dropout(node: OnnxNode) -> Sequence[Value]:
    training = node.optional_constant(2, "training_mode")
    if training is not None and bool(training.reshape(-1)[0]):
        ratio = node.optional_constant(1, "the ratio")
        if ratio is None or ratio.reshape(-1)[0] != 0:
            raise Unsupported(
                "in training mode its results are random; export the model in evaluation mode"
            )
    mask_dtype = DType.parse("bool")
    results = [node.input(0)]
    if node.output_count > 1:
        _check_created(node, node.input(0).type.shape, mask_dtype.numpy.itemsize)
        mask = np.ones(node.input(0).type.shape, mask_dtype.numpy)
        results.append(node.graph.add_constant(mask, name=node.name + "/mask"))
    return results
