"""What a cubin says of its kernels: registers, shared and local memory, parameters.

A cubin is an ELF file. Facts of a kernel stand in ``.nv.info`` and ``.nv.info.<kernel>``, rows of a
format byte, a number and a value (NVIDIA's cuobjdump and nvdisasm print them as EIATTR_...); the
size of ``.nv.shared.<kernel>`` is its static shared memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dlcc.cuda.architecture import Architecture
from dlcc.objects import ObjectError
from dlcc.objects.elf import ElfFile

_MACHINE: Final = 190
_PARAMETER_BANK: Final = ".nv.constant0."
"""Sections that kernels have, and functions that kernels call have not."""

_NO_VALUE, _BYTE, _HALF, _SIZED = 1, 2, 3, 4
_MAX_THREADS, _FRAME, _PARAMETER, _REGISTERS = 0x05, 0x11, 0x17, 0x2F
_OLD_ABI: Final = 7
_RESERVED: Final = 1024
"""Shared memory of every block that is the system's, which newer cubins count as the kernel's."""

_RESERVES: Final = 90
"""The first architecture whose cubins do."""

_EXACT: Final = {True: 0x800, False: 0x8}
"""The flag of ``sm_90a`` and its like, in the old ABI and in later ones."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a cubin.

    Attributes:
        name: its symbol.
        registers: of each thread.
        shared_bytes: shared memory that it declares itself.
        local_bytes: memory of each thread for arrays and spilled registers.
        max_threads: threads of a block that it was compiled for; 0: no bound.
        parameters: bytes of each parameter, in order.
        code_bytes: of its instructions.
    """

    name: str
    registers: int
    shared_bytes: int
    local_bytes: int
    max_threads: int
    parameters: tuple[int, ...]
    code_bytes: int


@dataclass(frozen=True)
class Cubin:
    """A cubin: its architecture, and its kernels by name."""

    architecture: Architecture
    kernels: dict[str, Kernel]


def read_cubin(data: bytes) -> Cubin:
    """Reads what a cubin says of itself.

    Raises:
        ObjectError: it is no cubin, or none of a version that is known here.
    """
    file = ElfFile(data)
    if file.machine != _MACHINE:
        raise ObjectError(f"it is for machine {file.machine}, not for an NVIDIA GPU")
    architecture = _architecture(data)
    reserved = _RESERVED if architecture.number >= _RESERVES else 0
    symbols = file.symbols()
    sections = {s.name: s for s in file.sections}
    shared: dict[int, dict[int, int]] = {_FRAME: {}, _REGISTERS: {}}
    for number, value in _rows(file, ".nv.info"):
        if number in shared:
            symbol, amount = struct.unpack("<II", value)
            shared[number][symbol] = amount
    kernels = {}
    for index, symbol in enumerate(symbols):
        if not (symbol.is_function and _PARAMETER_BANK + symbol.name in sections):
            continue
        own = list(_rows(file, f".nv.info.{symbol.name}"))
        bounds = [struct.unpack("<III", value) for number, value in own if number == _MAX_THREADS]
        memory = sections.get(f".nv.shared.{symbol.name}")
        kernels[symbol.name] = Kernel(
            symbol.name,
            shared[_REGISTERS].get(index, 0),
            max(0, memory.size - reserved) if memory else 0,
            shared[_FRAME].get(index, 0),
            bounds[0][0] * bounds[0][1] * bounds[0][2] if bounds else 0,
            _parameters([value for number, value in own if number == _PARAMETER]),
            symbol.size,
        )
    return Cubin(architecture, kernels)


def _architecture(data: bytes) -> Architecture:
    flags, old = int.from_bytes(data[48:52], "little"), data[8] <= _OLD_ABI
    number = flags & 0xFF if old else flags >> 8 & 0xFF
    name = f"sm_{number}{'a' if flags & _EXACT[old] else ''}"
    found = Architecture.named(name)
    if found is None:
        raise ObjectError(f"it is for {name}, which is not known")
    return found


def _rows(file: ElfFile, section: str) -> Iterator[tuple[int, bytes]]:
    """Number and value of each row of a section; nothing where there is no such section."""
    found = next((s for s in file.sections if s.name == section), None)
    data = file.data[found.offset : found.offset + found.size] if found else b""
    at = 0
    while at + 4 <= len(data):
        form, number, low = data[at], data[at + 1], data[at + 2 : at + 4]
        at += 4
        if form not in (_NO_VALUE, _BYTE, _HALF, _SIZED):
            raise ObjectError(f"{section} has a row of the unknown form {form}")
        if form != _SIZED:
            yield number, low
            continue
        size = int.from_bytes(low, "little")
        if at + size > len(data):
            raise ObjectError(f"{section} is cut off")
        yield number, data[at : at + size]
        at += size


def _parameters(rows: list[bytes]) -> tuple[int, ...]:
    """Sizes in order; a row has an index, the parameter's number, its offset, and the size."""
    found = {}
    for row in rows:
        _, number, _, bits = struct.unpack("<IHHI", row)
        found[number] = bits >> 18
    return tuple(found[number] for number in sorted(found))
