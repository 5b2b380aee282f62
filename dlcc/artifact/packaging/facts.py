"""What the files that help a program use a network are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dlcc.artifact.toolchain import is_macos, library_name
from dlcc.program import Program, Sample

EXAMPLE, EXAMPLE_DATA, GUIDE = "example.c", "example_data.h", "INTEGRATION.md"

KINDS: Final = ("so", "a", "o", "c")
"""Forms of a network, the one that commands show first."""

_BARE_FLAGS: Final = {
    "thumbv7em": "-mthumb -march=armv7e-m+fp -mfloat-abi=hard",
    "thumbv8m.main": "-mthumb -march=armv8-m.main+dsp+fp -mfloat-abi=hard",
    "thumbv8.1m.main": "-mthumb -march=armv8.1-m.main+mve.fp -mfloat-abi=hard",
}
"""What GCC and clang want to hear of a machine without an operating system."""


@dataclass(frozen=True)
class Delivery:
    """An artifact as its users see it.

    Attributes:
        program: the network.
        symbol: its C name.
        emit: what is in the folder, of :data:`KINDS`.
        bare: it has the interface without an operating system (:mod:`dlcc.artifact.bare`).
        embed: the weights are in the library, there is no weights file.
        weights_bytes: of the weights file, or of its copy in the library.
        unpacked_bytes: memory that an instance takes for unpacked weights; 0: they are mapped.
        stack_bytes: that a run takes of the calling thread's stack at most; None: not known.
        sample: a recorded input, if there is one.
    """

    program: Program = field(repr=False)
    symbol: str
    emit: tuple[str, ...]
    embed: bool
    weights_bytes: int
    bare: bool = False
    unpacked_bytes: int = 0
    stack_bytes: int | None = None
    sample: Sample | None = None

    @property
    def macro(self) -> str:
        """Prefix of its macros."""
        return self.symbol.upper()

    @property
    def architecture(self) -> str:
        """First part of the target's triple."""
        return self.program.triple.split("-")[0]

    @property
    def macos(self) -> bool:
        """It is for macOS."""
        return bool(self.program.triple) and is_macos(self.program.triple)

    @property
    def threads(self) -> bool:
        """Who links it has to ask for a library of threads: it is part of macOS' libc."""
        return not self.bare and not self.macos

    @property
    def libraries(self) -> list[str]:
        """Parts of libc that older versions have as libraries of their own, for the linker."""
        loader = ["-ldl"] if self.program.device else []
        return ["-lpthread", *loader] if self.threads else loader

    @property
    def kind(self) -> str:
        """The form that the commands show: the first of those that the folder holds."""
        return next(kind for kind in KINDS if kind in self.emit)

    @property
    def board_flags(self) -> str:
        """Of the compiler, for object code without an operating system; "": any will do."""
        return "" if self.kind == "c" else _BARE_FLAGS.get(self.architecture, "")

    @property
    def compiler(self) -> str:
        """The C compiler as commands call it."""
        return f"arm-none-eabi-gcc {self.board_flags}" if self.board_flags else "cc"

    def library(self, kind: str) -> str:
        """File name of one form."""
        return library_name(self.symbol, kind, self.program.triple)

    def link(self, kind: str, folder: str = "") -> str:
        """What a compiler's command line needs to link one form.

        Args:
            kind: the form.
            folder: where it lies; "": in the working directory.
        """
        where = f"{folder}/{self.library(kind)}" if folder else self.library(kind)
        if kind == "so":
            origin = folder or ("@loader_path" if self.macos else "'$ORIGIN'")
            return f"{where} -Wl,-rpath,{origin}"
        return " ".join([where, *self.libraries])

    def build(self, kind: str, compiler: str = "") -> str:
        """The command that makes the example program, in the artifact folder."""
        board = " --specs=rdimon.specs" if self.board_flags else ""
        return f"{compiler or self.compiler} {EXAMPLE} {self.link(kind)}{board} -o example"
