"""The code of a program as basic blocks, from a disassembly by LLVM."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcc.cycles.emulator import Block
from dlcc.errors import DlccError, ExitCode

_FUNCTION = re.compile(r"^([0-9a-f]+) <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$")
_COMMENT = re.compile(r"\s*(?:(?<=\s)//|(?<=\s)#\s|(?<=\s)@\s).*$")
_TARGET = re.compile(r"(?:0x)?([0-9a-f]+) <[^>]*>")
_LEAVES = re.compile(
    r"(b|br|bx|bl|blx|blr|ret\w*|j\w+|call\w*|cbn?z|tbn?z|pop|syscall|svc"
    r"|b\.?(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al))(\.w|\.n)?"
)
"""Mnemonics after which another instruction than the next one may follow."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, its text, and where it may jump to (-1: nowhere)."""

    address: int
    text: str
    target: int = -1

    @property
    def mnemonic(self) -> str:
        """Its name."""
        return self.text.split(None, 1)[0]


@dataclass(frozen=True)
class BasicBlock:
    """Instructions that run one after the other.

    Attributes:
        function: the symbol it belongs to.
        instructions: in order.
        runs: executions in one inference.
    """

    function: str
    instructions: tuple[Instruction, ...]
    runs: int

    @property
    def executed(self) -> int:
        """Instructions that it adds to an inference."""
        return self.runs * len(self.instructions)


def disassemble(
    objdump: str, program: Path, options: Sequence[str]
) -> dict[str, list[Instruction]]:
    """The instructions of each function of a program.

    Args:
        objdump: LLVM's disassembler.
        program: not stripped.
        options: further options, as for the CPU.

    Raises:
        DlccError: INTERNAL if it cannot be disassembled.
    """
    command = [objdump, "-d", "--no-show-raw-insn", *options, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise DlccError(
            ExitCode.INTERNAL,
            "the code cannot be disassembled",
            why=done.stderr.strip()[-300:] or f"{objdump} ended with {done.returncode}",
            fix="install a newer LLVM: `apt install llvm-19`",
        )
    return parse(done.stdout)


def parse(text: str) -> dict[str, list[Instruction]]:
    """Functions of a listing of llvm-objdump."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := _FUNCTION.match(line):
            current = functions.setdefault(header[2], [])
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(int(found[1], 16), found[2]))
    return functions


def _instruction(address: int, text: str) -> Instruction:
    text = " ".join(_COMMENT.sub("", text).split())
    target = _TARGET.search(text)
    if target is None:
        return Instruction(address, text)
    return Instruction(address, _TARGET.sub("0", text), int(target[1], 16))


def basic_blocks(
    functions: Mapping[str, Sequence[Instruction]], runs: Mapping[Block, int]
) -> Iterator[BasicBlock]:
    """The basic blocks that run.

    Args:
        functions: of the program.
        runs: executions of what the emulator took for blocks: those may overlap, and may end where
            no branch is.
    """
    for name, code in functions.items():
        counts = _counts(code, runs)
        starts = {i.target for i in code}
        begin = 0
        for end in range(1, len(code) + 1):
            if (
                end < len(code)
                and counts[end] == counts[begin]
                and code[end].address not in starts
                and not _LEAVES.fullmatch(code[end - 1].mnemonic)
            ):
                continue
            if counts[begin] > 0:
                yield BasicBlock(name, tuple(code[begin:end]), counts[begin])
            begin = end


def _counts(code: Sequence[Instruction], runs: Mapping[Block, int]) -> list[int]:
    """Executions of each instruction."""
    changes = [0] * (len(code) + 1)
    places = {instruction.address: i for i, instruction in enumerate(code)}
    for (address, count), times in runs.items():
        place = places.get(address)
        if place is not None:
            changes[place] += times
            changes[min(place + count, len(code))] -= times
    counts, total = [], 0
    for change in changes[:-1]:
        total += change
        counts.append(total)
    return counts
