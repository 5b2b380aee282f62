"""The kernel of :mod:`targets.kernels.grid_table`: slices of codes looked up in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels.grid_gemm_code import PART, SLICE, Layer, SimtGemm, Tile

NUMBERS = SLICE // 4
"""Of a slice of a column."""

_FOUR = 4
"""Numbers of a part."""


@dataclass(frozen=True)
class TableTile(Tile):
    """How a layer is cut whose weights are places in a table of ``2^bits`` float32 numbers.

    Attributes:
        bits: of a place: 1, 2, 4 or 8.
        scaled: whether each column has a factor.
    """

    bits: int = 4
    scaled: bool = False

    @property
    def weight_bytes(self) -> int:
        """Of the weights of a slice."""
        return self.columns * NUMBERS * self.bits // 8

    @property
    def copies(self) -> int:
        """Of the table, so that threads of a warp meet in few banks."""
        return min(32, 2048 >> self.bits)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: with a slice that is looked up, and the table."""
        packed = self.stages * (self.rows * SLICE + self.weight_bytes)
        return packed + self.columns * SLICE + 4 * (self.copies << self.bits)

    @property
    def speedup(self) -> float:
        """Less than 1: a look-up takes as long as about 8 products, and serves ``rows`` of them."""
        return 1 / (1 + 8 / self.rows)


def table_function(key: str, layer: Layer, tile: TableTile) -> Callable[[], Any]:
    """As :func:`~targets.kernels.grid_gemm_code.gemm_function`; table and factors follow weight."""
    return lambda: _Table(key, layer, tile).build()


class _Table(SimtGemm):
    """A slice of codes becomes one of numbers, by all threads of a block, before it is multiplied.

    Each number is looked up once for all rows of the tile.
    """

    tile: TableTile

    def _declare(self) -> None:
        self.book = self.kb.pointer("book", "uint32")
        if self.tile.scaled:
            self.factors = self.kb.pointer("factors", "float32")

    def _share_columns(self) -> None:
        kb, tile = self.kb, self.tile
        super()._share_columns()
        self.numbers = kb.shared("uint8", tile.columns * SLICE, "numbers", 128)
        size = tile.copies << tile.bits
        self.table = kb.shared("uint32", size, "table")
        with kb.loop(0, -(-size // tile.threads), "turn") as turn:
            at = kb.let(turn * tile.threads + kb.thread, "at")
            with kb.when(True if size % tile.threads == 0 else at < size):
                kb.store(self.table, at, kb.load(self.book, at // tile.copies))

    def _load_columns(self, depth: Any, stage: Any) -> None:
        self._load_arranged(depth, stage)

    def _columns_memory(self, stage: Any) -> tuple[Any, Any]:
        return self.numbers, 0

    def _multiply(self, stage: Any) -> None:
        kb, tile = self.kb, self.tile
        items = tile.columns * (SLICE // PART)
        with kb.loop(0, -(-items // tile.threads), "turn") as turn:
            item = kb.let(turn * tile.threads + kb.thread, "item")
            with kb.when(True if items % tile.threads == 0 else item < items):
                self._look_up(stage, item // (SLICE // PART), item % (SLICE // PART))
        kb.sync()
        super()._multiply(stage)

    def _look_up(self, stage: Any, column: Any, part: Any) -> None:
        """Four numbers of a column."""
        kb, tile = self.kb, self.tile
        bits, held = tile.bits, kb.alloc("uint32", _FOUR, "numbers")
        start = stage * tile.weight_bytes + column * (NUMBERS * bits // 8)
        first: Any = 0
        if bits >= _FOUR:
            word = kb.alloc("uint32", 1, "codes")
            kb.store(word, 0, kb.const(0, "uint32"))
            source = kb.address(self.b, start + part * (bits // 2))
            kb.call(f"dlcc_load{bits // 2}", kb.address(word, 0), source)
            codes = kb.load(word, 0)
        else:
            codes = kb.cast(kb.load(self.b, start + part * bits // 2), "uint32")
            first = part % 2 * 4 if bits == 1 else 0
        codes = kb.let(kb.cast(codes, "int32"), "codes")
        for i in range(_FOUR):
            code = tir.tirx.shift_right(codes, first + bits * i)
            code = tir.tirx.bitwise_and(code, (1 << bits) - 1)
            place = kb.let(code * tile.copies + kb.thread % tile.copies, "place")
            kb.store(held, i, kb.load(self.table, place))
        to = column * SLICE + self._exchanged(column, part) * PART
        kb.call("dlcc_store16", kb.address(self.numbers, to), kb.address(held, 0))

    def _store(self) -> None:
        kb = self.kb
        for run in self._runs() if self.tile.scaled else ():
            for i in range(run.count):
                factor = kb.load(self.factors, self.first_column + run.column + i)
                scaled = kb.load(self.sums, run.number + i) * factor
                kb.store(self.sums, run.number + i, scaled)
        super()._store()
