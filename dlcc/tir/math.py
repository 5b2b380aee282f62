"""Elementary functions as TIR expressions, without the C library: they vectorise and link bare.

Functions (float32 in, float32 out; error in units of the last place, measured by
``tests/tir/test_math.py`` over the whole range): :func:`exp` (1), :func:`log` (1), :func:`tanh`
(2), :func:`erf` (6), :func:`sigmoid` (3), :func:`sin` and :func:`cos` (2; an error of 2^-39 near
the zeros of large arguments), :func:`pow` (1). Those of float64 are in :mod:`dlcc.tir.doubles`.

All follow Moshier's Cephes (expf, logf, sinf, tanhf: argument reduction and minimax polynomials)
but erf, the rational minimax approximation of XLA. Results may differ in the last places between
CPUs with and without fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from dlcc.tir.builder import KernelBuilder, lanes_of, vector_type
from dlcc.tir.expr import dtype_of
from dlcc.tir.rounding import floor, rint, separate

Expr = Any

_MAGIC = 12582912.0
"""1.5 * 2^23: adding it to a float32 leaves the nearest integer in the low mantissa bits."""


def _f32(value: float) -> Expr:
    return tirx.const(float(np.float32(value)), "float32")


def _f64(value: float) -> Expr:
    return tirx.const(value, "float64")


def _i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def _like(x: Expr, dtype: str) -> str:
    """``dtype`` with as many lanes as ``x`` has."""
    return vector_type(dtype, lanes_of(x))


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret(_like(x, "int32"), x)


def _float(bits: Expr) -> Expr:
    return tirx.reinterpret(_like(bits, "float32"), bits)


def _is_float64(x: Expr) -> bool:
    return dtype_of(x) == "float64"


def _doubles() -> Any:
    from dlcc.tir import doubles  # here: that module is built on this one

    return doubles


class Names:
    """Names for values that an expression uses several times.

    Expressions are trees to TVM: without names, nested reuse grows them exponentially. Call it on
    each such value, and :meth:`close` it over the result.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[Any, Expr]] = []

    def __call__(self, value: Expr) -> Expr:
        """A name for ``value``."""
        if isinstance(value, te.TensorSlice):
            value = value.asobject()
        name = tirx.Var("v", value.ty.dtype)
        self._bound.append((name, value))
        return name

    def close(self, result: Expr) -> Expr:
        """``result`` with its names bound."""
        for name, value in reversed(self._bound):
            result = tirx.Let(name, value, result)
        return result


class Statements(Names):
    """The same as statements of ``kb``, for functions that are written with a builder."""

    def __init__(self, kb: KernelBuilder) -> None:
        super().__init__()
        self._kb = kb

    def __call__(self, value: Expr) -> Expr:
        """A name for ``value``, which is computed here."""
        return self._kb.let(value)


def horner(x: Expr, coefficients: Sequence[float], const: Any = _f32) -> Expr:
    """Polynomial, coefficient of the highest power first."""
    total = const(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + const(coefficient)
    return total


def _nearest(x: Expr, names: Names) -> tuple[Expr, Expr]:
    """(float32, int32) nearest integer of a float32 below 2^22 in magnitude."""
    # the fence keeps TVM from cancelling the two additions
    shifted = names(separate(x + _f32(_MAGIC)))
    return names(shifted - _f32(_MAGIC)), names(_bits(shifted) - _i32(0x4B400000))


def nearest_f64(x: Expr) -> Expr:
    """Nearest integer of a float64 below 2^51 in magnitude."""
    magic = _f64(6755399441055744.0)  # 1.5 * 2^52
    return separate(x + magic) - magic


def between(x: Expr, low: Expr, high: Expr, names: Names) -> Expr:
    """``x`` cut to [low, high]; NaN stays NaN."""
    low, high = (KernelBuilder.splat(bound, lanes_of(x)) for bound in (low, high))
    x = names(tirx.Select(x < low, low, x))
    return names(tirx.Select(x > high, high, x))


def _power_of_two(n: Expr) -> Expr:
    """2^n as float32 for -127 < n < 128."""
    return _float(tirx.shift_left(n + _i32(127), _i32(23)))


def _scale(x: Expr, n: Expr, names: Names) -> Expr:
    """X * 2^n for |n| <= 250, in two steps so that it may overflow or underflow properly."""
    half = names(tirx.shift_right(n, _i32(1)))
    return x * _power_of_two(half) * _power_of_two(n - half)


def exp(x: Expr, names: Names | None = None) -> Expr:
    """e^x; 0 below -104, infinite above 88.73; ``names`` as of :class:`Statements`."""
    if _is_float64(x):
        return _doubles().exp(x)
    names = names or Names()
    clamped = between(names(x), _f32(-104.0), _f32(89.0), names)
    whole, n = _nearest(clamped * _f32(1.44269504088896341), names)
    r = names(clamped - whole * _f32(0.693359375) - whole * _f32(-2.12194440e-4))
    tail = horner(
        r,
        (
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ),
    )
    return names.close(_scale(tail * (r * r) + r + _f32(1.0), n, names))


def _split(x: Expr, names: Names) -> tuple[Expr, Expr]:
    """Mantissa in [sqrt(1/2), sqrt(2)) and exponent (int32) of a positive float32."""
    tiny = x < _f32(1.17549435e-38)
    normal = tirx.Select(tiny, x * _f32(8388608.0), x)
    bits = names(_bits(normal) - _i32(0x3F3504F3))
    shift = (KernelBuilder.splat(_i32(n), lanes_of(x)) for n in (23, 0))
    exponent = tirx.shift_right(bits, _i32(23)) - tirx.Select(tiny, *shift)
    mantissa = _float(tirx.bitwise_and(bits, _i32(0x7FFFFF)) + _i32(0x3F3504F3))
    return names(mantissa), names(exponent)


def log(x: Expr, names: Names | None = None) -> Expr:
    """Natural logarithm; -inf at 0, NaN below and of NaN."""
    if _is_float64(x):
        return _doubles().log(x)
    names = names or Names()
    x = names(x)
    mantissa, exponent = _split(x, names)
    m = names(mantissa - _f32(1.0))
    e = names(KernelBuilder.cast(exponent, "float32"))
    square = names(m * m)
    tail = horner(
        m,
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
    )
    low = tail * m * square + e * _f32(-2.12194440e-4) - square * _f32(0.5)
    value = m + low + e * _f32(0.693359375)
    low, bad = (KernelBuilder.splat(_f32(v), lanes_of(x)) for v in (-np.inf, np.nan))
    value = tirx.Select(x <= _f32(float(np.finfo(np.float32).max)), value, x)  # inf and NaN
    below = tirx.Select(x >= _f32(0.0), low, bad)
    return names.close(tirx.Select(x > _f32(0.0), value, below))


def tanh(x: Expr, names: Names | None = None) -> Expr:
    """Hyperbolic tangent."""
    if _is_float64(x):
        return _doubles().tanh(x)
    given, names = names, names or Names()
    x = names(x)
    square, size = names(x * x), names(te.abs(x))
    near = x + x * square * horner(
        square,
        (
            -5.70498872745e-3,
            2.06390887954e-2,
            -5.37397155531e-2,
            1.33314422036e-1,
            -3.33332819422e-1,
        ),
    )
    far = names(_f32(1.0) - _f32(2.0) / (exp(size * _f32(2.0), given) + _f32(1.0)))
    signed = tirx.Select(x < _f32(0.0), _f32(0.0) - far, far)
    return names.close(tirx.Select(size < _f32(0.625), near, signed))


def erf(x: Expr) -> Expr:
    """Error function."""
    names = Names()
    t = between(names(x), _f32(-4.0), _f32(4.0), names)
    square = names(t * t)
    above = t * horner(
        square,
        (
            -2.72614225801306e-10,
            2.77068142495902e-08,
            -2.10102402082508e-06,
            -5.69250639462346e-05,
            -7.34990630326855e-04,
            -2.95459980854025e-03,
            -1.60960333262415e-02,
        ),
    )
    below = horner(
        square,
        (
            -1.45660718464996e-05,
            -2.13374055278905e-04,
            -1.68282697438203e-03,
            -7.37332916720468e-03,
            -1.42647390514189e-02,
        ),
    )
    return names.close(above / below)


def sigmoid(x: Expr, names: Names | None = None) -> Expr:
    """1 / (1 + e^-x)."""
    if _is_float64(x):
        return _doubles().sigmoid(x)
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x, names))


def _quadrant(x: Expr, names: Names) -> tuple[Expr, Expr]:
    """Remainder of x by pi/2 in [-pi/4, pi/4] (float32), and the quotient less whole turns (int32).

    Payne and Hanek 1983, "Radian Reduction for Trigonometric Functions", in float64 (unrolled, so
    that it vectorises): x has 24 bits, and times 29 bits of 1 / (2 pi) that is exact, and so is
    what whole turns leave of the product. Parts too small for whole turns are only added up.
    """
    wide = names(x.astype("float64"))
    turns = None
    for place, part in enumerate(_turns()):
        product = wide * _f64(part)
        if place < _WHOLE_TURNS:
            product = names(product)
            product = product - rint(product)
        turns = names(product if turns is None else turns + product)
    whole = names(nearest_f64(turns * _f64(4.0)))
    remainder = (turns - whole * _f64(0.25)) * _f64(2.0 * np.pi)
    bounded = te.min(te.max(whole, _f64(-1.0e9)), _f64(1.0e9))  # a number for NaN too
    return names(remainder.astype("float32")), bounded.astype("int32")


_TURN = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C4
"""2^174 / (2 pi): enough for the largest float32, whose last bit counts 2^104."""

_PART = 29
"""Bits of a part of it: with the 24 of a float32 they fit a float64."""

_WHOLE_TURNS = 4
"""Parts whose products may be so large that adding them would lose bits below 2^-40 turns."""


def _turns() -> list[float]:
    """1 / (2 pi) in parts, the largest first."""
    mask = (1 << _PART) - 1
    shifts = range(5 * _PART, -1, -_PART)
    return [(_TURN >> s & mask) * 2.0 ** (s - 6 * _PART) for s in shifts]


def _circular(x: Expr, shift: int) -> Expr:
    names = Names()
    r, quotient = _quadrant(x, names)
    square = names(r * r)
    sine = r + r * square * horner(square, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
    cosine = (
        square
        * square
        * horner(square, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
        - square * _f32(0.5)
        + _f32(1.0)
    )
    place = names(quotient + _i32(shift))
    odd = tirx.bitwise_and(place, _i32(1)).equal(_i32(1))
    value = names(tirx.Select(odd, cosine, sine))
    negative = tirx.bitwise_and(place, _i32(2)).equal(_i32(2))
    return names.close(tirx.Select(negative, _f32(0.0) - value, value))


def sin(x: Expr) -> Expr:
    """Sine of an angle in radians."""
    return _circular(x, 0)


def cos(x: Expr) -> Expr:
    """Cosine of an angle in radians."""
    return _circular(x, 1)


def _log_f64(x: Expr, names: Names) -> Expr:
    """Natural logarithm of a positive, finite float32, in float64: 2 atanh((m - 1) / (m + 1))."""
    mantissa, exponent = _split(x, names)
    m = names(mantissa.astype("float64"))
    s = names((m - _f64(1.0)) / (m + _f64(1.0)))
    series = horner(names(s * s), [2.0 / n for n in range(17, 0, -2)], _f64)
    return s * series + exponent.astype("float64") * _f64(0.6931471805599453)


def _exp_f64(x: Expr, names: Names) -> tuple[Expr, Expr]:
    """(m, n) with e^x = m * 2^n: m float64 near 1 (NaN for NaN), n int32; x cut to [-170, 170]."""
    t = names(te.min(_f64(170.0), te.max(_f64(-170.0), x)))
    whole = names(nearest_f64(t * _f64(1.4426950408889634)))
    r = names(t - whole * _f64(0.6931471805599453))
    coefficients = [1.0]
    for n in range(1, 12):
        coefficients.append(coefficients[-1] / n)
    known = tirx.Select(t >= _f64(-170.0), whole, _f64(0.0))  # of NaN no integer is made
    return horner(r, coefficients[::-1], _f64), names(known.astype("int32"))


def pow(x: Expr, y: Expr) -> Expr:
    """x^y as C's powf: NaN for a negative base with an exponent that is no integer."""
    names = Names()
    x, y = names(x), names(y)
    base = names(te.abs(x))
    largest = _f32(float(np.finfo(np.float32).max))
    finite = names(te.min(largest, te.max(_f32(1e-45), base)))
    mantissa, n = _exp_f64(_log_f64(finite, names) * y.astype("float64"), names)
    zero, one, infinity = _f32(0.0), _f32(1.0), _f32(np.inf)
    value = _scale(mantissa.astype("float32"), n, names)
    shrinks = tirx.Select(y > zero, zero, tirx.Select(y < zero, infinity, y))  # 0^y
    value = tirx.Select(base.equal(zero), shrinks, value)
    grows = tirx.Select(y > zero, infinity, tirx.Select(y < zero, zero, y))  # inf^y
    value = tirx.Select(base.equal(infinity), grows, value)
    stays = tirx.Select(y >= _f32(-np.inf), one, y)  # 1^y
    value = tirx.Select(base.equal(one), stays, value)
    value = names(tirx.Select(base >= zero, value, base))  # or NaN
    half = names(y * _f32(0.5))
    whole = floor(y).equal(y)
    odd = tirx.all(whole, tirx.Not(floor(half).equal(half)))
    negative = _bits(x) < _i32(0)  # -0 too
    value = names(tirx.Select(tirx.all(negative, odd), zero - value, value))
    value = tirx.Select(tirx.all(x < zero, tirx.Not(whole), base < infinity), _f32(np.nan), value)
    always_one = tirx.any(y.equal(zero), x.equal(one))
    return names.close(tirx.Select(always_one, one, value))
