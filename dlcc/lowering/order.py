"""In what order steps run, and which of them may run at the same time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from dlcc.lowering.fusion import Group


def starts(steps: int, groups: Sequence[Group]) -> Iterator[int]:
    """The steps that are not run together with the one before."""
    follows = {index for g in groups for index in range(g.first + 1, g.last + 1)}
    return (index for index in range(steps) if index not in follows)


def times(steps: int, groups: Sequence[Group]) -> list[int]:
    """When each step runs; those of a group run at one time."""
    first = set(starts(steps, groups))
    return list(accumulate(index in first for index in range(steps)))


class Touch(NamedTuple):
    """Bytes that a step uses.

    Attributes:
        memory: which one.
        begin: the first byte.
        end: the one behind the last.
        written: they are changed, and may be read too; else they are read only.
    """

    memory: Hashable
    begin: int
    end: int
    written: bool


@dataclass
class _Piece:
    """Bytes with the same history: the last step that wrote them, and who has read them since."""

    begin: int
    writer: int = -1
    readers: tuple[int, ...] = ()


@dataclass
class _Memory:
    """The history of a memory, as pieces that follow one another."""

    pieces: list[_Piece] = field(default_factory=lambda: [_Piece(0)])

    def touch(self, step: int, begin: int, end: int, written: bool) -> set[int]:
        """Notes that a step uses bytes; the earlier steps that it has to come after."""
        first, last = self._cut(begin), self._cut(end)
        touched, before = self.pieces[first:last], set[int]()
        for piece in touched:
            before.add(piece.writer)
            if written:
                before.update(piece.readers)
            elif step not in piece.readers:
                piece.readers += (step,)
        if written and touched:
            self.pieces[first:last] = [_Piece(begin, step)]
        return before - {-1, step}

    def _cut(self, place: int) -> int:
        """Has a piece begin at ``place``; its number."""
        index = bisect_left(self.pieces, place, key=lambda piece: piece.begin)
        if index == len(self.pieces) or self.pieces[index].begin != place:
            old = self.pieces[index - 1]
            self.pieces.insert(index, _Piece(place, old.writer, old.readers))
        return index


def dependencies(steps: Iterable[Iterable[Touch]]) -> list[tuple[int, ...]]:
    """The earlier steps that each step has to come after, ascending.

    A step comes after the last one that wrote what it uses, and after those that still read what it
    writes. Steps that come before these anyhow are left out. Any order that keeps to this gives the
    results of the given one.
    """
    memories: dict[Hashable, _Memory] = {}
    found: list[tuple[int, ...]] = []
    reached: list[int] = []  # for each step, all that come before it, as bits
    for number, touches in enumerate(steps):
        needed = set[int]()
        for memory, begin, end, written in touches:
            if begin < end:
                history = memories.setdefault(memory, _Memory())
                needed |= history.touch(number, begin, end, written)
        kept, before = [], 0
        for other in sorted(needed, reverse=True):
            if not before >> other & 1:
                kept.append(other)
                before |= reached[other] | 1 << other
        reached.append(before)
        found.append(tuple(reversed(kept)))
    return found


def levels(after: Sequence[Sequence[int]]) -> list[int]:
    """The number of steps on the longest way to each step, itself included."""
    found: list[int] = []
    for before in after:
        found.append(1 + max((found[other] for other in before), default=0))
    return found
