"""Conversion between element types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Cast(Op):
    """cast(x) {to}: the numbers of ``x`` in element type ``to`` (its name, e.g. ``"i32"``).

    Float to integer truncates toward zero (numbers outside the range are undefined, as in C and
    ONNX); anything to bool is ``x != 0``.
    """

    name = "cast"
    attributes = {"to": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape with the new dtype."""
        try:
            dtype = DType.parse(str(self.get(node, "to")))
        except KeyError:
            raise type_error(node, f"there is no element type {node.attrs.get('to')!r}") from None
        return [TensorType(node.input(0).type.shape, dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's astype."""
        dtype = DType.parse(str(self.get(node, "to"))).numpy
        with np.errstate(all="ignore"):
            return [present(xs[0]).astype(dtype)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's, cut to integers where the result is one."""
        x = xs[0]
        assert x is not None
        dtype = DType.parse(str(self.get(node, "to")))
        if dtype.is_integer and np.isfinite([x.low, x.high]).all():
            return [Interval(float(np.trunc(x.low)), float(np.trunc(x.high)))]
        return [x if dtype.is_float else Interval(-np.inf, np.inf)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """One conversion per element."""
        from dlcc.tir import expr
        from dlcc.tir.access import element

        x = ctx.read(0)
        dtype = element(node.output.type)

        def body(*i: object) -> object:
            value = x(*i)
            if dtype == "bool":
                return value != expr.like(0, value)
            return expr.cast(value, dtype)

        ctx.output(0, body)


def cast_to(node: OnnxNode, value: Value, dtype: DType, suffix: str = "") -> Value:
    """``value`` as ``dtype``; no node where it already is."""
    if value.type.dtype == dtype:
        return value
    return node.build("cast", [value], {"to": str(dtype)}, suffix=suffix)[0]


def onnx_dtype(element: int) -> DType:
    """The element type that dlcc computes with for an ONNX one: narrow and wide floats are f32.

    Raises:
        Unsupported: dlcc does not have the type.
    """
    try:
        dtype = DType.of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)))
    except (KeyError, TypeError):
        known = element in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(element) if known else str(element)
        raise Unsupported(f"element type {name}") from None
    return DType.parse("f32") if dtype.is_float else dtype


@onnx_op("Cast")
def _cast(node: OnnxNode) -> Sequence[Value]:
    return [cast_to(node, node.input(0), onnx_dtype(node.attrs["to"]))]


@onnx_op("CastLike")
def _cast_like(node: OnnxNode) -> Sequence[Value]:
    return [cast_to(node, node.input(0), node.input(1).type.dtype)]
