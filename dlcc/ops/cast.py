"""Conversion between element types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, F64, Affine, AttrValue, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Cast(Op):
    """cast(x) {to, saturate=true}: the numbers of ``x`` in type ``to`` (its name, e.g. ``"i32"``).

    Float to integer truncates toward zero (numbers outside the range are undefined, as in C and
    ONNX); anything to bool is ``x != 0``. To float8 and float4: nearest, half to even; what is too
    large becomes the largest number, or without ``saturate`` infinity or NaN, whichever there is.
    """

    name = "cast"
    attributes = {"to": ..., "saturate": True}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape with the new dtype."""
        try:
            dtype = DType.parse(str(self.get(node, "to")))
        except KeyError:
            raise type_error(node, f"there is no element type {node.attrs.get('to')!r}") from None
        if dtype.is_narrow and node.input(0).type.dtype not in (F32, dtype.computed):
            raise type_error(node, f"{dtype} is made from f32 or {dtype.computed}")
        if dtype.kind == "e8m0fnu":
            raise type_error(node, "numbers are not rounded to powers of two")
        return [TensorType(node.input(0).type.shape, dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's astype."""
        dtype = DType.parse(str(self.get(node, "to"))).numpy
        x = present(xs[0])
        with np.errstate(all="ignore"):
            if DType.of(dtype).is_narrow and x.dtype.kind == "f":
                return [self._narrowed(node, x, DType.of(dtype))]
            return [x.astype(dtype)]

    def _narrowed(self, node: Node, x: Array, dtype: DType) -> Array:
        if dtype.is_integer:
            return x.astype(np.int32).astype(dtype.numpy)
        if self.get(node, "saturate"):
            limit = float(ml_dtypes.finfo(dtype.numpy).max)
            x = np.clip(x, np.float32(-limit), np.float32(limit))
        return x.astype(dtype.numpy)

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
        from dlcc.tir import expr, minifloat
        from dlcc.tir.access import element

        source, out = node.input(0).type.dtype, node.output.type.dtype
        x, dtype = ctx.read(0), element(node.output.type)
        if source.is_narrow:
            numbers, codes = ctx.constant(minifloat.table(source)), x
            x = lambda *i: numbers[codes(*i).astype("int32")]  # noqa: E731
        if out.is_narrow:
            kept = bool(self.get(node, "saturate"))
            ctx.output(0, lambda *i: minifloat.narrowed(x(*i), out, saturate=kept))
            return

        def body(*i: object) -> object:
            value = x(*i)
            if dtype == "bool":
                # NaN is true: TVM's comparison for inequality has it false
                zero = value.equal(expr.like(0, value))
                return expr.select(zero, expr.const(False, "bool"), expr.const(True, "bool"))
            return expr.cast(value, dtype)

        ctx.output(0, body)


def cast_to(node: OnnxNode, value: Value, dtype: DType, suffix: str = "") -> Value:
    """``value`` as ``dtype``; no node where it already is. Codes are integers to ONNX."""
    if value.type.dtype == dtype and not isinstance(value.type.encoding, Affine):
        return value
    return node.build("cast", [value], {"to": str(dtype)}, suffix=suffix)[0]


def own_dtype(element: int) -> DType:
    """The element type that stands for an ONNX one.

    Raises:
        Unsupported: dlcc does not have the type.
    """
    try:
        return DType.of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)))
    except (KeyError, TypeError):
        known = element in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(element) if known else str(element)
        raise Unsupported(f"element type {name}") from None


def onnx_dtype(element: int, doubles: bool = False) -> DType:
    """The element type that dlcc computes with for an ONNX one.

    Narrow and (without ``doubles``) wide floats are f32, integers of 4 and 2 bits those of 8.

    Raises:
        Unsupported: dlcc does not have the type.
    """
    dtype = own_dtype(element)
    return computed(dtype, doubles)


def computed(dtype: DType, doubles: bool) -> DType:
    """What numbers of ``dtype`` are computed in: float64 only with ``doubles``."""
    if dtype == F64 and doubles:
        return F64
    return F32 if dtype.is_float else dtype.computed


def _converted(node: OnnxNode, dtype: DType) -> Sequence[Value]:
    """The operand as ``dtype``; of a narrow type its numbers in the type they are computed in."""
    value = node.input(0)
    if not dtype.is_narrow:
        return [cast_to(node, value, computed(dtype, node.doubles))]
    if dtype.kind == "e8m0fnu":
        raise Unsupported("a conversion to FLOAT8E8M0, which scales have and no activations")
    wide = value if value.type.dtype in (F32, dtype.computed) else None
    if wide is None:
        wide = cast_to(node, value, dtype.computed, ".wide")
    attrs: dict[str, AttrValue] = {
        "to": str(dtype),
        "saturate": bool(node.attrs.get("saturate", 1)),
    }
    (narrow,) = node.build("cast", [wide], attrs, suffix=f".{dtype}")
    return [cast_to(node, narrow, dtype.computed)]


@onnx_op("Cast")
def _cast(node: OnnxNode) -> Sequence[Value]:
    return _converted(node, own_dtype(node.attrs["to"]))


@onnx_op("CastLike")
def _cast_like(node: OnnxNode) -> Sequence[Value]:
    return _converted(node, node.element(1))
