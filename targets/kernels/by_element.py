"""Register blocks of ARM's float kernels: which fit, and what a step of one costs.

``fmla v.4s, v.4s, v.s[i]`` multiplies a vector by one element of a register, so four numbers of a
pixel's run are loaded at once and serve four steps; ``fmla v.8h`` eight (:mod:`arm_half`).
"""

from __future__ import annotations

from math import ceil

from targets.kernels.gemm import HALF_TERMS, Gemm, Unit

_MOST_PIXELS = 14

_WIDENING = 4
"""Instructions that add a register of sums in half precision to two of sums in float32."""


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
    """Pixels by ``nr`` channel blocks that fit the registers: each has registers of its own.

    Eight sums are one register in half precision, beside two in float32.
    """
    each = 3 if unit.kind == "half" else 1
    return min((unit.registers - unit.spare - nr) // (each * nr + 1), _MOST_PIXELS)


def step_cycles(unit: Unit, m: int, nr: int) -> float:
    """Cycles of one reduction step of a block on two vector pipes and one for loads."""
    each = 1 if unit.fused else 2
    widening = nr + m / unit.elements if unit.short else 0.0
    if unit.kind == "half":  # of the sums, not of the weights
        widening = m * nr * _WIDENING / HALF_TERMS
    arithmetic = 0.5 * (each * m * nr + widening)
    loads = m / unit.elements + nr
    return max(arithmetic, loads, 4.0) + 0.1 * loads
