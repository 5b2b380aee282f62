"""Panels of codes on ARM: as :mod:`code_panel`, in the order in which ARM's register blocks read.

What is coded by itself is a panel of as many channel blocks as a register block has
(:func:`arm_frame.panels`), one stream of bytes, which ``tbl`` unpacks sixteen at a time. A chunk
has eight vectors, whatever the width of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.code_panel import ByteUnpacking, Panel, pack_codes
from targets.kernels.packed_bits import Codes

VECTOR = 16
"""Bytes of a register."""

_GRAIN = 8
"""Vectors of a chunk."""

_HALF = 4
"""Bits of half a byte."""


@dataclass(frozen=True)
class ArmPanel(Panel):
    """Codes that stand for bytes, in streams.

    Attributes:
        block: weights of a channel block.
        blocks: channel blocks of a group.
        together: of a panel; the last one of a group may have fewer.
    """

    block: int
    blocks: int
    together: int

    @property
    def grain(self) -> int:
        """Vectors of a chunk."""
        return _GRAIN

    @property
    def cycles(self) -> float:
        """Of a vector, on two pipes."""
        halves = 2.0 * sum(width for width, _ in self.planes) / _GRAIN
        return 0.5 * (2 * len(self.planes) - 1 + halves)

    @property
    def panels(self) -> list[int]:
        """Weights of each panel of a group."""
        starts = range(0, self.blocks, self.together)
        return [min(self.together, self.blocks - at) * self.block for at in starts]

    @property
    def group_bytes(self) -> int:
        """Bytes of the codes of a group."""
        return sum(self.chunks(size) for size in self.panels) * self.stored


def pack_streams(weights: np.ndarray, codes: Codes, panel: ArmPanel) -> np.ndarray:
    """Weights [groups, panel after panel], int8, as uint8 [groups, bytes]."""
    ends = np.cumsum(panel.panels)
    made = [
        pack_codes(weights[:, end - size : end], codes, panel).reshape(len(weights), -1)
        for size, end in zip(panel.panels, ends, strict=True)
    ]
    return np.concatenate(made, axis=1)


class ArmUnpacking(ByteUnpacking):
    """Codes to whole bytes by ``tbl``."""

    panel: ArmPanel

    def ensure(self, group: Any, first: Any, count: Any) -> None:
        """Unpacks panel ``group`` of all groups', unless the buffer holds it."""
        kb, panel = self.kb, self.panel
        with kb.when(kb.load(self.current, 0) != group):
            full = panel.chunks(panel.panels[0])
            start: Any = group * (full * panel.stored)
            panels = ceil(panel.blocks / panel.together)
            if panel.group_bytes != panels * full * panel.stored:
                ordinal = tir.tirx.truncdiv(group, panels)
                start = start - ordinal * (panels * full * panel.stored - panel.group_bytes)
            get, tables = kb.let(start, "get"), self.load_tables(first)
            weights = count * panel.block + (panel.chunk - 1)
            chunks = full if isinstance(count, int) else tir.tirx.truncdiv(weights, panel.chunk)
            with kb.loop(0, chunks, "chunk") as chunk:
                at = kb.let(get + chunk * panel.stored, "codes_at")
                self.chunk(tables, at, kb.let(chunk * panel.chunk, "panel_at"))
            kb.store(self.current, 0, group)

    def load_tables(self, block: Any) -> list[list[Any]]:
        """As unsigned bytes."""
        kb = self.kb
        return [
            [kb.let(kb.reinterpret(table, "uint8", VECTOR), "table") for table in tables]
            for tables in super().load_tables(block)
        ]

    def fetch(self, get: Any) -> None:
        """Nothing: codes are one stream, which the hardware follows."""

    def _halves(self, raw: Any) -> tuple[Any, Any]:
        """A shift of bytes leaves nothing else in them."""
        kb = self.kb
        raw = kb.let(raw, "codes")
        low = tir.tirx.bitwise_and(raw, kb.const((1 << _HALF) - 1, "uint8", VECTOR))
        high = tir.tirx.shift_right(raw, kb.const(_HALF, "uint8", VECTOR))
        return kb.let(low, "half"), kb.let(high, "half")

    def _looked_up(self, table: Any, index: Any) -> Any:
        return self.kb.reinterpret(tir.neon.look_up([table], index), "int8", VECTOR)
