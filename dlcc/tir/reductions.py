"""Default TIR of reductions over axes and of argmax and argmin."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te

from dlcc.ir import Affine, Node
from dlcc.tir import expr
from dlcc.tir import math as tir_math
from dlcc.tir.access import Reader, TirContext, element
from dlcc.tir.staging import (
    highest_of,
    lowest_of,
    mean_factor,
    reduced,
    scaled_output,
    write_real,
)


class _Over:
    """Places of a reduction: output index -> operand index with reduction axes filled in."""

    def __init__(self, node: Node, axes: Sequence[int]) -> None:
        shape = node.input(0).type.shape
        self.axes = tuple(axes)
        self.kept_axes = node.output.type.rank == len(shape)
        self.shape = node.output.type.shape
        self.count = prod(shape[a] for a in self.axes)
        self.order = node.output.type.permutation
        self._extents = shape
        self._contiguous = node.input(0).type.permutation[-1] == self.axes[-1]

    def place(self, index: Sequence[Any], inner: Sequence[Any]) -> list[Any]:
        """Index of the operand."""
        outer, reduced = list(index), dict(zip(self.axes, inner, strict=True))
        out: list[Any] = []
        for axis in range(len(self._extents)):
            if axis in reduced:
                out.append(reduced[axis])
                if self.kept_axes:
                    outer.pop(0)
            else:
                out.append(outer.pop(0))
        return out

    def reduced(self, reducer: Any, value: Any, name: str) -> Reader:
        """A stage of the output's shape: ``reducer`` over ``value(output index, inner index)``."""
        return reduced(
            self.shape,
            [self._extents[a] for a in self.axes],
            reducer,
            lambda outer, inner: value(outer, self.place(outer, inner)),
            name,
            self.order,
            contiguous=self._contiguous,
        )


def emit(node: Node, ctx: TirContext, kind: str, axes: Sequence[int]) -> None:
    """Declare the output of ``reduce_<kind>`` over ``axes``."""
    over, x = _Over(node, axes), ctx.read(0)
    if kind == "mean":
        _mean(node, ctx, over, x)
    elif kind in ("max", "min"):
        dtype = element(node.input(0).type)
        reducer = highest_of(dtype) if kind == "max" else lowest_of(dtype)
        best = over.reduced(reducer, lambda _, place: x(*place), "best")
        ctx.output(0, lambda *i: best(*i))
    elif kind == "log_sum_exp":
        _log_sum_exp(node, ctx, over, x)
    else:
        _sums(ctx, over, kind, x)


def _sums(ctx: TirContext, over: _Over, kind: str, x: Reader) -> None:
    def term(_: Any, place: Sequence[Any]) -> Any:
        value = x(*place)
        if kind == "l1":
            return expr.absolute(value)
        return value * value if kind in ("l2", "sum_square") else value

    reducer = _product if kind == "prod" else te.sum
    total = over.reduced(reducer, term, "total")
    ctx.output(0, lambda *i: expr.sqrt(total(*i)) if kind == "l2" else total(*i))


def _product(value: Any, axis: Sequence[Any]) -> Any:
    reducer = te.comm_reducer(lambda a, b: a * b, lambda t: expr.const(1, str(t)), name="product")
    return reducer(value, axis=axis)


def _mean(node: Node, ctx: TirContext, over: _Over, x: Reader) -> None:
    source, out = node.input(0).type.encoding, node.output.type
    if isinstance(source, Affine):
        total = over.reduced(te.sum, lambda _, p: expr.centred(x(*p), source), "total")
        factor = float(mean_factor(node, np.asarray(over.count)))
        scale = expr.const(factor, "float32")
        ctx.output(0, lambda *i: scaled_output(out, total(*i).astype("float32") * scale))
        return
    dtype = str(node.input(0).type.dtype.numpy)
    if out.dtype.is_integer:
        total = over.reduced(te.sum, lambda _, p: x(*p).astype("int64"), "total")
        count = expr.const(over.count, "int64")
        ctx.output(0, lambda *i: expr.truncdiv(total(*i), count).astype(dtype))
        return
    total = over.reduced(te.sum, lambda _, p: x(*p), "total")
    write_real(ctx, lambda *i: total(*i) / expr.const(over.count, dtype))


def _log_sum_exp(node: Node, ctx: TirContext, over: _Over, x: Reader) -> None:
    dtype = element(node.input(0).type)
    best = over.reduced(highest_of(dtype), lambda _, p: x(*p), "best")

    def shift(*i: Any) -> Any:
        """The maximum, or 0 where it is infinite."""
        largest = expr.const(float(np.finfo(dtype).max), dtype)
        zero = expr.const(0.0, dtype)
        return expr.select(expr.absolute(best(*i)) <= largest, best(*i), zero)

    total = over.reduced(te.sum, lambda i, p: tir_math.exp(x(*p) - shift(*i)), "total")
    ctx.output(0, lambda *i: tir_math.log(total(*i)) + shift(*i))


def emit_arg(node: Node, ctx: TirContext, largest: bool, axis: int, last: bool) -> None:
    """Declare the output of argmax or argmin along ``axis``; ``last``: the last of equal ones."""
    over, x = _Over(node, (axis,)), ctx.read(0)
    dtype = element(node.input(0).type)
    reducer = highest_of(dtype) if largest else lowest_of(dtype)
    best = over.reduced(reducer, lambda _, p: x(*p), "best")

    def index(i: Sequence[Any], p: Sequence[Any]) -> Any:
        absent = expr.const(-1 if last else over.count, "int32")
        hit = expr.same(x(*p), best(*i))
        return expr.select(hit, p[axis].astype("int32"), absent)

    choose = highest_of("int32") if last else lowest_of("int32")
    found = over.reduced(choose, index, "found")
    ctx.output(0, lambda *i: found(*i).astype("int64"))
