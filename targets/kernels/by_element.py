"""Register blocks of ARM's float32 kernels: which fit, and what a step of one costs.

``fmla v.4s, v.4s, v.s[i]`` multiplies a vector by one element of a register, so four numbers of a
pixel's run are loaded at once and serve four steps.
"""

from __future__ import annotations

from math import ceil

from targets.kernels.gemm import Gemm, Unit

_MOST_PIXELS = 14


def shapes(gemm: Gemm, unit: Unit) -> list[tuple[int, int, int]]:
    """Register blocks that fit: (rows, columns, channel blocks)."""
    blocks = ceil(gemm.n / unit.lanes)
    made = []
    for nr in sorted({min(nr, blocks) for nr in (1, 2, 3, 4, 6, 8)}):
        for m in range(1, most_pixels(unit, nr) + 1):
            for height in range(1, min(gemm.rows, m) + 1):
                if m % height == 0 and m // height <= gemm.cols:
                    made.append((height, m // height, nr))
    return made


def most_pixels(unit: Unit, nr: int) -> int:
    """Pixels by ``nr`` channel blocks that fit the registers: each has a register of its own."""
    return min((unit.registers - unit.spare - nr) // (nr + 1), _MOST_PIXELS)


def step_cycles(unit: Unit, m: int, nr: int) -> float:
    """Cycles of one reduction step of a block on two vector pipes and one for loads."""
    each = 1 if unit.fused else 2
    widening = nr if unit.bf16 else 0
    arithmetic = 0.5 * (each * m * nr + widening)
    loads = m / unit.elements + nr
    return max(arithmetic, loads, 4.0) + 0.1 * loads
