"""The instructions of :mod:`arm_mlal`: products of codes and weights, summed in 16 and in 32 bits.

LLVM's schedulers for in-order cores put all multiplications of a step before the first addition,
which takes twice the registers there are, so the loop is written here. Multiplications of a few
pixels and channels stand side by side, each three or more instructions after the one that it needs;
what comes next is loaded meanwhile. LLVM sees functions that it inlines, and assigns registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from targets.kernels.arm_asm import Assembly

VECTOR = 16
"""Codes of a register."""


@dataclass(frozen=True)
class Products:
    """Products of some pixels and channels, once for ``halves`` of vectors, or in a loop.

    Attributes:
        pixels: pixels, ``channels``: channels of the block.
        together: channels whose products stand side by side with those of all pixels.
        halves: halves of vectors of a chunk; the products of ``sums`` are summed in 16 bits.
        wide: AArch64, else 32-bit ARM.
        chunks: chunks in the loop's body; 0: no loop, the vectors are given.
        ahead: whether a chunk's codes are loaded during the chunk before it.
        flip: whether the loop takes 128 off codes.
    """

    pixels: int
    channels: int
    together: int
    halves: int
    sums: int
    wide: bool
    chunks: int = 0
    ahead: bool = False
    flip: bool = True

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        shape = f"{self.pixels}x{self.channels}_{self.together}_{self.halves}_{self.sums}"
        marks = ("a" if self.ahead else "") + ("" if self.flip else "s")
        loop = f"_{self.chunks}{marks}" if self.chunks else ""
        return f"dlcc_{'smull' if self.wide else 'vmull'}_{shape}{loop}"

    @property
    def vectors(self) -> int:
        """Vectors of codes of a pixel, or of weights of a channel, in a chunk."""
        return ceil(self.halves / 2)

    @property
    def registers(self) -> int:
        """Vector registers that the loop takes."""
        codes = self.pixels * self.vectors * (2 if self.ahead else 1)
        weights = self.together * self.vectors * (2 if self.ahead else 1)
        signs = 1 if self.ahead and self.flip else 0
        return self.pixels * (self.channels + self.together) + codes + weights + signs

    # -- instructions ---------------------------------------------------------------------------

    def _multiply(self, first: int, a: int, b: int) -> list[list[str]]:
        """The products of channels from ``first``, in rows of independent instructions.

        ``a`` and ``b``: which set of registers holds the codes and the weights.
        """
        rows = []
        pairs = [(p, c) for c in range(self.together) for p in range(self.pixels)]
        for start in range(0, self.halves, self.sums):
            for half in range(start, min(start + self.sums, self.halves)):
                step, high = divmod(half, 2)
                rows.append(
                    [
                        self._product(
                            f"t{p}_{c}", f"a{a}_{p}_{step}", f"b{b}_{c}_{step}", high, half == start
                        )
                        for p, c in pairs
                    ]
                )
            rows.append([self._accumulate(f"s{p}_{first + c}", f"t{p}_{c}") for p, c in pairs])
        return rows

    def _product(self, t: str, a: str, b: str, high: int, begins: bool) -> str:
        if self.wide:
            name, form = ("smull" if begins else "smlal"), "16b" if high else "8b"
            return f"{name}{'2' if high else ''} <{t}>.8h, <{a}>.{form}, <{b}>.{form}"
        name, side = ("vmull" if begins else "vmlal"), "f" if high else "e"
        return f"{name}.s8 <{t}:q>, <{a}:{side}>, <{b}:{side}>"

    def _accumulate(self, s: str, t: str) -> str:
        return f"sadalp <{s}>.4s, <{t}>.8h" if self.wide else f"vpadal.s16 <{s}:q>, <{t}:q>"

    def _loads(self, pointer: str, names: list[str]) -> list[str]:
        """Loads of following vectors."""
        if not self.wide:
            return [f"vld1.8 {{<{n}:e>, <{n}:f>}}, [<{pointer}>]!" for n in names]
        code = []
        for i in range(0, len(names) - 1, 2):
            code.append(f"ldp <{names[i]}:q>, <{names[i + 1]}:q>, [<{pointer}>], #32")
        if len(names) % 2:
            code.append(f"ldr <{names[-1]}:q>, [<{pointer}>], #16")
        return code

    def _load_codes(self, a: int) -> list[str]:
        code = []
        for p in range(self.pixels):
            code += self._loads(f"x{p}", [f"a{a}_{p}_{i}" for i in range(self.vectors)])
        return code

    def _flip_codes(self, a: int) -> list[str]:
        """Takes 128 off codes, by flipping their top bits."""
        if not self.flip:
            return []
        names = [f"a{a}_{p}_{i}" for p in range(self.pixels) for i in range(self.vectors)]
        z, code = "z", []
        if not self.ahead:  # a product's register is free before the products
            z = "t0_0"
            code = [f"movi <{z}>.16b, #128" if self.wide else f"vmov.i8 <{z}:q>, #128"]
        if self.wide:
            return code + [f"eor <{n}>.16b, <{n}>.16b, <{z}>.16b" for n in names]
        return code + [f"veor <{n}:q>, <{n}:q>, <{z}:q>" for n in names]

    def _load_weights(self, b: int) -> list[str]:
        names = [f"b{b}_{c}_{i}" for c in range(self.together) for i in range(self.vectors)]
        return self._loads("w", names)

    def loop(self) -> list[str]:
        """The loop; ``<name>`` stands for an operand, ``<name:form>`` for one in a form."""
        groups = range(0, self.channels, self.together)
        sets = 2 if self.ahead else 1
        head, body = [], []
        if self.ahead:
            head = [*self._load_codes(0), *self._load_weights(0), *self._flip_codes(0)]
        b = 0
        for chunk in range(self.chunks):
            a = chunk % sets
            if not self.ahead:
                body += [*self._load_codes(0), *self._load_weights(0), *self._flip_codes(0)]
            for first in groups:
                meanwhile = []
                if self.ahead:
                    meanwhile = self._load_weights((b + 1) % 2)
                    if first == 0:
                        meanwhile += self._load_codes((a + 1) % 2)
                    if first == groups[-1]:
                        meanwhile += self._flip_codes((a + 1) % 2)
                elif first:
                    body += self._load_weights(0)
                body += _woven(self._multiply(first, a, b), meanwhile)
                b = (b + 1) % sets
        count = ["subs <n:w>, <n:w>, #1" if self.wide else "subs <n>, <n>, #1"]
        return [*head, "0:", *body, *count, "b.ne 0b" if self.wide else "bne 0b"]

    # -- functions ------------------------------------------------------------------------------

    def llvm(self) -> str:
        """LLVM IR: ``<sums> name(<sums>, pixels' pointers..., weights, count)`` is the loop, which
        runs ``count`` times (at least once) its ``chunks``; ``<sums> name(<sums>, codes...,
        weights...)`` multiplies given vectors of ``together`` channels.
        """
        return self._loop_llvm() if self.chunks else self._once_llvm()

    def _sums(self) -> list[str]:
        return [f"s{p}_{c}" for c in range(self.channels) for p in range(self.pixels)]

    def _named(self, kind: str, count: int, sets: int) -> list[str]:
        each = [f"{n}_{i}" for n in range(count) for i in range(self.vectors)]
        return [f"{kind}{s}_{name}" for s in range(sets) for name in each]

    def _temporaries(self) -> dict[str, str]:
        names = [f"t{p}_{c}" for c in range(self.together) for p in range(self.pixels)]
        return dict.fromkeys(names, "<8 x i16>")

    def _loop_llvm(self) -> str:
        sets = 2 if self.ahead else 1
        pointers = [*(f"x{p}" for p in range(self.pixels)), "w"]
        codes = self._named("a", self.pixels, sets) + self._named("b", self.together, sets)
        begun = dict.fromkeys(pointers, "ptr") | {"n": "i32"}
        return Assembly(
            self.name,
            self.loop(),
            self._sums(),
            [f"{kind} %{name}" for name, kind in begun.items()],
            begun,
            self._temporaries() | dict.fromkeys(codes, "<16 x i8>"),
            {"z": "<16 x i8> splat (i8 -128)"} if self.ahead and self.flip else {},
            memory=True,
        ).llvm()

    def _once_llvm(self) -> str:
        codes = self._named("a", self.pixels, 1) + self._named("b", self.together, 1)
        given = [f"<16 x i8> %{name}" for name in codes]
        return Assembly(
            self.name,
            _woven(self._multiply(0, 0, 0), []),
            self._sums(),
            given,
            temporaries=self._temporaries(),
            inputs=dict(zip(codes, given, strict=True)),
        ).llvm()


def _woven(rows: list[list[str]], meanwhile: list[str]) -> list[str]:
    """The rows one after the other, with other instructions spread among them."""
    code = [line for row in rows for line in row]
    if not meanwhile:
        return code
    made: list[str] = []
    for i, line in enumerate(code):
        made.append(line)
        done = len(meanwhile) * i // len(code)
        made += meanwhile[done : len(meanwhile) * (i + 1) // len(code)]
    return made
