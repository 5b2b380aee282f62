"""Dot products by the DSP instructions of Cortex-M: two 16-bit products a ``smlad``.

Activations are expanded once into pairs of 16-bit numbers, for a few pixels side by side: of four
neighbours k, k + 1, k + 2, k + 3 the even ones make one word, the odd ones the next. Weights stay
bytes. Where their sums allow it, two output channels share a word ``[a_k, b_k, a_k+2, b_k+2]``,
whose 16-bit halves read as ``a + 256 * b``: one ``smlad`` with the word as it is sums ``a + 256 *
b``, one with its sign-extended low bytes sums ``a``, and ``b`` follows by a subtraction and a shift
at the very end. That takes one extension for eight weights less than extending both channels.

The loops are written as instructions, for the compiler neither keeps multiple loads together nor
this many values in the fourteen registers; it sees them as LLVM functions that it inlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlcc import tir

GROUP = 4
"""Products of a channel and pixel in a group of a dot product: two words of 16-bit numbers."""

PAIR_LIMIT = 1 << 23
"""Magnitude below which the second channel of a pair can be told from the first one's sum."""

_MOST_UNROLLED = 4


@dataclass(frozen=True)
class PairedDot:
    """A loop of dot products over pairs of output channels that share words of weights.

    Attributes:
        pixels: 1 to 3.
        pairs: pairs of channels.
        groups: how often :attr:`group` products of each channel are summed.
    """

    pixels: int
    pairs: int
    groups: int

    unit: ClassVar[int] = GROUP
    """Elements that a window's parts are multiples of."""

    compressed: ClassVar[bool] = False
    """Whether weights are stored in fewer than eight bits."""

    @property
    def group(self) -> int:
        """Products of a channel that the weights' order puts together."""
        return GROUP

    @property
    def filler(self) -> int:
        """The weight that fills up groups; where it is not 0, the activations there must be."""
        return 0

    @property
    def channels(self) -> int:
        """Output channels of a block."""
        return 2 * self.pairs

    @property
    def units(self) -> int:
        """Groups of four products of a channel."""
        return self.groups * self.group // GROUP

    @property
    def patch_bytes(self) -> int:
        """Bytes of the windows."""
        return 2 * GROUP * self.units * self.pixels

    @property
    def sums(self) -> int:
        """Accumulators."""
        return 2 * self.pixels * self.pairs

    @property
    def most_unrolled(self) -> int:
        """Groups of an iteration, at most."""
        return _MOST_UNROLLED

    @property
    def unrolled(self) -> int:
        """Groups of an iteration of the loop."""
        counts = (n for n in (_MOST_UNROLLED, 2, 1) if n <= self.most_unrolled)
        return next(n for n in counts if self.groups % n == 0)

    @property
    def iterations(self) -> int:
        """Iterations of the loop."""
        return self.groups // self.unrolled

    def body(self) -> list[str]:
        """Instructions of a group."""
        raise NotImplementedError

    def instructions(self) -> list[str]:
        """What the loop executes for an iteration."""
        return [*self.body() * self.unrolled, "subs {n}, #1", "bne 0b"]

    def _sum(self, pixel: int, pair: int, channel: int) -> str:
        return f"{{s{2 * (pair * self.pixels + pixel) + channel}}}"

    def _load_pixels(self) -> str:
        if self.pixels == 1:
            return "ldr {x0}, [{x}], #4"
        if self.pixels == 2:
            return "ldrd {x0}, {x1}, [{x}], #8"
        return "ldm {x}!, {{{x0}, {x1}, {x2}}}"

    def _allotted(self, inner: list[str]) -> dict[str, str]:
        """Registers by name: those that are only used within, then those that go in and out."""
        free = [f"r{i}" for i in range(13)] + ["lr"]
        names = [*inner, "x", "w", "n", *(f"s{i}" for i in range(self.sums))]
        if len(names) > len(free):
            raise ValueError(f"{self} needs {len(names)} registers")
        return dict(zip(names, free, strict=False))

    def pixel_sums(self, kb: Any, patch: Any) -> list[Any]:
        """Of each pixel what its channels' sums lack; none here."""
        return []

    def parts(self, made: Any, kb: Any) -> list[tuple[list[Any], list[Any]]]:
        """The accumulators of each pair: those of its first and of its second channel, by pixel."""
        found = []
        for pair in range(self.pairs):
            places = [2 * (pair * self.pixels + m) for m in range(self.pixels)]
            first = [kb.let(kb.shuffle(made, [at]), "total") for at in places]
            second = [kb.let(kb.shuffle(made, [at + 1]), "total") for at in places]
            found.append((first, second))
        return found

    def expand(
        self, kb: Any, patch: Any, m: Any, to: Any, count: int, source: Any, at: Any, zero: int
    ) -> None:
        """``count`` groups of four codes become centred pairs of 16-bit numbers."""
        offset = kb.const(int(np.array([-zero, -zero], np.int16).view(np.int32)[0]), "int32")
        with kb.loop(0, count, "group") as group:
            word = load(kb, "bytes", source, at + group * GROUP)
            for j, value in enumerate((word, turned(kb, word))):
                place = (2 * (to + group) + j) * self.pixels + m
                if zero:
                    made = kb.pure("llvm.arm.uxtab16", "int32", 1, offset, value)
                else:
                    made = kb.pure("llvm.arm.uxtb16", "int32", 1, value)
                kb.store(patch, place, made)

    def clear(self, kb: Any, patch: Any, m: Any, to: Any, count: int, zero: int) -> None:
        """``count`` groups of four zeros."""
        with kb.loop(0, 2 * count, "word") as word:
            kb.store(patch, (2 * to + word) * self.pixels + m, kb.const(0, "int32"))

    def bias(self, weights: np.ndarray, bias: np.ndarray, zero_point: int) -> np.ndarray:
        """The bias of sums over centred activations: the layer's own."""
        return bias.astype(np.int32)


@dataclass(frozen=True)
class Dot(PairedDot):
    """Weights of eight bits.

    Attributes:
        shared: both channels of a pair share words; else each has its own.
    """

    shared: bool

    @property
    def weight_words(self) -> int:
        """Words of a channel block's weights."""
        return self.channels * self.groups

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        form = "shared" if self.shared else "apart"
        return f"dlcc_dot_{form}_{self.pixels}x{self.pairs}_{self.unrolled}"

    @property
    def title(self) -> str:
        """For reports."""
        return "smlad" if self.shared else "smlad, a channel a word,"

    def body(self) -> list[str]:
        """Instructions of a group."""
        return self._shared_group() if self.shared else self._apart_group()

    def _shared_words(self, pair: int, raw: str, pixels: list[str]) -> list[str]:
        """Products of one word of a pair with the pixels."""
        code = [f"sxtb16 {{low}}, {raw}"]
        for m, x in enumerate(pixels):
            a, b = self._sum(m, pair, 0), self._sum(m, pair, 1)
            code += [f"smlad {a}, {x}, {{low}}, {a}", f"smlad {b}, {x}, {raw}, {b}"]
        return code

    def _shared_group(self) -> list[str]:
        if self.pixels == 1:
            code = ["ldrd {x0}, {x1}, [{x}], #8"]
            for pair in range(self.pairs):
                code.append("ldrd {w0}, {w1}, [{w}], #8")
                code += self._shared_words(pair, "{w0}", ["{x0}"])
                code += self._shared_words(pair, "{w1}", ["{x1}"])
            return code
        code = []
        pixels = [f"{{x{m}}}" for m in range(self.pixels)]
        for half in range(2):
            if self.pixels == 2:
                code += ["ldrd {w0}, {w1}, [{w}], #8"] * (half == 0)
                raw = f"{{w{half}}}"
            else:
                code.append("ldr {w0}, [{w}], #4")
                raw = "{w0}"
            code.append(self._load_pixels())
            code += self._shared_words(0, raw, pixels)
        return code

    def _apart_group(self) -> list[str]:
        wide = ["{x0}", "{x1}", "{x2}", "{x3}"][: 2 * self.pixels]
        if self.pixels == 1:
            code = ["ldrd {x0}, {x1}, [{x}], #8"]
        else:
            code = ["ldm {x}!, {{{x0}, {x1}, {x2}, {x3}}}"]
        for pair in range(self.pairs):
            for channel in range(2):
                code += ["ldr {w0}, [{w}], #4", "sxtb16 {low}, {w0}", "sxtb16 {w0}, {w0}, ror #8"]
                for m in range(self.pixels):
                    total = self._sum(m, pair, channel)
                    code.append(f"smlad {total}, {wide[m]}, {{low}}, {total}")
                    code.append(f"smlad {total}, {wide[self.pixels + m]}, {{w0}}, {total}")
        return code

    def llvm(self) -> str:
        """LLVM IR of ``<sums x i32> name(ptr x, ptr w, i32 iterations, i32 starts...)``."""
        inner = ["x0", "x1", "x2", "w0", "low"] if self.pixels == 3 else ["x0", "x1", "w0", "w1"]
        if self.pixels < 3:
            inner.append("low")
        if not self.shared and self.pixels == 2:
            inner = ["x0", "x1", "x2", "x3", "w0", "low"]
        registers = self._allotted(inner)
        lines = ["0:", *self.instructions()]
        return inline_loop(self.name, self.sums, lines, registers, inner)

    def starts(self, kb: Any, biases: list[Any]) -> list[Any]:
        """Initial sums from the channels' biases; the second one's of a pair comes at the end."""
        made = []
        for pair in range(self.pairs):
            made += [biases[2 * pair], biases[2 * pair + (not self.shared)]] * self.pixels
        return made

    def totals(
        self, kb: Any, made: Any, biases: list[Any], pixel_sums: list[Any]
    ) -> list[list[Any]]:
        """Sums by channel and pixel."""
        found: list[list[Any]] = []
        for (first, second), bias in zip(self.parts(made, kb), biases[1::2], strict=True):
            if self.shared:
                second = [
                    kb.let(tir.tirx.shift_right(b - a, kb.const(8, "int32")) + bias, "total")
                    for a, b in zip(first, second, strict=True)
                ]
            found += [first, second]
        return found

    def packed(self, weights: np.ndarray) -> np.ndarray:
        """int8[channels, K] as the loop reads them: int32 [channels / channels a block, words]."""
        return packed_words(weights, self)


def inline_loop(
    name: str, sums: int, lines: list[str], registers: dict[str, str], inner: list[str]
) -> str:
    """LLVM IR of ``<sums x i32> name(ptr x, ptr w, i32 n, i32 starts...)`` in instructions.

    Args:
        name: of the function.
        sums: accumulators ``{s0}`` to ``{s<sums - 1>}``.
        lines: instructions, with registers by name in braces.
        registers: of the accumulators, ``x``, ``w``, ``n`` and whatever else is named.
        inner: names of the registers that are used within.
    """
    text = "\\0A".join(line.format(**registers) for line in lines)
    changed = [*(f"s{i}" for i in range(sums)), "x", "w", "n"]
    outputs = [f"={{{registers[key]}}}" for key in changed]
    inputs = [str(i) for i in range(len(changed))]
    clobbers = [f"~{{{registers[key]}}}" for key in inner] + ["~{cc}", "~{memory}"]
    constraints = ",".join([*outputs, *inputs, *clobbers])
    starts = ", ".join(f"i32 %s{i}" for i in range(sums))
    result = "{ " + ", ".join(["i32"] * sums + ["ptr", "ptr", "i32"]) + " }"
    vector = f"<{sums} x i32>"
    body = [
        f"define {vector} @{name}(ptr %x, ptr %w, i32 %n, {starts}) alwaysinline {{",
        f'  %r = call {result} asm sideeffect "{text}", "{constraints}"'
        f"({starts}, ptr %x, ptr %w, i32 %n)",
    ]
    last = "poison"
    for i in range(sums):
        body.append(f"  %e{i} = extractvalue {result} %r, {i}")
        body.append(f"  %v{i} = insertelement {vector} {last}, i32 %e{i}, i32 {i}")
        last = f"%v{i}"
    return "\n".join([*body, f"  ret {vector} {last}", "}", ""])


def packed_words(weights: np.ndarray, dot: Dot) -> np.ndarray:
    """Weights int8[channels, K] as the loop reads them: int32 [channels / (2 pairs), words].

    ``channels`` is a multiple of ``2 * dot.pairs`` and K is ``4 * dot.groups``.
    """
    channels, k = weights.shape
    blocks = weights.reshape(channels // (2 * dot.pairs), dot.pairs, 2, k // GROUP, GROUP)
    if dot.shared:
        ordered = blocks[..., [0, 2, 1, 3]].astype(np.int32)
        halves = ordered[:, :, 0] + 256 * ordered[:, :, 1]  # [block, pair, group, 4]
        words = np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).astype(np.int16)
    else:
        words = np.ascontiguousarray(blocks.transpose(0, 3, 1, 2, 4))
    return words.reshape(blocks.shape[0], -1).view(np.int32)


def channels_share_words(weights: np.ndarray, zero_point: int) -> bool:
    """Whether pairs of channels int8[channels, K] of u8 activations can share words.

    The halves of a word must fit 16 bits, and the second channel's sums 24.
    """
    if weights.size and weights.min() < -127:
        return False
    second = weights[1::2].astype(np.int64)
    most = np.maximum(second * (255 - zero_point), second * -zero_point).sum(axis=1)
    least = np.minimum(second * (255 - zero_point), second * -zero_point).sum(axis=1)
    return bool(np.maximum(most, -least).max(initial=0) < PAIR_LIMIT)


LOADS = """
define i32 @dlcc_bytes(ptr %p) alwaysinline {
  %v = load i32, ptr %p, align 1
  ret i32 %v
}
define i32 @dlcc_word(ptr %p) alwaysinline {
  %v = load i32, ptr %p, align 4
  ret i32 %v
}
define i32 @dlcc_byte(ptr %p) alwaysinline {
  %v = load i8, ptr %p
  %w = zext i8 %v to i32
  ret i32 %w
}
"""
"""LLVM functions for loads that may meet stores of any type, which TVM's own are told apart from:
four bytes at any address, a word, a byte."""


def load(kb: Any, what: str, buffer: Any, index: Any) -> Any:
    """``bytes``, a ``word`` or a ``byte`` at element ``index`` of ``buffer``, as int32."""
    return kb.let(kb.extern(f"dlcc_{what}", "int32", 1, kb.address(buffer, index)), what)


def turned(kb: Any, word: Any) -> Any:
    """An int32 with its bytes turned by one: an operand of ``sxtb16`` and ``uxtb16``, for free."""
    upper = tir.tirx.shift_right(kb.reinterpret(word, "uint32"), kb.const(8, "uint32"))
    lower = tir.tirx.shift_left(word, kb.const(24, "int32"))
    return tir.tirx.bitwise_or(kb.reinterpret(upper, "int32"), lower)
