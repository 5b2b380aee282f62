"""Canonical forms of elementwise arithmetic (rules of ``canonicalize``).

All rules are exact in real numbers; where constants are combined it is done in float64 and rounded
once, which may move a result by an ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from dlcc.ir import DType, Value
from dlcc.ir.encodings import Array
from dlcc.ops import Quantised, op_of
from dlcc.ops.binary import Binary
from dlcc.ops.unary import Unary
from passes.patterns import Match, OpPattern, Rule, any_, attr, const, op

INF = float("inf")


def float_attr(m: Match, capture: str, key: str) -> float:
    """A numeric attribute of a captured node."""
    value = attr(m.node(capture), key)
    assert isinstance(value, int | float)
    return float(value)


def merged_clamp(inner: tuple[float, float], outer: tuple[float, float]) -> tuple[float, float]:
    """One clamp that does what ``inner`` and then ``outer`` do (each low <= high)."""
    (a, b), (c, d) = inner, outer
    return min(max(a, c), d), min(max(b, c), d)


def unclamped(m: Match, capture: str) -> bool:
    """True if an add, conv2d, ... has no fused activation."""
    low, high = float_attr(m, capture, "act_min"), float_attr(m, capture, "act_max")
    return low == -INF and high == INF


def combined(like: Value, function: Callable[..., Array], *arrays: Array) -> Array | None:
    """``function`` of constants in float64, as the dtype of ``like``; None where not finite."""
    with np.errstate(all="ignore"):
        result = function(*(a.astype(np.float64) for a in arrays))
        rounded = np.asarray(result).astype(like.type.dtype.numpy)
    return rounded if np.all(np.isfinite(rounded.astype(np.float64))) else None


class ReluToClip(Rule):
    """relu(x) -> clip(x, 0, inf)."""

    pattern = op("relu", any_("x"))

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("clip", [m.value("x")], {"min": 0.0})


class _BoundToClip(Rule):
    """minimum/maximum with a scalar constant -> clip."""

    key: ClassVar[str]
    quiet = True

    def check(self, m: Match) -> str | None:
        if not m.value("x").type.dtype.is_float:
            return "clip is for real numbers"
        if np.unique(m.array("c")).size != 1 or np.isnan(m.array("c")).any():
            return "the bound is not one number"
        if m.value("x").type.shape != m.root.output.type.shape:
            return "the bound's shape widens the result"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("clip", [m.value("x")], {self.key: float(m.array("c").flat[0])})


class MinimumToClip(_BoundToClip):
    """minimum(x, c) -> clip(x, -inf, c)."""

    pattern = op("minimum", any_("x"), const("c"), commutative=True)
    key = "max"


class MaximumToClip(_BoundToClip):
    """maximum(x, c) -> clip(x, c, inf)."""

    pattern = op("maximum", any_("x"), const("c"), commutative=True)
    key = "min"


class MergeClips(Rule):
    """clip(clip(x, a, b), c, d) -> clip(x, a', b')."""

    pattern = op("clip", op("clip", any_("x"), capture="inner", shared=True), capture="outer")
    quiet = True

    def check(self, m: Match) -> str | None:
        for which in ("inner", "outer"):
            if not float_attr(m, which, "min") <= float_attr(m, which, "max"):
                return "a clip whose min is above its max"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        inner = float_attr(m, "inner", "min"), float_attr(m, "inner", "max")
        outer = float_attr(m, "outer", "min"), float_attr(m, "outer", "max")
        low, high = merged_clamp(inner, outer)
        return m.build("clip", [m.value("x")], {"min": low, "max": high})


class DropClip(Rule):
    """clip(x, -inf, inf) -> x."""

    pattern = op("clip", any_("x"), capture="clip")
    any_encoding = True
    quiet = True

    def check(self, m: Match) -> str | None:
        if float_attr(m, "clip", "min") > -INF or float_attr(m, "clip", "max") < INF:
            return "it clips"
        return None if m.value("x").type == m.root.output.type else "it changes the encoding"

    def rewrite(self, m: Match) -> list[Value]:
        return [m.value("x")]


class ConstantSecond(Rule):
    """add(c, x) -> add(x, c), and so for mul, minimum, maximum."""

    pattern = op(("add", "mul", "minimum", "maximum"), const("c", encoded=True), any_("x"))
    any_encoding = True
    quiet = True

    def check(self, m: Match) -> str | None:
        return "both operands are constant" if m.value("x").is_constant else None

    def rewrite(self, m: Match) -> list[Value]:
        new = m.build(m.root.op, [m.value("x"), m.value("c")], m.root.attrs)
        new[0].type = m.root.output.type
        return new


class SubtractToAdd(Rule):
    """sub(x, c) -> add(x, -c)."""

    pattern = op("sub", any_("x"), const("c"))
    quiet = True

    def check(self, m: Match) -> str | None:
        return None if m.value("c").type.dtype.is_float else "integers may overflow"

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("add", [m.value("x"), m.graph.add_constant(-m.array("c"))])


_JUMPS = frozenset(
    ["floor", "ceil", "round", "sign", "equal", "less", "less_equal", "greater", "greater_equal",
     "argmax", "argmin", "top_k", "mod", "shrink", "thresholded_relu"]
)  # fmt: skip
"""Ops that make a whole step of the last bit of an operand."""

_NEAR = 32
"""Values among which a jump is looked for."""


def jumps_follow(value: Value) -> bool:
    """Whether an op that is not continuous takes ``value`` or what is made of it number by number.

    Behind a sum of many terms nothing depends on one more rounding: their order is the kernel's.
    """
    pending, seen = [value], {value}
    while pending and len(seen) < _NEAR:
        for node in pending.pop(0).users:
            to = node.attrs.get("to")
            if node.op in _JUMPS or (node.op == "cast" and DType.parse(str(to)).is_integer):
                return True
            op = op_of(node)
            if not isinstance(op, Unary | Binary) and op.quantised is not Quantised.SAME:
                continue
            fresh = [v for v in node.outputs if v not in seen]
            seen.update(fresh)
            pending += fresh
    return False


class DivideToMultiply(Rule):
    """div(x, c) -> mul(x, 1/c), which may err by an ulp: not before a rounding to integers."""

    pattern = op("div", any_("x"), const("c"))

    def _inverse(self, m: Match) -> Array | None:
        return combined(m.value("c"), lambda c: 1.0 / c, m.array("c"))

    def check(self, m: Match) -> str | None:
        if not m.value("c").type.dtype.is_float:
            return "it is an integer division"
        if self._inverse(m) is None:
            return "a divisor's reciprocal is not finite"
        exact = np.frexp(m.array("c"))[0]
        if not np.all(np.abs(exact) == 0.5) and jumps_follow(m.root.output):
            return "what follows jumps, and a product errs otherwise than a quotient"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        inverse = self._inverse(m)
        assert inverse is not None
        return m.build("mul", [m.value("x"), m.graph.add_constant(inverse)])


class _Neutral(Rule):
    """op(x, neutral element) -> x."""

    element: ClassVar[float]
    quiet = True

    def check(self, m: Match) -> str | None:
        if not np.all(m.array("c") == self.element):
            return "the constant is not neutral"
        if m.value("x").type != m.root.output.type:
            return "it changes the type"
        if m.root.op == "add" and not unclamped(m, "root"):
            return "it has a fused activation"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        return [m.value("x")]


class DropAddZero(_Neutral):
    """add(x, 0) -> x."""

    pattern = op("add", any_("x"), const("c"), capture="root")
    element = 0.0


class DropMultiplyByOne(_Neutral):
    """mul(x, 1) -> x."""

    pattern = op("mul", any_("x"), const("c"))
    element = 1.0


class DropPowerOne(_Neutral):
    """pow(x, 1) -> x."""

    pattern = op("pow", any_("x"), const("c"))
    element = 1.0


class PowerTwo(Rule):
    """pow(x, 2) -> mul(x, x)."""

    pattern = op("pow", any_("x"), const("c"))
    quiet = True

    def check(self, m: Match) -> str | None:
        if not np.all(m.array("c") == 2.0):
            return "the exponent is not 2"
        same = m.value("x").type == m.root.output.type
        return None if same else "the exponent's shape widens the result"

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("mul", [m.value("x"), m.value("x")])


class PowerHalf(Rule):
    """pow(x, 0.5) -> sqrt(x)."""

    pattern = op("pow", any_("x"), const("c"))
    quiet = True

    def check(self, m: Match) -> str | None:
        if not np.all(m.array("c") == 0.5) or not m.value("x").type.dtype.is_float:
            return "the exponent is not 1/2"
        same = m.value("x").type == m.root.output.type
        return None if same else "the exponent's shape widens the result"

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("sqrt", [m.value("x")])


class _Chain(Rule):
    """op(op(x, a), b) -> op(x, a op b)."""

    function: ClassVar[Callable[..., Array]]
    quiet = True

    def _constant(self, m: Match) -> Array | None:
        return combined(m.value("a"), type(self).function, m.array("a"), m.array("b"))

    def check(self, m: Match) -> str | None:
        if not m.value("a").type.dtype.is_float:
            return "integers may overflow"
        if m.root.op == "add" and not unclamped(m, "inner"):
            return "the inner one has a fused activation"
        new = self._constant(m)
        if new is None:
            return "the combined constant is not finite"
        larger = max(m.value("a").type.elements, m.value("b").type.elements)
        if new.size > larger:
            return "the combined constant is larger than both"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        new = self._constant(m)
        assert new is not None
        return m.build(m.root.op, [m.value("x"), m.graph.add_constant(new)], m.root.attrs)


def _chain(name: str) -> OpPattern:
    return op(name, op(name, any_("x"), const("a"), capture="inner", shared=True), const("b"))


class AddChain(_Chain):
    """add(add(x, a), b) -> add(x, a + b)."""

    pattern = _chain("add")
    function = np.add


class MultiplyChain(_Chain):
    """mul(mul(x, a), b) -> mul(x, a * b)."""

    pattern = _chain("mul")
    function = np.multiply


ARITHMETIC: tuple[type[Rule], ...] = (
    ReluToClip,
    MinimumToClip,
    MaximumToClip,
    MergeClips,
    DropClip,
    ConstantSecond,
    SubtractToAdd,
    DivideToMultiply,
    DropAddZero,
    DropMultiplyByOne,
    DropPowerOne,
    PowerTwo,
    PowerHalf,
    AddChain,
    MultiplyChain,
)
