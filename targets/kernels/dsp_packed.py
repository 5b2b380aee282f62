"""Dot products of Cortex-M's DSP instructions over weights of 4, 2 and 1 bits, as they are stored.

An integer weight is ``base + step * u``; what is stored are the digits u, and what is summed are
``x * u``. A word holds the digits of two channels a and b for a few groups of four neighbours. A
shift brings those of two of the neighbours to the lowest nibbles of both halves, ``u_a + 16 * u_b``
in each: one ``smlad`` sums these, and once ``u_b`` is masked out another sums ``u_a``. The sum of b
is their difference, shifted, at the very end. So it takes three instructions (two, of 4 bits) to
unpack what two ``smlad`` for each pixel read, and there is no table and no copy of the weights.

``base`` times the sum of a pixel's activations is the same for all channels; it is computed once
for each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlcc import tir
from targets.kernels.dsp import GROUP, PairedDot, inline_loop
from targets.kernels.packed_bits import Codes

WIDTHS = (1, 2, 4)
"""Bits of a digit."""

DIGIT = 16
"""What the second channel's digits count in the sums of both."""


def stored_codes(codes: Codes, columns: int, zeros: int) -> Codes | None:
    """The digits that weights of ``codes`` are stored as, if they can be.

    Args:
        codes: what the weights are.
        columns: products of an output.
        zeros: where the number of columns is a multiple of it, what fills up a group are zeros
            among the activations. Elsewhere a digit must stand for the weight 0.
    """
    if codes.bits > WIDTHS[-1]:
        return None
    if not codes.has_zero and columns % zeros:
        codes = Codes.signed(2)
    if codes.bits in WIDTHS:
        return codes
    return Codes.signed(next(width for width in WIDTHS if width >= codes.bits))


def sums_fit(columns: int) -> bool:
    """Whether two channels' sums of so many digits can be told apart."""
    largest = 255 * (DIGIT - 1) * columns
    return DIGIT * largest + largest < 1 << 31


@dataclass(frozen=True)
class PackedDot(PairedDot):
    """Weights of few bits, two channels a word."""

    codes: Codes

    compressed: ClassVar[bool] = True

    @property
    def group(self) -> int:
        """Products of a channel in a word."""
        return GROUP * WIDTHS[-1] // self.codes.bits

    @property
    def filler(self) -> int:
        """0 where a digit stands for it."""
        return 0 if self.codes.has_zero else self.codes.base

    @property
    def most_unrolled(self) -> int:
        """Words of an iteration, at most."""
        return self.codes.bits

    @property
    def weight_words(self) -> int:
        """Words of a channel block's weights."""
        return self.pairs * self.groups

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        return f"dlcc_dot_{self.codes.bits}_{self.pixels}x{self.pairs}_{self.unrolled}"

    @property
    def title(self) -> str:
        """For reports."""
        return f"smlad, {self.codes.bits} bits,"

    @property
    def shifts(self) -> list[int]:
        """Where in a word the digits for each word of activations begin."""
        bits = self.codes.bits
        return [8 * half + low for half in range(2) for low in range(0, WIDTHS[-1], bits)]

    def body(self) -> list[str]:
        """Instructions of a word of weights for each pair."""
        words = ["{w0}", "{w1}"][: self.pairs]
        code = [f"ldr {words[0]}, [{{w}}], #4"]
        if self.pairs == 2:
            code = [f"ldrd {words[0]}, {words[1]}, [{{w}}], #8"]
        for index, shift in enumerate(self.shifts):
            if self.pixels > 1:
                code.append(self._load_pixels())
            elif index % 2 == 0:
                code.append("ldrd {x0}, {x1}, [{x}], #8")
            for pair, word in enumerate(words):
                code += self._digits(word, index, shift)
                code += self._products(pair, index)
        return code

    def _digits(self, word: str, index: int, shift: int) -> list[str]:
        """Both channels' digits for one word of activations, in the halves of ``low``."""
        bits = self.codes.bits
        if bits == WIDTHS[-1]:
            return [f"uxtb16 {{low}}, {word}" + (f", ror #{shift}" if shift else "")]
        mask = 0x00110011 * ((1 << bits) - 1)
        if self.pixels < 3 and shift:
            return [f"and {{low}}, {{mask}}, {word}, lsr #{shift}"]
        step = shift - self.shifts[index - 1] if index else 0
        moved = [f"lsr {word}, {word}, #{step}"] if step else []
        return [*moved, f"and {{low}}, {word}, #{mask:#x}"]

    def _products(self, pair: int, index: int) -> list[str]:
        xs = [f"{{x{m}}}" for m in range(self.pixels)] if self.pixels > 1 else [f"{{x{index % 2}}}"]
        both, first = (
            [
                f"smlad {total}, {x}, {{low}}, {total}"
                for m, x in enumerate(xs)
                for total in [self._sum(m, pair, channel)]
            ]
            for channel in (1, 0)
        )
        return [
            *both,
            f"and {{low}}, {{low}}, #{0x00010001 * ((1 << self.codes.bits) - 1):#x}",
            *first,
        ]

    def llvm(self) -> str:
        """LLVM IR: the loop, ``<sums x i32> name(ptr x, ptr w, i32 iterations, i32 zeros...)``.

        And the sums of each pixel's activations.
        """
        inner = ["x0", "x1", "x2", "w0", "low"] if self.pixels == 3 else ["x0", "x1", "w0", "w1"]
        start = []
        if self.pixels < 3:
            inner += ["low", "mask"]
            start = [f"mov {{mask}}, #{0x00110011 * ((1 << self.codes.bits) - 1):#x}"]
            if self.codes.bits == WIDTHS[-1]:
                inner, start = inner[:-1], []
        registers = self._allotted(inner)
        lines = [*start, "0:", *self.instructions()]
        return inline_loop(self.name, self.sums, lines, registers, inner) + self._pixel_sums_llvm()

    @property
    def _sums_name(self) -> str:
        return f"dlcc_pixel_sums_{self.pixels}"

    def _pixel_sums_llvm(self) -> str:
        """LLVM IR of ``<n x i32> name(ptr x, ptr w, i32 units, i32 zeros...)``; w is not read.

        Of one pixel the even and the odd words have a sum each, else there is one for each pixel.
        """
        count = max(2, self.pixels)
        load = "ldm {x}!, {{{x0}, {x1}, {x2}}}" if count == 3 else "ldrd {x0}, {x1}, [{x}], #8"
        words = [load, *(f"smlad {{s{m}}}, {{x{m}}}, {{one}}, {{s{m}}}" for m in range(count))]
        inner = ["x0", "x1", "x2", "one"]
        names = [*inner, "x", "w", "n", *(f"s{m}" for m in range(count))]
        registers = {name: f"r{i}" for i, name in enumerate(names)}
        times = 1 if self.pixels == 1 else 2
        lines = ["mov {one}, #0x10001", "0:", *words * times, "subs {n}, #1", "bne 0b"]
        return inline_loop(self._sums_name, count, lines, registers, inner)

    def pixel_sums(self, kb: Any, patch: Any) -> list[Any]:
        """Of each pixel ``base`` times the sum of its activations."""
        count = max(2, self.pixels)
        zero, units = kb.const(0, "int32"), kb.const(self.units, "int32")
        start = kb.address(patch, 0)
        made = kb.extern(self._sums_name, "int32", count, start, start, units, *[zero] * count)
        made = kb.let(made, "sums")
        found = [kb.let(kb.shuffle(made, [m]), "sum") for m in range(count)]
        if self.pixels == 1:
            found = [found[0] + found[1]]
        return [kb.let(total * self.codes.base, "base") for total in found]

    def starts(self, kb: Any, biases: list[Any]) -> list[Any]:
        """Nothing: digits are scaled before they meet the bias."""
        return [kb.const(0, "int32")] * self.sums

    def totals(
        self, kb: Any, made: Any, biases: list[Any], pixel_sums: list[Any]
    ) -> list[list[Any]]:
        """Sums by channel and pixel."""
        found: list[list[Any]] = []
        shift = kb.const(DIGIT.bit_length() - 1, "int32")
        for pair, (first, both) in enumerate(self.parts(made, kb)):
            second = [tir.tirx.shift_right(b - a, shift) for a, b in zip(first, both, strict=True)]
            for channel, sums in enumerate((first, second)):
                bias = biases[2 * pair + channel]
                found.append(
                    [
                        kb.let(bias + base + total * self.codes.step, "total")
                        for base, total in zip(pixel_sums, sums, strict=True)
                    ]
                )
        return found

    def packed(self, weights: np.ndarray) -> np.ndarray:
        """int8[channels, K] as the loop reads them: int32 [channels / channels a block, words]."""
        k = weights.shape[1]
        digits = self.codes.unsigned(weights).astype(np.uint32)
        shifts = self.shifts
        # [block, pair, channel, word, group of four, neighbour]
        fields = digits.reshape(-1, self.pairs, 2, k // self.group, self.group // GROUP, GROUP)
        words = np.zeros((len(fields), k // self.group, self.pairs), np.uint32)
        for index, shift in enumerate(shifts):
            for half in range(2):
                column = fields[..., index // 2, index % 2 + 2 * half].transpose(0, 3, 1, 2)
                for channel in range(2):
                    at = shift + 16 * half + 4 * channel
                    words |= column[..., channel] << np.uint32(at)
        return words.reshape(len(fields), -1).view(np.int32)
