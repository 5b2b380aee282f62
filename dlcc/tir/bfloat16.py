"""bfloat16 in TIR: numbers are held as their 16 bits and computed with as float32.

TVM's own bfloat16 type does not reach LLVM, so kernels see ``uint16``. Widening is a shift.
Rounding is integer arithmetic; it gives the bits of ``vcvtneps2bf16`` for all but subnormal
numbers, which that instruction replaces by zero. Where the CPU has AVX512-BF16, a kernel takes
:data:`NATIVE`: LLVM functions that are inlined to one instruction each.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

HELD = "uint16"
"""How a bfloat16 number is held."""

_QUIET, _INFINITY = 0x40, 0x7F800000

NATIVE_LANES = 16

NATIVE = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x i16> @dlcc_bfloat16_round(<16 x float> %x) {
  %y = fptrunc <16 x float> %x to <16 x bfloat>
  %bits = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %bits
}
define <16 x float> @dlcc_bfloat16_dot(<16 x float> %acc, <16 x i32> %a, <16 x i32> %b) {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %acc, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %sum
}
"""
"""LLVM IR of conversion and dot product by AVX512-BF16."""


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _lanes(value: Any) -> int:
    type_ = getattr(value, "ty", None)
    return 1 if type_ is None else int(type_.dtype.lanes)


def _words(value: int, lanes: int) -> Any:
    word = tirx.IntImm("uint32", value)
    return word if lanes == 1 else tirx.Broadcast(word, lanes)


def widened(bits: Any) -> Any:
    """The float32 number (or vector) of bfloat16 ``bits``."""
    lanes = _lanes(bits)
    word = bits.astype(_typed("uint32", lanes))
    shifted = tirx.shift_left(word, _words(16, lanes))
    return tirx.reinterpret(_typed("float32", lanes), shifted)


def rounded(real: Any) -> Any:
    """The bfloat16 bits of a float32 number (or vector): nearest, half to even; NaN made quiet."""
    lanes = _lanes(real)
    word = tirx.Var("word", _typed("uint32", lanes))
    upper = tirx.shift_right(word, _words(16, lanes))
    odd = tirx.bitwise_and(upper, _words(1, lanes))
    nearest = tirx.shift_right(word + (odd + _words(0x7FFF, lanes)), _words(16, lanes))
    quiet = tirx.bitwise_or(upper, _words(_QUIET, lanes))
    size = tirx.bitwise_and(word, _words(0x7FFFFFFF, lanes))
    bits = tirx.Select(size > _words(_INFINITY, lanes), quiet, nearest)
    bits = bits.astype(_typed(HELD, lanes))
    return tirx.Let(word, tirx.reinterpret(_typed("uint32", lanes), real), bits)


def truncated(real: Any) -> Any:
    """The bits of a float32 number (or vector) that is a bfloat16 number already."""
    lanes = _lanes(real)
    word = tirx.reinterpret(_typed("uint32", lanes), real)
    return tirx.shift_right(word, _words(16, lanes)).astype(_typed(HELD, lanes))


def rounded_natively(real: Any) -> Any:
    """:func:`rounded` of a vector of :data:`NATIVE_LANES` in one instruction."""
    return tirx.call_pure_extern(_typed(HELD, NATIVE_LANES), "dlcc_bfloat16_round", real)


def dot(acc: Any, a: Any, b: Any) -> Any:
    """``acc`` plus the products of pairs: float32x16 + two int32x16 that hold pairs of numbers."""
    return tirx.call_pure_extern(_typed("float32", NATIVE_LANES), "dlcc_bfloat16_dot", acc, a, b)
