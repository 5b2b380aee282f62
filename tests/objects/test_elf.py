"""ELF files whose tables point elsewhere; their numbers are anybody's."""

from __future__ import annotations

import struct

import pytest

from dlcc.objects.elf import ElfError, ElfFile

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


def _file(
    *, names: int = 0, link: int = 0, kind: int = 2, size: int = 24, offset: int = 64
) -> bytes:
    """Two sections, and ``names`` is the one with their names."""
    start = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header = _HEADER.pack(start, 1, 62, 1, 0, 0, 128, 0, 64, 0, 0, 64, 2, names)
    sections = [
        _SECTION.pack(0, 0, 0, 0, 64, 0, 0, 0, 0, 0),
        _SECTION.pack(9, kind, 2, 0, offset, size, link, 0, 0, 0),
    ]
    return header + bytes(64) + b"".join(sections)


def test_a_plain_file_is_read() -> None:
    file = ElfFile(_file())
    assert [s.type for s in file.sections] == [0, 2]
    assert len(file.symbols()) == 1


@pytest.mark.parametrize("names", [2, 65535])
def test_names_in_no_section(names: int) -> None:
    with pytest.raises(ElfError, match=f"the names are in section {names} of 2"):
        ElfFile(_file(names=names))


@pytest.mark.parametrize("kind", [2, 6])
def test_strings_in_no_section(kind: int) -> None:
    file = ElfFile(_file(kind=kind, link=7, size=48))
    with pytest.raises(ElfError, match="has its names in section 7"):
        file.symbols() if kind == 2 else file.needed()


@pytest.mark.parametrize("kind", [2, 4, 6, 9])
def test_rows_that_are_cut_off(kind: int) -> None:
    file = ElfFile(_file(kind=kind, size=23))
    with pytest.raises(ElfError, match=r"a row of .* is cut off"):
        file.symbols() + file.needed() + list(file.relocations(0))
