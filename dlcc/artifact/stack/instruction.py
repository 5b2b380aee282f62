"""What the stack's analysis needs to know of an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

Kind = Literal["next", "jump", "branch", "end", "call"]

SP: Final = -1
"""The stack pointer, as a number of a register."""


class UnknownCode(ValueError):
    """Code that a decoder does not know, or that moves the stack pointer unforeseeably."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        size: bytes.
        into: register that becomes ``base`` less ``offset``, rounded down to a multiple of
            ``align``; known only where one of them is the stack pointer, or was copied from it.
        base: the other register.
        offset: bytes; negative ones are added.
        align: bytes; 1: no rounding.
        targets: addresses to which it jumps or which it calls, if it says so.
        writes: the only other register that it changes, where that is known.
        kind: what happens next: "next" the following instruction, "jump" the targets only,
            "branch" either, "end" neither (a return), "call" the target and then the following.
    """

    size: int
    into: int = SP
    base: int = SP
    offset: int = 0
    align: int = 1
    targets: tuple[int, ...] = ()
    writes: int | None = None
    kind: Kind = "next"


class Decoder(Protocol):
    """Instructions of one architecture.

    ``frame_pointer``: number of the register that a function with a frame of its own keeps it in.
    ``return_bytes``: what a call itself pushes. ``relocated_bytes``: of the field at the end of a
    call or jump that a relocation patches, relative to its own place; 0: it patches the whole
    instruction, relative to that.
    """

    frame_pointer: int
    return_bytes: int
    relocated_bytes: int

    def decode(self, code: bytes, at: int) -> Instruction:
        """The instruction at ``at``; targets are offsets in ``code``.

        Raises:
            UnknownCode: it is none that this decoder knows.
        """
        ...
