"""Functions of one real number that need exp, log, erf or trigonometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval
from dlcc.ops.unary import Unary, import_unary
from dlcc.special import erf


def _logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


class _Smooth(Unary):
    """Base of the functions below: the TIR is a function of ``dlcc.tir.math`` of the same name."""

    tir: ClassVar[str] = ""

    def expression(self, node: Node, x: Any) -> Any:
        """The function of ``dlcc.tir.math``."""
        from dlcc.tir import math as tir_math

        return getattr(tir_math, self.tir or self.name)(x)


class Sigmoid(_Smooth):
    """sigmoid(x): 1 / (1 + exp(-x))."""

    name = "sigmoid"

    def function(self, node: Node, x: Array) -> Array:
        """The logistic function."""
        return _logistic(x)


class Tanh(_Smooth):
    """tanh(x)."""

    name = "tanh"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.tanh(x)


class Erf(_Smooth):
    """erf(x): the error function."""

    name = "erf"

    def function(self, node: Node, x: Array) -> Array:
        """Cody's approximation."""
        return erf(x)


class Exp(_Smooth):
    """exp(x)."""

    name = "exp"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.exp(x)


class Log(_Smooth):
    """log(x): the natural logarithm."""

    name = "log"

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.log(x)


class Gelu(Unary):
    """gelu(x) {approximate="none"}: x * Phi(x); "tanh" takes Phi's approximation by tanh.

    Hendrycks and Gimpel 2016, "Gaussian error linear units".
    """

    name = "gelu"
    attributes = {"approximate": "none"}  # noqa: RUF012
    critical = (-0.7517915246935645, -0.7524)

    def function(self, node: Node, x: Array) -> Array:
        """Half x times 1 + erf or tanh."""
        kind = x.dtype.type
        if self.get(node, "approximate") == "tanh":
            gate = np.tanh(kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x * x * x))
        else:
            gate = erf(x * kind(math.sqrt(0.5)))
        return np.asarray(kind(0.5) * x * (1 + gate))

    def expression(self, node: Node, x: Any) -> Any:
        """Half x times 1 + erf or tanh."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        half, one = expr.like(0.5, x), expr.like(1, x)
        if self.get(node, "approximate") == "tanh":
            cubic = x + expr.like(0.044715, x) * x * x * x
            return half * x * (one + tir_math.tanh(expr.like(math.sqrt(2 / math.pi), x) * cubic))
        return half * x * (one + tir_math.erf(x * expr.like(math.sqrt(0.5), x)))


class Silu(Unary):
    """silu(x): x * sigmoid(x), also called swish."""

    name = "silu"
    critical = (-1.2784645427610738,)

    def function(self, node: Node, x: Array) -> Array:
        """X times the logistic function."""
        return np.asarray(x * _logistic(x))

    def expression(self, node: Node, x: Any) -> Any:
        """X times the logistic function."""
        from dlcc.tir import math as tir_math

        return x * tir_math.sigmoid(x)


class Elu(Unary):
    """elu(x) {alpha=1}: x where x > 0, else alpha * (exp(x) - 1)."""

    name = "elu"
    attributes = {"alpha": 1.0}  # noqa: RUF012
    critical = (0.0,)

    def function(self, node: Node, x: Array) -> Array:
        """Piecewise."""
        return np.where(x > 0, x, x.dtype.type(self.get(node, "alpha")) * np.expm1(x))

    def expression(self, node: Node, x: Any) -> Any:
        """Piecewise."""
        return _exponential_below(x, float(self.get(node, "alpha")), 1.0)


class Celu(Unary):
    """celu(x) {alpha=1}: max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)."""

    name = "celu"
    attributes = {"alpha": 1.0}  # noqa: RUF012
    critical = (0.0,)

    def function(self, node: Node, x: Array) -> Array:
        """Piecewise."""
        alpha = x.dtype.type(self.get(node, "alpha"))
        below = np.minimum(alpha * np.expm1(x / alpha), 0)
        return np.asarray(np.maximum(x, 0) + below)

    def expression(self, node: Node, x: Any) -> Any:
        """Piecewise."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        zero, alpha = expr.like(0, x), expr.like(float(self.get(node, "alpha")), x)
        below = alpha * (tir_math.exp(x / alpha) - expr.like(1, x))
        return expr.maximum(x, zero) + expr.minimum(below, zero)


class Selu(Unary):
    """selu(x) {alpha, gamma}: gamma times elu (Klambauer et al. 2017)."""

    name = "selu"
    attributes = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}  # noqa: RUF012
    critical = (0.0,)

    def function(self, node: Node, x: Array) -> Array:
        """Piecewise."""
        alpha, gamma = (x.dtype.type(self.get(node, k)) for k in ("alpha", "gamma"))
        return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(x)))

    def expression(self, node: Node, x: Any) -> Any:
        """Piecewise."""
        return _exponential_below(x, *(float(self.get(node, k)) for k in ("alpha", "gamma")))


def _exponential_below(x: Any, alpha: float, gamma: float) -> Any:
    """Gamma * (x where x > 0, else alpha * (exp(x) - 1)) in TIR."""
    from dlcc.tir import expr
    from dlcc.tir import math as tir_math

    zero = expr.like(0, x)
    below = expr.scaled(tir_math.exp(expr.minimum(x, zero)) - expr.like(1, x), alpha)
    value = expr.select(x > zero, x, below)
    return value if gamma == 1.0 else expr.scaled(value, gamma)


class Softplus(Unary):
    """softplus(x): log(1 + exp(x))."""

    name = "softplus"

    def function(self, node: Node, x: Array) -> Array:
        """Without overflow."""
        return _softplus(x)

    def expression(self, node: Node, x: Any) -> Any:
        """max(x, 0) + log(1 + exp(-|x|))."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        small = tir_math.exp(expr.negative(expr.absolute(x)))
        return expr.maximum(x, expr.like(0, x)) + tir_math.log(expr.like(1, x) + small)


class Mish(Unary):
    """mish(x): x * tanh(softplus(x)) (Misra 2019)."""

    name = "mish"
    critical = (-1.1924562377,)

    def function(self, node: Node, x: Array) -> Array:
        """X times tanh of softplus."""
        return np.asarray(x * np.tanh(_softplus(x)))

    def expression(self, node: Node, x: Any) -> Any:
        """With e = exp(x), tanh(log(1 + e)) = n / (n + 2) for n = e * (e + 2)."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        names, two = tir_math.Names(), expr.like(2, x)
        x = names(x)
        e = names(tir_math.exp(expr.minimum(x, expr.like(20, x))))  # beyond, the quotient is 1
        n = names(e * (e + two))
        return names.close(x * (n / (n + two)))


class _Trigonometric(Unary):
    """Base of circular and hyperbolic functions and their inverses."""

    numpy: ClassVar[str] = ""

    def function(self, node: Node, x: Array) -> Array:
        """Numpy's."""
        return np.asarray(getattr(np, self.numpy)(x))

    def expression(self, node: Node, x: Any) -> Any:
        """The function of ``dlcc.tir.trigonometry``."""
        from dlcc.tir.trigonometry import FUNCTIONS

        return FUNCTIONS[self.name](x)


class _Wave(_Trigonometric):
    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """-1 to 1."""
        return [Interval(-1.0, 1.0)]


class Sin(_Wave):
    """sin(x)."""

    name = "sin"
    numpy = "sin"


class Cos(_Wave):
    """cos(x)."""

    name = "cos"
    numpy = "cos"


class Tan(_Trigonometric):
    """tan(x)."""

    name = "tan"
    numpy = "tan"

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Unbounded."""
        return [Interval(-np.inf, np.inf)]


class Asin(_Trigonometric):
    """asin(x)."""

    name = "asin"
    numpy = "arcsin"


class Acos(_Trigonometric):
    """acos(x)."""

    name = "acos"
    numpy = "arccos"


class Atan(_Trigonometric):
    """atan(x)."""

    name = "atan"
    numpy = "arctan"


class Sinh(_Trigonometric):
    """sinh(x)."""

    name = "sinh"
    numpy = "sinh"


class Cosh(_Trigonometric):
    """cosh(x)."""

    name = "cosh"
    numpy = "cosh"
    critical = (0.0,)


class Asinh(_Trigonometric):
    """asinh(x)."""

    name = "asinh"
    numpy = "arcsinh"


class Acosh(_Trigonometric):
    """acosh(x)."""

    name = "acosh"
    numpy = "arccosh"


class Atanh(_Trigonometric):
    """atanh(x)."""

    name = "atanh"
    numpy = "arctanh"


for _name in ("Sigmoid", "Tanh", "Erf", "Exp", "Log", "Softplus", "Mish", "Sin", "Cos", "Tan",
              "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"):  # fmt: skip
    import_unary(_name, _name.lower())
import_unary("Elu", "elu", {"alpha": ("alpha", 1.0)})
import_unary("Celu", "celu", {"alpha": ("alpha", 1.0)})
import_unary(
    "Selu", "selu",
    {"alpha": ("alpha", Selu.attributes["alpha"]), "gamma": ("gamma", Selu.attributes["gamma"])},
)  # fmt: skip
import_unary("Gelu", "gelu", {"approximate": ("approximate", "none")}, since=20)


@onnx_op("Swish", since=24)
def _swish(node: OnnxNode) -> Sequence[Value]:
    x, alpha = node.input(0), float(node.attrs.get("alpha", 1.0))
    if alpha == 1.0:
        return node.build("silu", [x])
    factor = node.graph.add_constant(np.asarray(alpha, x.type.dtype.numpy), name="alpha")
    (scaled,) = node.build("mul", [x, factor], suffix="/scaled")
    (gate,) = node.build("sigmoid", [scaled], suffix="/gate")
    return node.build("mul", [x, gate])
