"""The loops of :mod:`arm_dot` and :mod:`arm_mmla`: sixteen codes of each pixel at a time.

LLVM loads weights by pairs of registers and keeps what it loaded ahead in memory where registers
are short, so the loop is written here. Weights come in fours, with one instruction, into registers
of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from targets.kernels.arm_asm import Assembly

CODES = 16
"""Codes of a register."""

_QUAD = [f"v{n}" for n in (28, 29, 30, 31)]
"""Registers of weights: one instruction loads four that follow each other."""

_DOT = {"sdot": "sdot", "usdot": "sudot"}  # by element the codes are the second factor
_TURNS = ((2, 1), (1, 2), (1, 1))
"""Loads of a turn, and how often they are made: what is loaded by pairs takes the fewest."""

_REGISTERS = 32


@dataclass(frozen=True)
class Loop:
    """Products of some pixels and channel blocks.

    Attributes:
        kind: sdot, usdot or mmla.
        pixels: of the block; ``channel_blocks``: of four channels.
        loads: registers of codes that are loaded of a pixel at a time, 16 codes each.
        times: how often that is done in a turn.
        flip: whether 128 is taken off codes.
        once: there is no loop.
    """

    kind: str
    pixels: int
    channel_blocks: int
    loads: int
    times: int
    flip: bool
    once: bool = False

    @property
    def codes(self) -> int:
        """Codes of each pixel that one turn takes."""
        return self.times * self.loads * CODES

    @property
    def accumulators(self) -> int:
        """Vectors of sums."""
        if self.kind == "mmla":
            return -(-self.pixels // 2) * self.channel_blocks * 2
        return self.pixels * self.channel_blocks

    @property
    def registers(self) -> int:
        """Vector registers that it takes."""
        spare = (self.kind == "mmla" and self.pixels > 1) + self.flip
        return self.accumulators + self.pixels * self.loads + spare + len(_QUAD)

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        marks = ("s" if self.flip else "") + ("o" if self.once else "")
        return (
            f"dlcc_{self.kind}_{self.pixels}x{self.channel_blocks}_{self.loads}x{self.times}{marks}"
        )

    def _load_codes(self) -> list[str]:
        if self.loads == 1:
            return [f"ldr <a{p}_0:q>, [<x{p}>], #16" for p in range(self.pixels)]
        return [f"ldp <a{p}_0:q>, <a{p}_1:q>, [<x{p}>], #32" for p in range(self.pixels)]

    def _loaded(self) -> list[str]:
        return [f"a{p}_{i}" for p in range(self.pixels) for i in range(self.loads)]

    def _dots(self, load: int) -> list[str]:
        """The products by element of one load of codes."""
        code, nr, name = [], self.channel_blocks, _DOT[self.kind]
        for v in range(4 * nr):
            (step, j), b = divmod(v, nr), _QUAD[v % 4]
            code += self._load_weights() if v % 4 == 0 else []
            code += [
                f"{name} <s{p * nr + j}>.4s, {b}.16b, <a{p}_{load}>.4b[{step}]"
                for p in range(self.pixels)
            ]
        return code

    def _rows(self) -> tuple[list[str], list[list[tuple[str, str]]]]:
        """Puts halves of two pixels' codes together: the code, and what holds the two steps of each
        load and two pixels. A last pixel is by itself: its own register, whose other half is not
        seen in what it makes.
        """
        code, rows, free = [], [], "t"
        for load in range(self.loads):
            made = []
            for p in range(0, self.pixels - 1, 2):
                one, two = f"a{p}_{load}", f"a{p + 1}_{load}"
                for n, into in ((1, free), (2, two)):
                    code.append(f"zip{n} <{into}>.2d, <{one}>.2d, <{two}>.2d")
                made.append((free, two))
                free = one
            if self.pixels % 2:
                made.append((f"a{self.pixels - 1}_{load}",) * 2)
            rows.append(made)
        return code, rows

    def _matrices(self, load: int, rows: list[tuple[str, str]]) -> list[str]:
        """The products of two pixels by two channels, of one load of codes."""
        code, nr = [], self.channel_blocks
        for v in range(4 * nr):
            (step, rest), b = divmod(v, 2 * nr), _QUAD[v % 4]
            if rest == 0 and step and self.pixels % 2:
                last = f"a{self.pixels - 1}_{load}"
                code.append(f"dup <{last}>.2d, <{last}>.d[1]")
            code += self._load_weights() if v % 4 == 0 else []
            code += [
                f"usmmla <s{pair * 2 * nr + rest}>.4s, <{row[step]}>.16b, {b}.16b"
                for pair, row in enumerate(rows)
            ]
        return code

    @staticmethod
    def _load_weights() -> list[str]:
        return [f"ld1 {{{', '.join(f'{q}.16b' for q in _QUAD)}}}, [<w>], #64"]

    def code(self) -> list[str]:
        """The instructions."""
        body = self._load_codes()
        if self.flip:
            body += [f"eor <{a}>.16b, <{a}>.16b, <z>.16b" for a in self._loaded()]
        if self.kind == "mmla":
            joined, rows = self._rows()
            body += joined
        for load in range(self.loads):
            body += self._matrices(load, rows[load]) if self.kind == "mmla" else self._dots(load)
        body *= self.times
        return body if self.once else ["0:", *body, "subs <n:w>, <n:w>, #1", "b.ne 0b"]

    def llvm(self) -> str:
        """``<sums> name(<sums>, pixels' pointers..., weights[, count])``, which makes ``count``
        turns, at least one.
        """
        pointers = [*(f"x{p}" for p in range(self.pixels)), "w"]
        count = {} if self.once else {"n": "i32"}
        begun = dict.fromkeys(pointers, "ptr") | count
        spare = ["t"] if self.kind == "mmla" and self.pixels > 1 else []
        return Assembly(
            self.name,
            self.code(),
            [f"s{i}" for i in range(self.accumulators)],
            [f"{kind} %{name}" for name, kind in begun.items()],
            begun,
            dict.fromkeys([*self._loaded(), *spare], "<16 x i8>"),
            {"z": "<16 x i8> splat (i8 -128)"} if self.flip else {},
            _QUAD,
            memory=True,
        ).llvm()


def loops(
    kind: str, pixels: int, channel_blocks: int, run: int, *, flip: bool
) -> list[tuple[Loop, int]]:
    """What takes the whole registers of codes of a run, in succession, and in how many turns each.

    Empty where a block takes too many registers.
    """
    found: list[tuple[Loop, int]] = []
    for loads, times in _TURNS:
        made = Loop(kind, pixels, channel_blocks, loads, times, flip)
        turns = run // made.codes
        if turns and made.registers <= _REGISTERS:
            found.append((replace(made, once=turns == 1), turns))
            run -= turns * made.codes
    return found
