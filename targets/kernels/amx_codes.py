"""Tiles of weights unpacked from codes a few steps before the tile unit loads them.

While the tile unit multiplies, the vector unit has little to do: it unpacks the weights of a coming
step into a ring of tiles in the first-level cache. They are unpacked again for each block of
pixels. A whole panel (:mod:`code_panel`) would be larger than that cache, and writing it to the
second level takes longer than unpacking.

Positions count the steps of all turns of a block of pixels; after the last one comes the first
again, of the next block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlcc import tir
from targets.kernels.code_panel import Unpacking

DISTANCE = 3
"""Steps between unpacking and use: a tile load waits until all its stores are in the cache."""

SLOTS = 4
"""Steps that the ring holds: a power of two above the distance. With eight of them, loads would
wait for stores of other tiles that lie a page of 4 KB apart."""


@dataclass
class TileRing:
    """The ring of one group of channel blocks.

    Attributes:
        unpacking: parameters and tables.
        steps: of a turn; ``turns``: of a block of pixels.
        count: channel blocks of the group; ``turn``: of a turn, at most.
        first: first channel block of the layer that the group takes (an expression).
    """

    unpacking: Unpacking[Any]
    steps: int
    turns: int
    count: int
    turn: int
    first: Any
    used: Any = None
    tables: Any = field(default_factory=list)

    @property
    def kb(self) -> tir.KernelBuilder:
        """The kernel."""
        return self.unpacking.kb

    @property
    def chunks(self) -> int:
        """Chunks of a tile."""
        return self.unpacking.chunks

    @property
    def tile(self) -> int:
        """Bytes of a tile in the ring."""
        return int(self.chunks * self.unpacking.panel.chunk)

    def start(self) -> None:
        """Fills the ring for the first steps of the first block."""
        kb = self.kb
        self.tables = self.unpacking.load_tables(self.first)
        self.used = kb.alloc("int32", 1)
        kb.store(self.used, 0, kb.const(0, "int32"))
        with kb.loop(0, DISTANCE, "early") as position:
            for part in range(self.turn * self.chunks):
                self.unpack(position, position, part)

    def begin_turn(self) -> Any:
        """The slot of the turn's first step, before it is reduced to the ring's length."""
        slot = self.kb.let(self.kb.load(self.used, 0), "slot")
        self.kb.store(self.used, 0, slot + self.steps)
        return slot

    def place(self, slot: Any, member: int) -> Any:
        """Where the tile of the turn's block ``member`` lies."""
        return (tir.tirx.bitwise_and(slot, SLOTS - 1) * self.turn + member) * self.tile

    def source(self, position: Any, member: int) -> Any:
        """Where the codes of the turn's block ``member`` of a position start."""
        position = self.kb.let(position, "position")
        position = tir.tirx.truncmod(position, self.turns * self.steps)
        turn, step = (f(position, self.steps) for f in (tir.tirx.truncdiv, tir.tirx.truncmod))
        last = tir.tirx.IntImm("int32", self.count - 1)
        block = self.first + tir.tirx.min(turn * self.turn + member, last)
        return (block * self.steps + step) * (self.chunks * self.unpacking.panel.stored)

    def unpack(self, position: Any, slot: Any, part: int) -> None:
        """Part ``part`` of ``turn * chunks``, of the step at ``position``, into a slot."""
        kb, panel = self.kb, self.unpacking.panel
        member, chunk = divmod(part, self.chunks)
        get = kb.let(self.source(position, member) + chunk * panel.stored, "codes_at")
        put = kb.let(self.place(slot, member) + chunk * panel.chunk, "tile_at")
        self.unpacking.chunk(self.tables, get, put)

    def share(self, turn: int, step: Any, slot: Any, done: int, products: int) -> None:
        """What belongs after product ``done`` of ``products`` of a step; ``slot``: the step's."""
        parts = self.turn * self.chunks
        for part in range(parts * (done - 1) // products, parts * done // products):
            position = step + (turn * self.steps + DISTANCE)
            self.unpack(position, slot + DISTANCE, part)
