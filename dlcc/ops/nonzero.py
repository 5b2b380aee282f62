"""NonZero and Compress: what a mask of the run time selects, as much as it can be at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, AttrValue, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present
from dlcc.ops.shape import axis_of, reshaped

_U8, _BOOL = DType.parse("u8"), DType.parse("bool")


class Nonzero(Op):
    """nonzero(x): places of the numbers of u8[n] that are not 0, and how many there are.

    The places i64[n] stand in order; those after the last are -1. The count is i64[].
    """

    name = "nonzero"

    def infer(self, node: Node) -> list[TensorType]:
        """As many places as there are numbers."""
        x = node.input(0).type
        if x.rank != 1 or x.dtype != _U8:
            raise type_error(node, "the operand must be a row of u8")
        return [TensorType(x.shape, I64), TensorType((), I64)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's nonzero."""
        x = present(xs[0])
        (found,) = np.nonzero(x)
        places = np.full(x.shape, -1, np.int64)
        places[: len(found)] = found
        return [places, np.asarray(len(found), np.int64)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """-1 or a place; the number of places."""
        count = float(node.input(0).type.elements)
        return [Interval(-1.0, max(0.0, count - 1)), Interval(0.0, count)]


def selected(node: OnnxNode, mask: Value) -> tuple[Value, Value]:
    """Places of ``mask`` (of any type) in row-major order that are not 0, and how many.

    Nodes with the same mask share them, and with them the count.
    """
    while mask.producer is not None and mask.producer.op == "reshape":
        mask = mask.producer.input(0)
    flat = mask
    if mask.type.rank != 1:
        (flat,) = _once(node, mask, "reshape", {"shape": (mask.type.elements,)})
    for dtype in (_BOOL, _U8):
        if flat.type.dtype != _U8 and flat.type.dtype != dtype:
            (flat,) = _once(node, flat, "cast", {"to": str(dtype)})
    places, count = _once(node, flat, "nonzero", {}, outputs=2)
    return places, count


def _once(
    node: OnnxNode, value: Value, op: str, attrs: Mapping[str, AttrValue], outputs: int = 1
) -> Sequence[Value]:
    """The results of ``op`` on ``value``, by the node that is there already if one is."""
    for user in value.users:
        if user.op == op and dict(user.attrs) == attrs:
            return user.outputs
    return node.build(op, [value], attrs, outputs=outputs, suffix=f"/{op}")


@onnx_op("NonZero", since=9)
def import_nonzero(node: OnnxNode) -> Sequence[Value]:
    """NonZero: the coordinates as columns."""
    x = node.input(0)
    shape = x.type.shape or (1,)
    if x.is_constant:
        known = np.asarray(np.nonzero(x.decoded().reshape(shape)), np.int64)
        known = known.reshape(x.type.rank, -1)
        return [node.graph.add_constant(known, name=node.name)]
    if not x.type.rank:
        raise Unsupported("a scalar has no coordinates")
    places, count = selected(node, x)
    rows = []
    for axis, size in enumerate(shape):
        row = places
        stride = prod(shape[axis + 1 :])
        if stride > 1:
            row = _by(node, "div", row, stride, f"/{axis}.over")
        if axis:
            row = _by(node, "mod", row, size, f"/{axis}.within")
        rows.append(reshaped(node, row, (1, x.type.elements), f"/{axis}.row"))
    made = rows[0] if len(rows) == 1 else node.build("concat", rows, {"axis": 0})[0]
    return [node.bounded(made, 1, count)]


def _by(node: OnnxNode, op: str, value: Value, number: int, part: str) -> Value:
    divisor = node.graph.add_constant(np.asarray(number, np.int64), name="extent")
    return node.build(op, [value, divisor], suffix=part)[0]


@onnx_op("Compress", since=9)
def import_compress(node: OnnxNode) -> Sequence[Value]:
    """Compress: the places that the condition keeps."""
    x, condition = node.input(0), node.input(1)
    if "axis" not in node.attrs:
        x = reshaped(node, x, (x.type.elements,), "/flat")
    axis = axis_of(node.attrs.get("axis", 0), x.type.rank)
    size = x.type.shape[axis]
    if condition.is_constant:
        kept = np.nonzero(condition.decoded().reshape(-1))[0].astype(np.int64)
        if kept.size and kept[-1] >= size:
            raise Unsupported(f"the condition keeps place {kept[-1]} of {size}")
        indices = node.graph.add_constant(kept, name="kept")
        return node.build("gather", [x, indices], {"axis": axis})
    if condition.type.elements > size:
        raise Unsupported(f"a condition of {condition.type.elements} for {size} places")
    places, count = selected(node, condition)
    (made,) = node.build("gather", [x, places], {"axis": axis})
    return [node.bounded(made, axis, count)]
