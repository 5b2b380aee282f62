"""Object code that all libraries of one kind share: the C runtime and the reader of packed weights.

Compiling it takes longer than compiling what is a network's own, so a process does it once, under
names that begin with :data:`STEM`; a network's name then takes its place.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from dlcc.artifact.csource import runtime_source, unpack_source
from dlcc.artifact.toolchain import Toolchain
from dlcc.objects import rename_symbols

STEM: Final = "any"
_MOST: Final = 16
"""Objects that are kept, of some tens of kilobytes each."""


@dataclass(frozen=True)
class RuntimeKind:
    """What the runtime is compiled for.

    Attributes:
        embedded: the weights file is part of the library.
        packed: it is packed.
        parts: schedules of the network read parts of it.
        single: the library runs on one thread only.
        device: :attr:`Program.device`.
    """

    embedded: bool
    packed: bool
    parts: bool
    single: bool
    device: str = ""

    @property
    def defines(self) -> dict[str, int]:
        """The macros that say so."""
        return {
            "DLCC_EMBEDDED": int(self.embedded),
            "DLCC_PACKED": int(self.packed),
            "DLCC_PARTS": int(self.parts),
            "DLCC_SINGLE": int(self.single),
        }


def runtime_object(kind: RuntimeKind, symbol: str, triple: str) -> bytes:
    """The runtime of the network called ``symbol``, as a relocatable object.

    Raises:
        DlccError: TARGET for a triple without runtime, or as from the compiler.
    """
    return _named(_compiled(*runtime_source(STEM, kind.defines, kind.device), triple), symbol)


def unpack_object(symbol: str, triple: str) -> bytes:
    """What unpacks a packed weights file, for the runtime of the network called ``symbol``.

    Raises:
        DlccError: as from :func:`runtime_object`.
    """
    return _named(_unpacker(unpack_source(STEM), triple), symbol)


def _named(code: bytes, symbol: str) -> bytes:
    start = f"{STEM}_"
    return rename_symbols(
        code, lambda name: symbol + name[len(STEM) :] if name.startswith(start) else name
    )


@lru_cache(_MOST)
def _compiled(header: str, source: str, triple: str) -> bytes:
    with (
        tempfile.TemporaryDirectory(prefix="dlcc-") as work,
        as_file(files("dlcc.runtime").joinpath("c")) as include,
    ):
        (Path(work) / f"{STEM}.h").write_text(header, "utf-8")
        (Path(work) / "runtime.c").write_text(source, "utf-8")
        Toolchain(triple, Path(work)).compile("runtime.c", "runtime.o", include=include)
        return (Path(work) / "runtime.o").read_bytes()


@lru_cache(_MOST)
def _unpacker(source: str, triple: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="dlcc-") as work:
        (Path(work) / "unpack.zig").write_text(source, "utf-8")
        Toolchain(triple, Path(work)).compile_zig("unpack.zig", "unpack.o")
        return (Path(work) / "unpack.o").read_bytes()


__all__ = ["STEM", "RuntimeKind", "runtime_object", "unpack_object"]
