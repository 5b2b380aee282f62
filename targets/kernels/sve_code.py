"""The instructions of :mod:`sve`: the reduction of a register block, in SVE vectors of 256 bits.

LLVM is told of no SVE and so uses none by itself: a CPU that has the feature may have vectors of
128 bits, which hold half of what these loops take. Vectors longer than 256 bits do: all loads and
stores are of the first 32 bytes, whatever the register's length, and addresses count in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from targets.kernels.arm_asm import Operands

LANES = 8
"""Channels of a channel block: 32-bit numbers in 256 bits."""

VECTORS = 32
"""Registers."""

CHANNEL_ORDER = (0, 1, 4, 5, 2, 3, 6, 7)
"""Channels of a block in the order in which their codes lie in memory: two vectors, of each half's
first and second two channels. So trn1 and trn2 put the sums of a pixel in order."""

MOST_PIXELS = 10
"""Pixels of a block at most: each takes an address register."""

ELEMENTS = 8
"""Pixels of a float32 block at most: fmla multiplies by elements of the first eight registers."""

_BYTES = 32
"""Of a vector."""

_OFFSETS = 8
"""Vectors that are addressed from one place; SVE has no constant offsets but in its own length."""

_AHEAD = 3
"""Vectors of weights that are loaded ahead, where there are registers for them."""

_UNROLL = 2
"""Loads of a pixel's run in the loop's body."""


def sum_registers(pixels: int, blocks: int, real: bool) -> int:
    """Registers that hold the sums of a block: two pixels by four channels, or one by eight."""
    return pixels * blocks if real else (pixels + 1) // 2 * 2 * blocks


def spare_registers(pixels: int, blocks: int, real: bool) -> int:
    """Registers for weights that a block of this size leaves; fewer than two are too few."""
    spare = VECTORS - sum_registers(pixels, blocks, real) - pixels
    return spare if real or pixels % 2 == 0 else spare - 1


@dataclass(frozen=True)
class Reduction:
    """All products of a block of pixels by channels.

    Attributes:
        pixels: pixels, ``blocks``: blocks of eight channels.
        loops: over runs: how many, and how many bytes apart.
        run: elements of a run.
        real: float32 by fmla, else unsigned codes and signed weights by usmmla.
    """

    pixels: int
    blocks: int
    loops: tuple[tuple[int, int], ...]
    run: int
    real: bool

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        kind = "fmla" if self.real else "usmmla"
        loops = "_".join(f"{count}at{distance}" for count, distance in self.loops)
        return f"dlcc_sve_{kind}_{self.pixels}x{self.blocks}_{self.run}_{loops}"

    @property
    def chunk(self) -> int:
        """Elements of a run that one load brings: 128 bits of them, in each 128 of the vector."""
        return 4 if self.real else 16

    @property
    def looped(self) -> int:
        """Chunks of a run that the loop does, if there is one."""
        whole = self.run // self.chunk
        return whole - whole % _UNROLL if whole > _UNROLL else 0

    @property
    def start(self) -> int:
        """Element of a run that the addresses of pixels must be given of."""
        return self.looped * self.chunk

    # -- registers ------------------------------------------------------------------------------

    @cached_property
    def _sums(self) -> list[int]:
        """Registers of the sums, from the last one down."""
        count = sum_registers(self.pixels, self.blocks, self.real)
        return [VECTORS - 1 - i for i in range(count)]

    def _sum(self, row: int, vector: int) -> str:
        """The sums of a pixel, or of a pair of them, with a vector of weights."""
        across = self.blocks if self.real else 2 * self.blocks
        return f"z{self._sums[row * across + vector]}"

    # -- instructions ---------------------------------------------------------------------------

    def code(self) -> list[str]:
        """The block; ``<name>`` stands for an operand."""
        made = [".arch_extension sve", *([] if self.real else [".arch_extension i8mm"])]
        made.append("ptrue p0.b, vl32")
        if self.real and self.run % self.chunk:
            made.append(f"ptrue p1.s, vl{self.run % self.chunk}")
        return [*made, *self._begin(), *self._runs(list(self.loops), 1), *self._end()]

    def _begin(self) -> list[str]:
        """The sums start with the bias, those of float32 with 0."""
        if self.real:
            return [f"mov z{z}.s, #0" for z in self._sums]
        made, bias = [], _Stream("k")
        for j in range(self.blocks):
            made += [*bias.load("z0"), f"trn1 {self._sum(0, 2 * j)}.d, z0.d, z0.d"]
            made.append(f"trn2 {self._sum(0, 2 * j + 1)}.d, z0.d, z0.d")
        for q in range(1, (self.pixels + 1) // 2):
            for v in range(2 * self.blocks):
                made.append(f"mov {self._sum(q, v)}.d, {self._sum(0, v)}.d")
        return made

    def _end(self) -> list[str]:
        """Stores the sums: of pixel 0's channels, then those of pixel 1, ..."""
        made, out = [], _Stream("out")
        for p in range(self.pixels):
            q, side = divmod(p, 2)
            for j in range(self.blocks):
                if self.real:
                    made += out.store(self._sum(p, j))
                    continue
                pair = f"{self._sum(q, 2 * j)}.d, {self._sum(q, 2 * j + 1)}.d"
                made += [f"trn{1 + side} z{j % 2}.d, {pair}", *out.store(f"z{j % 2}")]
        return made

    def _runs(self, loops: list[tuple[int, int]], label: int) -> list[str]:
        """The loops over runs, and what goes on in a run."""
        if not loops:
            return self._run()
        (count, distance), *inner = loops
        passed = inner[0][0] * inner[0][1] if inner else 0
        counter = f"r{label}"
        made = [*_number(counter, count), f"{label}:", *self._runs(inner, label + 1)]
        for p in range(self.pixels):
            made += _add(f"x{p}", distance - passed)
        return [*made, f"subs <{counter}>, <{counter}>, #1", f"b.ne {label}b"]

    def _run(self) -> list[str]:
        """One run; the addresses are those of its first element after the loop."""
        weights, made = _Stream("w"), _number("k", -self.start)
        if self.looped:
            body = []
            for i in range(_UNROLL):
                body += self._chunk(weights, self.chunk)
                last = "adds" if i == _UNROLL - 1 else "add"
                body.append(f"{last} <k>, <k>, #{self.chunk}")
            add = body.pop()
            made += ["0:", *body, *weights.settle(), add, "b.ne 0b"]
        left = list(range(self.start, self.run, self.chunk))
        for at in left:
            made += self._chunk(weights, min(self.chunk, self.run - at))
            made += [] if at == left[-1] else [f"add <k>, <k>, #{self.chunk}"]
        return [*made, *weights.settle()]

    def _chunk(self, weights: _Stream, elements: int) -> list[str]:
        """Up to a load's elements of each pixel."""
        if self.real:
            return self._multiply_reals(weights, elements)
        made = [f"ld1rqb {{z{p}.b}}, p0/z, [<x{p}>, <k>]" for p in range(self.pixels)]
        rows: list[list[int]] = []
        free, spare = self.pixels, list(range(self.pixels + 1, VECTORS - len(self._sums)))
        for p in range(0, self.pixels, 2):  # two pixels' eight codes, then their next eight
            q = min(p + 1, self.pixels - 1)
            made.append(f"trn1 z{free}.d, z{p}.d, z{q}.d")
            if elements > self.chunk // 2:
                made.append(f"trn2 z{q}.d, z{p}.d, z{q}.d")
            rows.append([free, q])
            free = p
        if self.pixels % 2 == 0:
            spare.append(free)
        steps = 1 if elements <= self.chunk // 2 else 2
        groups = []
        for step in range(steps):
            for v in range(2 * self.blocks):
                targets = [(self._sum(i, v), row[step]) for i, row in enumerate(rows)]
                groups.append([f"usmmla {s}.s, z{row}.b, {{}}.b" for s, row in targets])
        return [*made, *_streamed(weights, groups, spare)]

    def _multiply_reals(self, weights: _Stream, elements: int) -> list[str]:
        pixels = range(self.pixels)
        valid = "p0" if elements == self.chunk else "p1"
        made = [f"ld1rqw {{z{p}.s}}, {valid}/z, [<x{p}>, <k>, lsl #2]" for p in pixels]
        groups = [
            [f"fmla {self._sum(p, j)}.s, {{}}.s, z{p}.s[{i}]" for p in pixels]
            for i in range(elements)
            for j in range(self.blocks)
        ]
        spare = list(range(self.pixels, VECTORS - len(self._sums)))
        return [*made, *_streamed(weights, groups, spare)]

    # -- function -------------------------------------------------------------------------------

    def llvm(self) -> str:
        """LLVM IR: ``void name(sums, bias, weights, pixels...)``, all of them pointers.

        ``sums``: [pixels][blocks][8] are written. ``bias`` is that of the first channel; ``pixels``
        are where element :attr:`start` of each one's first run is.
        """
        pointers = ["out", "k", "w", *(f"x{p}" for p in range(self.pixels))]
        counters = [f"r{i + 1}" for i in range(len(self.loops))]
        offsets = [f"o{i}" for i in range(1, _OFFSETS)]
        operands = Operands((*pointers, *counters), tuple(pointers), tuple(offsets))
        text = "\\0A".join(operands.numbered(line) for line in self.code())
        constraints = ["=&r"] * len(operands.outputs) + ["r"] * len(offsets)
        constraints += [str(operands.number(name)) for name in pointers]
        constraints += [f"~{{v{z}}}" for z in range(VECTORS)]
        constraints += ["~{p0}", "~{p1}", "~{cc}", "~{memory}"]
        result = ", ".join(["ptr"] * len(pointers) + ["i64"] * len(counters))
        given = ", ".join(f"ptr %{name}" for name in pointers)
        passed = ", ".join(f"i64 {_BYTES * i}" for i in range(1, _OFFSETS))
        return (
            f"define void @{self.name}({given}) alwaysinline {{\n"
            f'  %r = call {{ {result} }} asm sideeffect "{text}", "{",".join(constraints)}"'
            f"({passed}, {given})\n  ret void\n}}\n"
        )


class _Stream:
    """Vectors one after the other in memory, from where an operand points."""

    def __init__(self, pointer: str) -> None:
        self.pointer, self.position = pointer, 0

    def load(self, vector: str) -> list[str]:
        """Loads the next one."""
        move, place = self._next()
        return [*move, f"ld1b {{{vector}.b}}, p0/z, [{place}]"]

    def store(self, vector: str) -> list[str]:
        """Stores the next one."""
        move, place = self._next()
        return [*move, f"st1b {{{vector}.b}}, p0, [{place}]"]

    def settle(self) -> list[str]:
        """Has the operand point to what comes next."""
        done, self.position = self.position, 0
        return _add(self.pointer, done * _BYTES)

    def _next(self) -> tuple[list[str], str]:
        move = self.settle() if self.position == _OFFSETS else []
        offset = f", <o{self.position}>" if self.position else ""
        self.position += 1
        return move, f"<{self.pointer}>{offset}"


def _streamed(weights: _Stream, groups: list[list[str]], spare: list[int]) -> Iterator[str]:
    """Instructions in groups that share a vector of weights, each loaded some groups before."""
    registers = [f"z{z}" for z in spare[: _AHEAD + 1]]
    ahead = len(registers) - 1
    for i in range(-ahead, len(groups)):
        if i + ahead < len(groups):
            yield from weights.load(registers[(i + ahead) % len(registers)])
        if i >= 0:
            yield from (line.format(registers[i % len(registers)]) for line in groups[i])


def _number(register: str, value: int) -> list[str]:
    """Has a register hold a constant."""
    if -(1 << 16) < value < 1 << 16:
        return [f"mov <{register}>, #{value}"]
    parts = [value >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    more = [f"movk <{register}>, #{part}, lsl #{16 * i}" for i, part in enumerate(parts) if i]
    return [f"movz <{register}>, #{parts[0]}", *more]


def _add(register: str, value: int) -> list[str]:
    """Adds a constant; register k is lost where it is a large one."""
    if value == 0:
        return []
    name, size = ("add" if value > 0 else "sub"), abs(value)
    if size >= 1 << 24:
        return [*_number("k", size), f"{name} <{register}>, <{register}>, <k>"]
    low, high = size & 0xFFF, size >> 12
    made = [f"{name} <{register}>, <{register}>, #{low}"] if low else []
    return made + ([f"{name} <{register}>, <{register}>, #{high}, lsl #12"] if high else [])
