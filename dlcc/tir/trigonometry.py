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

Expr = Any


def _f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def _odd_series(x: Expr, coefficients: Sequence[float]) -> Expr:
    """X + x^3 * (c0 + c1 x^2 + ...)."""
    square = x * x
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
    size = te.abs(x)
    large, middle = size > _f32(2.414213562373095), size > _f32(0.4142135623730950)
    one = _f32(1)
    turned = tirx.Select(
        large,
        _f32(-1) / size,
        tirx.Select(middle, (size - one) / (size + one), size),
    )
    base = tirx.Select(large, _f32(pi / 2), tirx.Select(middle, _f32(pi / 4), _f32(0)))
    series = (-3.33329491539e-1, 1.99777106478e-1, -1.38776856032e-1, 8.05374449538e-2)
    return _mirrored(x, base + _odd_series(turned, series))


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
    series = (1 / 6, 1 / 120, 1 / 5040, 1 / 362880)
    size = te.abs(x)
    half = tir_math.exp(size - _f32(0.6931471805599453))  # e^x / 2 without overflow before it
    far = half - _f32(0.25) / half
    small = te.min(size, _f32(1))
    return _mirrored(x, tirx.Select(size < _f32(1), _odd_series(small, series), far))


def cosh(x: Expr) -> Expr:
    """Hyperbolic cosine."""
    half = tir_math.exp(te.abs(x) - _f32(0.6931471805599453))
    return half + _f32(0.25) / half


def atanh(x: Expr) -> Expr:
    """Inverse of tanh; NaN outside [-1, 1]."""
    series = (1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11)
    size, one = te.abs(x), _f32(1)
    far = _f32(0.5) * tir_math.log((one + size) / (one - size))
    return _mirrored(x, tirx.Select(size < _f32(0.25), _odd_series(size, series), far))


def asinh(x: Expr) -> Expr:
    """Inverse of sinh; below 1/4 the series of the inverse of tanh at x / sqrt(1 + x^2)."""
    series = (1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11)
    size = te.abs(x)
    huge = size > _f32(1e9)  # x^2 would overflow; there asinh(x) = log(2 x)
    root = te.sqrt(size * size + _f32(1))
    bounded = tirx.Select(huge, size, (size + root) * _f32(0.5))
    far = tir_math.log(bounded) + _f32(0.6931471805599453)
    near = _odd_series(size / root, series)
    return _mirrored(x, tirx.Select(size < _f32(0.25), near, far))


def acosh(x: Expr) -> Expr:
    """Inverse of cosh; NaN below 1."""
    one = _f32(1)
    huge = x > _f32(1e9)
    root = te.sqrt((x - one) * (x + one))
    bounded = tirx.Select(huge, x, (x + root) * _f32(0.5))
    return tir_math.log(bounded) + _f32(0.6931471805599453)


def fmod(a: Expr, b: Expr) -> Expr:
    """C's fmod of float32: exact while the quotient is below 2^29 (computed in float64)."""
    wide, divisor = a.astype("float64"), te.abs(b).astype("float64")
    size = te.abs(wide)
    zero = tirx.const(0.0, "float64")
    rest = size - te.floor(size / divisor) * divisor
    rest = tirx.Select(rest < zero, rest + divisor, rest)  # the rounded quotient was one too large
    rest = tirx.Select(rest >= divisor, rest - divisor, rest)
    return tirx.Select(a < _f32(0), zero - rest, rest).astype("float32")


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
