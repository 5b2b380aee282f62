"""Weights during import: constants, possibly behind a dequantize node.

Quantised ONNX models hold a weight as ``dequantize(constant codes)``, often with a Transpose or
Reshape in between. Importers that need a weight in another form move that step onto the constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dlcc.frontends.registry import OnnxNode
from dlcc.ir import Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build


def known(value: Value) -> bool:
    """True for a constant, or a dequantize of one."""
    return value.is_constant or _dequantized(value) is not None


def _dequantized(value: Value) -> Value | None:
    node = value.producer
    if node is not None and node.op == "dequantize" and node.input(0).is_constant:
        return node.input(0)
    return None


def as_weight(graph: Graph, value: Value, name: str) -> Value:
    """``value`` with a transpose of a known weight folded into the weight; else ``value``."""
    node = value.producer
    if node is None or node.op not in ("transpose", "reshape", "cast"):
        return value
    source = as_weight(graph, node.input(0), name)
    if not known(source) or node.op == "cast":
        return value
    if node.op == "transpose":
        order = node.attrs.get("perm", tuple(reversed(range(source.type.rank))))
        assert isinstance(order, tuple)
        return transposed(graph, source, tuple(int(a) for a in order), name)
    constant = _dequantized(source) or source
    if isinstance(constant.type.encoding, Affine) and constant.type.encoding.axis is not None:
        return value
    return _with_shape(graph, source, value.type.shape, name)


def transposed(graph: Graph, value: Value, order: tuple[int, ...], name: str) -> Value:
    """A known weight with its axes in ``order``."""

    def move(array: Array) -> Array:
        return np.ascontiguousarray(array.transpose(order))

    constant = _dequantized(value) or value
    encoding = constant.type.encoding
    if isinstance(encoding, Affine) and encoding.axis is not None:
        encoding = replace(encoding, axis=order.index(encoding.axis))
    shape = tuple(constant.type.shape[a] for a in order)
    new = graph.add_stored(
        {"values": move(constant.stored())},
        constant.type.with_(shape=shape, encoding=encoding),
        name=constant.name,
    )
    return new if value.is_constant else dequantized(graph, new, name)


def dequantized(graph: Graph, constant: Value, name: str) -> Value:
    """A dequantize node on an affine constant."""
    return build(graph, "dequantize", [constant], loc=name + ".weight").output


def _with_shape(graph: Graph, value: Value, shape: tuple[int, ...], name: str) -> Value:
    constant = _dequantized(value) or value
    new = graph.add_stored(
        {"values": constant.stored().reshape(shape)},
        constant.type.with_(shape=shape),
        name=constant.name,
    )
    return new if value.is_constant else dequantized(graph, new, name)


def rebuilt(node: OnnxNode, value: Value, function: Callable[[Array], Array]) -> Value:
    """A known weight with its numbers moved by ``function``, which leaves the quantised axis."""
    constant = _dequantized(value) or value
    array = np.ascontiguousarray(function(constant.stored()))
    new = node.graph.add_stored(
        {"values": array}, constant.type.with_(shape=array.shape), name=constant.name
    )
    return new if value.is_constant else dequantized(node.graph, new, node.name)


def reshape_weight(node: OnnxNode, value: Value, shape: tuple[int, ...]) -> Value:
    """A weight in a shape that only adds axes of extent 1 behind the quantised axis."""
    if known(value):
        return _with_shape(node.graph, value, shape, node.name)
    return reshape_value(node, value, shape, ".weight")


def reshape_value(node: OnnxNode, value: Value, shape: tuple[int, ...], suffix: str) -> Value:
    """A reshape node, or ``value`` itself where the shape is the same."""
    if value.type.shape == shape:
        return value
    affine = isinstance(value.type.encoding, Affine)
    made: Node = build(
        node.graph,
        "reshape",
        [value],
        {"shape": shape},
        loc=node.name + suffix,
        types=[TensorType(shape, value.type.dtype, value.type.encoding)] if affine else None,
    )
    return made.output
