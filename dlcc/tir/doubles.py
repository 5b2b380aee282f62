"""Elementary functions of float64 as TIR expressions; :mod:`dlcc.tir.math` hands over to them.

:func:`exp`, :func:`log`, :func:`sigmoid` (2 units in the last place), :func:`tanh` (4). Arguments
are reduced by ln 2 in two parts, and power series do the rest: of e^r for |r| <= ln 2 / 2, of
2 atanh(s) for |s| <= 0.1716, of tanh below 1/4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from dlcc.tir.math import Names, between, horner, nearest_f64

Expr = Any

_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
"""ln 2 in two parts; the first has 32 bits, so that products with exponents are exact."""

_TANH = (
    18888466084 / 194896477400625, -443861162 / 1856156927625, 6404582 / 10854718875,
    -929569 / 638512875, 21844 / 6081075, -1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3,
)  # fmt: skip
"""Coefficients of tanh behind x, of x^21 to x^3."""


def _f64(value: float) -> Expr:
    return tirx.const(value, "float64")


def _i64(value: int) -> Expr:
    return tirx.const(value, "int64")


def _power_of_two(n: Expr) -> Expr:
    """2^n as float64 for int64 -1023 < n < 1024."""
    return tirx.reinterpret("float64", tirx.shift_left(n + _i64(1023), _i64(52)))


def exp(x: Expr) -> Expr:
    """e^x; 0 below -746, infinite above 709.79."""
    names = Names()
    t = between(names(x), _f64(-746.0), _f64(710.0), names)
    whole = names(nearest_f64(t * _f64(1.4426950408889634)))
    r = names(t - whole * _f64(_LN2_HIGH) - whole * _f64(_LN2_LOW))
    coefficients = [1.0]
    for n in range(1, 14):
        coefficients.append(coefficients[-1] / n)
    tail = horner(r, coefficients[:1:-1], _f64)
    bounded = tirx.Select(t > _f64(-750.0), whole, _f64(0.0))  # of a NaN no integer is made
    n = names(bounded.astype("int64"))
    half = names(tirx.shift_right(n, _i64(1)))
    value = tail * (r * r) + r + _f64(1.0)
    return names.close(value * _power_of_two(half) * _power_of_two(n - half))


def log(x: Expr) -> Expr:
    """Natural logarithm; -inf at 0, NaN below."""
    names = Names()
    x = names(x)
    tiny = x < _f64(float(np.finfo(np.float64).tiny))
    normal = tirx.Select(tiny, x * _f64(2.0**54), x)
    root = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
    bits = names(tirx.reinterpret("int64", normal) - _i64(root))
    exponent = tirx.shift_right(bits, _i64(52)) - tirx.Select(tiny, _i64(54), _i64(0))
    m = tirx.reinterpret("float64", tirx.bitwise_and(bits, _i64((1 << 52) - 1)) + _i64(root))
    e, f = names(exponent.astype("float64")), names(m - _f64(1.0))
    s = names(f / (f + _f64(2.0)))
    square = names(s * s)
    series = names(square * horner(square, [2.0 / n for n in range(25, 1, -2)], _f64))
    half = names(f * f * _f64(0.5))  # log(1 + f) = f - (f^2/2 - s * (f^2/2 + series))
    value = e * _f64(_LN2_HIGH) - ((half - (s * (half + series) + e * _f64(_LN2_LOW))) - f)
    value = tirx.Select(x < _f64(np.inf), value, x)  # infinity and NaN
    zero = tirx.Select(x.equal(_f64(0.0)), _f64(-np.inf), x)  # or NaN, which is no more than 0
    value = tirx.Select(x > _f64(0.0), value, zero)
    return names.close(tirx.Select(x < _f64(0.0), _f64(np.nan), value))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return _f64(1.0) / (_f64(1.0) + exp(_f64(0.0) - x))


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent."""
    names = Names()
    x = names(x)
    square, size = names(x * x), names(tirx.abs(x))
    near = x + x * square * horner(square, _TANH, _f64)
    power = names(exp(size * _f64(2.0)))
    far = names(_f64(1.0) - _f64(2.0) / (power + _f64(1.0)))
    signed = tirx.Select(x < _f64(0.0), _f64(0.0) - far, far)
    return names.close(tirx.Select(size < _f64(0.25), near, signed))
