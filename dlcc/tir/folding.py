"""Default TIR of fold (col2im)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te

from dlcc.ir import Node
from dlcc.tir import expr
from dlcc.tir.access import TirContext, element
from dlcc.tir.staging import stage


def emit(
    node: Node, ctx: TirContext, attributes: Sequence[tuple[int, ...]], windows: Sequence[int]
) -> None:
    """Declare the output: each place sums the taps of the windows that reach it."""
    _, kernel, strides, dilations, pads = attributes
    x, dtype = ctx.read(0), element(node.output.type)
    zero = expr.const(0, dtype)
    taps = [te.reduce_axis((0, k), name=f"tap{a}") for a, k in enumerate(kernel)]

    def term(n: Any, c: Any, *place: Any) -> Any:
        conditions, window = [], []
        for axis, p in enumerate(place):
            start = p + pads[axis] - taps[axis] * dilations[axis]
            step = strides[axis]
            inside = [start >= 0, start < windows[axis] * step]
            if step > 1:
                inside.append(expr.floormod(start, step).equal(0))
            conditions += inside
            window.append(expr.floordiv(start, step))
        value = x(n, c, expr.flat_index(taps, kernel), expr.flat_index(window, windows))
        return te.sum(expr.guarded(expr.both(*conditions), value, zero), axis=taps)

    total = stage(node.output.type.shape, term, "total", node.output.type.permutation)
    ctx.output(0, lambda *i: total(*i))
