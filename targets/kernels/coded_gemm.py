"""What an implicit GEMM whose weights are codes stores, needs and costs beside the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dlcc.lowering.kernel import ARENA_SLACK
from targets.isa import CLOCK, Isa
from targets.kernels.amx_codes import SLOTS
from targets.kernels.arm_panel import VECTOR, ArmPanel, ArmUnpacking, pack_streams
from targets.kernels.blocking import choose_blocking
from targets.kernels.code_panel import (
    ByteUnpacking,
    Form,
    Packing,
    Panel,
    Unpacking,
    code_tables,
    coded_piece,
    pack_codes,
)
from targets.kernels.gemm import Gemm, Unit
from targets.kernels.packed_bits import Codes
from targets.kernels.real_panel import (
    RealCodes,
    RealPanel,
    RealUnpacking,
    pack_real,
    real_tables,
)
from targets.kernels.tiles import tile_shape

NEAR_PANEL = 40 << 10
"""Bytes of a panel that stays in the first-level cache."""

NEAR_STORE, FAR_STORE = 0.5, 2.5
"""Cycles of a vector beyond its look-ups: in the first-level cache, and in the second one, whose
lines are read before they are written."""

HIDDEN_FROM = 6.0
"""Steps of a block from which on the better half of unpacking is hidden behind products of tiles.
With fewer of them the vector unit is busy with the block's epilogue."""


def unpacking_of(panel: Packing) -> type[Unpacking[Any]]:
    """What emits the unpacking."""
    if isinstance(panel, ArmPanel):
        return ArmUnpacking
    return RealUnpacking if isinstance(panel, RealPanel) else ByteUnpacking


def _packing(form: Form, codes: Codes | RealCodes, isa: Isa) -> Panel | RealPanel:
    if isinstance(codes, RealCodes):
        return RealPanel.of(form, codes, isa)
    return Panel.of(form, codes, isa)


def _arm_packing(gemm: Gemm, unit: Unit, codes: Codes) -> ArmPanel:
    """Pieces are the panels that :func:`arm_frame.panels` makes."""
    blocking, _ = choose_blocking(gemm, unit)
    blocks = ceil(gemm.n / unit.lanes)
    block = coded_piece(gemm, unit, "panel")
    return ArmPanel("panel", codes.bits, VECTOR, False, block, blocks, blocking.channels.first[1])


def _turns(gemm: Gemm, unit: Unit) -> int:
    """Blocks of pixels that take the same channels."""
    blocking, _ = choose_blocking(gemm, unit)
    return gemm.images * blocking.rows.count * blocking.cols.count


def _panel_bytes(gemm: Gemm, unit: Unit) -> int:
    """Bytes of the weights of a group of channel blocks."""
    blocking, _ = choose_blocking(gemm, unit)
    size = np.dtype(unit.packed).itemsize
    return blocking.channels.first[1] * coded_piece(gemm, unit, "panel") * size


def _form(gemm: Gemm, unit: Unit, look_up: float) -> Form:
    """What is unpacked at a time; ``look_up``: cycles of a vector."""
    if unit.kind == "amx":
        return "tiles"
    store = NEAR_STORE if _panel_bytes(gemm, unit) <= NEAR_PANEL else FAR_STORE
    each_time = _turns(gemm, unit) * (look_up + NEAR_STORE)
    return "steps" if each_time < look_up + store and not gemm.pixel_bundles else "panel"


@dataclass(frozen=True, eq=False)
class CodedGemm:
    """A GEMM and the codes of its weights."""

    gemm: Gemm
    unit: Unit
    codes: Codes | RealCodes
    panel: Panel | RealPanel

    @staticmethod
    def of(gemm: Gemm, unit: Unit, codes: Codes | RealCodes, isa: Isa) -> CodedGemm:
        """For one instruction set.

        Signs take two bits where runs are filled up to whole steps, with zeros.
        """
        if isinstance(codes, Codes) and not codes.has_zero and gemm.run % unit.k:
            codes = Codes.signed(2)
        if isa.arch != "x86" and isinstance(codes, Codes):
            return CodedGemm(gemm, unit, codes, _arm_packing(gemm, unit, codes))
        form = _form(gemm, unit, _packing("panel", codes, isa).cycles)
        return CodedGemm(gemm, unit, codes, _packing(form, codes, isa))

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.codes.bits

    @property
    def piece(self) -> int:
        """Weights that are coded by themselves."""
        return coded_piece(self.gemm, self.unit, self.panel.form)

    @property
    def weights(self) -> int:
        """Weights, with those that fill up runs and blocks."""
        blocks = self.gemm.groups * ceil(self.gemm.n / self.unit.lanes)
        return blocks * coded_piece(self.gemm, self.unit, "panel")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the codes."""
        if isinstance(self.panel, ArmPanel):
            return self.gemm.groups * self.panel.group_bytes
        each = self.panel.chunks(self.piece) * self.panel.stored * self.panel.word
        return self.weights // self.piece * each

    @property
    def waits_for(self) -> int:
        """Bytes of weights that products may have to wait for.

        With several blocks of pixels the float32 kernel fetches dense weights while it multiplies
        others: codes save it nothing.
        """
        hidden = self.unit.kind == "fma" and self.panel.form == "panel"
        return self.weights * self.panel.word if hidden else self.stored_bytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer that a thread unpacks to."""
        blocking, _ = choose_blocking(self.gemm, self.unit)
        chunk = self.panel.chunk * self.panel.word
        if self.panel.form == "panel":
            ahead = ARENA_SLACK if self.unit.kind == "mlal" else 0  # its loop loads past the last
            return _panel_bytes(self.gemm, self.unit) + chunk + ahead
        if self.panel.form == "steps":
            return blocking.channels.first[1] * chunk
        turn = tile_shape(self.gemm, blocking).turn
        return SLOTS * turn * self.panel.chunks(self.piece) * chunk

    @property
    def seconds(self) -> float:
        """Predicted seconds of unpacking codes that are close by."""
        vectors, cycles = self.weights / self.panel.vector_weights, self.panel.cycles + NEAR_STORE
        if self.panel.form == "panel":
            far = _panel_bytes(self.gemm, self.unit) > NEAR_PANEL
            return vectors * (self.panel.cycles + (FAR_STORE if far else NEAR_STORE)) / CLOCK
        part = 1.0
        if self.panel.form == "tiles":
            steps = self.gemm.runs * ceil(self.gemm.run / self.unit.k)
            part = HIDDEN_FROM / (HIDDEN_FROM + steps)
        return _turns(self.gemm, self.unit) * vectors * cycles * part / CLOCK

    def constants(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """From weights (codes of float32 numbers) as :func:`gemm.pack_weights` packs them."""
        panel, codes = self.panel, self.codes
        if isinstance(panel, ArmPanel):
            assert isinstance(codes, Codes)
            return {
                "weight": pack_streams(packed, codes, panel),
                "tables": code_tables(codes, panel),
            }
        pieces = packed.reshape(-1, self.piece)
        if isinstance(panel, RealPanel):
            assert isinstance(codes, RealCodes)
            tables = real_tables(codes, panel, self.gemm.groups)
            return {"weight": pack_real(pieces, panel), "tables": tables}
        assert isinstance(codes, Codes)
        return {"weight": pack_codes(pieces, codes, panel), "tables": code_tables(codes, panel)}
