"""Paths: what is simulated as one piece of code."""

from __future__ import annotations

from dlcc.cycles.code import BasicBlock, Instruction
from dlcc.cycles.paths import LONGEST, paths


def block(address: int, length: int, runs: int, target: int = -1, function: str = "f"):
    code = [Instruction(address + 4 * i, f"i{address + 4 * i}") for i in range(length - 1)]
    last = Instruction(address + 4 * (length - 1), f"i{address + 4 * (length - 1)}", target)
    return BasicBlock(function, (*code, last), runs)


def shape(found) -> list[tuple[str, int, int]]:
    return [(p.function, len(p.instructions), p.executed) for p in found]


def test_a_short_loop_becomes_part_of_the_one_around_it():
    # 10 rounds of: 5 instructions, 3 rounds of 8 instructions, 7 instructions
    blocks = [block(0, 5, 10), block(20, 8, 30, 20), block(52, 7, 10, 0)]
    (path,) = paths(blocks)
    assert (len(path.instructions), path.executed) == (5 + 3 * 8 + 7, 360)
    once = [i.address for i in path.instructions]
    assert once[:5] == [0, 4, 8, 12, 16]
    assert once[5:13] == once[13:21] == once[21:29] == list(range(20, 52, 4))


def test_a_long_loop_stands_alone_and_leaves_its_surroundings_together():
    rounds = LONGEST  # of 8 instructions: far too many to unroll
    blocks = [block(0, 3, 1), block(12, 5, 1000), block(32, 8, 1000 * rounds, 32)]
    blocks += [block(64, 7, 1000, 12), block(92, 2, 1)]
    found = shape(paths(blocks))
    assert found == [("f", 8, 8000 * rounds), ("f", 12, 12_000), ("f", 5, 5)]


def test_every_executed_instruction_is_in_one_path():
    # rounds that vary, code that seldom runs, a loop that overlaps another, two functions
    blocks = [
        block(0, 3, 7),
        block(12, 4, 20, 12),
        block(28, 2, 1),
        block(36, 6, 7, 0),
        block(60, 5, 9, 36),
        block(100, 4, 50, 100, "g"),
    ]
    found = list(paths(blocks))
    assert sum(p.executed for p in found) == sum(b.executed for b in blocks)
    assert {p.function for p in found} == {"f", "g"}
    assert all(p.instructions for p in found)
