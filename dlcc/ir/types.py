"""Tensor types: shape, element type, physical layout, encoding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dlcc.ir.compressed import Binary
from dlcc.ir.dtypes import F32, DType
from dlcc.ir.encodings import DENSE, Affine, BFloat16, Dense, Encoding, Float16, ShortFloat

Shape = tuple[int, ...]

LAYOUTS = {"nhwc": (0, 2, 3, 1)}
"""Named layouts: position in memory -> logical axis (logical 4-D order is N, C, H, W)."""

SIGN_WORD = 32
"""Bits of the words that binary activations are packed into."""


@dataclass(frozen=True)
class TensorType:
    """The type of a value.

    Attributes:
        shape: logical shape; all axes are known at compile time.
        dtype: logical element type. A quantised real tensor is ``f32`` with an Affine encoding.
        encoding: how the elements are stored.
        layout: "" for row-major in logical order, or a key of :data:`LAYOUTS`. Layout is only about
            memory: references, shape inference and passes all use the logical order.
    """

    shape: Shape
    dtype: DType = F32
    encoding: Encoding = DENSE
    layout: str = ""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def storage(self) -> DType:
        """Element type in memory."""
        return self.encoding.storage(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of an activation of this type in memory.

        Of binary ones: a bit each; the last axis in memory fills whole words of 32 bits, the first
        element in the lowest bit, the rest with zeros (:class:`dlcc.ir.Binary`: 1 is negative).
        """
        if not self.is_binary:
            return self.elements * self.storage.bytes
        *rows, last = self.physical_shape or (1,)
        return math.prod(rows) * -(-last // SIGN_WORD) * (SIGN_WORD // 8)

    @property
    def is_dense(self) -> bool:
        """True if the elements are stored in the logical dtype."""
        return isinstance(self.encoding, Dense)

    @property
    def is_bfloat16(self) -> bool:
        """True if real numbers are stored as bfloat16."""
        return isinstance(self.encoding, BFloat16)

    @property
    def is_float16(self) -> bool:
        """True if real numbers are stored as half precision."""
        return isinstance(self.encoding, Float16)

    @property
    def short_float(self) -> ShortFloat | None:
        """The encoding that rounds real numbers to 16 bits, all or those that are stored."""
        return self.encoding.short_float

    @property
    def is_binary(self) -> bool:
        """True if only the signs of real numbers are stored."""
        return isinstance(self.encoding, Binary)

    @property
    def affine(self) -> Affine:
        """The encoding, which must be Affine."""
        if not isinstance(self.encoding, Affine):
            raise TypeError(f"{self.encoding.name} encoding where an affine one is needed")
        return self.encoding

    @property
    def permutation(self) -> tuple[int, ...]:
        """Position in memory -> logical axis."""
        return LAYOUTS[self.layout] if self.layout else tuple(range(self.rank))

    @property
    def physical_shape(self) -> Shape:
        """Shape in memory order."""
        return tuple(self.shape[axis] for axis in self.permutation)

    def with_(
        self,
        *,
        shape: Shape | None = None,
        dtype: DType | None = None,
        encoding: Encoding | None = None,
        layout: str | None = None,
    ) -> TensorType:
        """A copy with some fields replaced."""
        return replace(
            self,
            shape=self.shape if shape is None else shape,
            dtype=self.dtype if dtype is None else dtype,
            encoding=self.encoding if encoding is None else encoding,
            layout=self.layout if layout is None else layout,
        )
