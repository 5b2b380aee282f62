"""Recurrent layers whose recurrent weights are codes of at most 8 bits, to the bit.

The state lies in [-1, 1] and becomes codes of the scale 1/127, products are summed as integers, and
what follows is float32, every operation rounded by itself. Activations are written for either
kind of numbers, numpy's or TIR's, so that reference and kernels compute the same bytes on every
machine. With ``m[j] = f32(f64(sw[j]) / 127)``::

    hq   = clamp(rint(h * 127), -127, 127)
    x[j] = gate[j] + f32(sum(hq * wq[j])) * m[j]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlcc.ir import Affine
from dlcc.ir.encodings import Array
from dlcc.ops.integer import exact_dtype, to_int32, weight_scales

STEPS = 127
"""Codes of a state from 0 to 1."""

STATE = Affine.symmetric(8, np.array([1 / STEPS]), None)
"""What a state's codes mean."""


class Floats(ABC):
    """float32 arithmetic in which no operation is fused with another."""

    @abstractmethod
    def const(self, value: float, like: Any) -> Any:
        """A constant of as many lanes as ``like``."""

    @abstractmethod
    def times(self, a: Any, b: Any) -> Any:
        """The product, rounded."""

    @abstractmethod
    def clamp(self, x: Any, low: float, high: float) -> Any:
        """Within bounds; ``low`` for NaN."""

    @abstractmethod
    def name(self, x: Any) -> Any:
        """``x``, for what is used several times."""

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """By Horner's rule; the coefficient of the highest power first."""
        total = self.const(coefficients[0], x)
        for coefficient in coefficients[1:]:
            total = self.times(total, x) + self.const(coefficient, x)
        return total


class NumpyFloats(Floats):
    """Of numpy arrays."""

    def const(self, value: float, like: Any) -> Any:
        """A scalar."""
        return np.float32(value)

    def times(self, a: Any, b: Any) -> Any:
        """As it is."""
        return a * b

    def clamp(self, x: Any, low: float, high: float) -> Any:
        """As the kernels do it."""
        inside = np.minimum(np.maximum(x, np.float32(low)), np.float32(high))
        return np.where(np.isnan(x), np.float32(low), inside)

    def name(self, x: Any) -> Any:
        """Itself."""
        return x


class TirFloats(Floats):
    """Of TIR expressions; ``names`` as of :mod:`dlcc.tir.math`."""

    def __init__(self, names: Callable[[Any], Any]) -> None:
        self._names = names

    def name(self, x: Any) -> Any:
        """Computed here."""
        return self._names(x)

    def const(self, value: float, like: Any) -> Any:
        """In every lane."""
        from dlcc.tir import expr

        return expr.like(value, like)

    def times(self, a: Any, b: Any) -> Any:
        """Fenced off from a sum."""
        from dlcc.tir.rounding import separate

        return separate(a * b)

    def clamp(self, x: Any, low: float, high: float) -> Any:
        """By the machine's instructions."""
        from dlcc.tir import clamping

        return clamping.clamp(x, self.const(low, x), self.const(high, x))


_REACH = 8.0
"""From here on tanh is 1 to 3e-7."""

_ABOVE = (-6.020094e-09, 7.08351719e-06, 0.00268450542, 0.126997924, 0.999999065)
_BELOW = (0.000195300317, 0.0227974355, 0.460327852, 1.0)
"""tanh(x) / x as a rational function of x^2, by weighted least squares up to 8: 5e-7 from it."""


def _tanh(of: Floats, x: Any, alpha: float, beta: float) -> Any:
    x = of.name(of.clamp(x, -_REACH, _REACH))
    square = of.name(of.times(x, x))
    above = of.times(x, of.polynomial(square, _ABOVE))
    return of.clamp(above / of.polynomial(square, _BELOW), -1.0, 1.0)


def _sigmoid(of: Floats, x: Any, alpha: float, beta: float) -> Any:
    half = of.const(0.5, x)
    return of.times(_tanh(of, of.times(x, half), 0.0, 0.0), half) + half


def _hard_sigmoid(of: Floats, x: Any, alpha: float, beta: float) -> Any:
    line = of.times(x, of.const(alpha, x)) + of.const(beta, x)
    return of.clamp(line, 0.0, 1.0)


FUNCTIONS: dict[str, Callable[[Floats, Any, float, float], Any]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "hard_sigmoid": _hard_sigmoid,
}
"""Activations of coded layers, of (arithmetic, x, alpha, beta): those whose results are in [-1, 1],
so that states stay there."""


def multipliers(weight: Affine, channels: int) -> Array:
    """float32 [channels]: the real number of one unit of an accumulator."""
    return np.asarray(weight_scales(weight, channels) / STEPS, np.float32)


def state_codes(h: Array) -> Array:
    """clamp(rint(h * 127), -127, 127), int32; NaN becomes -127."""
    scaled = np.rint(h.astype(np.float32) * np.float32(STEPS))
    return np.asarray(NumpyFloats().clamp(scaled, -STEPS, STEPS)).astype(np.int32)


def products(h: Array, codes: Array, scales: Array) -> Array:
    """float32 [b,N]: products of states [b,H] with coded weights [N,H].

    Args:
        h: states.
        codes: of the weights.
        scales: float32 [N], of :func:`multipliers`.
    """
    dtype = exact_dtype(float(STEPS) * 128 * codes.shape[1])
    sums = to_int32(state_codes(h).astype(dtype) @ codes.astype(dtype).T)
    return np.asarray(sums.astype(np.float32) * scales)
