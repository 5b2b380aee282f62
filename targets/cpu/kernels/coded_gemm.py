"""What an implicit GEMM whose weights are codes stores, needs and costs beside the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from targets.cpu.isa import CLOCK, Isa
from targets.cpu.kernels.amx_codes import SLOTS
from targets.cpu.kernels.blocking import choose_blocking
from targets.cpu.kernels.code_panel import Form, Panel, code_tables, coded_piece, pack_codes
from targets.cpu.kernels.gemm import Gemm, Unit
from targets.cpu.kernels.packed_bits import Codes
from targets.cpu.kernels.tiles import tile_shape

NEAR_PANEL = 24 << 10
"""Bytes of a panel that stays in the first-level cache."""

NEAR_STORE, FAR_STORE = 0.5, 2.5
"""Cycles of a vector beyond its look-ups: in the first-level cache, and in the second one, whose
lines are read before they are written."""

BESIDE_TILES = 0.15
"""Part of the unpacking that takes time although the tile unit is what the kernel waits for."""


def _turns(gemm: Gemm, unit: Unit) -> int:
    """Blocks of pixels that take the same channels."""
    blocking, _ = choose_blocking(gemm, unit)
    return gemm.images * blocking.rows.count * blocking.cols.count


def _panel_bytes(gemm: Gemm, unit: Unit) -> int:
    """Bytes of the weights of a group of channel blocks."""
    blocking, _ = choose_blocking(gemm, unit)
    return blocking.channels.first[1] * coded_piece(gemm, unit, "panel")


def _form(gemm: Gemm, unit: Unit, look_up: float) -> Form:
    """What is unpacked at a time; ``look_up``: cycles of a vector."""
    if unit.kind == "amx":
        return "tiles"
    store = NEAR_STORE if _panel_bytes(gemm, unit) <= NEAR_PANEL else FAR_STORE
    each_time = _turns(gemm, unit) * (look_up + NEAR_STORE)
    return "steps" if each_time < look_up + store and not gemm.pixel_bundles else "panel"


@dataclass(frozen=True)
class CodedGemm:
    """A GEMM and the codes of its weights."""

    gemm: Gemm
    unit: Unit
    codes: Codes
    panel: Panel

    @staticmethod
    def of(gemm: Gemm, unit: Unit, codes: Codes, isa: Isa) -> CodedGemm:
        """For one instruction set.

        Signs take two bits where runs are filled up to whole steps, with zeros.
        """
        if not codes.has_zero and gemm.run % unit.k:
            codes = Codes.signed(2)
        form = _form(gemm, unit, Panel.of("panel", codes, isa).cycles)
        return CodedGemm(gemm, unit, codes, Panel.of(form, codes, isa))

    @property
    def piece(self) -> int:
        """Bytes of weights that are coded by themselves."""
        return coded_piece(self.gemm, self.unit, self.panel.form)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weights as the dense kernel reads them."""
        blocks = self.gemm.groups * ceil(self.gemm.n / self.unit.lanes)
        return blocks * coded_piece(self.gemm, self.unit, "panel")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the codes."""
        return self.dense_bytes // self.piece * self.panel.chunks(self.piece) * self.panel.stored

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer that a thread unpacks to."""
        blocking, _ = choose_blocking(self.gemm, self.unit)
        if self.panel.form == "panel":
            return _panel_bytes(self.gemm, self.unit) + self.panel.chunk
        if self.panel.form == "steps":
            return blocking.channels.first[1] * self.panel.chunk
        turn = tile_shape(self.gemm, blocking).turn
        return SLOTS * turn * self.panel.chunks(self.piece) * self.panel.chunk

    @property
    def seconds(self) -> float:
        """Predicted seconds of unpacking codes that are close by."""
        vectors, cycles = self.dense_bytes / self.panel.vector, self.panel.cycles + NEAR_STORE
        if self.panel.form == "panel":
            far = _panel_bytes(self.gemm, self.unit) > NEAR_PANEL
            return vectors * (self.panel.cycles + (FAR_STORE if far else NEAR_STORE)) / CLOCK
        part = BESIDE_TILES if self.panel.form == "tiles" else 1.0
        return _turns(self.gemm, self.unit) * vectors * cycles * part / CLOCK

    def constants(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """From weights as :func:`gemm.pack_weights` packs them for the dense kernel."""
        stored = pack_codes(packed.reshape(-1, self.piece), self.codes, self.panel)
        return {"weight": stored, "tables": code_tables(self.codes, self.panel)}
