"""Loops of ARM's kernels that are written in assembly, as LLVM functions that LLVM inlines.

A function takes accumulators as one vector and gives them back. Operands are named: ``<name>``
stands for one in a line of code, ``<name:form>`` for one in a form; LLVM assigns the registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


def held(accumulators: int) -> int:
    """Accumulators in a function's vector: a power of two."""
    return int(2 ** (accumulators - 1).bit_length())


@dataclass(frozen=True)
class Operands:
    """Assembly operands by name: ``outputs`` are written, and begin as inputs if ``begun``."""

    outputs: tuple[str, ...]
    begun: tuple[str, ...]
    inputs: tuple[str, ...]

    def number(self, name: str) -> int:
        """As LLVM counts them: outputs, then inputs, of which the begun outputs come last."""
        names = (*self.outputs, *self.inputs)
        return names.index(name)

    def numbered(self, line: str) -> str:
        """``line`` with operands as LLVM writes them; ``<name:form>`` is one in a form."""
        first, *others = line.split("<")
        made = [first]
        for part in others:
            name, _, rest = part.partition(">")
            name, _, form = name.partition(":")
            number = self.number(name)
            made.append((f"${{{number}:{form}}}" if form else f"${number}") + rest)
        return "".join(made)


@dataclass(frozen=True)
class Assembly:
    """A function around a piece of assembly: ``<sums> name(<sums>, given...)``.

    Attributes:
        name: of the LLVM function.
        code: its lines.
        sums: accumulators, int32x4, in the order of the vector.
        begun: operands that are given and changed, after the sums: name to LLVM type.
        temporaries: operands that are written first: name to LLVM type.
        inputs: operands that are only read: name to LLVM's value, with its type.
        given: parameters after the sums, as LLVM declares them.
        clobbered: registers that the code names itself.
        memory: whether it reads memory.
    """

    name: str
    code: Sequence[str]
    sums: Sequence[str]
    given: Sequence[str]
    begun: Mapping[str, str] = field(default_factory=dict)
    temporaries: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    clobbered: Sequence[str] = ()
    memory: bool = False

    def llvm(self) -> str:
        """The function as LLVM IR."""
        total = held(len(self.sums))
        vector = f"<{4 * total} x i32>"
        extract = f"@llvm.vector.extract.v4i32.v{4 * total}i32"
        insert = f"@llvm.vector.insert.v{4 * total}i32.v4i32"
        tied = (*self.sums, *self.begun)
        operands = Operands((*tied, *self.temporaries), tied, tuple(self.inputs))
        text = "\\0A".join(map(operands.numbered, self.code))
        types = dict.fromkeys(self.sums, "<4 x i32>") | {**self.begun, **self.temporaries}
        result = "{ " + ", ".join(types[name] for name in operands.outputs) + " }"
        kinds = ["w" if types[name].startswith("<") else "r" for name in operands.outputs]
        constraints = [f"=&{kind}" for kind in kinds] + ["w"] * len(self.inputs)
        constraints += [str(operands.number(name)) for name in tied]
        constraints += [f"~{{{name}}}" for name in self.clobbered]
        constraints += ["~{cc}", "~{memory}"] if self.memory else []
        passed = [*self.inputs.values(), *(f"{types[name]} %{name}" for name in tied)]
        lines = [
            f"declare <4 x i32> {extract}({vector}, i64)",
            f"declare {vector} {insert}({vector}, <4 x i32>, i64)",
            f"define {vector} @{self.name}({', '.join([f'{vector} %s', *self.given])}) {{",
        ]
        for i, name in enumerate(self.sums):
            lines.append(f"  %{name} = call <4 x i32> {extract}({vector} %s, i64 {4 * i})")
        effects = "sideeffect " if self.memory else ""
        lines.append(
            f'  %r = call {result} asm {effects}"{text}", "{",".join(constraints)}"'
            f"({', '.join(passed)})"
        )
        last = "%s"
        for i in range(len(self.sums)):
            lines.append(f"  %n{i} = extractvalue {result} %r, {i}")
            lines.append(
                f"  %v{i} = call {vector} {insert}({vector} {last}, <4 x i32> %n{i}, i64 {4 * i})"
            )
            last = f"%v{i}"
        return "\n".join([*lines, f"  ret {vector} {last}", "}", ""])
