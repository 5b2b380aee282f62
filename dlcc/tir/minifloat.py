"""Narrow types at the border, each number in a byte: integers of 2 and 4 bits, float8, float4.

Only casts read and write them. Widening is exact: a table of all codes. Narrowing rounds to
nearest, half to even, by one exact scaling of the number to units of its last place.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from tvm import tirx

from dlcc.ir import DType
from dlcc.tir import expr, rounding

HELD = "uint8"
"""What holds a code; of a type of 4 or 2 bits the upper bits are 0, and ignored when read."""

_INFINITY = 0x7F800000
_MANTISSA = 23


def table(dtype: DType) -> np.ndarray[Any, Any]:
    """The number of every byte, in the type that ``dtype`` is computed in."""
    numbers = np.arange(256, dtype=np.uint8).view(dtype.numpy)
    return numbers.astype(dtype.computed.numpy)


def narrowed(x: Any, dtype: DType, *, saturate: bool) -> Any:
    """The code of float32 ``x`` (of an integer ``x`` for an integer ``dtype``), as uint8.

    Args:
        x: the number.
        dtype: the narrow type.
        saturate: what is too large becomes the largest number, else infinity or NaN. float4 has
            neither and always saturates. Integers are cut to their lowest bits.
    """
    if dtype.is_integer:
        return expr.cast(x, "int32").astype(HELD) & tirx.const((1 << dtype.bits) - 1, HELD)
    info = ml_dtypes.finfo(dtype.numpy)
    mantissa, least = int(info.nmant), int(info.minexp)
    top, infinite, missing = _codes(dtype)

    def i32(value: int) -> Any:
        return tirx.const(value, "int32")

    word = tirx.reinterpret("int32", x)
    size = tirx.bitwise_and(word, i32(0x7FFFFFFF))
    finite = size < i32(_INFINITY)
    size = tirx.Select(finite, size, i32(0))
    exponent = expr.maximum(tirx.shift_right(size, i32(_MANTISSA)) - i32(127), i32(least))
    unit = tirx.shift_left(i32(mantissa + 127) - exponent, i32(_MANTISSA))
    places = tirx.reinterpret("float32", size) * tirx.reinterpret("float32", unit)
    rounded = rounding.rint(places).astype("int32")
    code = tirx.shift_left(exponent - i32(least), i32(mantissa)) + rounded
    fits = tirx.all(finite, code <= i32(top))
    code = tirx.Select(fits, code, i32(top if saturate else infinite))
    sign = tirx.Select(word < i32(0), i32(1 << (dtype.bits - 1)), i32(0))
    if dtype.kind.endswith("fnuz"):  # has no -0
        sign = tirx.Select(code > i32(0), sign, i32(0))
    signed = tirx.bitwise_or(code, sign)
    nan = tirx.bitwise_and(word, i32(0x7FFFFFFF)) > i32(_INFINITY)
    missing_code = (
        i32(missing) if missing >> (dtype.bits - 1) else tirx.bitwise_or(i32(missing), sign)
    )
    return tirx.Select(nan, missing_code, signed).astype(HELD)


def _codes(dtype: DType) -> tuple[int, int, int]:
    """Codes of the largest number, of what is beyond it, and of NaN."""
    limit = float(ml_dtypes.finfo(dtype.numpy).max)
    numbers = np.asarray([limit, np.inf, np.nan], np.float32).astype(dtype.numpy)
    top, infinite, missing = (int(v) for v in numbers.view(np.uint8))
    return top, infinite, missing
