"""Encodings: how the numbers of a tensor are stored.

Compression lives in types. A value's *encoding* says how its (logically real-valued) numbers are
held in memory and in the weights file; a pass that quantises or prunes changes the encoding and
leaves the op alone. Data-dependent contents (codebooks, indices) are *parts* of the constant; what
every consumer must know to interpret them (widths, axes, scales) is in the encoding itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from dlcc.ir import dtypes
from dlcc.ir.dtypes import DType

Array = np.ndarray[Any, Any]
Parts = Mapping[str, Array]

_REGISTRY: dict[str, type[Encoding]] = {}


class Encoding(ABC):
    """Base of all encodings. Subclasses are frozen dataclasses whose fields are their text form."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _REGISTRY[cls.name] = cls

    @abstractmethod
    def encode(self, values: Array) -> dict[str, Array]:
        """Real values -> stored parts.

        Raises:
            ValueError: the values cannot be held in this encoding (NaN, wrong shape, ...).
        """

    @abstractmethod
    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Stored parts -> real values of ``shape``, float32 (Dense: the stored dtype)."""

    @abstractmethod
    def stored_bytes(self, parts: Parts) -> int:
        """Exact bytes of the parts in the weights file, this encoding's metadata included."""

    def storage(self, logical: DType) -> DType:
        """Element type of the main part in memory, for values of ``logical`` type."""
        return logical

    @property
    def uniform(self) -> Affine | None:
        """The uniform codes that hold every number of this encoding, for integer arithmetic.

        None where there are none: the numbers of an index are no multiples of one scale.
        """
        return None

    @property
    def short_float(self) -> ShortFloat | None:
        """The encoding of 16-bit floats that numbers are rounded to; None: none is."""
        return None

    @staticmethod
    def by_name(name: str) -> type[Encoding]:
        """The encoding class that prints as ``name``. Raises KeyError."""
        return _REGISTRY[name]


@dataclass(frozen=True)
class Dense(Encoding):
    """Every element in its own logical dtype."""

    name: ClassVar[str] = "dense"

    def encode(self, values: Array) -> dict[str, Array]:
        """Store as is."""
        return {"values": np.ascontiguousarray(values)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """The stored array."""
        return parts["values"].reshape(shape)

    def stored_bytes(self, parts: Parts) -> int:
        """Bytes of the array."""
        return int(parts["values"].nbytes)


def float32_tuple(values: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers rounded to float32."""
    return tuple(float(np.float32(v)) for v in values)


@dataclass(frozen=True)
class Affine(Encoding):
    """Uniform quantisation: real = scale * (q - zero_point) (Jacob et al. 2018, section 2.1).

    One scale and zero point for the tensor (``axis`` is None) or one per index of ``axis``.
    Power-of-two scales are the fixed-point case. Scales are float32 values.

    Attributes:
        bits: width of q, 2 to 32.
        signed: two's complement q, else unsigned.
        axis: the quantised axis, or None for per-tensor.
        scales: one per tensor or per index of ``axis``, all positive and finite.
        zero_points: same length; integers in the range of q.
        narrow: q avoids the lowest code (weights: -127..127 for 8 bits).
    """

    name: ClassVar[str] = "affine"

    bits: int
    signed: bool
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", float32_tuple(self.scales))
        if not 2 <= self.bits <= 32:
            raise ValueError(f"affine: {self.bits} bits, must be 2 to 32")
        if len(self.scales) != len(self.zero_points) or not self.scales:
            raise ValueError("affine: needs as many zero points as scales, at least one")
        if self.axis is None and len(self.scales) != 1:
            raise ValueError("affine: several scales need an axis")
        if any(not (0 < s < float("inf")) for s in self.scales):
            raise ValueError("affine: scales must be positive and finite")
        low, high = self.code_range
        if any(not low <= z <= high for z in self.zero_points):
            raise ValueError(f"affine: a zero point lies outside {low}..{high}")

    @staticmethod
    def per_tensor(bits: int, signed: bool, scale: float, zero_point: int) -> Affine:
        """One scale and zero point for the whole tensor."""
        return Affine(bits, signed, (float(scale),), (int(zero_point),))

    @staticmethod
    def symmetric(bits: int, scales: Array, axis: int | None) -> Affine:
        """Signed, zero point 0, codes -(2^(bits-1)-1) .. 2^(bits-1)-1: the form of weights."""
        flat = tuple(float(s) for s in np.atleast_1d(scales))
        return Affine(bits, True, flat, (0,) * len(flat), axis, narrow=bits <= 16)

    @property
    def uniform(self) -> Affine:
        """Itself."""
        return self

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        if self.signed:
            return -(1 << (self.bits - 1)) + int(self.narrow), (1 << (self.bits - 1)) - 1
        return int(self.narrow), (1 << self.bits) - 1

    @property
    def scale(self) -> float:
        """The scale of a per-tensor encoding."""
        if len(self.scales) != 1:
            raise ValueError("affine: per-channel encoding has no single scale")
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """The zero point of a per-tensor encoding."""
        if len(self.zero_points) != 1:
            raise ValueError("affine: per-channel encoding has no single zero point")
        return self.zero_points[0]

    @property
    def real_range(self) -> tuple[float, float]:
        """The real numbers of the smallest and largest code of a per-tensor encoding."""
        low, high = self.code_range
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def storage(self, logical: DType) -> DType:
        """The integer type that holds one code in memory."""
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return DType("int" if self.signed else "uint", width)

    def _broadcast(self, parameters: Sequence[float], shape: tuple[int, ...]) -> Array:
        array = np.asarray(parameters, dtype=np.float64)
        if self.axis is None:
            return array.reshape(())
        if not 0 <= self.axis < len(shape) or shape[self.axis] != array.size:
            raise ValueError(
                f"affine: {array.size} scales do not fit axis {self.axis} of shape {list(shape)}"
            )
        return array.reshape([-1 if i == self.axis else 1 for i in range(len(shape))])

    def quantise(self, values: Array) -> Array:
        """Real values -> codes: round half to even, then clamp."""
        if not np.all(np.isfinite(values)):
            raise ValueError("affine: NaN or infinite values cannot be quantised")
        scaled = np.asarray(values, np.float64) / self._broadcast(self.scales, values.shape)
        codes = np.rint(scaled) + self._broadcast(self.zero_points, values.shape)
        clipped = np.clip(codes, *self.code_range)
        return np.asarray(clipped, dtype=self.storage(dtypes.F32).numpy)

    def dequantise(self, codes: Array) -> Array:
        """Codes -> float32 real values: f32(q - z) * f32(scale)."""
        centred = codes.astype(np.float64) - self._broadcast(self.zero_points, codes.shape)
        scales = self._broadcast(self.scales, codes.shape).astype(np.float32)
        return np.asarray(centred.astype(np.float32) * scales, dtype=np.float32)

    def encode(self, values: Array) -> dict[str, Array]:
        """Quantise."""
        return {"values": self.quantise(values)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """Dequantise."""
        return self.dequantise(parts["values"].reshape(shape))

    def stored_bytes(self, parts: Parts) -> int:
        """Packed codes, a float32 scale each, and zero points where any is not 0."""
        codes = (parts["values"].size * self.bits + 7) // 8
        zero_bytes = (self.bits + 7) // 8 if any(self.zero_points) else 0
        return int(codes + len(self.scales) * (4 + zero_bytes))


@dataclass(frozen=True)
class ShortFloat(Encoding):
    """Base of encodings that round real numbers to a floating-point type of 16 bits.

    Rounding is half to even; what is too large becomes infinite, a NaN stays one.
    """

    stored: ClassVar[DType]
    """The type."""

    @property
    def short_float(self) -> ShortFloat:
        """Itself."""
        return self

    def encode(self, values: Array) -> dict[str, Array]:
        """Round once, from float32."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            real = np.ascontiguousarray(values, np.float32)
            return {"values": real.astype(self.stored.numpy)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Array:
        """The numbers as float32, exactly."""
        return parts["values"].reshape(shape).astype(np.float32)

    def rounded(self, values: Array) -> Array:
        """``values`` as float32, rounded to numbers of this encoding."""
        return self.decode(self.encode(values), values.shape)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(ml_dtypes.finfo(self.stored.numpy).max)

    def stored_bytes(self, parts: Parts) -> int:
        """Two bytes for each number."""
        return int(parts["values"].nbytes)

    def storage(self, logical: DType) -> DType:
        """The 16-bit type."""
        return self.stored


@dataclass(frozen=True)
class BFloat16(ShortFloat):
    """Real numbers rounded to bfloat16: the upper half of a float32, rounded half to even.

    Eight bits of exponent as in float32, eight significant bits: the relative error of a number is
    at most 2^-8 (Kalamkar et al. 2019, "A study of bfloat16 for deep learning training").
    """

    name: ClassVar[str] = "bfloat16"
    stored: ClassVar[DType] = dtypes.BF16


@dataclass(frozen=True)
class Float16(ShortFloat):
    """Real numbers rounded to half precision (IEEE 754-2008, binary16), half to even.

    Five bits of exponent and eleven significant bits: the relative error of a number is at most
    2^-11 from 2^-14 to 65504; below, where numbers are denormal, the error is at most 2^-25.
    Numbers from 65520 on are infinite.
    """

    name: ClassVar[str] = "float16"
    stored: ClassVar[DType] = dtypes.F16


DENSE = Dense()
BFLOAT16 = BFloat16()
FLOAT16 = Float16()
