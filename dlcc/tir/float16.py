"""Half precision in TIR: numbers are held as LLVM's own type and computed with as float32.

LLVM converts by the CPU's instructions (fcvtl and fcvtn, vcvtph2ps and vcvtps2ph), which round half
to even and know denormal numbers. Where a CPU has none, LLVM would call functions that no C library
has: targets say whether they do (:attr:`targets.isa.Isa.float16`).
"""

from __future__ import annotations

from typing import Any

HELD = "float16"
"""How a number is held."""


def widened(value: Any) -> Any:
    """The float32 number (or vector) of ``value``."""
    return value.astype(_typed("float32", value))


def rounded(real: Any) -> Any:
    """A float32 number (or vector) rounded to half precision, to nearest, half to even."""
    return real.astype(_typed(HELD, real))


def truncated(real: Any) -> Any:
    """A float32 number (or vector) that half precision has, as such."""
    return rounded(real)


def _typed(dtype: str, like: Any) -> str:
    type_ = getattr(like, "ty", None)  # an element of a TE tensor has none
    lanes = 1 if type_ is None else int(type_.dtype.lanes)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
