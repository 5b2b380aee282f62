"""The weights file of ``--pack speed``: header, content, zeros up to 64 bytes.

``runtime/c/weights.h`` reads it.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from dlcc.program import ALIGNMENT

FORMAT: Final = 1
HEADER_BYTES: Final = 64
_HEADER = struct.Struct("<8sIIQQQQ16x")
_CHUNK = 1 << 20


def content_hash(content: bytes) -> int:
    """The 64-bit hash of runtime/c/weights.h over ``content`` (a multiple of 8 bytes)."""
    words = np.frombuffer(content, "<u8")
    total = np.uint64(len(content))
    golden, odd, half = (
        np.uint64(0x9E3779B97F4A7C15),
        np.uint64(0xD6E8FEB86659FD93),
        np.uint64(32),
    )
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK]
        mixed = part + np.arange(start + 1, start + 1 + part.size, dtype=np.uint64) * golden
        mixed ^= mixed >> half
        mixed *= odd
        mixed ^= mixed >> half
        total = np.add(total, np.add.reduce(mixed), dtype=np.uint64)
    return int(total)


def stored_hash(image: bytes) -> int:
    """The hash of the content that a weights file holds, packed or not, as its header has it.

    Raises:
        ValueError: it is no weights file that this version of dlcc knows.
    """
    if len(image) < HEADER_BYTES or image[:8] != b"DLCCWTS\0":
        raise ValueError("there is no header of a weights file")
    (format_,) = struct.unpack_from("<I", image, 8)
    places = {1: 32, 2: 48}
    if format_ not in places:
        raise ValueError(f"its format is {format_}")
    return int(struct.unpack_from("<Q", image, places[format_])[0])


def padded(content: bytes) -> bytes:
    """``content`` with zeros up to a multiple of the alignment."""
    return content + bytes(-len(content) % ALIGNMENT)


def weights_image(content: bytes, fingerprint: int) -> bytes:
    """The bytes of the weights file for ``content``, bound to the network ``fingerprint``."""
    whole = padded(content)
    header = _HEADER.pack(
        b"DLCCWTS\0",
        FORMAT,
        HEADER_BYTES,
        len(content),
        HEADER_BYTES + len(whole),
        content_hash(whole),
        fingerprint,
    )
    return header + whole
