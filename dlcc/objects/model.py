"""What object files of all formats are read as; the numbers are ELF's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

SHT_NOBITS = 8
SHF_ALLOC = 0x2
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_OBJECT, STT_FUNC = 1, 2
AARCH64 = 183


class ObjectError(ValueError):
    """The bytes are not an object file that can be read here."""


@dataclass(frozen=True)
class Section:
    """One section of a file; ``offset`` and ``size`` in bytes of the file.

    ``link`` and ``info`` are those of an ELF section header, and 0 elsewhere.
    """

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int = 0
    info: int = 0

    @property
    def file_bytes(self) -> int:
        """Bytes it takes in the file: none for .bss and its like."""
        return 0 if self.type == SHT_NOBITS else self.size


@dataclass(frozen=True)
class Symbol:
    """One row of a symbol table; ``section`` 0 means undefined."""

    name: str
    binding: int
    type: int
    section: int
    value: int
    size: int

    @property
    def is_global(self) -> bool:
        """Visible to other objects, weak ones included."""
        return self.binding != STB_LOCAL

    @property
    def is_function(self) -> bool:
        """A function with a known size."""
        return self.type == STT_FUNC


class ObjectFile(Protocol):
    """A parsed object file.

    ``machine`` is ELF's number of the architecture; ``sections[0]`` is none.
    """

    data: bytes
    machine: int
    sections: list[Section]

    def tables(self) -> Sequence[tuple[str, int, int]]:
        """What the file has beside its sections: label, offset and bytes."""
        ...

    def symbols(self) -> Sequence[Symbol]:
        """The symbols, in file order, under their names in C."""
        ...

    def relocated(self) -> set[int]:
        """Indices of the symbols that code or data refers to; debug sections do not count."""
        ...

    def relocations(self, index: int) -> Iterator[tuple[int, int, int | None]]:
        """Offset, symbol and addend (None: it is in the section) of a section's relocations."""
        ...
