"""Arithmetic on two operands with numpy broadcasting.

Integer forms (docs/numerics.md): ``add``, ``sub``, ``minimum`` and ``maximum`` bring both operands
to one fixed-point unit, sy * 2^-S; ``mul`` multiplies centred codes and requantises once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc import numerics
from dlcc.frontends.registry import Importer, OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.cast import cast_to
from dlcc.ops.pointwise import broadcast_reader, broadcast_shape, clamped, present, same_dtype

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Binary(Op):
    """Base of elementwise functions of two operands of one dtype."""

    operands = ("a", "b")

    @abstractmethod
    def function(self, node: Node, a: Array, b: Array) -> Array:
        """The function in numpy."""

    @abstractmethod
    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """The function as a TIR expression."""

    def infer(self, node: Node) -> list[TensorType]:
        """The broadcast shape in the operands' dtype."""
        dtype = same_dtype(node).dtype
        shape = broadcast_shape(node, [node.input(0).type, node.input(1).type])
        return [TensorType(shape, dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The function, in the operands' dtype."""
        a, b = present(xs[0]), present(xs[1])
        with np.errstate(all="ignore"):
            return [np.asarray(self.function(node, a, b))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """The expression; on codes, the integer form."""
        a, b = (broadcast_reader(ctx.read(k), node.input(k).type.shape) for k in (0, 1))
        body = self.expression
        if any(isinstance(v.type.encoding, Affine) for v in (node.input(0), node.input(1))):
            body = self.integer_expression
        ctx.output(0, lambda *i: body(node, a(*i), b(*i)))

    def integer_expression(self, node: Node, a: Any, b: Any) -> Any:
        """The integer form as a TIR expression of two codes."""
        raise type_error(node, "has no integer form")


# -- integer sums ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedPoint:
    """Constants of an integer add: both terms and the result in units of ``unit``.

    Attributes:
        factors: float32 factor of each operand's centred code.
        unit: 2^-S where the output is codes; else the real value of one unit, float32.
        low: smallest code (or real value) of the result.
        high: largest.
    """

    factors: tuple[float, float]
    unit: float
    low: float
    high: float


def _affine_operands(node: Node) -> tuple[Affine, Affine]:
    types = node.input(0).type, node.input(1).type
    a, b = (t.encoding for t in types)
    if not isinstance(a, Affine) or not isinstance(b, Affine):
        raise type_error(node, "one operand is quantised and the other is not")
    if a.axis is not None or b.axis is not None:
        raise type_error(node, "operands must be quantised per tensor")
    return a, b


def _largest(encoding: Affine) -> int:
    low, high = encoding.code_range
    return max(high - encoding.zero_point, encoding.zero_point - low)


def fixed_point(node: Node, signs: tuple[int, int] = (1, 1)) -> FixedPoint:
    """The constants of an integer add of two per-tensor quantised operands.

    Args:
        node: an op with operands ``a`` and ``b``; ``act_min``/``act_max`` are used where it has
            them.
        signs: of the terms (sub: ``(1, -1)``).
    """
    a, b = _affine_operands(node)
    out = node.output.type.encoding
    scale = out.scale if isinstance(out, Affine) else max(a.scale, b.scale)
    ratios = a.scale / scale, b.scale / scale
    shift = numerics.add_shift(ratios, (_largest(a), _largest(b)))
    factors = tuple(
        float(np.float32(s * r * 2.0**shift)) for s, r in zip(signs, ratios, strict=True)
    )
    ends = float(node.attrs.get("act_min", -math.inf)), float(node.attrs.get("act_max", math.inf))  # type: ignore[arg-type]
    if isinstance(out, Affine):
        low, high = numerics.activation_codes(out, *ends)
        return FixedPoint((factors[0], factors[1]), 2.0**-shift, low, high)
    unit = float(np.float32(scale * 2.0**-shift))
    return FixedPoint((factors[0], factors[1]), unit, *ends)


def _integer_terms(
    node: Node, xs: Sequence[Array | None], merge: Callable[[Array, Array], Array],
    signs: tuple[int, int],
) -> list[Array]:  # fmt: skip
    encodings = _affine_operands(node)
    fixed = fixed_point(node, signs)
    terms = [
        numerics.residual_term(present(x), e, np.asarray(f, np.float32))
        for x, e, f in zip(xs[:2], encodings, fixed.factors, strict=True)
    ]
    total = merge(*terms)
    out = node.output.type.encoding
    unit = np.asarray(fixed.unit, np.float32)
    if isinstance(out, Affine):
        return [numerics.requantise(total, unit, out, fixed.low, fixed.high)]
    real = numerics.dequantise(total, unit)
    return [clamped(real, fixed.low, fixed.high)]


def _integer_terms_tir(
    node: Node, a: Any, b: Any, merge: Callable[[Any, Any], Any], signs: tuple[int, int]
) -> Any:
    from dlcc.tir import expr

    fixed = fixed_point(node, signs)
    terms = [
        expr.rint(expr.centred(x, e).astype("float32") * expr.const(f, "float32")).astype("int32")
        for x, e, f in zip((a, b), _affine_operands(node), fixed.factors, strict=True)
    ]
    scaled = merge(*terms).astype("float32") * expr.const(fixed.unit, "float32")
    out = node.output.type
    if isinstance(out.encoding, Affine):
        storage = str(out.storage.numpy)
        return expr.to_codes(scaled, out.encoding, int(fixed.low), int(fixed.high), storage)
    return expr.clamp(scaled, fixed.low, fixed.high)


class _Sum(Binary):
    """Base of the ops whose integer form is built of two fixed-point terms."""

    quantised = Quantised.INTEGER
    signs: ClassVar[tuple[int, int]] = (1, 1)

    def merge(self, a: Array, b: Array) -> Array:
        """The two int32 terms put together."""
        return a + b

    def merge_tir(self, a: Any, b: Any) -> Any:
        """As :meth:`merge`, in TIR."""
        return a + b

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """T = merge(int32(rint(f32(a-za)*A)), int32(rint(f32(b-zb)*B))); requantised by 2^-S.

        A = f32(sa/sy * 2^S), B likewise; S = 16, fewer where |t| could reach 2^24. With a float
        output, sy stands for the larger operand scale and the result is f32(t) * f32(sy * 2^-S).
        """
        return _integer_terms(node, xs, self.merge, self.signs)

    def integer_expression(self, node: Node, a: Any, b: Any) -> Any:
        """The same in TIR."""
        return _integer_terms_tir(node, a, b, self.merge_tir, self.signs)


class Add(_Sum):
    """add(a, b) {act_min=-inf, act_max=inf}: a + b, clamped."""

    name = "add"
    attributes = {"act_min": -math.inf, "act_max": math.inf}  # noqa: RUF012

    def _ends(self, node: Node) -> tuple[float, float]:
        return float(self.get(node, "act_min")), float(self.get(node, "act_max"))

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """A sum, clamped."""
        return clamped(a + b, *self._ends(node))

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """A sum, clamped."""
        from dlcc.tir import expr

        return expr.clamp(a + b, *self._ends(node))

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Sums of the ends, clamped."""
        a, b = both_of(xs)
        low, high = self._ends(node)
        ends = np.clip([_sum(a.low, b.low, -1), _sum(a.high, b.high, 1)], low, high)
        return [Interval(float(ends[0]), float(ends[1]))]


class Sub(_Sum):
    """sub(a, b): a - b. On codes an add whose second factor is negative."""

    name = "sub"
    signs = (1, -1)

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """A difference."""
        return a - b

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """A difference."""
        return a - b

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Differences of opposite ends."""
        a, b = both_of(xs)
        return [Interval(_sum(a.low, -b.high, -1), _sum(a.high, -b.low, 1))]


class Minimum(_Sum):
    """minimum(a, b)."""

    name = "minimum"

    def merge(self, a: Array, b: Array) -> Array:
        """The smaller term."""
        return np.minimum(a, b)

    def merge_tir(self, a: Any, b: Any) -> Any:
        """The smaller term."""
        from dlcc.tir import expr

        return expr.minimum(a, b)

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """Numpy's."""
        return np.minimum(a, b)

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """A comparison."""
        return self.merge_tir(a, b)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The smaller of both ends."""
        a, b = both_of(xs)
        return [Interval(min(a.low, b.low), min(a.high, b.high))]


class Maximum(_Sum):
    """maximum(a, b)."""

    name = "maximum"

    def merge(self, a: Array, b: Array) -> Array:
        """The larger term."""
        return np.maximum(a, b)

    def merge_tir(self, a: Any, b: Any) -> Any:
        """The larger term."""
        from dlcc.tir import expr

        return expr.maximum(a, b)

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """Numpy's."""
        return np.maximum(a, b)

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """A comparison."""
        return self.merge_tir(a, b)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The larger of both ends."""
        a, b = both_of(xs)
        return [Interval(max(a.low, b.low), max(a.high, b.high))]


class Mul(Binary):
    """mul(a, b): a * b."""

    name = "mul"
    quantised = Quantised.INTEGER

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """A product."""
        return a * b

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """A product."""
        return a * b

    def _multiplier(self, node: Node) -> Array:
        a, b = _affine_operands(node)
        if a.bits + b.bits > 30:
            raise type_error(node, f"{a.bits} x {b.bits} bits do not fit the int32 accumulator")
        out = node.output.type.encoding
        scale = out.scale if isinstance(out, Affine) else 1.0
        return numerics.multiplier([a.scale * b.scale], scale).reshape(())

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """With acc = (a - za) * (b - zb) in int32: requantised by f32(f64(sa)*f64(sb)/f64(sy))."""
        a, b = _affine_operands(node)
        mult = self._multiplier(node)
        acc = (present(xs[0]).astype(np.int32) - a.zero_point) * (
            present(xs[1]).astype(np.int32) - b.zero_point
        )
        out = node.output.type.encoding
        if isinstance(out, Affine):
            return [numerics.requantise(acc, mult, out)]
        return [numerics.dequantise(acc, mult)]

    def integer_expression(self, node: Node, a: Any, b: Any) -> Any:
        """The same in TIR."""
        from dlcc.tir import expr

        first, second = _affine_operands(node)
        acc = expr.centred(a, first) * expr.centred(b, second)
        scaled = acc.astype("float32") * expr.const(float(self._multiplier(node)), "float32")
        out = node.output.type
        if not isinstance(out.encoding, Affine):
            return scaled
        return expr.to_codes(scaled, out.encoding, *out.encoding.code_range, str(out.storage.numpy))

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Extremes of the products of the ends; a square is not negative."""
        a, b = both_of(xs)
        square = node.input(0) is node.input(1)
        products = [product_of(p, q) for p in (a.low, a.high) for q in (b.low, b.high)]
        if square:
            low = 0.0 if a.low <= 0 <= a.high else min(a.low**2, a.high**2)
            return [Interval(low, max(products))]
        return [Interval(min(products), max(products))]


class Div(Binary):
    """div(a, b): a / b; integers truncate toward zero, and by 0 give 0."""

    name = "div"

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """IEEE division, or C's on integers."""
        if np.issubdtype(a.dtype, np.integer):
            quotient = a // b
            inexact = (a % b != 0) & ((a < 0) != (b < 0))
            return np.asarray(quotient + inexact.astype(a.dtype))
        return np.asarray(a / b)

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """IEEE division, or C's on integers."""
        from dlcc.tir import expr

        return expr.quotient(a, b) if node.output.type.dtype.is_integer else a / b

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Extremes of the quotients; unbounded where the divisor may be 0."""
        a, b = both_of(xs)
        if b.low <= 0 <= b.high or not np.isfinite([a.low, a.high, b.low, b.high]).all():
            return [Interval(-np.inf, np.inf)]
        quotients = [p / q for p in (a.low, a.high) for q in (b.low, b.high)]
        if node.output.type.dtype.is_integer:
            quotients = [float(np.trunc(q)) for q in quotients]
        return [Interval(min(quotients), max(quotients))]


class Pow(Binary):
    """pow(a, b): a to the power b."""

    name = "pow"

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """numpy's; integers to a negative power truncate."""
        if np.issubdtype(a.dtype, np.integer):
            return np.power(a.astype(np.float64), b).astype(a.dtype)
        return np.power(a, b)

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """As C's powf; integers by way of float32, exact below 2^24."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        dtype = str(node.output.type.dtype.numpy)
        value = tir_math.pow(expr.cast(a, "float32"), expr.cast(b, "float32"))
        return value if dtype == "float32" else expr.rint(value).astype(dtype)


class Mod(Binary):
    """mod(a, b) {fmod=false}: remainder with the sign of b, or of a where ``fmod``.

    Of integers, by 0 it is 0.
    """

    name = "mod"
    attributes = {"fmod": False}  # noqa: RUF012

    def function(self, node: Node, a: Array, b: Array) -> Array:
        """Numpy's mod or fmod."""
        return np.fmod(a, b) if self.get(node, "fmod") else np.mod(a, b)

    def expression(self, node: Node, a: Any, b: Any) -> Any:
        """Integer remainders; on floats C's fmod, its sign corrected."""
        from dlcc.tir import expr
        from dlcc.tir.trigonometry import floor_mod, fmod

        if node.output.type.dtype.is_integer:
            return expr.remainder(a, b, floor=not self.get(node, "fmod"))
        return fmod(a, b) if self.get(node, "fmod") else floor_mod(a, b)


def both_of(xs: Sequence[Interval | None]) -> tuple[Interval, Interval]:
    """The intervals of two operands that are both there."""
    a, b = xs[0], xs[1]
    assert a is not None
    assert b is not None
    return a, b


def _sum(a: float, b: float, side: int) -> float:
    """A + b for interval ends; inf - inf is the infinity of ``side``."""
    total = a + b
    return side * math.inf if math.isnan(total) else total


def product_of(a: float, b: float) -> float:
    """A * b for interval ends, with 0 * inf = 0."""
    return 0.0 if a == 0 or b == 0 else a * b


# -- importers ---------------------------------------------------------------------------------


def _import_binary(op_type: str, op: str) -> Importer:
    def importer(node: OnnxNode) -> Sequence[Value]:
        return node.build(op, [node.input(0), node.input(1)])

    return onnx_op(op_type, 7)(importer)


for _op_type, _op in (("Add", "add"), ("Sub", "sub"), ("Mul", "mul"), ("Div", "div")):
    _import_binary(_op_type, _op)


def _chain(node: OnnxNode, op: str) -> Value:
    total = node.input(0)
    for index in range(1, len(node.inputs)):
        suffix = "" if index == len(node.inputs) - 1 else f"/{index}"
        (total,) = node.build(op, [total, node.input(index)], suffix=suffix)
    return total


@onnx_op("Sum", 8)
@onnx_op("Sum", 6)
def _sum_all(node: OnnxNode) -> Sequence[Value]:
    return [_chain(node, "add")]


@onnx_op("Min", 6)
def _min(node: OnnxNode) -> Sequence[Value]:
    return [_chain(node, "minimum")]


@onnx_op("Max", 6)
def _max(node: OnnxNode) -> Sequence[Value]:
    return [_chain(node, "maximum")]


@onnx_op("Mean", 6)
def _mean(node: OnnxNode) -> Sequence[Value]:
    total = _chain(node, "add")
    count = node.graph.add_constant(
        np.asarray(len(node.inputs), total.type.dtype.numpy), name="count"
    )
    return node.build("div", [total, count], suffix="/mean")


@onnx_op("Mod", 10)
def _mod(node: OnnxNode) -> Sequence[Value]:
    fmod = bool(node.attrs.get("fmod", 0))
    return node.build("mod", [node.input(0), node.input(1)], {"fmod": fmod})


@onnx_op("Pow", 7)
def _pow(node: OnnxNode) -> Sequence[Value]:
    base, exponent = node.input(0), node.input(1)
    if exponent.is_constant and exponent.type.elements == 1 and base.type.dtype.is_float:
        power = float(exponent.decoded().reshape(-1)[0])
        fits = np.broadcast_shapes(base.type.shape, exponent.type.shape) == base.type.shape
        if fits and power in (0.5, 1.0, 2.0, 3.0):
            return [_small_power(node, base, power)]
    if exponent.type.dtype == base.type.dtype:
        return node.build("pow", [base, exponent])
    if base.type.dtype.is_float:
        return node.build("pow", [base, cast_to(node, exponent, base.type.dtype, "/exponent")])
    if not exponent.type.dtype.is_float:
        return node.build("pow", [base, cast_to(node, exponent, base.type.dtype, "/exponent")])
    real = cast_to(node, base, exponent.type.dtype, "/base")
    (power_value,) = node.build("pow", [real, exponent], suffix="/pow")
    return [cast_to(node, power_value, base.type.dtype)]


def _small_power(node: OnnxNode, base: Value, power: float) -> Value:
    if power == 1.0:
        return base
    if power == 0.5:
        return node.build("sqrt", [base])[0]
    square = node.build("mul", [base, base], suffix="" if power == 2.0 else "/square")[0]
    return square if power == 2.0 else node.build("mul", [square, base])[0]


__all__ = ["Binary", "FixedPoint", "Unsupported", "fixed_point"]
