"""Reductions over axes, arg-reductions, and their ONNX importers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc import numerics
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed
from dlcc.ops.pool import mean_multiplier

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

_INF = float("inf")


class Reduction(Op):
    """A reduction of x over ``axes`` (not negative, at least one); kept as extent 1 or dropped."""

    attributes: ClassVar[Mapping[str, Any]] = {"axes": ..., "keepdims": True}

    def axes(self, node: Node) -> tuple[int, ...]:
        """The reduced axes."""
        return tuple(int(a) for a in self.get(node, "axes"))

    def count(self, node: Node) -> int:
        """Elements that make one result."""
        shape = node.input(0).type.shape
        return prod(shape[a] for a in self.axes(node))

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape without the reduced axes, or with extent 1 there."""
        x, axes = node.input(0).type, self.axes(node)
        if any(not 0 <= a < x.rank for a in axes) or len(set(axes)) != len(axes):
            raise type_error(node, f"axes {list(axes)} do not fit rank {x.rank}")
        keep = self.get(node, "keepdims")
        shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
        return [TensorType(tuple(shape), x.dtype)]

    @abstractmethod
    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The reduction with ``keepdims``, in the dtype of ``x``."""

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """:meth:`reduce`, in the operand's dtype."""
        x = xs[0]
        assert x is not None
        with np.errstate(all="ignore"):
            out = self.reduce(x, self.axes(node))
        return [np.asarray(out, x.dtype).reshape(node.output.type.shape)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A reduction stage (:mod:`dlcc.tir.reductions`)."""
        from dlcc.tir.reductions import emit

        emit(node, ctx, self.name.removeprefix("reduce_"), self.axes(node))


class ReduceMean(Reduction):
    """Mean over axes; over the spatial axes it is global average pooling.

    Integer: acc = sum(xq - zx) in int32, then requantise with f32(f64(sx) / (f64(sy) * count)).
    """

    name = "reduce_mean"
    quantised = Quantised.INTEGER

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Integers are divided rounding towards zero, as ONNX Runtime does."""
        if x.dtype.kind in "iu":
            total = x.sum(axis=axes, keepdims=True, dtype=np.int64)
            return np.asarray(np.trunc(total / prod(x.shape[a] for a in axes)))
        return np.asarray(x.mean(axis=axes, keepdims=True, dtype=x.dtype))

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact sums, one multiplier."""
        x, out = xs[0], node.output.type.encoding
        source = node.input(0).type.encoding
        if not isinstance(source, Affine):
            return evaluate_mixed(self, node, xs)
        assert x is not None
        total = x.sum(axis=self.axes(node), dtype=np.int64) - source.zero_point * self.count(node)
        acc = np.asarray(total).astype(np.int32).reshape(node.output.type.shape)
        mult = mean_multiplier(source, out, self.count(node))
        if isinstance(out, Affine):
            return [numerics.requantise(acc, mult, out)]
        return [numerics.dequantise(acc, mult)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """A mean lies between its terms."""
        assert xs[0] is not None
        return [xs[0]]


class ReduceSum(Reduction):
    """Sum over axes."""

    name = "reduce_sum"

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Numpy's pairwise sum."""
        return np.asarray(x.sum(axis=axes, keepdims=True, dtype=x.dtype))

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Count times the range."""
        assert xs[0] is not None
        count = self.count(node)
        return [Interval(xs[0].low * count, xs[0].high * count)]


class _Selecting(Reduction):
    """A reduction whose result is one of the elements; works on codes too."""

    quantised = Quantised.SAME

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range."""
        assert xs[0] is not None
        return [xs[0]]


def _extremes(x: Array) -> tuple[Any, Any]:
    """The smallest and the largest number of the array's type."""
    if x.dtype == np.bool_:
        return False, True
    if x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        return limits.min, limits.max
    return -np.inf, np.inf


class ReduceMax(_Selecting):
    """Maximum over axes."""

    name = "reduce_max"

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Numpy's maximum; the smallest number there is where there are no elements."""
        return np.asarray(x.max(axis=axes, keepdims=True, initial=_extremes(x)[0]))


class ReduceMin(_Selecting):
    """Minimum over axes."""

    name = "reduce_min"

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Numpy's minimum; the largest number there is where there are no elements."""
        return np.asarray(x.min(axis=axes, keepdims=True, initial=_extremes(x)[1]))


class ReduceProd(Reduction):
    """Product over axes."""

    name = "reduce_prod"

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Numpy's product."""
        return np.asarray(x.prod(axis=axes, keepdims=True, dtype=x.dtype))


class _NonNegative(Reduction):
    """A reduction whose result is never negative."""

    def bound(self, largest: float, count: int) -> float:
        """Largest result of ``count`` elements of magnitude up to ``largest``."""
        return largest * count

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """From 0 to what elements of the largest magnitude give."""
        assert xs[0] is not None
        largest = max(abs(xs[0].low), abs(xs[0].high))
        return [Interval(0.0, self.bound(largest, self.count(node)))]


class ReduceL1(_NonNegative):
    """Sum of magnitudes over axes."""

    name = "reduce_l1"

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Sum of np.abs."""
        return np.asarray(np.abs(x).sum(axis=axes, keepdims=True, dtype=x.dtype))


class ReduceSumSquare(_NonNegative):
    """Sum of squares over axes."""

    name = "reduce_sum_square"

    def bound(self, largest: float, count: int) -> float:
        """Count times the square."""
        return largest * largest * count

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Sum of x * x."""
        return np.asarray((x * x).sum(axis=axes, keepdims=True, dtype=x.dtype))


class ReduceL2(_NonNegative):
    """Square root of the sum of squares over axes."""

    name = "reduce_l2"

    def bound(self, largest: float, count: int) -> float:
        """Root of count times the largest magnitude."""
        return largest * float(np.sqrt(count))

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """sqrt(sum(x * x))."""
        return np.asarray(np.sqrt((x * x).sum(axis=axes, keepdims=True, dtype=x.dtype)))


class ReduceLogSumExp(Reduction):
    """log(sum(exp(x))) over axes, computed as max + log(sum(exp(x - max)))."""

    name = "reduce_log_sum_exp"

    def infer(self, node: Node) -> list[TensorType]:
        """As every reduction's, of real numbers only: the result is none of the integers."""
        if not node.input(0).type.dtype.is_float:
            raise type_error(node, "the logarithm of a sum of exponentials is no integer")
        return super().infer(node)

    def reduce(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Shifted by the maximum (0 where that is infinite)."""
        top = x.max(axis=axes, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(top), top, 0).astype(x.dtype)
        total = np.exp(x - shift).sum(axis=axes, keepdims=True, dtype=x.dtype)
        return np.asarray(np.log(total) + shift)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The range shifted by log(count)."""
        assert xs[0] is not None
        shift = float(np.log(self.count(node)))
        return [Interval(xs[0].low + shift, xs[0].high + shift)]


class _ArgReduction(Op):
    """Index along ``axis`` of an extreme element; of equal ones the first, or the last."""

    attributes: ClassVar[Mapping[str, Any]] = {
        "axis": 0,
        "keepdims": True,
        "select_last_index": False,
    }
    quantised = Quantised.INTEGER

    def infer(self, node: Node) -> list[TensorType]:
        """i64, the axis kept as 1 or dropped."""
        x, axis = node.input(0).type, self.get(node, "axis")
        if not 0 <= axis < x.rank:
            raise type_error(node, f"axis {axis} does not fit rank {x.rank}")
        if not x.shape[axis]:
            raise type_error(node, f"axis {axis} has no elements, so none is the extreme one")
        middle = (1,) if self.get(node, "keepdims") else ()
        return [TensorType((*x.shape[:axis], *middle, *x.shape[axis + 1 :]), I64)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """By numpy; the last of equal elements by searching backwards."""
        x, axis = xs[0], self.get(node, "axis")
        assert x is not None
        find: Callable[..., Any] = np.argmax if self.name == "argmax" else np.argmin
        if self.get(node, "select_last_index"):
            out = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis)
        else:
            out = find(x, axis=axis)
        return [np.asarray(out, np.int64).reshape(node.output.type.shape)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Scales are positive, so codes have the order of the real numbers."""
        return self.evaluate(node, xs)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """0 to the axis' extent less 1."""
        return [Interval(0.0, float(node.input(0).type.shape[self.get(node, "axis")] - 1))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """An extreme, then the smallest (largest) index that has it."""
        from dlcc.tir.reductions import emit_arg

        emit_arg(
            node,
            ctx,
            self.name == "argmax",
            self.get(node, "axis"),
            bool(self.get(node, "select_last_index")),
        )


class ArgMax(_ArgReduction):
    """Index of the maximum along an axis."""

    name = "argmax"


class ArgMin(_ArgReduction):
    """Index of the minimum along an axis."""

    name = "argmin"


# -- ONNX --------------------------------------------------------------------------------------


def reduced_axes(node: OnnxNode) -> tuple[int, ...] | None:
    """Axes of an ONNX reduction (attribute or input), sorted; None where it does nothing."""
    rank = node.input(0).type.rank
    given = node.attrs.get("axes")
    if given is None and node.optional(1) is not None:
        given = tuple(node.constant(1, "the axes").reshape(-1).tolist())
    if not given:
        return None if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    axes = sorted({int(a) + rank if a < 0 else int(a) for a in given})
    if axes[0] < 0 or axes[-1] >= rank:
        raise Unsupported(f"axes {list(given)} do not fit rank {rank}")
    return tuple(axes)


def _reduction(op: str) -> Callable[[OnnxNode], Sequence[Value]]:
    def importer(node: OnnxNode) -> Sequence[Value]:
        axes = reduced_axes(node)
        if not axes:  # nothing to reduce: noop_with_empty_axes, or a scalar
            return [node.input(0)] if op in _IDENTITY_ON_ONE else _pointwise(node, op)
        keep = bool(node.attrs.get("keepdims", 1))
        return node.build(op, [node.input(0)], {"axes": axes, "keepdims": keep})

    return importer


_IDENTITY_ON_ONE = ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod")


def _pointwise(node: OnnxNode, op: str) -> Sequence[Value]:
    """A reduction of single elements that is not the identity."""
    x = node.input(0)
    if op == "reduce_sum_square":
        return node.build("mul", [x, x])
    if op in ("reduce_l1", "reduce_l2"):
        return node.build("abs", [x])
    return [x]  # log(exp(x))


for _onnx, _op in (
    ("ReduceMean", "reduce_mean"),
    ("ReduceSum", "reduce_sum"),
    ("ReduceMax", "reduce_max"),
    ("ReduceMin", "reduce_min"),
    ("ReduceProd", "reduce_prod"),
    ("ReduceL1", "reduce_l1"),
    ("ReduceL2", "reduce_l2"),
    ("ReduceSumSquare", "reduce_sum_square"),
    ("ReduceLogSumExp", "reduce_log_sum_exp"),
):
    onnx_op(_onnx)(_reduction(_op))


@onnx_op("ReduceLogSum")
def import_reduce_log_sum(node: OnnxNode) -> Sequence[Value]:
    """The logarithm of a sum."""
    axes = reduced_axes(node)
    x = node.input(0)
    if axes:
        keep = bool(node.attrs.get("keepdims", 1))
        (x,) = node.build("reduce_sum", [x], {"axes": axes, "keepdims": keep}, suffix=".sum")
    return node.build("log", [x])


def _arg(op: str) -> Callable[[OnnxNode], Sequence[Value]]:
    def importer(node: OnnxNode) -> Sequence[Value]:
        x, axis = node.input(0), int(node.attrs.get("axis", 0))
        attrs = {
            "axis": axis + x.type.rank if axis < 0 else axis,
            "keepdims": bool(node.attrs.get("keepdims", 1)),
            "select_last_index": bool(node.attrs.get("select_last_index", 0)),
        }
        return node.build(op, [x], attrs)

    return importer


onnx_op("ArgMax")(_arg("argmax"))
onnx_op("ArgMin")(_arg("argmin"))
