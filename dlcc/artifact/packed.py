"""The weights file of ``--pack size``: header, streams, zeros up to 8 bytes.

``runtime/c/unpack.zig`` makes the very content of it that the file of ``--pack speed`` has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dlcc.artifact import coder
from dlcc.artifact.coder import Stream
from dlcc.artifact.forms import KINDS, Array, Stored, number, smallest
from dlcc.artifact.weights import HEADER_BYTES, content_hash, padded
from dlcc.errors import DlccError, ExitCode
from dlcc.program import FilterTransform, Program, WeightEntry

FORMAT: Final = 2
_HEADER = struct.Struct("<8sIIQQQQQ8x")
_ALLOCATION: Final = 16
"""Bytes that an allocation takes at most beside its own."""


@dataclass(frozen=True)
class Packed:
    """A packed weights file. Constants are in the order of their offsets.

    Attributes:
        image: the bytes of the file.
        work_bytes: memory that unpacking takes beside the content.
        streams: kind, and the stream, in the order of the file.
        table_bytes: of the table before the streams.
        forms: how each constant is stored.
        shares: bytes of each constant in the file, its share of the streams it is in; with the
            header, the table and the padding they sum to the file's size.
    """

    image: bytes
    work_bytes: int
    streams: tuple[tuple[str, Stream], ...]
    table_bytes: int
    forms: tuple[str, ...]
    shares: tuple[int, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The streams for the manifest."""
        return [
            {"kind": kind, "coder": s.coder, "decoded": s.decoded, "size": len(s.data)}
            for kind, s in self.streams
        ]


def pack(program: Program, fingerprint: int) -> Packed:
    """The packed weights of ``program``, bound to the network ``fingerprint``."""
    entries, end = [], 0
    for entry in sorted(program.weight_entries, key=lambda e: e.offset):
        _check_zeros(program, end, entry.offset)
        entries.append(_stored(program, entry, end))
        end = entry.offset + entry.size
    _check_zeros(program, end, len(program.weights))
    joined = {kind: b"".join(e.get(kind, b"") for _, e in entries) for kind in KINDS}
    streams = tuple((kind, coder.code(data)) for kind, data in joined.items() if data)
    table = bytes([len(streams)]) + b"".join(_row(kind, stream) for kind, stream in streams)
    body = table + b"".join(stream.data for _, stream in streams)
    body += bytes(-len(body) % 8)
    header = _HEADER.pack(
        b"DLCCWTS\0",
        FORMAT,
        HEADER_BYTES,
        len(program.weights),
        HEADER_BYTES + len(body),
        content_hash(body),
        fingerprint,
        content_hash(padded(program.weights)),
    )
    return Packed(
        header + body,
        _work_bytes(program, [stream for _, stream in streams]),
        streams,
        len(table),
        tuple(form for form, _ in entries),
        _shares([streams_of for _, streams_of in entries], streams),
    )


def _row(kind: str, stream: Stream) -> bytes:
    sizes = number(stream.decoded) + number(len(stream.data))
    return bytes([KINDS.index(kind), stream.properties]) + sizes


def _check_zeros(program: Program, start: int, end: int) -> None:
    """What no constant covers is not stored, and is zero when it is unpacked."""
    if any(program.weights[start:end]):
        raise DlccError(
            ExitCode.INTERNAL,
            "the weights have bytes that belong to no constant",
            why=f"bytes {start} to {end} are not zero",
            fix="this is a fault in the lowering or a kernel, not in the model; please report it",
        )


def _stored(program: Program, entry: WeightEntry, end: int) -> tuple[str, dict[str, bytes]]:
    """The entry's form in words, and its streams, the directory included.

    ``end`` is where the constant before it ends.
    """
    head, filters = number(entry.offset - end), program.transforms.get(entry.offset)
    if filters is not None:
        made = smallest(np.frombuffer(filters.filters, "<u4"), coder.quick_size)
        head += bytes([made.form.byte(4, filters=True)]) + _transform_record(filters)
        return f"{made.form} filters", _with_directory(made, head)
    data = program.weights[entry.offset : entry.offset + entry.size]
    made = smallest(np.frombuffer(data, f"<u{entry.width}"), coder.quick_size)
    head += bytes([made.form.byte(entry.width)]) + number(entry.size // entry.width)
    return str(made.form), _with_directory(made, head)


def _with_directory(made: Stored, head: bytes) -> dict[str, bytes]:
    return {"directory": head + made.record, **made.streams}


def _transform_record(filters: FilterTransform) -> bytes:
    sizes = (len(filters.matrix), filters.lanes, filters.outputs, filters.channels)
    cells = (cell for row in filters.matrix for cell in row)
    fractions = b"".join(struct.pack("bB", c.numerator, c.denominator) for c in cells)
    return b"".join(map(number, sizes)) + fractions


def _work_bytes(program: Program, streams: Iterable[Stream]) -> int:
    """Memory for the decoded streams and, behind them, for what is needed for a while."""
    held = sum(s.decoded + _ALLOCATION for s in streams if s.properties != coder.UNCODED)
    filters = max((len(t.filters) for t in program.transforms.values()), default=0)
    book = 4 * 256
    return held + max(coder.TABLES, filters + book + _ALLOCATION) + 2 * _ALLOCATION


def _shares(
    entries: list[dict[str, bytes]], streams: tuple[tuple[str, Stream], ...]
) -> tuple[int, ...]:
    """What each entry takes of the coded streams, in proportion to the information it put in."""
    total = [0] * len(entries)
    for kind, stream in streams:
        parts = [entry.get(kind, b"") for entry in entries]
        for index, share in enumerate(_split(len(stream.data), list(_information(parts)))):
            total[index] += share
    return tuple(total)


def _information(parts: list[bytes]) -> Iterator[float]:
    """Bits of each part by the frequencies of bytes in all of them."""
    counts = sum(_histogram(part) for part in parts)
    bits = -np.log2(np.maximum(counts, 1) / np.sum(counts)) + 1e-9
    for part in parts:
        yield float(bits @ _histogram(part))


def _histogram(data: bytes) -> Array:
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def _split(size: int, weights: list[float]) -> list[int]:
    """``size`` in whole numbers in proportion to ``weights``, which are not all 0."""
    ends = np.rint(np.cumsum(weights) / sum(weights) * size).astype(np.int64)
    return [int(n) for n in np.diff(ends, prepend=0)]
