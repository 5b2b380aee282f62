"""Register blocks of ARM's integer kernels: which fit, and what a step of one costs."""

from __future__ import annotations

from math import ceil

from targets.kernels.gemm import Gemm, Unit

KINDS = frozenset({"mlal", "sdot", "usdot"})
"""Units of ARM for codes."""


def _registers(unit: Unit, m: int, nr: int) -> int:
    """Registers that a block of ``m`` pixels by ``nr`` channel blocks takes."""
    if unit.kind == "mlal":  # a sum for each channel, codes, weights, products, the sign bits
        return m * nr * unit.lanes + m + 1 + (4 if unit.registers > 16 else 2) + 1
    return m * nr + m + 4 + (unit.code_offset > 0)


def shapes(gemm: Gemm, unit: Unit) -> list[tuple[int, int, int]]:
    """Register blocks that fit: (rows, columns, channel blocks)."""
    blocks = ceil(gemm.n / unit.lanes)
    made = []
    for nr in sorted({min(nr, blocks) for nr in (1, 2, 3, 4, 5, 6, 8)}):
        for m in range(1, 13):
            if _registers(unit, m, nr) > unit.registers:
                break
            for height in range(1, min(gemm.rows, m) + 1):
                if m % height == 0 and m // height <= gemm.cols:
                    made.append((height, m // height, nr))
    return made


def step_cycles(unit: Unit, m: int, nr: int) -> float:
    """Cycles of one reduction step of a block on two vector pipes."""
    arithmetic: float
    loads: float
    if unit.kind == "mlal":
        arithmetic, loads = 3 * m * nr * unit.lanes + m, m + nr * unit.lanes
    else:  # four steps share their codes
        arithmetic, loads = m * nr + (unit.code_offset > 0) * m / 4, m / 4 + nr
    return max(0.5 * arithmetic, 0.5 * loads) + 0.1 * loads
