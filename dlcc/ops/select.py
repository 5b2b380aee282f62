"""Sorting, prefix sums, masks by place: ops that look along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import I64, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.cast import cast_to
from dlcc.ops.pointwise import present
from dlcc.ops.shape import Movement, axis_of

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class TopK(Op):
    """top_k(x) {axis, k, largest=true}: the k largest numbers in order, and their places (i64).

    Equal numbers stand in the order of their places.
    """

    name = "top_k"
    attributes = {"axis": ..., "k": ..., "largest": True}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """Two results of size k along the axis."""
        x, axis, k = node.input(0).type, int(self.get(node, "axis")), int(self.get(node, "k"))
        if not 0 <= axis < x.rank or not 0 <= k <= x.shape[axis]:
            raise type_error(node, f"the first {k} along axis {axis} do not exist")
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return [TensorType(shape, x.dtype), TensorType(shape, I64)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """A stable sort."""
        x, axis, k = present(xs[0]), int(self.get(node, "axis")), int(self.get(node, "k"))
        if self.get(node, "largest"):
            flipped = np.flip(x, axis)
            order = np.flip(np.argsort(flipped, axis=axis, kind="stable"), axis)
            order = x.shape[axis] - 1 - order
        else:
            order = np.argsort(x, axis=axis, kind="stable")
        places = np.take(order, np.arange(k), axis=axis)
        return [np.take_along_axis(x, places, axis), places.astype(np.int64)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range, and places."""
        assert xs[0] is not None
        size = node.input(0).type.shape[int(self.get(node, "axis"))]
        return [xs[0], Interval(0.0, max(0.0, size - 1.0))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """The rank of a number is how many come before it; each result looks for its rank."""
        from dlcc.tir import expr

        x, axis = ctx.read(0), int(self.get(node, "axis"))
        shape, largest = node.input(0).type.shape, self.get(node, "largest")

        def before(i: Any, k: Any) -> Any:
            mine, other = x(*i), x(*i[:axis], k, *i[axis + 1 :])
            wins = expr.exceeds(other, mine) if largest else expr.exceeds(mine, other)
            loses = expr.exceeds(mine, other) if largest else expr.exceeds(other, mine)
            earlier = expr.select(loses, expr.const(False, "bool"), k < i[axis])
            return expr.either(wins, earlier).astype("int32")

        def places(tag: str) -> Any:
            rank = ctx.stage(shape, expr.reduced("add", shape[axis], before), f"rank{tag}")

            def found(i: Any, k: Any) -> Any:
                hit = rank[(*i[:axis], k, *i[axis + 1 :])].equal(i[axis])
                return expr.select(hit, k, expr.const(0, "int32"))

            body = expr.reduced("max", shape[axis], found)
            return ctx.stage(node.outputs[0].type.shape, body, f"places{tag}")

        # Each output has stages of its own: a stage is computed inside one work item.
        values, indices = places("0"), places("1")
        ctx.output(0, lambda *i: x(*i[:axis], values[i], *i[axis + 1 :]))
        ctx.output(1, lambda *i: indices[i].astype("int64"))


class _Cumulative(Op):
    """Base of running sums and products along an axis."""

    attributes = {"axis": ..., "exclusive": False, "reverse": False}  # noqa: RUF012
    kind: ClassVar[str]
    ufunc: ClassVar[np.ufunc]

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's type."""
        x = node.input(0).type
        if not 0 <= int(self.get(node, "axis")) < x.rank:
            raise type_error(node, f"there is no axis {self.get(node, 'axis')}")
        return [TensorType(x.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's accumulate, flipped and shifted."""
        x, axis = present(xs[0]), int(self.get(node, "axis"))
        source = np.flip(x, axis) if self.get(node, "reverse") else x
        if self.get(node, "exclusive"):
            first = np.full_like(source.take([0], axis), self.ufunc.identity)
            source = np.concatenate([first, source.take(range(x.shape[axis] - 1), axis)], axis)
        out = self.ufunc.accumulate(source, axis=axis, dtype=x.dtype)
        return [np.flip(out, axis) if self.get(node, "reverse") else out]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Each result takes the numbers that come before it."""
        from dlcc.tir import expr

        x, axis = ctx.read(0), int(self.get(node, "axis"))
        reverse, exclusive = self.get(node, "reverse"), self.get(node, "exclusive")
        neutral = expr.neutral(self.kind, str(node.output.type.dtype.numpy))

        def part(i: Any, k: Any) -> Any:
            far, near = (i[axis], k) if reverse else (k, i[axis])
            counts = far < near if exclusive else far <= near
            return expr.select(counts, x(*i[:axis], k, *i[axis + 1 :]), neutral)

        shape = node.input(0).type.shape
        totals = ctx.stage(shape, expr.reduced(self.kind, shape[axis], part), "totals")
        ctx.output(0, lambda *i: totals[i])


class CumSum(_Cumulative):
    """cum_sum(x) {axis, exclusive=false, reverse=false}: sums of all numbers up to each."""

    name = "cum_sum"
    kind, ufunc = "add", np.add


class CumProd(_Cumulative):
    """cum_prod(x) {axis, exclusive=false, reverse=false}: products of all numbers up to each."""

    name = "cum_prod"
    kind, ufunc = "mul", np.multiply


class Trilu(Movement):
    """trilu(x) {k=0, upper=true}: the triangle on or above (below) diagonal k, zeros elsewhere.

    Zeros are codes of 0 only where the zero point is 0, so quantised operands stay float.
    """

    name = "trilu"
    attributes = {"k": 0, "upper": True}  # noqa: RUF012
    quantised = Quantised.FLOAT

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's type, of rank 2 at least."""
        x = node.input(0).type
        if x.rank < 2:
            raise type_error(node, "needs two axes")
        return [TensorType(x.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's triu or tril."""
        cut = np.triu if self.get(node, "upper") else np.tril
        return [np.asarray(cut(present(xs[0]), self._diagonal(node)))]

    def _diagonal(self, node: Node) -> int:
        """``k``, or the nearest one with a part in the matrix; all beyond select alike."""
        rows, columns = node.output.type.shape[-2:]
        return max(-rows, min(columns, int(self.get(node, "k"))))

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """With 0."""
        assert xs[0] is not None
        return [xs[0].union(Interval(0.0, 0.0))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A select by row and column."""
        from dlcc.tir import expr

        x, k = ctx.read(0), self._diagonal(node)
        upper = self.get(node, "upper")
        dtype = str(node.output.type.dtype.numpy)

        def body(*i: Any) -> Any:
            row, column = i[-2] + k, i[-1]
            kept = column >= row if upper else column <= row
            return expr.select(kept, x(*i), expr.const(0, dtype))

        ctx.output(0, body)


class OneHot(Op):
    """one_hot(indices, values) {axis, depth}: values[1] at the index along a new axis, else [0].

    Negative indices count from the end; an index outside gives a line of values[0].
    """

    name = "one_hot"
    operands = ("indices", "values")
    attributes = {"axis": ..., "depth": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The indices' shape with the new axis."""
        indices, values = node.input(0).type, node.input(1).type
        axis, depth = int(self.get(node, "axis")), int(self.get(node, "depth"))
        if not 0 <= axis <= indices.rank or depth < 1 or values.shape != (2,):
            raise type_error(node, "axis, depth or values do not fit")
        shape = (*indices.shape[:axis], depth, *indices.shape[axis:])
        return [TensorType(shape, values.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """A comparison with every place."""
        indices, values = present(xs[0]).astype(np.int64), present(xs[1])
        axis, depth = int(self.get(node, "axis")), int(self.get(node, "depth"))
        wrapped = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis)
        places = np.arange(depth).reshape([-1 if a == axis else 1 for a in range(wrapped.ndim)])
        return [np.where(wrapped == places, values[1], values[0])]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The range of the two values."""
        assert xs[1] is not None
        return [xs[1]]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A comparison with every place."""
        from dlcc.tir import expr

        indices, values = ctx.read(0), ctx.read(1)
        axis, depth = int(self.get(node, "axis")), int(self.get(node, "depth"))

        def body(*i: Any) -> Any:
            index = indices(*i[:axis], *i[axis + 1 :]).astype("int32")
            place = expr.select(index < 0, index + depth, index)
            return expr.select(place.equal(i[axis]), values(1), values(0))

        ctx.output(0, body)


# -- importers ---------------------------------------------------------------------------------


@onnx_op("TopK")
def _top_k(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    k = int(node.attrs["k"] if node.opset < 10 else node.constant(1, "k").reshape(-1)[0])
    axis = axis_of(node.attrs.get("axis", -1), x.type.rank)
    attrs = {"axis": axis, "k": k, "largest": bool(node.attrs.get("largest", 1))}
    return node.build("top_k", [x], attrs, outputs=2)


def _cumulative(node: OnnxNode, op: str) -> Sequence[Value]:
    x = node.input(0)
    axis = axis_of(int(node.constant(1, "the axis").reshape(-1)[0]), x.type.rank)
    flags = {key: bool(node.attrs.get(key, 0)) for key in ("exclusive", "reverse")}
    return node.build(op, [x], {"axis": axis, **flags})


@onnx_op("CumSum", since=11)
def _cum_sum(node: OnnxNode) -> Sequence[Value]:
    return _cumulative(node, "cum_sum")


@onnx_op("CumProd", since=26)
def _cum_prod(node: OnnxNode) -> Sequence[Value]:
    return _cumulative(node, "cum_prod")


@onnx_op("Trilu", since=14)
def _trilu(node: OnnxNode) -> Sequence[Value]:
    k = node.optional_constant(1, "the diagonal")
    attrs = {
        "k": 0 if k is None else int(k.reshape(-1)[0]),
        "upper": bool(node.attrs.get("upper", 1)),
    }
    return node.build("trilu", [node.input(0)], attrs)


@onnx_op("OneHot", since=9)
def _one_hot(node: OnnxNode) -> Sequence[Value]:
    indices = node.input(0)
    if not indices.type.dtype.is_integer:
        indices = cast_to(node, indices, I64, "/indices")
    depth = int(node.constant(1, "the depth").reshape(-1)[0])
    axis = axis_of(node.attrs.get("axis", -1), indices.type.rank + 1)
    return node.build("one_hot", [indices, node.input(2)], {"axis": axis, "depth": depth})
