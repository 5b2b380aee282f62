"""Bounds on float32 numbers, by the instructions that the target has for them.

:func:`clamp` of a NaN is ``low``, on every target. x86's maxps and minps do that as they are;
AArch64 has fmaxnm and fminnm, which LLVM does not make of comparisons.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import tirx

from dlcc.tir import rounding


def clamp(value: Any, low: Any, high: Any) -> Any:
    """``value`` in [low, high]; all have as many lanes."""
    return tirx.call_intrin(value.ty.dtype, _register(), value, low, high)


@cache
def _register() -> str:
    rounding.register_operator("dlcc_clamp", "a number between bounds", _lower)
    return "tirx.dlcc_clamp"


def _lower(call: Any) -> Any:
    value, low, high = call.args
    if not rounding.triple().startswith("aarch64"):
        return tirx.min(tirx.max(value, low), high)
    dtype = call.ty.dtype
    above = tirx.call_llvm_pure_intrin(dtype, "llvm.maxnum", value, low)
    return tirx.call_llvm_pure_intrin(dtype, "llvm.minnum", above, high)
