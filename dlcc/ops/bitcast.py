"""The bits of numbers read as another type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import BF16, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Op, type_error
from dlcc.ops.cast import cast_to, computed
from dlcc.ops.pointwise import present

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class BitCast(Op):
    """bitcast(x) {to}: the bits of ``x`` as element type ``to``, which is as wide."""

    name = "bitcast"
    attributes = {"to": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape with the new dtype."""
        x = node.input(0).type
        try:
            dtype = DType.parse(str(self.get(node, "to")))
        except KeyError:
            raise type_error(node, f"there is no element type {node.attrs.get('to')!r}") from None
        if dtype.bytes != x.dtype.bytes or BF16 in (dtype, x.dtype):
            raise type_error(node, f"bits of {x.dtype} are not those of {dtype}")
        return [TensorType(x.shape, dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's view."""
        x = np.ascontiguousarray(present(xs[0]))
        return [x.view(DType.parse(str(self.get(node, "to"))).numpy).reshape(x.shape)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """One reinterpretation per element."""
        from dlcc.tir import expr
        from dlcc.tir.access import element

        x, dtype = ctx.read(0), element(node.output.type)
        ctx.output(0, lambda *i: expr.reinterpreted(x(*i), dtype))


@onnx_op("BitCast", since=26)
def _bit_cast(node: OnnxNode) -> Sequence[Value]:
    """BitCast of the bits that the model has: of a narrow or wide float those before widening."""
    try:
        dtype = DType.of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"])))
    except (KeyError, TypeError):
        raise Unsupported(f"bits as ONNX's element type {node.attrs['to']}") from None
    x = node.input(0)
    maker = x.producer
    if maker is not None and maker.op == "cast" and dtype.bytes != x.type.dtype.bytes:
        x = maker.input(0)
    if dtype.bytes != x.type.dtype.bytes or BF16 in (dtype, x.type.dtype):
        raise Unsupported(f"bits of {x.type.dtype} are not those of {dtype}")
    (made,) = node.build("bitcast", [x], {"to": str(dtype)})
    return [cast_to(node, made, computed(dtype, node.doubles), ".real")]
