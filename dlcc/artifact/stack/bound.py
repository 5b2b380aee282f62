"""How much stack a call takes at most, from the code of an object file.

Every function's instructions are followed from its entry along all branches, with the depth of the
stack; calls add what the called function takes. Calls through a pointer are taken for calls of any
of the functions that the caller of :func:`stack_bytes` names. Functions of other libraries count as
nothing: what they take is theirs to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from dlcc.artifact.stack.aarch64 import AArch64
from dlcc.artifact.stack.arm import A32, T32
from dlcc.artifact.stack.instruction import SP, Decoder, Instruction, UnknownCode
from dlcc.artifact.stack.x86 import X86
from dlcc.objects import ObjectFile, Symbol, read_object

_ARM = 40
_MACHINES: dict[int, Decoder] = {62: X86(), 183: AArch64()}
"""By ELF's number of the machine."""

_THREAD_LOCAL = 6
_MOST_VISITS = 64
"""Visits of one instruction with ever deeper stacks; more: a loop that pushes."""

_Place = tuple[int, int]
"""Section and offset of an instruction."""

_EXTERNAL: Final = (-1, -1)
"""The place of what another library has."""


@dataclass(frozen=True)
class _State:
    """On the way to an instruction: depth in bytes, and what registers hold of it."""

    depth: int
    registers: tuple[tuple[int, int], ...] = ()


@dataclass
class _Function:
    """Its own greatest depth, and the depths at which it calls others (None: any of them)."""

    depth: int = 0
    calls: dict[_Place | None, int] = field(default_factory=dict)


def stack_bytes(object_code: bytes, function: str, pointed: Collection[str]) -> int | None:
    """Bytes of stack that a call of ``function`` takes at most, its return address included.

    Args:
        object_code: a relocatable object with all that it calls, libc apart.
        function: name of a global function in it.
        pointed: names of the functions that may be called through pointers.

    Returns:
        None, where the machine has no decoder here or the code does what none foresees.
    """
    file = read_object(object_code)
    decoder = _decoder(file)
    if decoder is None:
        return None
    walk = _Walk(file, decoder)
    try:
        return walk.bound(walk.place(function), [walk.place(name) for name in pointed])
    except UnknownCode:
        return None


def _decoder(file: ObjectFile) -> Decoder | None:
    if file.machine != _ARM:
        return _MACHINES.get(file.machine)
    encodings = {s.value & 1 for s in file.symbols() if s.is_function and s.section}
    if len(encodings) != 1:
        return None
    return T32() if encodings == {1} else A32()


class _Walk:
    """Bounds of an object's functions."""

    def __init__(self, file: ObjectFile, decoder: Decoder) -> None:
        self._decoder = decoder
        self._symbols = file.symbols()
        found = [s for s in self._symbols if s.is_function and s.section]
        self._odd = int(file.machine == _ARM)  # an odd address is one of T32
        self._places = {s.name: (s.section, s.value & ~self._odd) for s in found}
        self._functions = {self._places[s.name]: s for s in found}
        self._code = {
            s.section: file.data[
                file.sections[s.section].offset : file.sections[s.section].offset
                + file.sections[s.section].size
            ]
            for s in found
        }
        self._patched = {
            section: {at: (symbol, addend) for at, symbol, addend in file.relocations(section)}
            for section in self._code
        }
        self._bounds: dict[_Place, int] = {}
        self._open: set[_Place] = set()

    def place(self, name: str) -> _Place:
        """Where a function starts.

        Raises:
            UnknownCode: there is none of that name.
        """
        if name not in self._places:
            raise UnknownCode(f"no function {name}")
        return self._places[name]

    def bound(self, place: _Place, pointed: Collection[_Place]) -> int:
        """Bytes that a call of the function at ``place`` takes.

        Raises:
            UnknownCode: they cannot be told.
        """
        if place in self._bounds:
            return self._bounds[place]
        if place in self._open:
            raise UnknownCode("a function calls itself")
        self._open.add(place)
        made = self._follow(place)
        most = made.depth
        for callee, depth in made.calls.items():
            for one in pointed if callee is None else [callee]:
                most = max(most, depth + self.bound(one, pointed))
        self._open.discard(place)
        self._bounds[place] = most
        return most

    def _follow(self, place: _Place) -> _Function:
        """Visits all instructions of the function that can be reached."""
        section, start = place
        end = start + self._functions[place].size
        made = _Function()
        seen: dict[int, list[int]] = {}
        todo = [(start, _State(self._decoder.return_bytes))]
        while todo:
            at, state = todo.pop()
            depths = seen.setdefault(at, [])
            if depths and depths[-1] >= state.depth:
                continue
            if len(depths) == _MOST_VISITS:
                raise UnknownCode("a loop pushes")
            depths.append(state.depth)
            instruction = self._decoder.decode(self._code[section], at)
            state = _after(instruction, state, self._decoder.frame_pointer)
            made.depth = max(made.depth, state.depth)
            if instruction.kind in ("next", "branch", "call") and at + instruction.size < end:
                todo.append((at + instruction.size, state))
            if instruction.kind in ("next", "end"):
                continue
            for target in self._targets(section, at, instruction):
                if target is not None and target[0] == section and start < target[1] < end:
                    todo.append((target[1], state))
                    continue
                self._note_call(made, instruction, target, state)
                if target is None and instruction.kind == "jump":  # by a table
                    todo += self._unseen(section, start, end, seen, state)
        return made

    def _note_call(
        self, made: _Function, instruction: Instruction, target: _Place | None, state: _State
    ) -> None:
        """A call, or a jump in place of a call and a return: its return address is there."""
        back = 0 if instruction.kind == "call" else self._decoder.return_bytes
        if target == _EXTERNAL:
            return
        if target is not None and target not in self._functions:
            raise UnknownCode("a call of something that is no function")
        made.calls[target] = max(made.calls.get(target, 0), state.depth - back)

    def _targets(self, section: int, at: int, instruction: Instruction) -> Sequence[_Place | None]:
        """Where it jumps to, by its relocation where it has one; None: through a pointer."""
        behind = self._decoder.relocated_bytes
        field_at = at + instruction.size - behind if behind else at
        if field_at not in self._patched[section]:
            return [(section, target) for target in instruction.targets] or [None]
        index, addend = self._patched[section][field_at]
        symbol: Symbol = self._symbols[index]
        if not symbol.section or symbol.type == _THREAD_LOCAL:  # a call of libc's, for its address
            return [_EXTERNAL]
        if symbol.section not in self._code:  # a call through a pointer that stands there
            return [None]
        if addend is None:  # it stands in the instruction, which the decoder has read
            addend = sum(instruction.targets[:1], -at)
        return [(symbol.section, (symbol.value & ~self._odd) + addend + behind)]

    def _unseen(
        self, section: int, start: int, end: int, seen: Collection[int], state: _State
    ) -> list[tuple[int, _State]]:
        """What nothing has led to so far, as if the jump did."""
        places, at = [], start
        while at < end:
            if at not in seen:
                places.append((at, state))
            at += self._decoder.decode(self._code[section], at).size
        return places


def _after(instruction: Instruction, state: _State, frame_pointer: int) -> _State:
    """What is known behind an instruction.

    A copy of the stack pointer in another register than the frame pointer is forgotten as soon as
    an instruction may have changed it.
    """
    registers = {SP: state.depth, **dict(state.registers)}
    value = registers.get(instruction.base)
    if value is None and instruction.into == SP:
        raise UnknownCode("the stack pointer is set from an unknown register")
    copied, writes = instruction.into != SP, instruction.writes
    known = copied or writes is not None
    kept = {r: d for r, d in state.registers if (known or r == frame_pointer) and r != writes}
    depth = state.depth
    if value is not None:
        value += instruction.offset + instruction.align - 1
        if copied:
            kept[instruction.into] = value
        else:
            depth = value
    elif copied:
        kept.pop(instruction.into, None)
    return _State(depth, tuple(kept.items()))
