"""Merging Mach-O objects of 64-bit ARM into one, as ``ld -r`` does.

The result is small and plain: sections of the same name one behind the other, hidden symbols made
local, no debug information and no tables for unwinding (none of the code throws, and frames are
found by the frame pointer, which the platform keeps).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dlcc.objects.macho import (
    ATTR_DEBUG,
    CPU_ARM64,
    HEADER,
    LC_BUILD_VERSION,
    LC_DYSYMTAB,
    LC_SEGMENT_64,
    LC_SYMTAB,
    MAGIC,
    MH_OBJECT,
    N_EXT,
    N_PEXT,
    N_SECT,
    N_STAB,
    N_TYPE,
    N_UNDF,
    NLIST,
    RELOC_ADDEND,
    RELOC_UNSIGNED,
    RELOCATION,
    SECTION,
    SECTION_TYPE,
    SEGMENT,
    SUBSECTIONS_VIA_SYMBOLS,
    SYMTAB,
    THREAD_LOCAL_VARIABLES,
    WEAK_DEF,
    MachOError,
    MachOFile,
    MachOSection,
    Nlist,
    Relocation,
)

_UNWINDING: Final = {("__TEXT", "__eh_frame"), ("__LD", "__compact_unwind")}
_BUILD_VERSION = struct.Struct("<6I")
_DYSYMTAB = struct.Struct("<20I")
_ALL_RIGHTS: Final = 7
_POINTER: Final = 3
"""Two to its power are the bytes of a pointer."""


@dataclass(eq=False)
class _Merged:
    """A section of the result: the pieces' places, bytes and patches."""

    segment: str
    name: str
    flags: int
    zeros: bool
    align: int = 0
    size: int = 0
    address: int = 0
    content: bytearray = field(default_factory=bytearray)
    patches: list[Relocation] = field(default_factory=list)

    def add(self, section: MachOSection, content: bytes) -> int:
        """Appends a piece; returns its offset."""
        power = section.align
        if section.flags & SECTION_TYPE == THREAD_LOCAL_VARIABLES:
            power = max(power, _POINTER)  # LLVM leaves it to the linker
        start = _aligned(self.size, power)
        self.align = max(self.align, power)
        self.flags |= section.flags & ~SECTION_TYPE
        if not self.zeros:
            self.content += bytes(start - self.size) + content
        self.size = start + section.size
        return start


def merge(objects: Sequence[bytes]) -> bytes:
    """One relocatable object of several; equal objects give equal bytes.

    Undefined symbols that another of the objects defines are bound to it. Of the hidden symbols
    nothing is left to other objects.

    Raises:
        MachOError: an object cannot be read, two define one symbol, or there is what only a full
            linker can merge.
    """
    return _Merge([MachOFile(data) for data in objects]).write()


def _aligned(value: int, power: int) -> int:
    return -(-value >> power) << power


class _Merge:
    """The state of one merge: pieces are named by the file's and their own number."""

    def __init__(self, files: Sequence[MachOFile]) -> None:
        self._files = files
        self._sections: list[_Merged] = []
        self._pieces: dict[tuple[int, int], tuple[_Merged, int]] = {}
        self._place_sections()
        self._symbols: list[Nlist] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._groups = self._number_symbols()
        self._move_patches()

    def _place_sections(self) -> None:
        found: dict[tuple[str, str], _Merged] = {}
        for index, file in enumerate(self._files):
            if file.file_type != MH_OBJECT:
                raise MachOError("not a relocatable object")
            for number, section in enumerate(file.mach_sections, 1):
                name = section.segment, section.name
                if section.flags & ATTR_DEBUG or name in _UNWINDING:
                    continue
                merged = found.setdefault(name, _Merged(*name, section.flags, section.zeros))
                if merged.flags & SECTION_TYPE != section.flags & SECTION_TYPE:
                    raise MachOError(f"{section.full_name} is of two types")
                self._pieces[index, number] = merged, merged.add(section, file.content(section))
        self._sections = sorted(found.values(), key=lambda section: section.zeros)
        address = 0
        for merged in self._sections:
            merged.address = _aligned(address, merged.align)
            address = merged.address + merged.size

    def _moved(self, index: int, row: Nlist) -> Nlist | None:
        """A defined symbol in the result; None if its section is left out."""
        if (index, row.section) not in self._pieces:
            return None
        merged, start = self._pieces[index, row.section]
        old = self._files[index].mach_sections[row.section - 1].address
        value = row.value - old + merged.address + start
        moved = replace(row, section=self._sections.index(merged) + 1, value=value)
        if not row.type & N_PEXT:
            return moved
        return replace(moved, type=N_SECT, description=row.description & ~WEAK_DEF)

    def _number_symbols(self) -> tuple[int, int, int]:
        """Orders and numbers the symbols. Returns how many are local, defined and undefined."""
        rows = [(i, j, row) for i, f in enumerate(self._files) for j, row in enumerate(f.nlists)]
        local: list[tuple[tuple[int, int], Nlist]] = []
        defined: dict[str, tuple[tuple[int, int], Nlist]] = {}
        undefined: dict[str, Nlist] = {}
        for i, j, row in rows:
            if row.type & N_STAB or not row.is_defined:
                continue
            moved = self._moved(i, row)
            if moved is None:
                continue
            if row.is_external and row.name in defined:
                raise MachOError(f"two objects define {row.name}")
            if row.is_external:
                defined[row.name] = (i, j), moved
            if not moved.type & N_EXT:
                local.append(((i, j), moved))
        for _, _, row in rows:
            if row.type & N_STAB or row.is_defined or row.name in defined:
                continue
            if row.type & N_TYPE != N_UNDF or row.value:
                raise MachOError(f"{row.name} is neither defined nor undefined")
            undefined.setdefault(row.name, row)
        shared = sorted(
            (entry for entry in defined.values() if entry[1].type & N_EXT), key=lambda e: e[1].name
        )
        for number, (key, _) in enumerate([*local, *shared]):
            self._numbers[key] = number
        self._symbols = [row for _, row in [*local, *shared]]
        missing = {name: len(self._symbols) + i for i, name in enumerate(sorted(undefined))}
        self._symbols += [undefined[name] for name in missing]
        for i, j, row in rows:
            if not row.type & N_STAB and not row.is_defined:
                own = row.name not in defined
                self._numbers[i, j] = (
                    missing[row.name] if own else self._numbers[defined[row.name][0]]
                )
        return len(local), len(shared), len(missing)

    def _move_patches(self) -> None:
        for (index, number), (merged, start) in reversed(self._pieces.items()):
            section = self._files[index].mach_sections[number - 1]
            for patch in self._files[index].patches(section):
                merged.patches.append(self._moved_patch(index, patch, merged, start))

    def _moved_patch(
        self, index: int, patch: Relocation, merged: _Merged, start: int
    ) -> Relocation:
        moved = replace(patch, address=patch.address + start)
        if patch.type == RELOC_ADDEND:
            return moved
        if patch.external:
            return replace(moved, number=self._numbers[index, patch.number])
        if patch.type != RELOC_UNSIGNED or (index, patch.number) not in self._pieces:
            raise MachOError(f"a relocation of type {patch.type} without a symbol")
        # the section holds an address of the object's own space
        target, place = self._pieces[index, patch.number]
        old = self._files[index].mach_sections[patch.number - 1].address
        width = 1 << patch.length
        content = merged.content[moved.address : moved.address + width]
        value = int.from_bytes(content, "little") - old + target.address + place
        merged.content[moved.address : moved.address + width] = value.to_bytes(width, "little")
        return replace(moved, number=self._sections.index(target) + 1)

    def write(self) -> bytes:
        """The bytes of the result."""
        command_bytes = SEGMENT.size + len(self._sections) * SECTION.size
        command_bytes += _BUILD_VERSION.size + SYMTAB.size + _DYSYMTAB.size
        most = max((s.align for s in self._sections), default=0)
        start = _aligned(HEADER.size + command_bytes, most)
        body, places, patches, patch_places = self._body(start)
        strings, rows = bytearray(b"\0"), bytearray()
        for row in self._symbols:
            rows += NLIST.pack(len(strings), row.type, row.section, row.description, row.value)
            strings += row.name.encode() + b"\0"
        strings += bytes(-len(strings) % 8)
        patches_at = start + len(body)
        symbols_at = patches_at + len(patches)
        segment = self._segment(start, len(body), places, patches_at, patch_places)
        symtab = SYMTAB.pack(
            LC_SYMTAB,
            SYMTAB.size,
            symbols_at,
            len(self._symbols),
            symbols_at + len(rows),
            len(strings),
        )
        flags = SUBSECTIONS_VIA_SYMBOLS
        for file in self._files:
            flags &= file.flags
        header = HEADER.pack(MAGIC, CPU_ARM64, 0, MH_OBJECT, 4, command_bytes, flags, 0)
        head = header + segment + self._version() + symtab + self._ranges()
        head += bytes(start - len(head))
        return b"".join([head, body, patches, rows, strings])

    def _body(self, start: int) -> tuple[bytearray, list[int], bytearray, list[int]]:
        """Contents and patches of all sections, and where in them each section's begin."""
        body, places, patches, patch_places = bytearray(), [], bytearray(), []
        for merged in self._sections:
            if not merged.zeros:
                body += bytes(merged.address - len(body)) + merged.content
            places.append(0 if merged.zeros else start + merged.address)
            patch_places.append(len(patches))
            for patch in merged.patches:
                word = patch.number | patch.pc_relative << 24 | patch.length << 25
                word |= patch.external << 27 | patch.type << 28
                patches += RELOCATION.pack(patch.address, word)
        body += bytes(-len(body) % 8)
        return body, places, patches, patch_places

    def _segment(
        self, start: int, body: int, places: list[int], patches_at: int, patch_places: list[int]
    ) -> bytes:
        rows = []
        for merged, place, patch_place in zip(self._sections, places, patch_places, strict=True):
            count = len(merged.patches)
            rows.append(
                SECTION.pack(
                    merged.name.encode(),
                    merged.segment.encode(),
                    merged.address,
                    merged.size,
                    place,
                    merged.align,
                    patches_at + patch_place if count else 0,
                    count,
                    merged.flags,
                    0,
                    0,
                    0,
                )
            )
        memory = max((s.address + s.size for s in self._sections), default=0)
        size = SEGMENT.size + len(rows) * SECTION.size
        rights = (_ALL_RIGHTS, _ALL_RIGHTS, len(rows), 0)
        return SEGMENT.pack(
            LC_SEGMENT_64, size, b"", 0, max(memory, body), start, body, *rights
        ) + b"".join(rows)

    def _version(self) -> bytes:
        """Platform and oldest system of the objects, which have to agree on the former."""
        found = set()
        for file in self._files:
            place = file.command(LC_BUILD_VERSION)
            if place is None:
                raise MachOError("an object does not say what system it is for")
            found.add(_BUILD_VERSION.unpack_from(file.data, place[0])[2:5])
        if len({platform for platform, _, _ in found}) != 1:
            raise MachOError("the objects are for different systems")
        platform, oldest, _ = max(found)
        return _BUILD_VERSION.pack(
            LC_BUILD_VERSION, _BUILD_VERSION.size, platform, oldest, oldest, 0
        )

    def _ranges(self) -> bytes:
        local, shared, missing = self._groups
        ranges = (0, local, local, shared, local + shared, missing)
        return _DYSYMTAB.pack(LC_DYSYMTAB, _DYSYMTAB.size, *ranges, *[0] * 12)
