"""Stretches of code as a core meets them: short loops unrolled into the code around them.

A scheduling model that prices each basic block alone cannot see that a core works on the end of one
block while the next one has begun. That matters for loops of few rounds, where one round waits for
the last, but the whole loop for nothing. So loops are found by their backward branches, and a loop
of few instructions in all becomes a part of the loop around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dlcc.cycles.code import BasicBlock, Instruction

LONGEST = 1200
"""Instructions up to which a loop, all its rounds together, becomes part of what is around it:
several times what any core has in flight at once."""


@dataclass(frozen=True)
class Path:
    """Code that runs again and again.

    Attributes:
        function: the symbol it belongs to.
        instructions: of one pass.
        executed: instructions that the blocks of the path add to an inference: about the length
            times the passes, where loops in it do not always have as many rounds.
    """

    function: str
    instructions: tuple[Instruction, ...]
    executed: int


@dataclass
class _Loop:
    """Blocks ``first`` to ``last``, the last of which jumps back to the first."""

    first: int
    last: int
    inner: list[_Loop] = field(default_factory=list)


def paths(blocks: Sequence[BasicBlock]) -> Iterator[Path]:
    """The paths of all functions; each block is in one of them."""
    begin = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end].function != blocks[begin].function:
            yield from _of_function(blocks[begin:end])
            begin = end


def _of_function(blocks: Sequence[BasicBlock]) -> Iterator[Path]:
    whole = _Loop(0, len(blocks) - 1, _nest(_loops(blocks)))
    found: list[Path] = []
    code, executed = _pass(blocks, whole, found)
    yield from found
    if code:
        yield Path(blocks[0].function, tuple(code), executed)


def _loops(blocks: Sequence[BasicBlock]) -> list[_Loop]:
    """Loops by their backward branches, outer ones first; of those that overlap, the inner."""
    places = {block.instructions[0].address: i for i, block in enumerate(blocks)}
    ends: dict[int, int] = {}
    for i, block in enumerate(blocks):
        start = places.get(block.instructions[-1].target)
        if start is not None and start <= i:
            ends[start] = i
    kept: list[_Loop] = []
    for first, last in sorted(ends.items(), key=lambda span: span[1] - span[0]):
        if not any(
            k.first < first <= k.last < last or first < k.first <= last < k.last for k in kept
        ):
            kept.append(_Loop(first, last))
    return kept[::-1]


def _nest(loops: Sequence[_Loop]) -> list[_Loop]:
    """The outermost loops, each with those in it, in order of place."""
    outer: list[_Loop] = []
    for loop in loops:
        around, inner = None, outer
        while True:
            around = next((o for o in inner if o.first <= loop.first and loop.last <= o.last), None)
            if around is None:
                break
            inner = around.inner
        inner.append(loop)
        inner.sort(key=lambda o: o.first)
    return outer


def _pass(
    blocks: Sequence[BasicBlock], loop: _Loop, found: list[Path]
) -> tuple[list[Instruction], int]:
    """One round of a loop, and the instructions executed by all its rounds.

    What does not become part of it goes to ``found``.
    """
    rounds = blocks[loop.first].runs
    code: list[Instruction] = []
    executed, at = 0, loop.first
    inner = {o.first: o for o in loop.inner}
    while at <= loop.last:
        if at in inner and inner[at].last < len(blocks):
            part, done = _pass(blocks, inner[at], found)
            times = round(blocks[at].runs / rounds)
            at = inner[at].last + 1
        else:
            part, done = list(blocks[at].instructions), blocks[at].executed
            times = round(blocks[at].runs / rounds)
            at += 1
        if not part:
            continue
        if times == 0 or times * len(part) > LONGEST:
            found.append(Path(blocks[loop.first].function, tuple(part), done))
            continue
        code += part * times
        executed += done
    return code, executed
