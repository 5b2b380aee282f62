"""Register blocks of ARM's integer kernels: which fit, and what a step of one costs."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from targets.kernels import arm_words
from targets.kernels.arm_dot_code import CODES, Loop
from targets.kernels.arm_mlal import PRODUCTS, products
from targets.kernels.arm_mlal_code import VECTOR
from targets.kernels.gemm import Gemm, Unit

KINDS = frozenset({"mlal", "sdot", "usdot", "mmla", "smull"})
"""Units of ARM for codes."""

_WAITING = {1: 2.0, 2: 1.2, 3: 1.05, 4: 1.0}
"""Time that multiplications take where so many stand side by side, each waiting for the last."""

_LATE_LOADS = 4.0
"""Instructions' time that a step waits for its codes, if they are not loaded ahead."""


def _registers(unit: Unit, m: int, nr: int) -> int:
    """Registers that a block of ``m`` pixels by ``nr`` channel blocks takes without spilling."""
    if unit.kind == "mlal":
        return unit.registers + (products(unit, m, nr) is None)
    if unit.kind == "smull":
        return m * nr + m + 6
    return Loop(unit.kind, m, nr, 1, 1, unit.code_offset > 0).registers


def shapes(gemm: Gemm, unit: Unit) -> list[tuple[int, int, int]]:
    """Register blocks that fit: (rows, columns, channel blocks)."""
    blocks = ceil(gemm.n / unit.lanes)
    if unit.kind == "mlal" and gemm.b_image:  # its loop reads one stream of weights
        blocks = 1
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
        halves, vectors = unit.k / PRODUCTS, unit.k / VECTOR
        each = halves + halves / unit.sums
        arithmetic = each * m * nr * unit.lanes + vectors * m
        loop = products(unit, m, nr)
        if loop is not None:
            arithmetic *= _WAITING[loop.pixels * loop.together]
            arithmetic += 0.0 if loop.ahead else _LATE_LOADS
        loads = vectors * (m + nr * unit.lanes / 2)
    elif unit.kind == "smull":
        return arm_words.step_cycles(unit, m, nr)
    else:
        return 0.5 * _instructions(unit, m, nr) * unit.k / CODES
    return 0.5 * (arithmetic + loads)


def _instructions(unit: Unit, m: int, nr: int) -> float:
    """Instructions of a block for 16 codes of each pixel, by the loops of :mod:`arm_dot_code`."""
    loop = Loop(unit.kind, m, nr, 2, 1, unit.code_offset > 0)
    if loop.registers > unit.registers:
        loop = replace(loop, loads=1, times=2)
    return len(loop.code()) / 2


def finish_cycles(unit: Unit, pixels: int, channel_blocks: int) -> float:
    """Cycles of a block's start and epilogue."""
    if unit.kind == "mlal":  # four registers to one
        return 20.0 + 4.5 * pixels * channel_blocks
    return 30.0 + (3.75 if unit.kind == "mmla" else 3.25) * pixels * channel_blocks
