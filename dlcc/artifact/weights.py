"""The weights file of ``--pack speed``: header, content, zeros up to 64 bytes.

``runtime/c/weights.h`` reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from dlcc.program import ALIGNMENT, Program

FORMAT: Final = 1
HEADER_BYTES: Final = 64
_HEADER = struct.Struct("<8sIIQQQQ16x")
_CHUNK = 1 << 20
_PAGE = 4096


def content_hash(content: bytes) -> int:
    """The 64-bit hash of runtime/c/weights.h over ``content`` (a multiple of 8 bytes)."""
    return part_hash(content, [(0, len(content))])


def part_hash(content: bytes, parts: Sequence[tuple[int, int]]) -> int:
    """The same over parts of ``content``, from and to multiples of 8, at their places in it."""
    words = np.frombuffer(content, "<u8")
    total = np.uint64(sum(end - start for start, end in parts))
    golden, odd, half = (
        np.uint64(0x9E3779B97F4A7C15),
        np.uint64(0xD6E8FEB86659FD93),
        np.uint64(32),
    )
    chunks = (
        (at, min(at + _CHUNK, end // 8))
        for start, end in parts
        for at in range(start // 8, end // 8, _CHUNK)
    )
    for start, end in chunks:
        part = words[start:end]
        mixed = part + np.arange(start + 1, start + 1 + part.size, dtype=np.uint64) * golden
        mixed ^= mixed >> half
        mixed *= odd
        mixed ^= mixed >> half
        total = np.add(total, np.add.reduce(mixed), dtype=np.uint64)
    return int(total)


def parts_read(program: Program) -> list[tuple[int, int]]:
    """The parts of the content that a program's steps read, whole lines of the cache, in order.

    What lies between two of them by less than a page is read along.
    """
    parts: list[tuple[int, int]] = []
    for entry in sorted(program.weight_entries, key=lambda e: e.offset):
        if entry.offset not in program.constants_read:
            continue
        end = entry.offset + entry.size
        end += -end % ALIGNMENT
        if parts and entry.offset - parts[-1][1] < _PAGE:
            parts[-1] = (parts[-1][0], end)
        else:
            parts.append((entry.offset, end))
    return parts


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
