"""Comparisons, boolean and bitwise ops, and choice by a condition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import Importer, OnnxNode, Unsupported, onnx_op
from dlcc.ir import BOOL, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.pointwise import broadcast_reader, broadcast_shape, present, same_dtype

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

_TRUTH = Interval(0.0, 1.0)


class Predicate(Op):
    """Base of broadcasting functions of two operands with a bool result.

    Attributes:
        numpy: name of the numpy function.
    """

    operands = ("a", "b")
    numpy: ClassVar[str] = ""

    @abstractmethod
    def expression(self, a: Any, b: Any) -> Any:
        """The function as a TIR expression."""

    def infer(self, node: Node) -> list[TensorType]:
        """The broadcast shape, bool."""
        same_dtype(node)
        return [TensorType(broadcast_shape(node, [v.type for v in node.inputs if v]), BOOL)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's."""
        return [np.asarray(getattr(np, self.numpy)(present(xs[0]), present(xs[1])))]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """False (0) or true (1)."""
        return [_TRUTH]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """One comparison per element."""
        a, b = (broadcast_reader(ctx.read(k), node.input(k).type.shape) for k in (0, 1))
        ctx.output(0, lambda *i: self.expression(a(*i), b(*i)))


class Equal(Predicate):
    """equal(a, b)."""

    name = "equal"
    numpy = "equal"

    def expression(self, a: Any, b: Any) -> Any:
        """==."""
        return a.equal(b)


class Less(Predicate):
    """less(a, b)."""

    name = "less"
    numpy = "less"

    def expression(self, a: Any, b: Any) -> Any:
        """<."""
        return a < b


class LessEqual(Predicate):
    """less_equal(a, b)."""

    name = "less_equal"
    numpy = "less_equal"

    def expression(self, a: Any, b: Any) -> Any:
        """<=."""
        return a <= b


class Greater(Predicate):
    """greater(a, b)."""

    name = "greater"
    numpy = "greater"

    def expression(self, a: Any, b: Any) -> Any:
        """>."""
        return a > b


class GreaterEqual(Predicate):
    """greater_equal(a, b)."""

    name = "greater_equal"
    numpy = "greater_equal"

    def expression(self, a: Any, b: Any) -> Any:
        """>=."""
        return a >= b


class And(Predicate):
    """and(a, b) of bools."""

    name = "and"
    numpy = "logical_and"

    def expression(self, a: Any, b: Any) -> Any:
        """Both."""
        from dlcc.tir import expr

        return expr.both(a, b)


class Or(Predicate):
    """or(a, b) of bools."""

    name = "or"
    numpy = "logical_or"

    def expression(self, a: Any, b: Any) -> Any:
        """Either."""
        from dlcc.tir import expr

        return expr.either(a, b)


class Xor(Predicate):
    """xor(a, b) of bools."""

    name = "xor"
    numpy = "logical_xor"

    def expression(self, a: Any, b: Any) -> Any:
        """Exactly one."""
        return a.astype("int8") != b.astype("int8")


class _Test(Op):
    """Base of bool functions of one operand."""

    @abstractmethod
    def function(self, node: Node, x: Array) -> Array:
        """The function in numpy."""

    @abstractmethod
    def expression(self, node: Node, x: Any) -> Any:
        """The function as a TIR expression."""

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape, bool."""
        return [TensorType(node.input(0).type.shape, BOOL)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The function."""
        return [np.asarray(self.function(node, present(xs[0])))]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """False (0) or true (1)."""
        return [_TRUTH]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """The expression."""
        x = ctx.read(0)
        ctx.output(0, lambda *i: self.expression(node, x(*i)))


class Not(_Test):
    """not(x) of bools."""

    name = "not"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.logical_not(x)

    def expression(self, node: Node, x: Any) -> Any:
        """Compared with 0."""
        return x.astype("int8") == 0


class IsNan(_Test):
    """is_nan(x)."""

    name = "is_nan"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.isnan(x)

    def expression(self, node: Node, x: Any) -> Any:
        """By the bits: a comparison with itself would be folded away."""
        from dlcc.tir import expr

        return expr.float_bits(x) > expr.INFINITY_BITS


class IsInf(_Test):
    """is_inf(x) {positive=true, negative=true}: which infinities count."""

    name = "is_inf"
    attributes = {"positive": True, "negative": True}  # noqa: RUF012

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        positive, negative = self.get(node, "positive"), self.get(node, "negative")
        return np.asarray((np.isposinf(x) & positive) | (np.isneginf(x) & negative))

    def expression(self, node: Node, x: Any) -> Any:
        """Compared with the ends of the floats."""
        from dlcc.tir import expr

        infinite = expr.float_bits(x).equal(expr.INFINITY_BITS)
        if self.get(node, "positive") and self.get(node, "negative"):
            return infinite
        zero = expr.like(0, x)
        return expr.both(infinite, x > zero if self.get(node, "positive") else x < zero)


class Where(Op):
    """where(condition, a, b): a where the condition holds, else b; all three broadcast."""

    name = "where"
    operands = ("condition", "a", "b")
    quantised = Quantised.SAME

    def infer(self, node: Node) -> list[TensorType]:
        """The broadcast shape in the dtype of ``a`` and ``b``."""
        condition, a, b = (node.input(k).type for k in range(3))
        if condition.dtype != BOOL:
            raise type_error(node, f"the condition is {condition.dtype}, must be bool")
        if a.dtype != b.dtype:
            raise type_error(node, "the choices have different dtypes", "add a Cast")
        return [TensorType(broadcast_shape(node, [condition, a, b]), a.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's where."""
        return [np.where(present(xs[0]), present(xs[1]), present(xs[2]))]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The union of both choices."""
        a, b = xs[1], xs[2]
        assert a is not None
        assert b is not None
        return [a.union(b)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A select."""
        from dlcc.tir import expr

        read = [broadcast_reader(ctx.read(k), node.input(k).type.shape) for k in range(3)]
        ctx.output(0, lambda *i: expr.select(*(r(*i) for r in read)))


_NUMPY_BITS = {"shift_left": "left_shift", "shift_right": "right_shift"}


class _Bits(Op):
    """Base of broadcasting bit operations on two integers."""

    operands = ("a", "b")
    bits: ClassVar[str] = ""

    def infer(self, node: Node) -> list[TensorType]:
        """The broadcast shape in the operands' integer dtype."""
        dtype: DType = same_dtype(node).dtype
        if not dtype.is_integer:
            raise type_error(node, "the operands must be integers")
        return [TensorType(broadcast_shape(node, [v.type for v in node.inputs if v]), dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The function of that name in numpy."""
        function = getattr(np, _NUMPY_BITS.get(self.bits, self.bits))
        return [function(present(xs[0]), present(xs[1]))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """One instruction, a few for shifts."""
        from dlcc.tir import expr

        a, b = (broadcast_reader(ctx.read(k), node.input(k).type.shape) for k in (0, 1))
        combined = expr.shifted if self.bits in _NUMPY_BITS else expr.bits
        ctx.output(0, lambda *i: combined(self.bits, a(*i), b(*i)))


class BitAnd(_Bits):
    """bit_and(a, b)."""

    name = "bit_and"
    bits = "bitwise_and"


class BitOr(_Bits):
    """bit_or(a, b)."""

    name = "bit_or"
    bits = "bitwise_or"


class BitXor(_Bits):
    """bit_xor(a, b)."""

    name = "bit_xor"
    bits = "bitwise_xor"


class ShiftLeft(_Bits):
    """shift_left(a, b): a * 2^b modulo the width."""

    name = "shift_left"
    bits = "shift_left"


class ShiftRight(_Bits):
    """shift_right(a, b): floor(a / 2^b)."""

    name = "shift_right"
    bits = "shift_right"


# -- importers ---------------------------------------------------------------------------------


def _import_two(op_type: str, op: str, since: int = 7) -> Importer:
    def importer(node: OnnxNode) -> Sequence[Value]:
        return node.build(op, [node.input(0), node.input(1)])

    return onnx_op(op_type, since)(importer)


for _op_type, _op, _since in (
    ("Equal", "equal", 7), ("Less", "less", 7), ("LessOrEqual", "less_equal", 12),
    ("Greater", "greater", 7), ("GreaterOrEqual", "greater_equal", 12),
    ("And", "and", 7), ("Or", "or", 7), ("Xor", "xor", 7),
    ("BitwiseAnd", "bit_and", 18), ("BitwiseOr", "bit_or", 18), ("BitwiseXor", "bit_xor", 18),
):  # fmt: skip
    _import_two(_op_type, _op, _since)


@onnx_op("Not")
def _not(node: OnnxNode) -> Sequence[Value]:
    return node.build("not", [node.input(0)])


@onnx_op("IsNaN", since=9)
def _is_nan(node: OnnxNode) -> Sequence[Value]:
    return node.build("is_nan", [node.input(0)])


@onnx_op("IsInf", since=10)
def _is_inf(node: OnnxNode) -> Sequence[Value]:
    positive = bool(node.attrs.get("detect_positive", 1))
    negative = bool(node.attrs.get("detect_negative", 1))
    if not positive and not negative:
        shape = node.input(0).type.shape
        return [node.graph.add_constant(np.zeros(shape, np.bool_), name=node.name)]
    return node.build("is_inf", [node.input(0)], {"positive": positive, "negative": negative})


@onnx_op("Where", since=9)
def _where(node: OnnxNode) -> Sequence[Value]:
    return node.build("where", [node.input(k) for k in range(3)])


@onnx_op("BitwiseNot", since=18)
def _bitwise_not(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    dtype = x.type.storage  # of codes: the integers that stand for them
    low, high = dtype.integer_range()
    ones = node.graph.add_constant(np.asarray(high if low == 0 else -1, dtype.numpy), name="ones")
    return node.build("bit_xor", [x, ones])


@onnx_op("BitShift", since=11)
def _bit_shift(node: OnnxNode) -> Sequence[Value]:
    direction = node.attrs["direction"]
    if direction not in ("LEFT", "RIGHT"):
        raise Unsupported(f"direction {direction!r}")
    op = "shift_left" if direction == "LEFT" else "shift_right"
    return node.build(op, [node.input(0), node.input(1)])
