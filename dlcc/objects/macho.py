"""Reading Mach-O files of 64-bit ARM, as <mach-o/loader.h>, nlist.h and reloc.h describe them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from dlcc.objects.model import (
    AARCH64,
    SHF_ALLOC,
    SHT_NOBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_OBJECT,
    ObjectError,
    Section,
    Symbol,
)

MAGIC: Final = b"\xcf\xfa\xed\xfe"
CPU_ARM64: Final = 0x0100000C
MH_OBJECT: Final = 1
SUBSECTIONS_VIA_SYMBOLS: Final = 0x2000

LC_SYMTAB, LC_DYSYMTAB, LC_LOAD_DYLIB, LC_ID_DYLIB, LC_SEGMENT_64 = 0x2, 0xB, 0xC, 0xD, 0x19
LC_BUILD_VERSION: Final = 0x32

HEADER = struct.Struct("<4s7I")
SEGMENT = struct.Struct("<II16sQQQQ4I")
SECTION = struct.Struct("<16s16sQQ8I")
SYMTAB = struct.Struct("<6I")
NLIST = struct.Struct("<IBBHQ")
RELOCATION = struct.Struct("<iI")

N_STAB, N_PEXT, N_TYPE, N_EXT = 0xE0, 0x10, 0x0E, 0x01
N_UNDF, N_SECT = 0x0, 0xE
WEAK_REF, WEAK_DEF = 0x40, 0x80

_LINKED: Final = {
    0x1D: ("code signature",),
    0x26: ("function starts",),
    0x29: ("data in code",),
    0x80000022: ("rebasing", "binding", "weak binding", "lazy binding", "exports"),
    0x80000033: ("exports",),
    0x80000034: ("chained fixups",),
}
"""Tables of a linked image, by the load command that says where they lie."""

SECTION_TYPE: Final = 0xFF
ZEROFILL: Final = frozenset({0x1, 0xC, 0x12})
"""S_ZEROFILL, S_GB_ZEROFILL, S_THREAD_LOCAL_ZEROFILL."""
THREAD_LOCAL_VARIABLES: Final = 0x13
ATTR_DEBUG, ATTR_PURE_CODE = 0x02000000, 0x80000000

RELOC_UNSIGNED, RELOC_SUBTRACTOR, RELOC_ADDEND = 0, 1, 10


class MachOError(ObjectError):
    """The bytes are not a Mach-O file that this module can read."""


@dataclass(frozen=True)
class MachOSection:
    """A section as its header has it: ``address`` in the file's own address space."""

    segment: str
    name: str
    address: int
    size: int
    offset: int
    align: int
    relocation_offset: int
    relocation_count: int
    flags: int

    @property
    def zeros(self) -> bool:
        """It takes no bytes in the file."""
        return self.flags & SECTION_TYPE in ZEROFILL

    @property
    def full_name(self) -> str:
        """Segment and section, as assemblers write them."""
        return f"{self.segment},{self.name}"


@dataclass(frozen=True)
class Nlist:
    """One row of the symbol table; ``section`` counts from 1, ``value`` is an address."""

    name: str
    type: int
    section: int
    description: int
    value: int

    @property
    def is_external(self) -> bool:
        """Other objects see it, or it is one of theirs."""
        return bool(self.type & N_EXT)

    @property
    def is_defined(self) -> bool:
        """It is in a section of this file."""
        return self.type & N_TYPE == N_SECT


@dataclass(frozen=True)
class Relocation:
    """One patch of a section: ``number`` is of a symbol, or of a section unless ``external``."""

    address: int
    number: int
    pc_relative: bool
    length: int
    external: bool
    type: int


class MachOFile:
    """A parsed Mach-O file.

    Args:
        data: the whole file.

    Raises:
        MachOError: not Mach-O of 64-bit ARM, or cut off.
    """

    machine = AARCH64

    def __init__(self, data: bytes) -> None:
        self.data = data
        if len(data) < HEADER.size or data[:4] != MAGIC:
            raise MachOError("not a 64-bit Mach-O file")
        _, cpu, _, self.file_type, count, command_bytes, self.flags, _ = HEADER.unpack_from(data)
        if cpu != CPU_ARM64:
            raise MachOError("not of 64-bit ARM")
        self.command_bytes: int = command_bytes
        self.commands: list[tuple[int, int, int]] = []
        at = HEADER.size
        for _ in range(count):
            if at + 8 > len(data):
                raise MachOError("a load command is cut off")
            kind, size = struct.unpack_from("<II", data, at)
            if size < 8 or at + size > HEADER.size + command_bytes or at + size > len(data):
                raise MachOError("a load command is cut off")
            self.commands.append((kind, at, size))
            at += size
        try:
            self.mach_sections = list(self._read_sections())
            self.nlists = list(self._read_symbols())
        except struct.error as error:
            raise MachOError(f"a table is cut off: {error}") from error
        self.sections = [Section("", 0, 0, 0, 0), *map(_plain_section, self.mach_sections)]
        if any(s.offset + s.file_bytes > len(data) for s in self.sections):
            raise MachOError("a section is cut off")

    def command(self, kind: int) -> tuple[int, int] | None:
        """Place and size of the first load command of that kind."""
        return next(((at, size) for k, at, size in self.commands if k == kind), None)

    def _read_sections(self) -> Iterator[MachOSection]:
        for kind, start, size in self.commands:
            if kind != LC_SEGMENT_64:
                continue
            count = SEGMENT.unpack_from(self.data, start)[9]
            if SEGMENT.size + count * SECTION.size > size:
                raise MachOError("a segment's sections are cut off")
            for i in range(count):
                row = SECTION.unpack_from(self.data, start + SEGMENT.size + i * SECTION.size)
                name, segment = (part.rstrip(b"\0").decode("utf-8", "replace") for part in row[:2])
                address, bytes_, offset, align, patches, patch_count, flags = row[2:9]
                yield MachOSection(
                    segment, name, address, bytes_, offset, align, patches, patch_count, flags
                )

    def _read_symbols(self) -> Iterator[Nlist]:
        place = self.command(LC_SYMTAB)
        if place is None:
            return
        _, _, at, count, strings, string_bytes = SYMTAB.unpack_from(self.data, place[0])
        for i in range(count):
            name, kind, section, description, value = NLIST.unpack_from(
                self.data, at + i * NLIST.size
            )
            end = self.data.find(b"\0", strings + name, strings + string_bytes)
            if end < 0 or section > len(self.mach_sections):
                raise MachOError("a symbol is cut off")
            text = self.data[strings + name : end].decode("utf-8", "replace")
            yield Nlist(text, kind, section, description, value)

    def content(self, section: MachOSection) -> bytes:
        """The bytes of a section."""
        return self.data[section.offset : section.offset + (0 if section.zeros else section.size)]

    def patches(self, section: MachOSection) -> list[Relocation]:
        """The relocations of a section, in file order."""
        start = section.relocation_offset
        rows = self.data[start : start + section.relocation_count * RELOCATION.size]
        if len(rows) != section.relocation_count * RELOCATION.size:
            raise MachOError("relocations are cut off")
        return [
            Relocation(
                address,
                word & 0xFFFFFF,
                bool(word >> 24 & 1),
                word >> 25 & 3,
                bool(word >> 27 & 1),
                word >> 28,
            )
            for address, word in RELOCATION.iter_unpack(rows)
        ]

    def symbols(self) -> list[Symbol]:
        """The symbols, in file order; debuggers' are local and undefined."""
        return [self._symbol(row) for row in self.nlists]

    def _symbol(self, row: Nlist) -> Symbol:
        name = row.name.removeprefix("_")
        if row.type & N_STAB:
            return Symbol(row.name, STB_LOCAL, 0, 0, row.value, 0)
        weak = row.description & (WEAK_DEF if row.is_defined else WEAK_REF)
        binding = (STB_WEAK if weak else STB_GLOBAL) if row.is_external else STB_LOCAL
        if not row.is_defined:
            return Symbol(name, binding, 0, 0, row.value, 0)
        section = self.mach_sections[row.section - 1]
        named = row.name.startswith("_")
        code = bool(section.flags & ATTR_PURE_CODE) and named
        kind = STT_FUNC if code else STT_OBJECT
        size = self._ends[row.section, row.value] - row.value if named else 0
        return Symbol(name, binding, kind, row.section, row.value - section.address, size)

    @cached_property
    def _ends(self) -> dict[tuple[int, int], int]:
        """Where what starts at an address of a section ends: at the next symbol of C."""
        starts: dict[int, set[int]] = {}
        for row in self.nlists:
            if row.is_defined and not row.type & N_STAB and row.name.startswith("_"):
                starts.setdefault(row.section, set()).add(row.value)
        found: dict[tuple[int, int], int] = {}
        for number, places in starts.items():
            section = self.mach_sections[number - 1]
            for start, end in pairwise([*sorted(places), section.address + section.size]):
                found[number, start] = end
        return found

    def relocated(self) -> set[int]:
        """Indices of the symbols that code or data refers to; debug sections do not count."""
        loaded = (i for i, s in enumerate(self.sections) if s.flags & SHF_ALLOC)
        return {symbol for i in loaded for _, symbol, _ in self.relocations(i)}

    def relocations(self, index: int) -> Iterator[tuple[int, int, int | None]]:
        """Offset, symbol and addend (None: it is in the section) of a section's relocations.

        Those that name a section in place of a symbol are left out.
        """
        addend = 0
        for patch in self.patches(self.mach_sections[index - 1]):
            if patch.type == RELOC_ADDEND:
                addend = patch.number - (patch.number >> 23 << 24)
                continue
            if patch.external:
                in_section = patch.type in (RELOC_UNSIGNED, RELOC_SUBTRACTOR)
                yield patch.address, patch.number, None if in_section else addend
            addend = 0

    def tables(self) -> list[tuple[str, int, int]]:
        """What the file has beside its sections: label, offset and bytes."""
        rows = [("Mach-O header", 0, HEADER.size)]
        rows.append(("load commands", HEADER.size, self.command_bytes))
        rows += [
            (f"relocations of {s.full_name}", s.relocation_offset, 8 * s.relocation_count)
            for s in self.mach_sections
        ]
        for kind, at, size in self.commands:
            words = struct.unpack_from(f"<{size // 4}I", self.data, at)
            if kind == LC_SYMTAB:
                rows.append(("symbol table", words[2], NLIST.size * words[3]))
                rows.append(("symbol names", words[4], words[5]))
            elif kind == LC_DYSYMTAB:
                rows.append(("indirect symbols", words[14], 4 * words[15]))
            elif kind in _LINKED:
                for i, label in enumerate(_LINKED[kind]):
                    rows.append((label, words[2 + 2 * i], words[3 + 2 * i]))
        return rows

    def needed(self) -> list[str]:
        """The shared libraries that it asks for, by their install names."""
        names = []
        for kind, at, size in self.commands:
            if kind == LC_LOAD_DYLIB:
                (offset,) = struct.unpack_from("<I", self.data, at + 8)
                names.append(self.data[at + offset : at + size].split(b"\0")[0].decode())
        return names


def _plain_section(section: MachOSection) -> Section:
    loaded = not section.flags & ATTR_DEBUG and section.segment not in ("__DWARF", "__LD")
    return Section(
        section.full_name,
        SHT_NOBITS if section.zeros else 1,
        SHF_ALLOC if loaded else 0,
        section.offset,
        section.size,
    )


def isolate(object_code: bytes, rename: Callable[[str], str]) -> tuple[bytes, dict[str, str]]:
    """As :func:`dlcc.objects.elf.isolate`: hidden are symbols that stay within a linked image.

    Raises:
        MachOError: the object cannot be read or has no symbol table.
    """
    renamed: dict[str, str] = {}

    def change(row: Nlist, name: str) -> str | None:
        if not row.is_defined:
            return None
        renamed[name] = rename(name)
        return renamed[name]

    return _changed(object_code, change, N_PEXT), renamed


def rename_symbols(object_code: bytes, rename: Callable[[str], str]) -> bytes:
    """As :func:`dlcc.objects.elf.rename_symbols`, by the names in C.

    Raises:
        MachOError: the object cannot be read or has no symbol table.
    """
    return _changed(object_code, lambda _, name: rename(name), 0)


def _changed(object_code: bytes, change: Callable[[Nlist, str], str | None], mark: int) -> bytes:
    """The object with other names for its external symbols (None: the old one), which get a mark.

    ``mark``: bits of the symbols' types.
    """
    file = MachOFile(object_code)
    place = file.command(LC_SYMTAB)
    if place is None:
        raise MachOError("the object has no symbol table")
    fields = list(SYMTAB.unpack_from(object_code, place[0]))
    data = bytearray(object_code)
    strings = bytearray(object_code[fields[4] : fields[4] + fields[5]])
    for index, row in enumerate(file.nlists):
        if row.type & N_STAB or not row.is_external:
            continue
        name = change(row, row.name.removeprefix("_"))
        if name is None:
            continue
        changed = (len(strings), row.type | mark, row.section, row.description, row.value)
        NLIST.pack_into(data, fields[2] + index * NLIST.size, *changed)
        strings += f"_{name}\0".encode()
    fields[4], fields[5] = len(data), len(strings)
    SYMTAB.pack_into(data, place[0], *fields)
    return bytes(data + strings)
