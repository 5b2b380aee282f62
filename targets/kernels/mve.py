"""Dot products by the vectors of Cortex-M55 (MVE): sixteen 8-bit products a ``vmladava``.

The instruction multiplies signed bytes and adds all products to a core register. Activations are
copied once, a few pixels side by side, as ``x ^ 0x80``, which is x - 128; 128 times the sum of a
channel's weights is part of its bias. Accumulators are even registers, the loop is a hardware loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from targets.kernels.dsp import inline_loop

GROUP = 16
"""Products of a channel and pixel of one instruction."""


CENTRE = 128
"""The code that is copied as 0."""


@dataclass(frozen=True)
class MveDot:
    """A dot product loop: so many pixels times so many channels, in groups of 16 products."""

    pixels: int
    channels: int
    groups: int

    unit: ClassVar[int] = 1
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
    def title(self) -> str:
        """For reports."""
        return "vmladava"

    @property
    def units(self) -> int:
        """Bytes of a window."""
        return self.group * self.groups

    @property
    def weight_words(self) -> int:
        """Words of a channel block's weights."""
        return self.channels * self.groups * GROUP // 4

    @property
    def iterations(self) -> int:
        """Iterations of the loop."""
        return self.groups

    @property
    def sums(self) -> int:
        """Accumulators."""
        return self.pixels * self.channels

    @property
    def name(self) -> str:
        """Of the LLVM function."""
        return f"dlcc_mve_{self.pixels}x{self.channels}_{self.groups}"

    @property
    def patch_bytes(self) -> int:
        """Bytes of the windows."""
        return self.units * self.pixels

    def instructions(self) -> list[str]:
        """What the loop executes for a group."""
        code = [f"vldrb.u8 q{m}, [{{x{m}}}], #16" for m in range(self.pixels)]
        for n in range(self.channels):
            q = self.pixels + n % 2  # the next weights are loaded while these are multiplied
            code.append(f"vldrb.u8 q{q}, [{{w}}], #16")
            for m in range(self.pixels):
                code.append(f"vmladava.s8 {{s{n * self.pixels + m}}}, q{m}, q{q}")
        return [*code, "le lr, 0b"]

    def llvm(self) -> str:
        """LLVM IR of ``<sums x i32> name(ptr x, ptr w, i32 iterations, i32 starts...)``."""
        return self._loop_llvm(self.pixels + 2, [])

    def _loop_llvm(self, vectors: int, before: list[str]) -> str:
        """The loop, which uses so many vectors, with instructions ``before`` it."""
        registers = {f"s{i}": f"r{2 * i}" for i in range(self.sums)}
        free = [f"r{i}" for i in range(13) if f"r{i}" not in registers.values()]
        pointers = ["x", "w", *(f"x{m}" for m in range(self.pixels))]
        registers |= dict(zip(pointers, free, strict=False)) | {"n": "lr"}
        registers["x0"] = registers["x"]
        code = []
        for m in range(1, self.pixels):
            far = m * self.units
            code += (
                [f"addw {{x{m}}}, {{x}}, #{far}"]
                if far < 4096
                else [
                    f"movw {{x{m}}}, #{far}",
                    f"add {{x{m}}}, {{x}}",
                ]
            )
        lines = [*before, *code, "dls lr, lr", "0:", *self.instructions()]
        names = [f"q{i}" for i in range(vectors)]
        registers |= dict(zip(names, names, strict=True))
        inner = [*(f"x{m}" for m in range(1, self.pixels)), *names]
        return inline_loop(self.name, self.sums, lines, registers, inner) + FILLS

    def pixel_sums(self, kb: Any, patch: Any) -> list[Any]:
        """Of each pixel what its channels' sums lack; none here."""
        return []

    def starts(self, kb: Any, biases: list[Any]) -> list[Any]:
        """Initial sums from the channels' biases."""
        return [bias for bias in biases for _ in range(self.pixels)]

    def totals(
        self, kb: Any, made: Any, biases: list[Any], pixel_sums: list[Any]
    ) -> list[list[Any]]:
        """Sums by channel and pixel."""
        return [
            [kb.let(kb.shuffle(made, [n * self.pixels + m]), "total") for m in range(self.pixels)]
            for n in range(self.channels)
        ]

    def packed(self, weights: np.ndarray) -> np.ndarray:
        """int8[channels, K] as the loop reads them: int32 [channels / channels a block, words]."""
        channels, k = weights.shape
        blocks = weights.reshape(channels // self.channels, self.channels, k // GROUP, GROUP)
        ordered = np.ascontiguousarray(blocks.transpose(0, 2, 1, 3))
        return ordered.reshape(len(blocks), -1).view(np.int32)

    def bias(self, weights: np.ndarray, bias: np.ndarray, zero_point: int) -> np.ndarray:
        """The bias of sums over x - 128 in place of x - zero_point."""
        sums: np.ndarray = weights.astype(np.int64).sum(axis=1)
        moved: np.ndarray = bias + (CENTRE - zero_point) * sums
        return moved.astype(np.int32)

    def expand(
        self, kb: Any, patch: Any, m: Any, to: Any, count: int, source: Any, at: Any, zero: int
    ) -> None:
        """Copies ``count`` codes."""
        start = kb.address(patch, m * self.units + to)
        given = kb.address(source, at)
        kb.let(kb.extern("dlcc_mve_flip", "int32", 1, start, given, kb.const(count, "int32")))

    def clear(self, kb: Any, patch: Any, m: Any, to: Any, count: int, zero: int) -> None:
        """Writes ``count`` zero points."""
        start = kb.address(patch, m * self.units + to)
        value, number = kb.const(zero ^ CENTRE, "int32"), kb.const(count, "int32")
        kb.let(kb.extern("dlcc_mve_fill", "int32", 1, start, value, number))


FILLS = """
define i32 @dlcc_mve_flip(ptr %to, ptr %from, i32 %count) alwaysinline {
  %r = call { ptr, ptr, i32 } asm sideeffect "vmov.i8 q1, #128\\0Awlstp.8 lr, $2, 1f\\0A\
0:\\0Avldrb.u8 q0, [$1], #16\\0Aveor q0, q0, q1\\0Avstrb.8 q0, [$0], #16\\0Aletp lr, 0b\\0A1:",
  "=r,=r,={r12},0,1,2,~{lr},~{q0},~{q1},~{cc},~{memory}"(ptr %to, ptr %from, i32 %count)
  ret i32 0
}
define i32 @dlcc_mve_fill(ptr %to, i32 %value, i32 %count) alwaysinline {
  %r = call { ptr, i32, i32 } asm sideeffect "vdup.8 q0, $1\\0Awlstp.8 lr, $2, 1f\\0A\
0:\\0Avstrb.8 q0, [$0], #16\\0Aletp lr, 0b\\0A1:",
  "=r,=r,={r12},0,1,2,~{lr},~{q0},~{cc},~{memory}"(ptr %to, i32 %value, i32 %count)
  ret i32 0
}
"""
"""LLVM functions that write bytes in loops with a predicated tail: what was read, its highest bits
turned over, or one value. They touch nothing beyond ``count`` bytes."""
