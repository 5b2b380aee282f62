"""Look-ups of float32 numbers in tables of up to some hundred entries, one for each lane.

With AVX-512 a table is permuted: ``vpermi2ps`` looks up 32 numbers at once, and the index's upper
bits select among several such. AVX2 gathers the numbers from memory. AArch64 has neither, but loads
that take an index: a number at a time.
"""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.isa import Isa

_PERMUTE = "llvm.x86.avx512.permvar.sf.512"
_PERMUTE_TWO = "llvm.x86.avx512.vpermi2var.ps.512"
_GATHER = "llvm.x86.avx2.gather.d.ps.256"

LANES = (8, 16)
"""Lanes of x86's vectors that there are instructions for."""


def look_up_lanes(isa: Isa) -> int:
    """Numbers that are looked up together; 0: it cannot be done."""
    if isa.arch == "x86":
        return isa.lanes if isa.lanes in LANES else 0
    return 1 if isa.arch == "aarch64" else 0


def load_table(kb: tir.KernelBuilder, source: Any, at: Any, entries: int, lanes: int) -> list[Any]:
    """The vectors of the table at ``at``; none where it is gathered from."""
    if lanes < 16:
        return []
    return [kb.let(kb.load(source, at + i, lanes), "table") for i in range(0, entries, lanes)]


def look_up(
    kb: tir.KernelBuilder, source: Any, at: Any, table: list[Any], index: Any, entries: int
) -> Any:
    """What a table of ``entries`` numbers, a power of two, holds for the lower bits of each lane.

    Args:
        kb: the kernel.
        source: where the table lies, from ``at``.
        at: its first element.
        table: its vectors, by :func:`load_table`.
        index: int32 lanes.
        entries: at least 16.
    """
    lanes = tir.lanes_of(index)
    if not table:
        index = tir.tirx.bitwise_and(index, kb.const(entries - 1, "int32", lanes))
        index = kb.let(index, "index")
        return kb.load(source, at + index) if lanes == 1 else _gathered(kb, source, at, index)
    index = kb.let(index, "index")
    if len(table) == 1:
        return kb.pure(_PERMUTE, "float32", lanes, table[0], index)
    found = [
        kb.pure(_PERMUTE_TWO, "float32", lanes, table[i], index, table[i + 1])
        for i in range(0, len(table), 2)
    ]
    upper = 32
    while len(found) > 1:
        bit = tir.tirx.bitwise_and(index, kb.const(upper, "int32", lanes))
        chosen = bit != kb.const(0, "int32", lanes)
        found = [
            kb.let(tir.tirx.Select(chosen, found[i + 1], found[i]), "found")
            for i in range(0, len(found), 2)
        ]
        upper *= 2
    return found[0]


def _gathered(kb: tir.KernelBuilder, source: Any, at: Any, index: Any) -> Any:
    lanes = tir.lanes_of(index)
    everywhere = kb.reinterpret(kb.const(-1, "int32", lanes), "float32", lanes)
    zero, scale = kb.const(0.0, "float32", lanes), kb.const(4, "int8")
    address = kb.address(source, at)
    found = kb.pure(_GATHER, "float32", lanes, zero, address, index, everywhere, scale)
    return kb.let(found, "found")
