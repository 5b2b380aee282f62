"""Element types of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal[
    "float", "int", "uint", "bool", "bfloat",
    "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu", "e2m1fn",
]  # fmt: skip

MINIFLOATS = ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu", "e2m1fn")
"""Kinds of floats of 8 bits or less: bits of exponent and of mantissa, what is not there (infinity:
fn; infinity and -0: fnuz; a sign: fnu)."""


@dataclass(frozen=True)
class DType:
    """An element type: a kind and a width in bits, e.g. ``f32``, ``i8``, ``u8``, ``bool``."""

    kind: Kind
    bits: int

    def __str__(self) -> str:
        if self.kind == "bool":
            return "bool"
        if self.kind in MINIFLOATS:
            return f"f{self.bits}{self.kind}"
        prefix = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf"}[self.kind]
        return f"{prefix}{self.bits}"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds one element."""
        if self.kind == "bool":
            return np.dtype(np.bool_)
        if self.kind == "bfloat":
            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        if self.is_narrow:
            name = f"float{self.bits}_" if self.kind in MINIFLOATS else ""
            suffix = self.kind if name else f"{self.kind}{self.bits}"
            narrow: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name + suffix))
            return narrow
        return np.dtype(f"{self.kind}{self.bits}")

    @property
    def is_narrow(self) -> bool:
        """True for types that only the border and casts have: one byte each, computed wider."""
        return self.kind in MINIFLOATS or self.bits < 8

    @property
    def computed(self) -> DType:
        """The type that numbers of a narrow type are computed in; itself for others."""
        if not self.is_narrow:
            return self
        return F32 if self.is_float else DType(self.kind, 8)

    @property
    def is_float(self) -> bool:
        """True for floating-point types."""
        return self.kind in ("float", "bfloat", *MINIFLOATS)

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for bool."""
        return self.kind in ("int", "uint")

    @property
    def bytes(self) -> int:
        """Bytes of one element in memory."""
        return int(self.numpy.itemsize)

    def integer_range(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type, as unbounded Python ints."""
        if self.kind == "uint":
            return 0, (1 << self.bits) - 1
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    @staticmethod
    def parse(text: str) -> DType:
        """The type that prints as ``text``. Raises KeyError for an unknown name."""
        return _BY_NAME[text]

    @staticmethod
    def of(array: np.ndarray[Any, Any] | np.dtype[Any]) -> DType:
        """The type of a numpy array or dtype. Raises KeyError for one that dlcc does not have."""
        dtype = array.dtype if isinstance(array, np.ndarray) else np.dtype(array)
        return _BY_NUMPY[dtype]


F16, F32, F64 = (DType("float", b) for b in (16, 32, 64))
BF16 = DType("bfloat", 16)
I8, I16, I32, I64 = (DType("int", b) for b in (8, 16, 32, 64))
U8, U16, U32, U64 = (DType("uint", b) for b in (8, 16, 32, 64))
BOOL = DType("bool", 8)

MINI = tuple(DType(k, 4 if k == "e2m1fn" else 8) for k in MINIFLOATS)  # type: ignore[arg-type]
I2, I4 = (DType("int", b) for b in (2, 4))
U2, U4 = (DType("uint", b) for b in (2, 4))

_ALL = (F16, F32, F64, BF16, I8, I16, I32, I64, U8, U16, U32, U64, BOOL, I2, I4, U2, U4, *MINI)
_BY_NAME = {str(t): t for t in _ALL}
_BY_NUMPY = {t.numpy: t for t in _ALL}
