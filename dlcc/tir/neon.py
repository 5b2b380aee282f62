"""Operations of ARM's NEON that AArch64 and 32-bit ARM have under different names in LLVM.

Like rounding (:mod:`dlcc.tir.rounding`) they are operators of our own, which code generation lowers
to what the target has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tvm import tirx

from dlcc.tir import rounding


def multiply_long(a: Any, b: Any) -> Any:
    """Products of int8x8 vectors as int16x8 (smull), of uint8x8 as uint16x8 (umull)."""
    return _call("multiply_long", "int16x8" if _is_signed(a) else "uint16x8", a, b)


def accumulate_pairs(sums: Any, values: Any) -> Any:
    """``sums`` plus the sums of neighbours of ``values`` (sadalp, uadalp).

    int32x4 plus those of int16x8 or uint16x8, uint16x8 plus those of uint8x16.
    """
    return _call("accumulate_pairs", str(sums.ty.dtype), sums, values)


def dot(sums: Any, a: Any, b: Any) -> Any:
    """``sums`` (int32x4) plus the products of each four neighbours of vectors of 16 bytes.

    udot where both are unsigned, sdot where both are signed, usdot where ``b`` alone is signed.
    """
    signs = "".join("s" if _is_signed(value) else "u" for value in (a, b))
    name = {"uu": "udot", "ss": "sdot", "us": "usdot"}[signs]
    return _pure(f"llvm.aarch64.neon.{name}", "int32x4", sums, a, b)


def _is_signed(value: Any) -> bool:
    return str(value.ty.dtype).startswith("int")


def add_pairs(a: Any, b: Any) -> Any:
    """Sums of neighbours of two int32x4, int16x8 or uint8x16, those of ``a`` first (addp)."""
    return _call("add_pairs", str(a.ty.dtype), a, b)


def look_up(rows: Sequence[Any], index: Any, other: Any = None) -> Any:
    """``table[index]`` in every byte, ``other`` where an index is past the table's end (tbl, tbx).

    Args:
        rows: names of one to four uint8x16, the table.
        index: a name of uint8x16.
        other: a name of uint8x16; zeros where it is left out.
    """
    if other is None:
        return _call("look_up", "uint8x16", index, *rows)
    return _call("look_up_or", "uint8x16", other, index, *rows)


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
        "accumulate_pairs": ("sums of neighbours added in twice the bits", _lower_accumulate),
        "add_pairs": ("sums of neighbours", _lower_add_pairs),
        "look_up": ("bytes of a table", _lower_look_up),
        "look_up_or": ("bytes of a table, others past its end", _lower_look_up_or),
        "requantised_uint8": ("float32 to unsigned codes", _lower_requantised),
        "requantised_int8": ("float32 to signed codes", _lower_requantised),
    }
    for short, (text, lower) in meanings.items():
        rounding.register_operator(f"dlcc_{short}", text, lower)
    return {short: f"tirx.dlcc_{short}" for short in meanings}


def _pure(name: str, dtype: str, *args: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def _is_64_bit() -> bool:
    return rounding.triple().startswith("aarch64")


def _lower_multiply_long(call: Any) -> Any:
    sign = "s" if _is_signed(call) else "u"
    name = f"llvm.aarch64.neon.{sign}mull" if _is_64_bit() else f"llvm.arm.neon.vmull{sign}"
    return _pure(name, str(call.ty.dtype), *call.args)


def _lower_accumulate(call: Any) -> Any:
    sums, values = call.args
    sign = "s" if _is_signed(values) else "u"
    dtype = str(call.ty.dtype)
    if _is_64_bit():
        return sums + _pure(f"llvm.aarch64.neon.{sign}addlp", dtype, values)
    return _pure(f"llvm.arm.neon.vpadal{sign}", dtype, sums, values)


def _lower_add_pairs(call: Any) -> Any:
    if _is_64_bit():
        return _pure("llvm.aarch64.neon.addp", str(call.ty.dtype), *call.args)
    lanes = int(call.ty.dtype.lanes)
    dtype = str(call.ty.dtype).replace(f"x{lanes}", f"x{lanes // 2}")
    return _joined(
        [_pure("llvm.arm.neon.vpadd", dtype, half(value, 0), half(value, 1)) for value in call.args]
    )


def _lower_look_up(call: Any) -> Any:
    index, *rows = call.args
    if _is_64_bit():
        return _pure(f"llvm.aarch64.neon.tbl{len(rows)}", "uint8x16", *rows, index)
    return _by_halves(rows, index, None)


def _lower_look_up_or(call: Any) -> Any:
    other, index, *rows = call.args
    if _is_64_bit():
        return _pure(f"llvm.aarch64.neon.tbx{len(rows)}", "uint8x16", other, *rows, index)
    return _by_halves(rows, index, other)


def _by_halves(rows: list[Any], index: Any, other: Any) -> Any:
    """32-bit ARM's tables have four half registers, and its indices are half a register."""
    halves = []
    for part in (0, 1):
        at, found = half(index, part), None if other is None else half(other, part)
        for first in range(0, len(rows), 2):
            if first:
                at = at - tirx.Broadcast(tirx.IntImm("uint8", 32), 8)
            table = [half(row, which) for row in rows[first : first + 2] for which in (0, 1)]
            name = f"llvm.arm.neon.{'vtbl' if found is None else 'vtbx'}{len(table)}"
            given = [] if found is None else [found]
            found = _pure(name, "uint8x8", *given, *table, at)
        halves.append(found)
    return tirx.Shuffle(halves, [tirx.IntImm("int32", i) for i in range(16)])


def requantised(values: list[Any], zero: Any, limits: tuple[Any, Any], dtype: str) -> Any:
    """16 codes from four float32x4 vectors: ``clamp(rint(value), *limits) + zero``.

    ``zero`` and ``limits`` are float32 scalars that hold integers; ``dtype`` is int8 or uint8, and
    holds ``limits`` plus ``zero``.
    """
    low, high = limits
    return _call(f"requantised_{dtype}", f"{dtype}x16", *values, zero, low, high)


def _lower_requantised(call: Any) -> Any:
    *values, zero, low, high = call.args
    made = _saturated if _is_64_bit() else _by_magic
    return made(values, zero, low, high, str(call.ty.dtype).removesuffix("x16"))


def _saturated(values: list[Any], zero: Any, low: Any, high: Any, dtype: str) -> Any:
    """Conversion and narrowing saturate, so bytes are clamped."""
    shorts = []
    for pair in (values[:2], values[2:]):
        halves = [
            _pure(
                "llvm.aarch64.neon.sqxtn",
                "int16x4",
                _pure("llvm.aarch64.neon.fcvtns", "int32x4", value),
            )
            for value in pair
        ]
        short = _joined(halves)
        shift = tirx.Broadcast(_integer(zero, "int16"), 8)
        shorts.append(_pure("llvm.sadd.sat", "int16x8", short, shift))
    name = "llvm.aarch64.neon.sqxtun" if dtype == "uint8" else "llvm.aarch64.neon.sqxtn"
    codes = tirx.reinterpret(f"{dtype}x16", _joined([_pure(name, "int8x8", s) for s in shorts]))
    ends = [tirx.Broadcast(_integer(end + zero, dtype), 16) for end in (low, high)]
    return tirx.min(tirx.max(codes, ends[0]), ends[1])


_MAGIC = 1.5 * 2**23
"""Added to a float below 2**22 it leaves the nearest integer in the low bits."""


def _by_magic(values: list[Any], zero: Any, low: Any, high: Any, dtype: str) -> Any:
    """There is no instruction that rounds: clamped first, numbers are small enough for a trick."""
    shorts = []
    for pair in (values[:2], values[2:]):
        halves = []
        for value in pair:
            inside = tirx.max(value, tirx.Broadcast(low, 4))
            inside = tirx.min(inside, tirx.Broadcast(high, 4))
            magic = tirx.Broadcast(tirx.const(_MAGIC, "float32"), 4)
            bits = tirx.reinterpret("int32x4", inside + magic)
            halves.append(tirx.Cast("int16x4", bits))
        shift = tirx.Broadcast(_integer(zero, "int16"), 8)
        shorts.append(_joined(halves) + shift)
    return _joined([tirx.Cast(f"{dtype}x8", short) for short in shorts])


def _integer(value: Any, dtype: str) -> Any:
    """A float32 that is an integer, as another type."""
    return tirx.Cast(dtype, tirx.Cast("int32", value))


def _joined(halves: list[Any]) -> Any:
    lanes = int(halves[0].ty.dtype.lanes)
    return tirx.Shuffle(halves, [tirx.IntImm("int32", i) for i in range(2 * lanes)])
