"""Reading little-endian ELF files of 32 and 64 bits, and giving an object's symbols a prefix.

Only what the artifact needs: sections, symbols, needed libraries (System V ABI, edition 4.1,
chapters 4 and 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlcc.objects.model import SHF_ALLOC, ObjectError, Section, Symbol

SHT_SYMTAB, SHT_RELA, SHT_DYNAMIC, SHT_REL, SHT_DYNSYM = 2, 4, 6, 9, 11
MAGIC = b"\x7fELF"
_DT_NEEDED = 1
_STV_HIDDEN = 2


@dataclass(frozen=True)
class _Class:
    """How files of one word size are laid out.

    ``symbol_order``: where name, info, other, section, value and size stand in a symbol's row;
    ``symbol_shift``: bits of a relocation's info below its symbol.
    """

    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    symbol_order: tuple[int, ...]
    dynamic: str
    relocation: str
    symbol_shift: int

    def read_symbol(self, data: bytes | bytearray, at: int) -> tuple[int, ...]:
        """Name, info, other, section, value and size of the symbol at ``at``."""
        row = self.symbol.unpack_from(data, at)
        return tuple(row[i] for i in self.symbol_order)

    def write_symbol(self, data: bytearray, at: int, row: tuple[int, ...]) -> None:
        """Stores what :meth:`read_symbol` gives."""
        self.symbol.pack_into(data, at, *(row[self.symbol_order.index(i)] for i in range(6)))


_CLASSES = {
    1: _Class(
        struct.Struct("<16sHHIIIIIHHHHHH"),
        struct.Struct("<IIIIIIIIII"),
        struct.Struct("<IIIBBH"),
        (0, 3, 4, 5, 1, 2),
        "<iI",
        "<II",
        8,
    ),
    2: _Class(
        struct.Struct("<16sHHIQQQIHHHHHH"),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        (0, 1, 2, 3, 4, 5),
        "<qQ",
        "<QQ",
        32,
    ),
}
"""By the file's byte 4: 1 for 32 bits, 2 for 64 (System V ABI, figure 4-6)."""


class ElfError(ObjectError):
    """The bytes are not an ELF file this module can read."""


class ElfFile:
    """A parsed ELF file.

    Args:
        data: the whole file.

    Raises:
        ElfError: not little-endian ELF, or cut off.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        if data[:4] != MAGIC or data[4:5] not in b"\1\2" or data[5:6] != b"\1":
            raise ElfError("not a little-endian ELF file")
        self.layout = layout = _CLASSES[data[4]]
        if len(data) < layout.header.size:
            raise ElfError("the header is cut off")
        fields = layout.header.unpack_from(data)
        self.machine: int = fields[2]
        self.program_offset: int = fields[5]
        self.section_offset: int = fields[6]
        self.header_bytes: int = fields[8]
        self.program_bytes: int = fields[9] * fields[10]
        self.section_bytes: int = fields[11] * fields[12]
        if (
            self.section_offset + self.section_bytes > len(data)
            or fields[11] != layout.section.size
        ):
            raise ElfError("the section header table is cut off")
        rows = [
            layout.section.unpack_from(data, self.section_offset + i * layout.section.size)
            for i in range(fields[12])
        ]
        if rows and fields[13] >= len(rows):
            raise ElfError(f"the names are in section {fields[13]} of {len(rows)}")
        names = rows[fields[13]][4] if rows else 0
        self.sections = [
            Section(self._text(names + r[0]), r[1], r[2], r[4], r[5], r[6], r[7]) for r in rows
        ]
        if any(s.offset + s.file_bytes > len(data) for s in self.sections):
            raise ElfError("a section is cut off")

    def _text(self, offset: int) -> str:
        end = self.data.find(b"\0", offset)
        if end < 0:
            raise ElfError("a name is cut off")
        return self.data[offset:end].decode("utf-8", "replace")

    def _strings(self, section: Section) -> int:
        """Where the table of strings starts that a section's names are in."""
        if section.link >= len(self.sections):
            raise ElfError(f"{section.name} has its names in section {section.link}")
        return self.sections[section.link].offset

    def _rows(self, section: Section, row: str) -> Iterator[tuple[int, ...]]:
        """The rows that a section consists of."""
        if section.size % struct.calcsize(row):
            raise ElfError(f"a row of {section.name} is cut off")
        return struct.iter_unpack(row, self.data[section.offset : section.offset + section.size])

    def symbols(self, table: int = SHT_SYMTAB) -> list[Symbol]:
        """The symbols of the first table of that type, in file order ([0] is the null symbol)."""
        for section in self.sections:
            if section.type != table:
                continue
            strings = self._strings(section)
            starts = range(section.offset, section.offset + section.size, self.layout.symbol.size)
            if section.size % self.layout.symbol.size:
                raise ElfError(f"a row of {section.name} is cut off")
            rows = (self.layout.read_symbol(self.data, at) for at in starts)
            return [
                Symbol(self._text(strings + n), info >> 4, info & 15, index, value, size)
                for n, info, _, index, value, size in rows
            ]
        return []

    def tables(self) -> list[tuple[str, int, int]]:
        """What the file has beside its sections: label, offset and bytes."""
        return [
            ("ELF header", 0, self.header_bytes),
            ("program headers", self.program_offset, self.program_bytes),
            ("section headers", self.section_offset, self.section_bytes),
        ]

    def needed(self) -> list[str]:
        """The shared libraries that the dynamic section asks for."""
        for section in self.sections:
            if section.type != SHT_DYNAMIC:
                continue
            strings = self._strings(section)
            rows = self._rows(section, self.layout.dynamic)
            return [self._text(strings + value) for tag, value in rows if tag == _DT_NEEDED]
        return []

    def relocated(self) -> set[int]:
        """Indices of the symbols that code or data refers to; debug sections do not count."""
        loaded = (i for i, s in enumerate(self.sections) if s.flags & SHF_ALLOC)
        return {symbol for i in loaded for _, symbol, _ in self.relocations(i)}

    def relocations(self, index: int) -> Iterator[tuple[int, int, int | None]]:
        """Offset, symbol and addend (None: it is in the section) of a section's relocations."""
        for section in self.sections:
            if section.type not in (SHT_RELA, SHT_REL) or section.info != index:
                continue
            entry = self.layout.relocation
            if section.type == SHT_RELA:
                entry += entry[-1].lower()
            for row in self._rows(section, entry):
                addend = row[2] if section.type == SHT_RELA else None
                yield row[0], row[1] >> self.layout.symbol_shift, addend


def isolate(object_code: bytes, rename: Callable[[str], str]) -> tuple[bytes, dict[str, str]]:
    """Renames and hides the global symbols that an object defines.

    Hidden symbols are not exported by a shared library that links the object, and renamed ones
    cannot clash with those of another network in the same program. Undefined symbols stay.

    Args:
        object_code: a relocatable ELF object.
        rename: the new name of a symbol; must map different names to different names.

    Returns:
        The changed object, and old name to new name.

    Raises:
        ElfError: the object cannot be read or has no symbol table.
    """
    renamed: dict[str, str] = {}

    def change(symbol: Symbol) -> str | None:
        if symbol.section == 0:
            return None
        renamed[symbol.name] = rename(symbol.name)
        return renamed[symbol.name]

    return _changed(object_code, change, _STV_HIDDEN), renamed


def rename_symbols(object_code: bytes, rename: Callable[[str], str]) -> bytes:
    """Renames the global symbols of a relocatable object, those included that others define.

    Raises:
        ElfError: the object cannot be read or has no symbol table.
    """
    return _changed(object_code, lambda symbol: rename(symbol.name), 0)


def _changed(object_code: bytes, change: Callable[[Symbol], str | None], visibility: int) -> bytes:
    """The object with other names for its global symbols (None: the old one).

    What has a new name also has that visibility, unless it is 0.
    """
    elf = ElfFile(object_code)
    tables = [s for s in elf.sections if s.type == SHT_SYMTAB]
    if not tables:
        raise ElfError("the object has no symbol table")
    table = tables[0]
    old_strings = elf.sections[table.link]
    # The old strings stay in front: section names may live in the same table.
    strings = bytearray(object_code[old_strings.offset : old_strings.offset + old_strings.size])
    data = bytearray(object_code)
    for index, symbol in enumerate(elf.symbols()):
        name = change(symbol) if symbol.is_global else None
        if name is None or (name == symbol.name and not visibility):
            continue
        at = table.offset + index * elf.layout.symbol.size
        _, info, other, *place = elf.layout.read_symbol(data, at)
        other = (other & ~3) | visibility if visibility else other
        elf.layout.write_symbol(data, at, (len(strings), info, other, *place))
        strings += name.encode() + b"\0"
    at = elf.section_offset + table.link * elf.layout.section.size
    fields = list(elf.layout.section.unpack_from(data, at))
    fields[4], fields[5] = len(data), len(strings)
    elf.layout.section.pack_into(data, at, *fields)
    return bytes(data + strings)
