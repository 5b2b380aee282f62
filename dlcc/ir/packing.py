"""Codes of 1 to 32 bits, packed without gaps: the stored form of compressed constants.

Code i takes bits i*b .. i*b+b-1 of the byte string, where bit k of the string is bit k mod 8 of
byte k div 8 (least significant first); the last byte is filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_STEP = 1 << 16
"""Codes handled at a time (a multiple of 8), so that the bits of a large tensor need no memory."""


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` codes."""
    return (count * bits + 7) // 8


def pack_bits(codes: Array, bits: int) -> Array:
    """Codes of any shape -> uint8[ceil(count * bits / 8)].

    Args:
        codes: integers; of each only the low ``bits`` bits are kept (two's complement).
        bits: 1 to 32.
    """
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.astype(np.uint8)
    parts = [
        np.packbits(_bits_of(flat[i : i + _STEP], bits), bitorder="little")
        for i in range(0, flat.size, _STEP)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def _bits_of(codes: Array, bits: int) -> Array:
    words = codes.astype(np.int64).astype("<u4").reshape(-1, 1).view(np.uint8)
    return np.unpackbits(words, axis=1, bitorder="little")[:, :bits].reshape(-1)


def unpack_bits(packed: Array, count: int, bits: int, *, signed: bool = False) -> Array:
    """The inverse of :func:`pack_bits`: int32[count], or int64 where 32 unsigned bits need it.

    Raises:
        ValueError: ``packed`` is not as long as ``count`` codes.
    """
    if packed.dtype != np.uint8 or packed.size != packed_size(count, bits):
        raise ValueError(f"{packed.size} bytes do not hold {count} codes of {bits} bits")
    out = np.empty(count, np.int64)
    for i in range(0, count, _STEP):
        n = min(_STEP, count - i)
        chunk = packed[i * bits // 8 : i * bits // 8 + packed_size(n, bits)]
        table = np.unpackbits(chunk, count=n * bits, bitorder="little").reshape(n, bits)
        words = np.zeros((n, 32), np.uint8)
        words[:, :bits] = table
        out[i : i + n] = np.packbits(words, axis=1, bitorder="little").view("<u4")[:, 0]
    if signed:
        out -= (out >> (bits - 1)) << bits
    return out if bits == 32 and not signed else out.astype(np.int32)
