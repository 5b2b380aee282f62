"""What the stack's analysis needs to know of an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


class UnknownCode(ValueError):
    """Code that a decoder does not know, or that moves the stack pointer unforeseeably."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        size: bytes.
        push: bytes by which the stack grows; negative: shrinks.
        keeps: register that afterwards holds the stack pointer, ...
        offset: ... less so many bytes.
        restores: register whose value, less ``offset`` bytes, becomes the stack pointer.
        align: the stack pointer is rounded down to a multiple of this.
        target: address to which it jumps or which it calls, if it says so.
        kind: what happens next: "next" the following instruction, "jump" the target only,
            "branch" either, "end" neither (a return), "call" the target and then the following.
    """

    size: int
    push: int = 0
    keeps: int | None = None
    offset: int = 0
    restores: int | None = None
    align: int = 1
    target: int | None = None
    kind: Literal["next", "jump", "branch", "end", "call"] = "next"


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
