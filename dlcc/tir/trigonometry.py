"""Circular and hyperbolic functions and their inverses as TIR, from those of :mod:`dlcc.tir.math`.

No call leaves the kernel: object code may not need libm. Accuracy is a few units in the last place
of float32, in relative terms where the result is not cancelled to near zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from typing import Any

from tvm import te, tirx

from dlcc.tir import math as tir_math
from dlcc.tir import rounding
from dlcc.tir.math import Names

Expr = Any

_LOG2 = 0.6931471805599453
_ATANH = (1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11)
"""Of x^3, x^5, ... in the series of the inverse of tanh."""


def _f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def _odd_series(x: Expr, square: Expr, coefficients: Sequence[float]) -> Expr:
    """X + x^3 * (c0 + c1 x^2 + ...)."""
    total = _f32(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * square + _f32(coefficient)
    return x + x * square * total


def _mirrored(x: Expr, value: Expr) -> Expr:
    """An odd function from its value at |x|."""
    return tirx.Select(x < _f32(0), _f32(0) - value, value)


def tan(x: Expr) -> Expr:
    """Tangent of an angle in radians."""
    return tir_math.sin(x) / tir_math.cos(x)


def atan(x: Expr) -> Expr:
    """Arc tangent: range reduction at tan(pi/8) and tan(3 pi/8), as in Cephes' atanf."""
    names, one = Names(), _f32(1)
    x = names(x)
    size = names(te.abs(x))
    large, middle = size > _f32(2.414213562373095), size > _f32(0.4142135623730950)
    reduced = tirx.Select(middle, (size - one) / (size + one), size)
    turned = names(tirx.Select(large, _f32(-1) / size, reduced))
    base = tirx.Select(large, _f32(pi / 2), tirx.Select(middle, _f32(pi / 4), _f32(0)))
    series = (-3.33329491539e-1, 1.99777106478e-1, -1.38776856032e-1, 8.05374449538e-2)
    square = names(turned * turned)
    value = names(base + _odd_series(turned, square, series))
    return names.close(_mirrored(x, value))


def asin(x: Expr) -> Expr:
    """Arc sine; NaN outside [-1, 1]."""
    one = _f32(1)
    return atan(x / te.sqrt((one - x) * (one + x)))


def acos(x: Expr) -> Expr:
    """Arc cosine; NaN outside [-1, 1]."""
    one = _f32(1)
    return _f32(2) * atan(te.sqrt((one - x) / (one + x)))


def sinh(x: Expr) -> Expr:
    """Hyperbolic sine."""
    names, series = Names(), (1 / 6, 1 / 120, 1 / 5040, 1 / 362880)
    x = names(x)
    size = names(te.abs(x))
    half = names(tir_math.exp(size - _f32(_LOG2)))  # e^x / 2 without overflow before it
    square = names(x * x)
    far = _mirrored(x, half - _f32(0.25) / half)
    return names.close(tirx.Select(size < _f32(1), _odd_series(x, square, series), far))


def cosh(x: Expr) -> Expr:
    """Hyperbolic cosine."""
    names = Names()
    half = names(tir_math.exp(te.abs(x) - _f32(_LOG2)))
    return names.close(half + _f32(0.25) / half)


def atanh(x: Expr) -> Expr:
    """Inverse of tanh; NaN outside [-1, 1]."""
    names, one = Names(), _f32(1)
    x = names(x)
    size = names(te.abs(x))
    far = _f32(0.5) * tir_math.log((one + size) / (one - size))
    near = _odd_series(x, names(x * x), _ATANH)
    return names.close(tirx.Select(size < _f32(0.25), near, _mirrored(x, names(far))))


def asinh(x: Expr) -> Expr:
    """Inverse of sinh; below 1/4 the series of the inverse of tanh at x / sqrt(1 + x^2)."""
    names = Names()
    x = names(x)
    size = names(te.abs(x))
    root = names(te.sqrt(size * size + _f32(1)))
    # Beyond 1e9, where x^2 would overflow, asinh(x) = log(2 x).
    bounded = tirx.Select(size > _f32(1e9), size, (size + root) * _f32(0.5))
    far = names(tir_math.log(bounded) + _f32(_LOG2))
    ratio = names(x / root)
    near = _odd_series(ratio, names(ratio * ratio), _ATANH)
    return names.close(tirx.Select(size < _f32(0.25), near, _mirrored(x, far)))


def acosh(x: Expr) -> Expr:
    """Inverse of cosh; NaN below 1."""
    names, one = Names(), _f32(1)
    x = names(x)
    root = te.sqrt((x - one) * (x + one))
    bounded = tirx.Select(x > _f32(1e9), x, (x + root) * _f32(0.5))
    value = tir_math.log(bounded) + _f32(_LOG2)
    return names.close(tirx.Select(x >= one, value, _f32(float("nan"))))  # x^2 may overflow


def fmod(a: Expr, b: Expr) -> Expr:
    """C's fmod of float32: exact while the quotient is below 2^29 (computed in float64)."""
    names = Names()
    size = names(te.abs(a).astype("float64"))
    divisor = names(te.abs(b).astype("float64"))
    zero = tirx.const(0.0, "float64")
    rest = names(size - rounding.floor(size / divisor) * divisor)
    # The quotient is rounded: it may have become the next integer.
    rest = names(tirx.Select(rest < zero, rest + divisor, rest))
    infinity = tirx.const(float("inf"), "float64")
    only_divisor = tirx.all(divisor == infinity, size < infinity)
    rest = names(tirx.Select(only_divisor, size, rest))
    return names.close(tirx.Select(a < _f32(0), zero - rest, rest).astype("float32"))


def floor_mod(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of ``b``, from :func:`fmod`."""
    names, zero = Names(), _f32(0)
    rest = names(fmod(a, b))
    wrong = tirx.Select(b < zero, rest > zero, rest < zero)
    return names.close(tirx.Select(wrong, rest + b, rest))


FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "sin": tir_math.sin,
    "cos": tir_math.cos,
    "tan": tan,
    "asin": asin,
    "acos": acos,
    "atan": atan,
    "sinh": sinh,
    "cosh": cosh,
    "asinh": asinh,
    "acosh": acosh,
    "atanh": atanh,
}
"""By the name of the op."""
