"""Operations of ARM's NEON that AArch64 and 32-bit ARM have under different names in LLVM.

Like rounding (:mod:`dlcc.tir.rounding`) they are operators of our own, which code generation lowers
to what the target has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx

from dlcc.tir import rounding


def multiply_long(a: Any, b: Any) -> Any:
    """Products of int8x8 vectors as int16x8 (smull)."""
    return _call("multiply_long", "int16x8", a, b)


def accumulate_pairs(sums: Any, values: Any) -> Any:
    """``sums`` (int32x4) plus the sums of neighbours of ``values`` (int16x8) (sadalp)."""
    return _call("accumulate_pairs", "int32x4", sums, values)


def add_pairs(a: Any, b: Any) -> Any:
    """Sums of neighbours of two int32x4 vectors, those of ``a`` first (addp)."""
    return _call("add_pairs", "int32x4", a, b)


def half(value: Any, which: int) -> Any:
    """The low (0) or high (1) half of a vector."""
    lanes = int(value.ty.dtype.lanes) // 2
    order = [tirx.IntImm("int32", which * lanes + i) for i in range(lanes)]
    return tirx.Shuffle([value], order)


def _call(short: str, dtype: str, *args: Any) -> Any:
    return tirx.call_intrin(dtype, register_operators()[short], *args)


@cache
def register_operators() -> dict[str, str]:
    """Registers the operators with TVM, once: short name to TVM's name."""
    meanings: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "multiply_long": ("products of 8-bit numbers in 16 bits", _lower_multiply_long),
        "accumulate_pairs": ("sums of 16-bit neighbours added in 32 bits", _lower_accumulate),
        "add_pairs": ("sums of 32-bit neighbours", _lower_add_pairs),
    }
    for short, (text, lower) in meanings.items():
        rounding.register_operator(f"dlcc_{short}", text, lower)
    return {short: f"tirx.dlcc_{short}" for short in meanings}


def _pure(name: str, dtype: str, *args: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def _is_64_bit() -> bool:
    return rounding.triple().startswith("aarch64")


def _lower_multiply_long(call: Any) -> Any:
    name = "llvm.aarch64.neon.smull" if _is_64_bit() else "llvm.arm.neon.vmulls"
    return _pure(name, "int16x8", *call.args)


def _lower_accumulate(call: Any) -> Any:
    sums, values = call.args
    if _is_64_bit():
        return sums + _pure("llvm.aarch64.neon.saddlp", "int32x4", values)
    return _pure("llvm.arm.neon.vpadals", "int32x4", sums, values)


def _lower_add_pairs(call: Any) -> Any:
    if _is_64_bit():
        return _pure("llvm.aarch64.neon.addp", "int32x4", *call.args)
    halves = [
        _pure("llvm.arm.neon.vpadd", "int32x2", half(value, 0), half(value, 1))
        for value in call.args
    ]
    return tirx.Shuffle(halves, [tirx.IntImm("int32", i) for i in range(4)])
