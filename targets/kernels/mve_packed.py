"""Dot products of Cortex-M55's vectors over weights of 4, 2 and 1 bits, as they are stored.

A byte holds the codes of two channels for one to four groups of sixteen neighbours, each as a
two's complement number d. Shifted to the top of its byte, with what is below masked away, a code is
``d * 2^(8 - bits)``: a signed byte, which ``vmladava`` takes like any other. The factor is shifted
out of the sum. That is an ``and`` and a shift for sixteen codes, less for the last ones of a byte.

Signs are -1 and 0 in two's complement; the weight is ``1 + 2 * d``, and the sum of the activations
that belongs to the 1 is computed once for each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlcc import tir
from targets.kernels.mve import GROUP, MveDot
from targets.kernels.packed_bits import Codes

VECTORS = 8
"""Registers."""


@dataclass(frozen=True)
class PackedMveDot(MveDot):
    """Weights of few bits, two channels a vector. ``channels`` is even."""

    codes: Codes

    compressed: ClassVar[bool] = True

    @property
    def parts(self) -> int:
        """Groups of sixteen products of a channel in a vector of weights."""
        return 4 // self.codes.bits

    @property
    def group(self) -> int:
        """Products of a channel in a vector of weights."""
        return GROUP * self.parts

    @property
    def offset(self) -> int:
        """The weight whose code is 0."""
        return self.codes.base + (self.codes.step << (self.codes.bits - 1))

    @property
    def filler(self) -> int:
        """0 where a code stands for it."""
        return self.offset

    @property
    def title(self) -> str:
        """For reports."""
        return f"vmladava, {self.codes.bits} bits,"

    @property
    def pairs(self) -> int:
        """Pairs of channels."""
        return self.channels // 2

    @property
    def weight_words(self) -> int:
        """Words of a channel block's weights."""
        return self.pairs * self.groups * GROUP // 4

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        size = f"{self.pixels}x{self.channels}_{self.groups}"
        return f"dlcc_mve_{self.codes.bits}_{size}"

    def instructions(self) -> list[str]:
        """What the loop executes for a vector of weights of each pair."""
        m, bits = self.pixels, self.codes.bits
        raws = [f"q{m + pair}" for pair in range(self.pairs)]
        spare = [f"q{i}" for i in range(m + self.pairs, VECTORS - 1)]
        code, used = [], 0
        for part in range(self.parts):
            code += [f"vldrb.u8 q{i}, [{{x{i}}}], #16" for i in range(m)]
            for pair, raw in enumerate(raws):
                code += [f"vldrb.u8 {raw}, [{{w}}], #16"] * (part == 0)
                for channel in range(2):
                    shifted = part > 0 or channel > 0
                    code += [f"vshl.i8 {raw}, {raw}, #{bits}"] * shifted
                    q = raw
                    if (part, channel) != (self.parts - 1, 1):
                        q, used = spare[used % len(spare)], used + 1
                        code.append(f"vand {q}, {raw}, q{VECTORS - 1}")
                    first = (2 * pair + channel) * m
                    code += [f"vmladava.s8 {{s{first + i}}}, q{i}, {q}" for i in range(m)]
        return [*code, "le lr, 0b"]

    def llvm(self) -> str:
        """LLVM IR of the loop, and of the sum of a pixel's activations."""
        mask = 256 - (256 >> self.codes.bits)
        return self._loop_llvm(VECTORS, [f"vmov.i8 q{VECTORS - 1}, #{mask}"]) + _SUM

    def pixel_sums(self, kb: Any, patch: Any) -> list[Any]:
        """Of each pixel :attr:`offset` times the sum of its activations; none where it is 0."""
        if not self.offset:
            return []
        made, count = [], kb.const(self.units // GROUP, "int32")
        for m in range(self.pixels):
            start = kb.address(patch, m * self.units)
            total = kb.let(kb.extern("dlcc_mve_sum", "int32", 1, start, count), "sum")
            made.append(kb.let(total * self.offset, "sum"))
        return made

    def starts(self, kb: Any, biases: list[Any]) -> list[Any]:
        """Nothing: sums are scaled before they meet the bias."""
        return [kb.const(0, "int32")] * self.sums

    def totals(
        self, kb: Any, made: Any, biases: list[Any], pixel_sums: list[Any]
    ) -> list[list[Any]]:
        """Sums by channel and pixel."""
        places = 8 - self.codes.bits - (self.codes.step.bit_length() - 1)
        found: list[list[Any]] = []
        for n, bias in enumerate(biases):
            row = []
            for m in range(self.pixels):
                total = kb.shuffle(made, [n * self.pixels + m])
                total = bias + tir.tirx.shift_right(total, kb.const(places, "int32"))
                row.append(kb.let(total + pixel_sums[m] if pixel_sums else total, "total"))
            found.append(row)
        return found

    def packed(self, weights: np.ndarray) -> np.ndarray:
        """int8[channels, K] as the loop reads them: int32 [channels / channels a block, words]."""
        k, bits = weights.shape[1], self.codes.bits
        digits = self.codes.unsigned(weights) ^ np.uint8(1 << (bits - 1))
        # [block, pair, channel, vector, part, lane]
        fields = digits.reshape(-1, self.pairs, 2, k // self.group, self.parts, GROUP)
        made = np.zeros((len(fields), k // self.group, self.pairs, GROUP), np.uint8)
        for part in range(self.parts):
            for channel in range(2):
                at = 8 - bits * (2 * part + channel + 1)
                made |= fields[:, :, channel, :, part].transpose(0, 2, 1, 3) << np.uint8(at)
        return made.reshape(len(fields), -1).view(np.int32)


_SUM = """
define i32 @dlcc_mve_sum(ptr %from, i32 %count) alwaysinline {
  %r = call { i32, ptr } asm sideeffect "mov $0, #0\\0Adls lr, $2\\0A\
0:\\0Avldrb.u8 q0, [$1], #16\\0Avaddva.s8 $0, q0\\0Ale lr, 0b",
  "=&{r0},=r,r,1,~{lr},~{q0},~{cc},~{memory}"(i32 %count, ptr %from)
  %s = extractvalue { i32, ptr } %r, 0
  ret i32 %s
}
"""
"""An LLVM function that sums ``count`` times sixteen signed bytes."""
