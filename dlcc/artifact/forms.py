"""How the numbers of one constant are stored in a packed weights file.

A constant is a row of elements of 1, 2 or 4 bytes, taken as bit patterns. What a kernel reads of a
pruned layer with shared weights, say, is a row with many zeros and few other numbers; its smallest
form holds where the others stand and, for each, an index into a code book (Han et al. 2016, "Deep
compression", section 3). ``runtime/c/unpack.zig`` reads what this module writes.

Streams by kind: ``directory`` (lengths and forms), ``gaps``, ``mask``, ``codes``, the bytes of code
books (``book0`` the lowest of each entry, ``book1`` the next, ...) and of other elements
(``bytes``, ``half0`` .., ``word0`` ..).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

Array = np.ndarray[Any, Any]

KINDS: Final = (
    *("directory", "gaps", "mask", "codes"),
    *("book0", "book1", "book2", "book3"),
    *("bytes", "half0", "half1", "word0", "word1", "word2", "word3"),
)
"""All streams, in the order of their numbers."""

MOST_ENTRIES: Final = 256
"""Entries of a code book at most: a code is a byte."""

_WIDTHS: Final = {1: "bytes", 2: "half", 4: "word"}
_POSITIONS: Final = ("all", "mask", "gaps")
_SAMPLE: Final = 1 << 16
"""Elements by which forms are compared."""

_FINALISTS: Final = 3
"""Forms that are coded to be compared; the others are worse by the frequencies of their bytes."""

_GAP_BITS: Final = range(2, 9)

Cost = Callable[[bytes], int]
"""Bytes that a stream would take."""


@dataclass(frozen=True)
class Form:
    """A way to store elements.

    Attributes:
        positions: ``all``: every element is stored. ``mask``: those that are not 0, and a bit for
            each element. ``gaps``: those that are not 0, and the number of zeros before each; a
            number that its bits cannot hold is filled up in steps (the filler zeros of Han et al.).
        book: elements are indices into a code book of at most :data:`MOST_ENTRIES` numbers.
        differences: what is stored is each element less the one before it, modulo its width.
    """

    positions: Literal["all", "mask", "gaps"] = "all"
    book: bool = False
    differences: bool = False

    def __str__(self) -> str:
        words = ["differences"] if self.differences else []
        words += [] if self.positions == "all" else [self.positions]
        return " ".join([*words, "codes" if self.book else "plain"])

    def byte(self, width: int, *, filters: bool = False) -> int:
        """The byte that stands for it in the directory."""
        flags = self.book << 4 | self.differences << 5 | filters << 6
        return flags | _POSITIONS.index(self.positions) << 2 | (width.bit_length() - 1)


FORMS: Final = tuple(
    Form(positions, book, differences)
    for differences in (False, True)
    for book in (False, True)
    for positions in ("all", "mask", "gaps")
)


@dataclass(frozen=True)
class Stored:
    """Elements in one form: what goes into the directory behind the form's byte, and streams."""

    form: Form
    record: bytes
    streams: dict[str, bytes] = field(default_factory=dict)


def number(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first; bit 7 says that another one follows."""
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def store(elements: Array, form: Form) -> Stored:
    """``elements`` (uint8, uint16 or uint32, flat) in ``form``.

    Raises:
        ValueError: the form has a code book, and there are too many different elements for one.
    """
    record = b""
    streams: dict[str, bytes] = {}
    values = _differences(elements) if form.differences else elements
    where = np.flatnonzero(values)
    stored = values if form.positions == "all" else values[where]
    if form.book:
        book, codes = np.unique(stored, return_inverse=True)
        if book.size > MOST_ENTRIES:
            raise ValueError(f"{book.size} different numbers exceed a code book")
        record += number(book.size)
        streams |= _planes("book", _differences(book))
        streams["codes"] = codes.astype(np.uint8).tobytes()
    else:
        streams |= _planes(_WIDTHS[values.itemsize], stored)
    if form.positions != "all":
        record += number(stored.size)
    if form.positions == "mask":
        streams["mask"] = np.packbits(values != 0, bitorder="little").tobytes()
    if form.positions == "gaps":
        gaps, limit = _best_gaps(np.diff(where, prepend=-1) - 1)
        record += bytes([limit])
        streams["gaps"] = gaps.tobytes()
    return Stored(form, record, {kind: data for kind, data in streams.items() if data})


def smallest(elements: Array, cost: Cost) -> Stored:
    """``elements`` in the form of the fewest bytes, as ``cost`` has it for a sample of them."""
    start = max(0, (elements.size - _SAMPLE) // 2)
    sample = elements[start : start + _SAMPLE]

    def size(form: Form, cost: Callable[[bytes], float]) -> float:
        made = store(sample, form)
        return len(made.record) + sum(cost(data) for data in made.streams.values())

    ranked = sorted(_applicable(sample), key=lambda form: size(form, _quick_cost))
    best = sorted(ranked[:_FINALISTS], key=lambda form: size(form, cost))
    for form in (*best, *ranked[_FINALISTS:]):
        try:
            return store(elements, form)
        except ValueError:  # more different elements outside the sample
            continue
    return store(elements, Form())


def _applicable(sample: Array) -> Iterator[Form]:
    for differences in (False, True):
        values = _differences(sample) if differences else sample
        zeros = bool(np.any(values == 0))
        few = values.itemsize > 1 and np.unique(values).size <= MOST_ENTRIES
        for form in FORMS:
            fits = (few or not form.book) and (zeros or form.positions == "all")
            if form.differences == differences and fits:
                yield form


def _differences(values: Array) -> Array:
    """Each element less the one before it, modulo the width; the first as it is."""
    out = values.copy()
    out[1:] -= values[:-1]
    return out


def _planes(name: str, values: Array) -> dict[str, bytes]:
    """The bytes of all elements, the lowest of each first."""
    rows = values.astype(values.dtype.newbyteorder("<")).view(np.uint8)
    columns = rows.reshape(-1, values.itemsize)
    if name == "bytes":
        return {name: rows.tobytes()}
    return {f"{name}{i}": columns[:, i].tobytes() for i in range(values.itemsize)}


def _best_gaps(zeros: Array) -> tuple[Array, int]:
    """Runs of zeros as numbers of the best width, and the largest such number, which fills up."""
    made = ((_filled(zeros, (1 << bits) - 1), (1 << bits) - 1) for bits in _GAP_BITS)
    return min(made, key=lambda found: _entropy(found[0]))


def _filled(zeros: Array, limit: int) -> Array:
    """Numbers up to ``limit``, which says: so many zeros, and the run goes on."""
    fillers, rest = np.divmod(zeros, limit)
    out = np.full(zeros.size + int(fillers.sum()), limit, np.uint8)
    out[np.cumsum(fillers + 1) - 1] = rest
    return out


def _quick_cost(data: bytes) -> float:
    return _entropy(np.frombuffer(data, np.uint8)) / 8


def _entropy(symbols: Array) -> float:
    """Bits of all symbols by their frequencies."""
    counts = np.bincount(symbols, minlength=1).astype(np.float64)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(1.0, counts.sum()))).sum())
