"""Register blocks of the SVE kernels: which fit, and what a step of one costs."""

from __future__ import annotations

from math import ceil

from targets.kernels.gemm import Gemm, Unit
from targets.kernels.sve_code import ELEMENTS, LANES, MOST_PIXELS, spare_registers

KINDS = frozenset({"sve_usmmla", "sve_fmla"})
"""Units of SVE: unsigned codes by signed weights, and float32 numbers."""


def is_real(unit: Unit) -> bool:
    """Whether the unit multiplies float32 numbers."""
    return unit.kind == "sve_fmla"


def shapes(gemm: Gemm, unit: Unit) -> list[tuple[int, int, int]]:
    """Register blocks that fit: (rows, columns, channel blocks)."""
    real = is_real(unit)
    blocks = ceil(gemm.n / LANES)
    made = []
    for nr in sorted({min(nr, blocks) for nr in (1, 2, 3, 4, 5, 6, 8)}):
        for m in range(1, (ELEMENTS if real else MOST_PIXELS) + 1):
            if spare_registers(m, nr, real) < 2:
                continue
            for height in range(1, min(gemm.rows, m) + 1):
                if m % height == 0 and m // height <= gemm.cols:
                    made.append((height, m // height, nr))
    return made


def step_cycles(unit: Unit, m: int, nr: int) -> float:
    """Cycles of one reduction step of a block, by the pipes of Neoverse V1.

    It has two for vectors of 256 bits and two for loads; a sum waits for itself.
    """
    if is_real(unit):  # four steps share their numbers
        arithmetic, loads, latency = m * nr * 1.0, m / 4 + nr, 4.0
    else:  # two steps share their codes
        pairs = ceil(m / 2)
        arithmetic, loads, latency = pairs * (2.0 * nr + 1), m / 2 + 2 * nr, 3.0
    return max(0.5 * arithmetic, 0.5 * loads, latency) + 0.1 * loads


def finish_cycles(pixels: int, channel_blocks: int) -> float:
    """Cycles of a block's start, of its way through memory, and of its epilogue by NEON."""
    return 24.0 + 8.0 * pixels * channel_blocks
