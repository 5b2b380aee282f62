"""What the files that help a program use a network are made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlcc.program import Program, Sample

EXAMPLE, EXAMPLE_DATA, GUIDE = "example.c", "example_data.h", "INTEGRATION.md"


@dataclass(frozen=True)
class Delivery:
    """An artifact as its users see it.

    Attributes:
        program: the network.
        symbol: its C name.
        emit: what is in the folder: "so", "a", "o".
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
    def kind(self) -> str:
        """The form that the commands show: the first of those that the folder holds."""
        return next(kind for kind in ("so", "a", "o") if kind in self.emit)

    def library(self, kind: str) -> str:
        """File name of one form."""
        return f"{self.symbol}.o" if kind == "o" else f"lib{self.symbol}.{kind}"

    def link(self, kind: str) -> str:
        """What a compiler's command line needs to link one form, in the artifact folder."""
        tail = " -Wl,-rpath,'$ORIGIN'" if kind == "so" else " -lpthread"
        return self.library(kind) + tail

    def link_elsewhere(self, kind: str) -> str:
        """The same where ``DIR`` stands for the artifact folder."""
        tail = " -Wl,-rpath,DIR" if kind == "so" else " -lpthread"
        return f"DIR/{self.library(kind)}{tail}"

    def build(self, kind: str, compiler: str = "cc") -> str:
        """The command that makes the example program, in the artifact folder."""
        return f"{compiler} {EXAMPLE} {self.link(kind)} -o example"
