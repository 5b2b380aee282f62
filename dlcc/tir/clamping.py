"""Bounds on float32 numbers, by the instructions that the target has for them.

:func:`clamp` of a NaN is ``low`` and :func:`between` of a NaN is NaN, on every target. x86's maxps
and minps give their second operand where one is NaN, so that their order decides; AArch64 has
fmaxnm and fminnm for the one and fmax and fmin for the other, which LLVM does not make of
comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx

from dlcc.tir import rounding


def clamp(value: Any, low: Any, high: Any) -> Any:
    """``value`` in [low, high], ``low`` for NaN; all have as many lanes."""
    return tirx.call_intrin(value.ty.dtype, _register()["clamp"], value, low, high)


def between(value: Any, low: Any, high: Any) -> Any:
    """``value`` in [low, high], NaN for NaN; all have as many lanes."""
    return tirx.call_intrin(value.ty.dtype, _register()["between"], value, low, high)


@cache
def _register() -> dict[str, str]:
    meanings: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "clamp": ("a number between bounds, the lower one for NaN", _lower_clamp),
        "between": ("a number between bounds, or NaN", _lower_between),
    }
    for short, (text, lower) in meanings.items():
        rounding.register_operator(f"dlcc_{short}", text, lower)
    return {short: f"tirx.dlcc_{short}" for short in meanings}


def _lower_clamp(call: Any) -> Any:
    value, low, high = call.args
    if not rounding.triple().startswith("aarch64"):
        return tirx.min(tirx.max(value, low), high)
    return _by_intrinsics(call, "llvm.maxnum", "llvm.minnum")


def _lower_between(call: Any) -> Any:
    value, low, high = call.args
    if not rounding.triple().startswith("aarch64"):
        return tirx.min(high, tirx.max(low, value))
    return _by_intrinsics(call, "llvm.maximum", "llvm.minimum")


def _by_intrinsics(call: Any, larger: str, smaller: str) -> Any:
    value, low, high = call.args
    above = tirx.call_llvm_pure_intrin(call.ty.dtype, larger, value, low)
    return tirx.call_llvm_pure_intrin(call.ty.dtype, smaller, above, high)
