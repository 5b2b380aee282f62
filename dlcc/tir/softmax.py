"""Default TIR of softmax and log_softmax, float and integer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import te

from dlcc.ir import Affine, Node
from dlcc.tir import expr
from dlcc.tir import math as tir_math
from dlcc.tir.access import Reader, TirContext, element
from dlcc.tir.staging import STAGE_ELEMENTS, highest_of, kept, reduced, scaled_output, write_real


class _Rows:
    """The rows along ``axis``: their statistics have the other axes, in memory order."""

    def __init__(self, node: Node, ctx: TirContext, axis: int) -> None:
        type_ = node.output.type
        self.axis, self.length = axis, type_.shape[axis]
        self.shape = tuple(d for i, d in enumerate(type_.shape) if i != axis)
        physical = [a for a in type_.permutation if a != axis]
        self.order = [a - (a > axis) for a in physical]
        self.full, self.full_order = type_.shape, type_.permutation
        place = type_.permutation.index(axis)
        inner = prod(type_.physical_shape[place:])
        if place < type_.rank - 1 and inner <= STAGE_ELEMENTS:
            ctx.item_axes = place  # else every row's statistics are computed per element

    def others(self, index: Sequence[Any]) -> list[Any]:
        """Index without the row's axis."""
        return [v for i, v in enumerate(index) if i != self.axis]

    def reduced(self, reducer: Any, value: Any, name: str) -> Reader:
        """``reducer`` over ``value(index)`` along the row."""

        def at(other: Sequence[Any], inner: Sequence[Any]) -> Any:
            return value(*other[: self.axis], *inner, *other[self.axis :])

        contiguous = self.full_order[-1] == self.axis
        return reduced(
            self.shape, (self.length,), reducer, at, name, self.order, contiguous=contiguous
        )


def emit(node: Node, ctx: TirContext, axis: int) -> None:
    """Declare the output of a softmax or log_softmax node along ``axis``."""
    rows, x = _Rows(node, ctx, axis), ctx.read(0)
    dtype = element(node.input(0).type)
    best = rows.reduced(highest_of(dtype), x, "best")
    if isinstance(node.input(0).type.encoding, Affine):
        _integer(node, ctx, rows, best)
        return

    def shifted(*i: Any) -> Any:
        return x(*i) - best(*rows.others(i))

    if node.op == "log_softmax":
        total = rows.reduced(te.sum, lambda *i: tir_math.exp(shifted(*i)), "total")
        offset = kept(rows.shape, lambda *i: tir_math.log(total(*i)), "offset", rows.order)
        ctx.output(0, lambda *i: shifted(*i) - offset(*rows.others(i)))
        return
    powers = kept(rows.full, lambda *i: tir_math.exp(shifted(*i)), "powers", rows.full_order)
    total = rows.reduced(te.sum, powers, "total")
    write_real(ctx, lambda *i: powers(*i) / total(*rows.others(i)))


def _integer(node: Node, ctx: TirContext, rows: _Rows, best: Reader) -> None:
    from dlcc.ops.softmax import Softmax

    op, x, out = Softmax(), ctx.read(0), node.output.type
    table = ctx.constant(op.powers(node))

    def power(*i: Any) -> Any:
        top = best(*rows.others(i)).astype("int32")
        return table[top - x(*i).astype("int32")]

    total = rows.reduced(te.sum, power, "total")
    unit = expr.const(float(op.factor(out.encoding)), "float32")
    factor = kept(rows.shape, lambda *i: unit / total(*i).astype("float32"), "factor", rows.order)
    ctx.output(
        0,
        lambda *i: scaled_output(out, power(*i).astype("float32") * factor(*rows.others(i))),
    )
