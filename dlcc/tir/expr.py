"""Scalar expressions for ops' default TIR: the few that TVM's operators do not spell.

Ops import this module inside ``compute``, so that the IR can be used without loading TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from dlcc.ir.encodings import Affine
from dlcc.tir import rounding

Expr = Any


def const(value: float | int | bool, dtype: str) -> Expr:
    """A constant of ``dtype``; floats are rounded to it once."""
    if dtype == "float32":
        value = float(np.float32(value))
    return tirx.const(value, dtype)


def dtype_of(x: Expr) -> str:
    """The element type of an expression or of a read of a tensor."""
    type_ = getattr(x, "ty", None)  # a read that is not yet an expression only has a dtype
    return str(x.dtype if type_ is None else type_.dtype)


def cast(x: Expr, dtype: str) -> Expr:
    """Conversion, as C does it."""
    return x if dtype_of(x) == dtype else x.astype(dtype)


def like(value: float | int | bool, x: Expr) -> Expr:
    """A constant of the type of ``x``."""
    return const(value, dtype_of(x))


def scaled(x: Expr, factor: float) -> Expr:
    """``x`` times a known number; NaN, which TVM leaves out, for 0 times NaN and infinity."""
    if factor:
        return x * like(factor, x)
    largest = float(np.finfo(dtype_of(x)).max)
    return select(absolute(x) <= like(largest, x), like(0, x), like(float("nan"), x))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger one; NaN where either is."""
    return _extreme(te.max, a, b)


def larger(a: Expr, b: Expr) -> Expr:
    """The larger one; ``b`` where either is NaN. It names each operand once."""
    return te.max(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller one; NaN where either is."""
    return _extreme(te.min, a, b)


def _extreme(pick: Callable[[Expr, Expr], Expr], a: Expr, b: Expr) -> Expr:
    """``pick`` is a comparison, which gives the second operand where one is NaN.

    Where the first is a known number that is all there is to it, and one instruction.
    """
    if not _is_float(a) or _is_number(a):
        return pick(a, b)
    if _is_number(b):
        return pick(b, a)
    return tirx.Select(a >= like(-float("inf"), a), pick(a, b), a)


def _is_number(x: Expr) -> bool:
    """Whether ``x`` is a constant."""
    if isinstance(x, tirx.Broadcast):
        x = x.value
    return isinstance(x, tirx.FloatImm) and x.value == x.value


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """``yes`` where ``condition``; both are computed (no branch, so it vectorises)."""
    return tirx.Select(condition, yes, no)


def guarded(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """``yes`` where ``condition``, and only there computed: for reads that may be out of bounds."""
    return tirx.if_then_else(condition, yes, no)


def same(a: Expr, b: Expr) -> Expr:
    """Whether both are equal, or ``a`` is NaN."""
    if not _is_float(a):
        return a.equal(b)
    # not as Not(a >= -inf), which TVM makes a < -inf of
    return tirx.Select(a >= like(-float("inf"), a), a.equal(b), const(True, "bool"))


def exceeds(a: Expr, b: Expr) -> Expr:
    """Whether ``a`` comes after ``b`` in numpy's order, in which NaN is the largest number."""
    if not _is_float(a):
        return a > b
    least, yes, no = like(-float("inf"), a), const(True, "bool"), const(False, "bool")
    return tirx.Select(b >= least, tirx.Select(a >= least, a > b, yes), no)


def both(*conditions: Expr) -> Expr:
    """True where all conditions are."""
    return tirx.all(*conditions)


def rint(x: Expr) -> Expr:
    """Nearest integer, half to even."""
    return rounding.rint(x)


def clamp(x: Expr, low: float, high: float) -> Expr:
    """``x`` in [low, high], as constants of its type; infinite ends are left out; NaN stays."""
    if low != -float("inf"):
        x = te.max(like(low, x), x)
    if high != float("inf"):
        x = te.min(like(high, x), x)
    return x


def code(x: Expr, low: int, high: int, storage: str) -> Expr:
    """A whole number ``x`` (float32) as a code in [low, high]; ``low`` for NaN."""
    inside = te.min(te.max(x, like(low, x)), like(high, x))
    return inside.astype("int32").astype(storage)


def to_codes(scaled: Expr, out: Affine, low: int, high: int, storage: str) -> Expr:
    """clamp(rint(scaled) + zero_point, low, high) as codes of ``out``, as dlcc.numerics does it."""
    shifted = rint(scaled) + const(out.zero_point, "float32")
    return code(shifted, low, high, storage)


def centred(code: Expr, encoding: Affine) -> Expr:
    """The code minus the zero point, as int32."""
    return code.astype("int32") - const(encoding.zero_point, "int32")


def flat_index(indices: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Row-major position of ``indices``."""
    position: Expr = const(0, "int32")
    for index, size in zip(indices, shape, strict=True):
        position = position * size + index
    return position


def unflatten(position: Expr, shape: Sequence[int]) -> list[Expr]:
    """Indices of the row-major ``position``."""
    indices: list[Expr] = []
    for size in reversed(shape):
        indices.append(tirx.floormod(position, size))
        position = tirx.floordiv(position, size)
    return indices[::-1]


def negative(x: Expr) -> Expr:
    """-x."""
    return like(0, x) - x if not _is_float(x) else x * like(-1.0, x)


def absolute(x: Expr) -> Expr:
    """|x|."""
    if _is_float(x):
        return te.abs(x)
    return te.max(x, negative(x)) if signed(x) else x


def floor(x: Expr) -> Expr:
    """Largest integer not above."""
    return rounding.floor(x)


def ceil(x: Expr) -> Expr:
    """Smallest integer not below."""
    return rounding.ceil(x)


def sqrt(x: Expr) -> Expr:
    """IEEE square root."""
    return te.sqrt(x)


def _is_float(x: Expr) -> bool:
    return "float" in dtype_of(x)


def truncdiv(a: Expr, b: Expr) -> Expr:
    """Integer quotient as in C."""
    return tirx.truncdiv(a, b)


def floormod(a: Expr, b: Expr) -> Expr:
    """Integer remainder with the sign of ``b``."""
    return tirx.floormod(a, b)


def floordiv(a: Expr, b: Any) -> Expr:
    """Integer quotient, rounded down."""
    return tirx.floordiv(a, b)


def _safe_divisor(b: Expr) -> tuple[Expr, Expr, Expr]:
    """(b, b is 0, b is -1), b replaced by 1 in these two cases, in which CPUs trap or may."""
    zero, minus = b.equal(like(0, b)), b.equal(like(-1, b)) if signed(b) else const(False, "bool")
    return tirx.Select(tirx.any(zero, minus), like(1, b), b), zero, minus


def signed(x: Expr) -> bool:
    """Whether integers of this type have a sign."""
    return dtype_of(x).startswith("int")


def quotient(a: Expr, b: Expr) -> Expr:
    """Quotient of integers, truncated toward zero; 0 where b is 0, and modulo the width."""
    divisor, zero, minus = _safe_divisor(b)
    made = tirx.Select(zero, like(0, a), tirx.truncdiv(a, divisor))
    return tirx.Select(minus, like(0, a) - a, made) if signed(b) else made


def remainder(a: Expr, b: Expr, *, floor: bool) -> Expr:
    """What :func:`quotient` (or, with ``floor``, the one rounded down) leaves; 0 where b is 0."""
    divisor, *_ = _safe_divisor(b)  # by 1 nothing is left, as by -1
    return (tirx.floormod if floor else tirx.truncmod)(a, divisor)


def reduced(kind: str, count: int, body: Callable[[Any, Expr], Expr]) -> Callable[..., Expr]:
    """The body of a stage that reduces over k in 0 .. count - 1.

    Args:
        kind: add, mul, min or max.
        count: how many are reduced.
        body: (indices of the stage, k) -> what is reduced.
    """
    axis = te.reduce_axis((0, count), name="k")
    reducer = {"add": te.sum, "mul": _product, "min": _lowest, "max": _highest}[kind]
    return lambda *i: reducer(body(i, axis.var), axis=axis)


_product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="product")
_highest = te.comm_reducer(maximum, tirx.min_value, name="highest")
_lowest = te.comm_reducer(minimum, tirx.max_value, name="lowest")


def neutral(kind: str, dtype: str) -> Expr:
    """What a reduction of ``kind`` starts from."""
    if kind in ("add", "mul"):
        return const(int(kind == "mul"), dtype)
    return tirx.max_value(dtype) if kind == "min" else tirx.min_value(dtype)


def combined(kind: str, a: Expr, b: Expr) -> Expr:
    """Two operands of a reduction put together."""
    if kind in ("add", "mul"):
        return a + b if kind == "add" else a * b
    return minimum(a, b) if kind == "min" else maximum(a, b)


INFINITY_BITS = 0x7F800000
"""The bits of float32 infinity; those of a NaN without its sign are larger."""


def float_bits(x: Expr) -> Expr:
    """The bits of a float32 without its sign, as int32."""
    return tirx.bitwise_and(tirx.reinterpret("int32", x), const(0x7FFFFFFF, "int32"))


def either(*conditions: Expr) -> Expr:
    """True where any condition is."""
    return tirx.any(*conditions)


def bits(name: str, a: Expr, b: Expr) -> Expr:
    """bitwise_and, bitwise_or or bitwise_xor."""
    return getattr(tirx, name)(a, b)


def shifted(name: str, a: Expr, b: Expr) -> Expr:
    """shift_left or shift_right of integers, as numpy has them.

    Amounts below 0 or of at least the width, which machines take modulo the width, shift every bit
    out: the result is 0, or -1 where a negative number is shifted right.
    """
    type_ = np.dtype(dtype_of(a))
    width = 8 * type_.itemsize
    far = tirx.any(b < like(0, b), b >= like(width, b))
    amount = tirx.bitwise_and(b, like(width - 1, b))
    if name == "shift_right" and type_.kind == "i":
        return tirx.shift_right(a, tirx.Select(far, like(width - 1, b), amount))
    return tirx.Select(far, like(0, a), getattr(tirx, name)(a, amount))


def reinterpreted(x: Expr, dtype: str) -> Expr:
    """The bits of ``x`` as a number of another type of the same width."""
    if "bool" in (dtype_of(x), dtype):
        return cast(x, dtype)
    return x if dtype_of(x) == dtype else tirx.reinterpret(dtype, x)
