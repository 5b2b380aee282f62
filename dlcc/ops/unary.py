"""Functions of one real number: the base class, rounding, and the cheap activations.

On integer codes each of them is a table with one entry per input code. Further functions are in
:mod:`dlcc.ops.transcendental`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import Importer, OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, AttrValue, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.pointwise import clamped, present

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


_FAR = 1e100
"""What stands for infinity in a function that has no number there."""


class Unary(Op):
    """Base of elementwise functions of one operand; shape and dtype stay.

    Attributes:
        integers: whether the function is one of integers too, exact in their type.
        critical: arguments at which the function may have an extremum; between its values there
            and at the ends of the operand's range lie all others.
    """

    quantised = Quantised.TABLE
    critical: ClassVar[tuple[float, ...]] = ()
    integers: ClassVar[bool] = False

    @abstractmethod
    def function(self, node: Node, x: Array) -> Array:
        """The function in numpy, in the precision of ``x``."""

    @abstractmethod
    def expression(self, node: Node, x: Any) -> Any:
        """The function as a TIR expression of the type of ``x``."""

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        x = node.input(0).type
        if not x.dtype.is_float and not (self.integers and x.dtype.is_integer):
            kinds = "real or integer" if self.integers else "real"
            raise type_error(node, f"{self.name} is a function of {kinds} numbers")
        return [TensorType(x.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The function, in the operand's dtype."""
        x = present(xs[0])
        with np.errstate(all="ignore"):
            return [np.asarray(self.function(node, x)).astype(x.dtype, copy=False)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """From the values at the ends and at the critical points in between."""
        x = xs[0]
        assert x is not None
        points = np.asarray([x.low, x.high, *(c for c in self.critical if x.low < c < x.high)])
        with np.errstate(all="ignore"):
            values = np.asarray(self.function(node, points), np.float64)
            near = np.asarray(self.function(node, np.clip(points, -_FAR, _FAR)), np.float64)
        values = np.where(np.isnan(values), near, values)  # as x * 0 at infinity
        if np.isnan(values).any():
            return [Interval(-np.inf, np.inf)]
        return [Interval(float(values.min()), float(values.max()))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """The table on codes, else the expression."""
        x = ctx.read(0)
        source = node.input(0).type.encoding
        if not isinstance(source, Affine):
            ctx.output(0, lambda *i: self.expression(node, x(*i)))
            return
        table = ctx.constant(self.table(node))
        low, _ = source.code_range
        ctx.output(0, lambda *i: table[x(*i).astype("int32") - low])


def import_unary(
    op_type: str,
    op: str,
    attrs: Mapping[str, tuple[str, AttrValue]] | None = None,
    since: int = 1,
    fixed: Mapping[str, AttrValue] | None = None,
) -> Importer:
    """Register the importer of an ONNX op that is one unary op.

    Args:
        op_type: ONNX's name.
        op: dlcc's name.
        attrs: ONNX attribute -> (dlcc attribute, ONNX's default).
        since: first opset.
        fixed: attributes that this spelling implies.
    """

    def importer(node: OnnxNode) -> Sequence[Value]:
        given = {ours: node.attrs.get(name, d) for name, (ours, d) in (attrs or {}).items()}
        return node.build(op, [node.input(0)], {**given, **(fixed or {})})

    return onnx_op(op_type, since)(importer)


class Relu(Unary):
    """relu(x): max(x, 0)."""

    name = "relu"
    integers = True

    def function(self, node: Node, x: Array) -> Array:
        """max(x, 0)."""
        return np.asarray(np.maximum(x, x.dtype.type(0)))

    def expression(self, node: Node, x: Any) -> Any:
        """max(x, 0)."""
        from dlcc.tir import expr

        return expr.maximum(x, expr.like(0, x))


class Clip(Unary):
    """clip(x) {min=-inf, max=inf}: min(max(x, min), max)."""

    name = "clip"
    integers = True
    attributes = {"min": -math.inf, "max": math.inf}  # noqa: RUF012

    def _ends(self, node: Node) -> tuple[float, float]:
        return float(self.get(node, "min")), float(self.get(node, "max"))

    def function(self, node: Node, x: Array) -> Array:
        """Bounds outside the dtype's range do nothing; min > max gives max, as in ONNX."""
        low, high = self._ends(node)
        return clamped(clamped(x, low, math.inf), -math.inf, high)

    def expression(self, node: Node, x: Any) -> Any:
        """Two comparisons."""
        from dlcc.tir import expr

        low, high = self._ends(node)
        dtype = node.output.type.dtype
        if dtype.is_integer:
            first, last = dtype.integer_range()
            low = low if low > first else -math.inf
            high = high if high < last else math.inf
        return expr.clamp(x, low, high)


class LeakyRelu(Unary):
    """leaky_relu(x) {alpha=0.01}: x where x >= 0, else alpha * x."""

    name = "leaky_relu"
    attributes = {"alpha": 0.01}  # noqa: RUF012
    critical = (0.0,)

    def function(self, node: Node, x: Array) -> Array:
        """Piecewise linear."""
        return np.where(x >= 0, x, x * x.dtype.type(self.get(node, "alpha")))

    def expression(self, node: Node, x: Any) -> Any:
        """Piecewise linear."""
        from dlcc.tir import expr

        return expr.select(x >= expr.like(0, x), x, expr.scaled(x, float(self.get(node, "alpha"))))


class ThresholdedRelu(Unary):
    """thresholded_relu(x) {alpha=1}: x where x > alpha, else 0."""

    name = "thresholded_relu"
    attributes = {"alpha": 1.0}  # noqa: RUF012

    def function(self, node: Node, x: Array) -> Array:
        """A comparison."""
        return np.where(x > x.dtype.type(self.get(node, "alpha")), x, x.dtype.type(0))

    def expression(self, node: Node, x: Any) -> Any:
        """A comparison."""
        from dlcc.tir import expr

        alpha = expr.like(self.get(node, "alpha"), x)
        return expr.select(x > alpha, x, expr.like(0, x))

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's with 0; a negative threshold lets negative numbers through."""
        x = xs[0]
        assert x is not None
        return [Interval(min(0.0, x.low), max(0.0, x.high))]


class Shrink(Unary):
    """shrink(x) {bias=0, lambd=0.5}: x + bias below -lambd, x - bias above lambd, else 0."""

    name = "shrink"
    integers = True
    attributes = {"bias": 0.0, "lambd": 0.5}  # noqa: RUF012

    def function(self, node: Node, x: Array) -> Array:
        """Two comparisons."""
        bias, lambd = self.get(node, "bias"), self.get(node, "lambd")
        return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))

    def expression(self, node: Node, x: Any) -> Any:
        """Two comparisons."""
        from dlcc.tir import expr

        bias, lambd = (expr.like(self.get(node, k), x) for k in ("bias", "lambd"))
        inner = expr.select(x > lambd, x - bias, expr.like(0, x))
        return expr.select(x < expr.like(0, x) - lambd, x + bias, inner)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's, widened by the bias, with 0."""
        x = xs[0]
        assert x is not None
        bias = abs(float(self.get(node, "bias")))
        return [Interval(min(0.0, x.low - bias), max(0.0, x.high + bias))]


class HardSigmoid(Unary):
    """hard_sigmoid(x) {alpha=0.2, beta=0.5}: clip(alpha * x + beta, 0, 1)."""

    name = "hard_sigmoid"
    attributes = {"alpha": 0.2, "beta": 0.5}  # noqa: RUF012

    def function(self, node: Node, x: Array) -> Array:
        """A line, clipped."""
        alpha, beta = (x.dtype.type(self.get(node, k)) for k in ("alpha", "beta"))
        return np.asarray(np.clip(x * alpha + beta, x.dtype.type(0), x.dtype.type(1)))

    def expression(self, node: Node, x: Any) -> Any:
        """A line, clipped."""
        from dlcc.tir import expr

        line = expr.scaled(x, float(self.get(node, "alpha"))) + expr.like(self.get(node, "beta"), x)
        return expr.clamp(line, 0.0, 1.0)


class HardSwish(Unary):
    """hard_swish(x): x * clip(x / 6 + 1/2, 0, 1) (Howard et al. 2019, section 5.2)."""

    name = "hard_swish"
    critical = (-3.0, -1.5, 3.0)

    def function(self, node: Node, x: Array) -> Array:
        """A parabola between -3 and 3."""
        gate = np.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1)
        return np.asarray(x * gate)

    def expression(self, node: Node, x: Any) -> Any:
        """A parabola between -3 and 3."""
        from dlcc.tir import expr

        return x * expr.clamp(x * expr.like(1 / 6, x) + expr.like(0.5, x), 0.0, 1.0)


class Softsign(Unary):
    """softsign(x): x / (1 + |x|)."""

    name = "softsign"

    def function(self, node: Node, x: Array) -> Array:
        """A division."""
        return np.asarray(x / (1 + np.abs(x)))

    def expression(self, node: Node, x: Any) -> Any:
        """A division."""
        from dlcc.tir import expr

        return x / (expr.like(1, x) + expr.absolute(x))


class Neg(Unary):
    """neg(x): -x."""

    name = "neg"
    integers = True

    def function(self, node: Node, x: Array) -> Array:
        """The sign flipped."""
        return np.negative(x)

    def expression(self, node: Node, x: Any) -> Any:
        """The sign flipped."""
        from dlcc.tir import expr

        return expr.negative(x)


class Abs(Unary):
    """abs(x): |x|."""

    name = "abs"
    integers = True
    critical = (0.0,)

    def function(self, node: Node, x: Array) -> Array:
        """The sign removed."""
        return np.abs(x)

    def expression(self, node: Node, x: Any) -> Any:
        """The sign removed."""
        from dlcc.tir import expr

        return expr.absolute(x)


class Sign(Unary):
    """sign(x): -1, 0 or 1."""

    name = "sign"
    integers = True

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.sign(x)

    def expression(self, node: Node, x: Any) -> Any:
        """Two comparisons."""
        from dlcc.tir import expr

        zero = expr.like(0, x)
        one = expr.like(1, x)
        return expr.select(x > zero, one, expr.select(x < zero, zero - one, x))  # 0 or NaN


class _Rounding(Unary):
    """Base of roundings; integers stay as they are."""

    rounding: ClassVar[str] = ""
    integers = True

    def function(self, node: Node, x: Array) -> Array:
        """The rounding; integers stay."""
        if np.issubdtype(x.dtype, np.integer):
            return x
        return np.asarray(getattr(np, self.rounding)(x))

    def expression(self, node: Node, x: Any) -> Any:
        """The rounding; integers stay."""
        from dlcc.tir import expr

        return x if node.output.type.dtype.is_integer else getattr(expr, self.rounding)(x)


class Floor(_Rounding):
    """floor(x): the largest integer that is not larger."""

    name = "floor"
    rounding = "floor"


class Ceil(_Rounding):
    """ceil(x): the smallest integer that is not smaller."""

    name = "ceil"
    rounding = "ceil"


class Round(_Rounding):
    """round(x): the nearest integer, half to even."""

    name = "round"
    rounding = "rint"


class Sqrt(Unary):
    """sqrt(x): IEEE square root."""

    name = "sqrt"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.sqrt(x)

    def expression(self, node: Node, x: Any) -> Any:
        """One instruction."""
        from dlcc.tir import expr

        return expr.sqrt(x)


class Reciprocal(Unary):
    """reciprocal(x): 1 / x."""

    name = "reciprocal"

    def function(self, node: Node, x: Array) -> Array:
        """An IEEE division."""
        return np.asarray(x.dtype.type(1) / x)

    def expression(self, node: Node, x: Any) -> Any:
        """An IEEE division."""
        from dlcc.tir import expr

        return expr.like(1, x) / x

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Unbounded where the operand may be 0."""
        x = xs[0]
        assert x is not None
        if x.low <= 0 <= x.high:
            return [Interval(-np.inf, np.inf)]
        return [Interval(1 / x.high, 1 / x.low)]


import_unary("Relu", "relu")
import_unary("LeakyRelu", "leaky_relu", {"alpha": ("alpha", 0.01)})
import_unary("ThresholdedRelu", "thresholded_relu", {"alpha": ("alpha", 1.0)})
import_unary("Shrink", "shrink", {"bias": ("bias", 0.0), "lambd": ("lambd", 0.5)})
import_unary("HardSigmoid", "hard_sigmoid", {"alpha": ("alpha", 0.2), "beta": ("beta", 0.5)})
import_unary("HardSwish", "hard_swish")
import_unary("Softsign", "softsign")
import_unary("Neg", "neg")
import_unary("Abs", "abs")
import_unary("Sign", "sign")
import_unary("Floor", "floor")
import_unary("Ceil", "ceil")
import_unary("Round", "round")
import_unary("Sqrt", "sqrt")
import_unary("Reciprocal", "reciprocal")


@onnx_op("Clip")
def _clip_attributes(node: OnnxNode) -> Sequence[Value]:
    return _clipped(node, node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf))


@onnx_op("Clip", since=11)
def _clip(node: OnnxNode) -> Sequence[Value]:
    ends: list[float] = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        given = node.optional_constant(index, "a bound")
        if given is not None and given.size != 1:
            raise Unsupported("a bound of Clip must be a scalar")
        ends.append(default if given is None else float(given.reshape(-1)[0]))
    return _clipped(node, *ends)


def _clipped(node: OnnxNode, low: float, high: float) -> Sequence[Value]:
    if math.isnan(low) or math.isnan(high):
        raise Unsupported("a bound of Clip is NaN, which means nothing that runtimes agree on")
    return node.build("clip", [node.input(0)], {"min": low, "max": high})
