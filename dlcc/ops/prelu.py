"""The parametric rectifier: a slope per channel for negative numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcc import numerics
from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.binary import both_of, product_of
from dlcc.ops.pointwise import broadcast_reader, broadcast_shape, present, same_dtype

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class PRelu(Op):
    """prelu(x, slope): x where x >= 0, else slope * x; slope broadcasts to x."""

    name = "prelu"
    operands = ("x", "slope")
    quantised = Quantised.INTEGER

    def infer(self, node: Node) -> list[TensorType]:
        """The first operand's type."""
        x = node.input(0).type
        if broadcast_shape(node, [x, node.input(1).type]) != x.shape:
            raise type_error(node, "the slope does not broadcast to x")
        return [TensorType(x.shape, same_dtype(node).dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Piecewise linear."""
        x, slope = present(xs[0]), present(xs[1])
        return [np.where(x >= 0, x, x * slope)]

    def _factors(self, node: Node) -> tuple[Array, Array]:
        """Multiplier of the centred code where it is not negative, and where it is."""
        x, out = node.input(0).type.affine, node.output.type.encoding
        slope = node.input(1)
        if not slope.is_constant:
            raise type_error(node, "the slope must be constant")
        scale = out.scale if isinstance(out, Affine) else 1.0
        mult = numerics.multiplier([x.scale], scale).reshape(())
        negative = numerics.multiplier(slope.decoded() * np.float64(x.scale), scale)
        return mult, negative

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """With acc = x - zx; requantised by f32(sx/sy), below zero by f32(sx*slope/sy)."""
        mult, negative = self._factors(node)
        acc = present(xs[0]).astype(np.int32) - node.input(0).type.affine.zero_point
        chosen = np.where(acc >= 0, mult, negative)
        out = node.output.type.encoding
        if isinstance(out, Affine):
            return [numerics.requantise(acc, chosen, out)]
        return [numerics.dequantise(acc, chosen)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The part above 0, and products of the part below with the slopes."""
        x, slope = both_of(xs)
        below = min(x.low, 0.0)
        ends = [max(x.low, 0.0), max(x.high, 0.0)] if x.high >= 0 else []
        if x.low < 0:
            top = min(x.high, 0.0)
            ends += [product_of(v, s) for v in (below, top) for s in (slope.low, slope.high)]
        return [Interval(min(ends), max(ends))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Piecewise linear."""
        from dlcc.tir import expr

        x = ctx.read(0)
        shape = node.input(1).type.shape
        if not isinstance(node.input(0).type.encoding, Affine):
            slope = broadcast_reader(ctx.read(1), shape)
            zero = expr.const(0, str(node.input(0).type.dtype.numpy))
            ctx.output(0, lambda *i: expr.select(x(*i) >= zero, x(*i), x(*i) * slope(*i)))
            return
        mult, negative = self._factors(node)
        table = ctx.constant(negative)
        factor = broadcast_reader(lambda *i: table[i] if i else table[0], shape)
        source, out = node.input(0).type.affine, node.output.type

        def body(*i: Any) -> Any:
            acc = expr.centred(x(*i), source)
            positive = expr.const(float(mult), "float32")
            scaled = acc.astype("float32") * expr.select(acc >= 0, positive, factor(*i))
            if not isinstance(out.encoding, Affine):
                return scaled
            ends = out.encoding.code_range
            return expr.to_codes(scaled, out.encoding, *ends, str(out.storage.numpy))

        ctx.output(0, body)


@onnx_op("PRelu", 7)
def _prelu(node: OnnxNode) -> Sequence[Value]:
    slope = node.input(1)
    x = node.input(0)
    if slope.is_constant and slope.type.elements == 1 and x.type.dtype.is_float:
        alpha = float(slope.decoded().reshape(-1)[0])
        return node.build("leaky_relu", [x], {"alpha": alpha})
    return node.build("prelu", [x, slope])
