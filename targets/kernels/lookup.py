"""Tables of 256 bytes at vector speed: a function of one u8 code, for whole vectors of codes.

Where the CPU permutes bytes across a register (AVX512_VBMI), the table is four registers:
``vpermi2b`` looks up the low seven bits in either half and the code's top bit selects. AArch64
looks up 64 bytes at a time (tbl4), and leaves what an index past the end has found before (tbx4).
Elsewhere the table is 16 rows of 16 bytes for ``pshufb``, which gives 0 where bit 7 of an index is
set. Subtracting 16 from the codes before each row makes a code of row r hit the rows up to r and no
later one; each row holds the difference (xor) to what the rows before it have added. The trick is
XNNPACK's (``src/x8-lut``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcc import tir
from targets.isa import Isa

_ROWS, _ROW = 16, 16
_PSHUFB = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b"}
_PSHUFB |= {64: "llvm.x86.avx512.pshuf.b.512"}
_VPERMI2B = "llvm.x86.avx512.vpermi2var.qi.512"


def table_constant(table: np.ndarray, isa: Isa) -> np.ndarray:
    """``table``, 256 bytes by code, as :func:`load_table` reads it: flat u8."""
    codes = np.ascontiguousarray(table).view(np.uint8).reshape(-1)
    if isa.byte_permute or isa.arch == "aarch64":
        return codes
    rows = codes.reshape(_ROWS, _ROW)
    steps = rows.copy()
    for r in range(1, _ROWS):
        steps[r] ^= rows[r - 1]
        if r >= 8:  # codes of row r skip the first r - 7 rows: their bit 7 is still set there
            steps[r] ^= steps[r - 8]
    return np.tile(steps, (1, 4 * isa.lanes // _ROW)).reshape(-1)


def load_table(kb: tir.KernelBuilder, table: Any, isa: Isa) -> list[Any]:
    """The vectors of ``table`` (a u8 buffer of :func:`table_constant`), loaded once."""
    lanes = 4 * isa.lanes
    count = 4 if isa.byte_permute else _ROWS
    return [kb.let(kb.load(table, i * lanes, lanes), "row") for i in range(count)]


def lookup(kb: tir.KernelBuilder, rows: list[Any], codes: Any, isa: Isa) -> Any:
    """``table[codes]`` of a full vector of u8 (``4 * isa.lanes``), as u8.

    ``rows``: of :func:`load_table`. Takes 3 instructions with byte permutation, 7 on AArch64, else
    46.
    """
    lanes = tir.lanes_of(codes)
    if isa.arch == "aarch64":
        return _looked_up_by_quarters(kb, rows, kb.let(codes, "codes"))
    if len(rows) != _ROWS:
        codes = kb.let(codes, "codes")
        low, high = (
            kb.pure(_VPERMI2B, "uint8", lanes, rows[i], codes, rows[i + 1]) for i in (0, 2)
        )
        return tir.tirx.Select(codes < kb.const(128, "uint8", lanes), low, high)
    step = kb.const(_ROW, "uint8", lanes)
    index = kb.let(codes, "codes")
    value = kb.pure(_PSHUFB[lanes], "uint8", lanes, rows[0], index)
    for r in range(1, _ROWS):
        # from row 9 on the subtraction saturates: an index that has become negative stays so
        index = index - step if r <= 8 else kb.pure("llvm.ssub.sat", "uint8", lanes, index, step)
        index = kb.let(index, "index")
        part = kb.pure(_PSHUFB[lanes], "uint8", lanes, rows[r], index)
        value = kb.let(tir.tirx.bitwise_xor(value, part), "value")
    return value


def _looked_up_by_quarters(kb: tir.KernelBuilder, rows: list[Any], codes: Any) -> Any:
    """:func:`lookup` with 64 entries at a time: an index below its quarter wraps past the end."""
    found = None
    for first in range(0, len(rows), 4):
        shift = kb.const(first * _ROW, "uint8", _ROW)
        at = kb.let(codes - shift, "at") if first else codes
        found = kb.let(tir.neon.look_up(rows[first : first + 4], at, found), "found")
    return found


def lookup_function(name: str, elements: int, item: int, isa: Isa) -> Any:
    """The kernel of an elementwise function of u8 codes: parameters x, table, y.

    ``elements`` codes, ``item`` (a multiple of a vector) of them a work item. The last vector of
    the last item starts earlier where it would reach over the end; fewer codes than a vector go
    through a buffer on the stack.
    """
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    table = kb.pointer("table", "uint8")
    y = kb.pointer("y", "uint8", align=1)
    lanes = 4 * isa.lanes
    rows = load_table(kb, table, isa)
    if elements < lanes:
        with kb.loop(kb.begin, kb.end, "item"):
            codes = kb.load_first(x, 0, lanes, elements)
            kb.store_first(y, 0, kb.let(lookup(kb, rows, codes, isa), "y"), elements)
        return kb.build()
    stop = tir.tirx.min(kb.end * item, tir.tirx.IntImm("int32", elements))
    vectors = kb.let(tir.tirx.truncdiv(stop - kb.begin * item + (lanes - 1), lanes), "vectors")
    with kb.loop(0, vectors, "v") as v:
        at = tir.tirx.min(kb.begin * item + v * lanes, tir.tirx.IntImm("int32", elements - lanes))
        at = kb.let(at, "at")
        kb.store(y, at, lookup(kb, rows, kb.load(x, at, lanes), isa))
    return kb.build()
