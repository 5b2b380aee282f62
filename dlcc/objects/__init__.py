"""Object files: ELF and Mach-O, read as one thing."""

from __future__ import annotations

from collections.abc import Callable

from dlcc.objects import elf, macho
from dlcc.objects.elf import ElfFile
from dlcc.objects.macho import MachOFile
from dlcc.objects.model import ObjectError, ObjectFile, Section, Symbol


def read_object(data: bytes) -> ElfFile | MachOFile:
    """An object file or a shared library, of whichever format its first bytes say.

    Raises:
        ObjectError: it cannot be read.
    """
    return MachOFile(data) if data[:4] == macho.MAGIC else ElfFile(data)


def is_object(data: bytes) -> bool:
    """Whether it starts as an object file does."""
    return data[:4] in (elf.MAGIC, macho.MAGIC)


def isolate(object_code: bytes, rename: Callable[[str], str]) -> tuple[bytes, dict[str, str]]:
    """See :func:`dlcc.objects.elf.isolate`."""
    if object_code[:4] == macho.MAGIC:
        return macho.isolate(object_code, rename)
    return elf.isolate(object_code, rename)


def rename_symbols(object_code: bytes, rename: Callable[[str], str]) -> bytes:
    """See :func:`dlcc.objects.elf.rename_symbols`."""
    if object_code[:4] == macho.MAGIC:
        return macho.rename_symbols(object_code, rename)
    return elf.rename_symbols(object_code, rename)


__all__ = [
    "ObjectError",
    "ObjectFile",
    "Section",
    "Symbol",
    "is_object",
    "isolate",
    "read_object",
    "rename_symbols",
]
