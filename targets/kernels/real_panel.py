"""Panels of float32 weights: codes of 1, 2 or 4 bits that a permutation looks up.

As :mod:`code_panel`, with float32 numbers for bytes. A chunk is a vector of 32-bit words, one for
each channel of a channel block; a word holds the codes of 32 / bits steps, the first in the lowest
bits. ``vpermps`` finds 16 numbers (8 on AVX2, where two of them and a blend do). What it finds may
be multiplied by a factor of the channel; where a code stands for one of two scales (ternary weights
with scales for either sign), two such products, of which one is 0, are added. Each weight is the
number that decoding gives, to the bit: products of integers below 2^8 and factors round as decoding
does, and adding 0 rounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlcc import tir
from targets.isa import Isa
from targets.kernels.code_panel import Form, Packing, Unpacking
from targets.kernels.gemm import pad_channels

ENTRIES = 16
"""Numbers of a table."""

_WORD = 32

PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
"""By lanes; instruction sets with fewer permute no floats."""


@dataclass(frozen=True, eq=False)
class RealCodes:
    """What codes of a layer stand for: weight = sum of ``tables[t][code] * factors[t][channel]``.

    Attributes:
        bits: of a code: 1, 2 or 4.
        tables: float32 ``[tables, 2^bits]``.
        factors: float32 ``[tables, channels]``; None: the tables hold the weights themselves.
    """

    bits: int
    tables: np.ndarray
    factors: np.ndarray | None = None


@dataclass(frozen=True)
class RealPanel(Packing):
    """Codes that stand for float32 numbers.

    Attributes:
        bits: of a code.
        lanes: of a vector.
        tables: how many; ``scaled``: they have factors.
    """

    bits: int
    lanes: int
    tables: int
    scaled: bool

    word: ClassVar[int] = 4

    @staticmethod
    def of(form: Form, codes: RealCodes, isa: Isa) -> RealPanel:
        """As it suits an instruction set."""
        return RealPanel(form, codes.bits, isa.lanes, len(codes.tables), codes.factors is not None)

    @property
    def vector_weights(self) -> int:
        """One a lane."""
        return self.lanes

    @property
    def chunk(self) -> int:
        """As many vectors as codes fit a word."""
        return _WORD // self.bits * self.lanes

    @property
    def stored(self) -> int:
        """One word a lane."""
        return self.lanes

    @property
    def halves(self) -> int:
        """Vectors of a table."""
        return ENTRIES // self.lanes if 1 << self.bits > self.lanes else 1

    @property
    def cycles(self) -> float:
        """Permutations, and beside them a shift, blends and products."""
        return 0.5 + self.tables * (self.halves + 0.5 * (self.halves > 1) + 0.25 * self.scaled)


def pack_real(codes: np.ndarray, panel: RealPanel) -> np.ndarray:
    """Codes [pieces, weights] (lanes fastest), uint8, as int32 ``[pieces, chunks, lanes]``."""
    pieces, size = codes.shape
    full = np.zeros((pieces, panel.chunks(size) * panel.chunk), np.uint32)
    full[:, :size] = codes
    fields = full.reshape(pieces, -1, _WORD // panel.bits, panel.lanes)
    shifts = (panel.bits * np.arange(_WORD // panel.bits, dtype=np.uint32))[:, None]
    packed: np.ndarray = (fields << shifts).sum(axis=2, dtype=np.uint32)
    return packed.view(np.int32)


def real_tables(codes: RealCodes, panel: RealPanel, groups: int) -> np.ndarray:
    """The constant ``tables``, float32: each table, repeated to fill vectors, then the factors.

    Factors are ``[channel blocks, tables, lanes]``.
    """
    repeats = panel.halves * panel.lanes // codes.tables.shape[1]
    made = [np.tile(codes.tables.astype(np.float32), (1, repeats))]
    if codes.factors is not None:
        rows = [pad_channels(row.astype(np.float32), groups, panel.lanes) for row in codes.factors]
        made.append(np.stack([row.reshape(-1, panel.lanes) for row in rows], axis=1))
    return np.concatenate([part.reshape(-1) for part in made])


class RealUnpacking(Unpacking[RealPanel]):
    """Codes to float32 numbers."""

    @staticmethod
    def pointers(kb: tir.KernelBuilder) -> tuple[Any, Any]:
        """Words and numbers."""
        return kb.pointer("codes", "int32"), kb.pointer("tables", "float32")

    def load_tables(self, block: Any) -> list[list[Any]]:
        """The vectors of each table, with the factors of the channel block."""
        kb, panel, lanes, made = self.kb, self.panel, self.panel.lanes, []
        behind = panel.tables * panel.halves * lanes
        for table in range(panel.tables):
            at = table * panel.halves * lanes
            found = [
                kb.let(kb.load(self.tables, at + half * lanes, lanes), "table")
                for half in range(panel.halves)
            ]
            if panel.scaled:
                place = (block * panel.tables + table) * lanes + behind
                found.append(kb.let(kb.load(self.tables, place, lanes), "factor"))
            made.append(found)
        return made

    def chunk(self, tables: list[list[Any]], get: Any, put: Any) -> None:
        """All steps that a vector of words holds the codes of."""
        kb, panel, lanes = self.kb, self.panel, self.panel.lanes
        self.fetch(get)
        words = kb.let(kb.load(self.codes, get, lanes), "codes")
        for field in range(_WORD // panel.bits):
            index = words
            if field:
                shift = kb.const(panel.bits * field, "int32", lanes)
                index = kb.let(tir.tirx.shift_right(words, shift), "index")
            value = None
            for table in tables:
                part = self._looked_up(table[: panel.halves], words, field, index)
                part = part * table[panel.halves] if panel.scaled else part
                value = part if value is None else value + part
            kb.store(self.y, put + field * lanes, value)

    def _looked_up(self, halves: list[Any], words: Any, field: int, index: Any) -> Any:
        """``vpermps`` reads as many low bits of an index as it needs; the sign bit blends."""
        kb, lanes = self.kb, self.panel.lanes
        found = [kb.pure(PERMUTE[lanes], "float32", lanes, half, index) for half in halves]
        if len(found) == 1:
            return found[0]
        shift = kb.const(_WORD - self.panel.bits * (field + 1), "int32", lanes)
        top = tir.tirx.shift_left(words, shift) if field < _WORD // self.panel.bits - 1 else words
        sign = kb.reinterpret(top, "float32", lanes)
        return kb.pure("llvm.x86.avx.blendv.ps.256", "float32", lanes, *found, sign)
