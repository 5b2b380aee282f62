"""Opsets 1 to 6, read as opset 7: nodes whose spelling changed are spelled anew.

Until opset 6 binary ops broadcast by an attribute (the second operand along ``axis``), and several
parameters were attributes that are operands now, or had other names. What an old op computes in no
other way than opset 7 is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from dlcc.frontends.registry import OnnxNode, Unsupported
from dlcc.ir import Value
from dlcc.ops.shape import axis_of, reshaped

FIRST_KNOWN = 7
"""The opset that nodes of older ones are spelled in."""


def respelled(node: OnnxNode) -> OnnxNode:
    """``node`` as opset 7 has it.

    Raises:
        Unsupported: it says something that later opsets do not have.
    """
    if node.domain or node.opset >= FIRST_KNOWN:
        return node
    change = _CHANGES.get(node.op_type)
    return replace(change(node) if change else node, opset=FIRST_KNOWN)


def _with(node: OnnxNode, *operands: Value | None, **attrs: Any) -> OnnxNode:
    """``node`` with other operands (none: its own), and attributes replaced or, by None, gone."""
    merged = {k: v for k, v in {**node.attrs, **attrs}.items() if v is not None}
    return replace(node, inputs=operands or node.inputs, attrs=merged)


def _constant(node: OnnxNode, values: Any, dtype: Any) -> Value:
    return node.graph.add_constant(np.asarray(values, dtype), name=node.name)


def _broadcast(node: OnnxNode) -> OnnxNode:
    """The second operand's axes are those of the first from ``axis`` on, by default the last."""
    a, b = node.input(0), node.input(1)
    if not node.attrs.get("broadcast", 0):
        if a.type.shape != b.type.shape:
            raise Unsupported("its operands have different shapes, and broadcast is 0")
        return node
    if b.type.rank > a.type.rank:
        raise Unsupported("its second operand has more axes than the first")
    axis = axis_of(node.attrs.get("axis", a.type.rank - b.type.rank), max(1, a.type.rank))
    after = a.type.rank - axis - b.type.rank
    if after < 0:
        raise Unsupported(f"its second operand has no place from axis {axis} on")
    shape = (*b.type.shape, *(1 for _ in range(after)))
    return _with(node, a, reshaped(node, b, shape, "/broadcast"), axis=None, broadcast=None)


def _inference(node: OnnxNode) -> OnnxNode:
    """Training is a mode of the node itself, and on unless it is switched off."""
    if not node.attrs.get("is_test", 0):
        raise Unsupported("training mode; export the model in eval mode")
    return _with(node, is_test=None)


def _slope(node: OnnxNode) -> OnnxNode:
    """One slope for each channel (axis 1), or one for all."""
    x, slope = node.input(0), node.input(1)
    if slope.type.rank != 1 or x.type.rank < 2:
        return node
    shape = (slope.type.elements, *(1 for _ in x.type.shape[2:]))
    return _with(node, x, reshaped(node, slope, shape, "/slope"))


def _cast(node: OnnxNode) -> OnnxNode:
    """The type is a name."""
    to = node.attrs["to"]
    if isinstance(to, str):
        if to.upper() not in onnx.TensorProto.DataType.keys():  # noqa: SIM118 (a protobuf enum)
            raise Unsupported(f"element type {to!r}")
        return _with(node, to=int(onnx.TensorProto.DataType.Value(to.upper())))
    return node


def _reshape(node: OnnxNode) -> OnnxNode:
    """The shape is an attribute."""
    if "shape" not in node.attrs:
        return node
    return _with(node, node.input(0), _constant(node, node.attrs["shape"], np.int64), shape=None)


def _split(node: OnnxNode) -> OnnxNode:
    """The parts may be an operand."""
    given = node.optional_constant(1, "the split")
    if given is None:
        return node
    return _with(node, node.input(0), split=tuple(int(v) for v in given.reshape(-1)))


def _tile(node: OnnxNode) -> OnnxNode:
    """One axis, and how often."""
    if node.optional(2) is None:
        return node
    x, axis = node.input(0), node.constant(2, "the axis")
    repeats = np.ones(x.type.rank, np.int64)
    repeats[axis_of(int(axis.reshape(-1)[0]), x.type.rank)] = int(
        node.constant(1, "the number of tiles").reshape(-1)[0]
    )
    return _with(node, x, _constant(node, repeats, np.int64))


def _upsample(node: OnnxNode) -> OnnxNode:
    """A factor for the height and one for the width."""
    attrs = node.attrs
    if "height_scale" not in attrs:
        return node
    scales = (1.0, 1.0, float(attrs["height_scale"]), float(attrs["width_scale"]))
    return _with(node, scales=scales, height_scale=None, width_scale=None)


_CHANGES: dict[str, Callable[[OnnxNode], OnnxNode]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor"), _broadcast),
    **dict.fromkeys(("Equal", "Greater", "Less"), _broadcast),
    "BatchNormalization": _inference,
    "Dropout": _inference,
    "PRelu": _slope,
    "Cast": _cast,
    "Concat": lambda node: _with(node, axis=int(node.attrs.get("axis", 1))),
    "Reshape": _reshape,
    "Pad": lambda node: _with(node, pads=node.attrs.get("pads", node.attrs.get("paddings"))),
    "Selu": lambda node: _with(
        node, alpha=node.attrs.get("alpha", 1.6732), gamma=node.attrs.get("gamma", 1.0507)
    ),
    "Split": _split,
    "Tile": _tile,
    "Upsample": _upsample,
}
"""What opset 7 says otherwise than an older one."""

__all__ = ["FIRST_KNOWN", "respelled"]
