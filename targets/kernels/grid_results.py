"""A block's sums to memory: through shared memory, so that threads read and write whole parts.

The threads that hold the sums of a tile hold a few of each row. They leave them in the shared
memory that slices came through, and take up again what makes 16 bytes of the result: as many
neighbouring channels as these are. A thread keeps its channels, and what the epilogue knows of
them, while it goes down the rows; residuals are read as wide as results are written. Where rows do
not begin at multiples of 16 bytes, parts are as wide as rows allow.

Four neighbouring sums (16 bytes) of a row are exchanged with others by the row and their place, so
that neither the threads that leave sums nor those that take them up meet in a bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.spec import NUMPY, SIZE, Epilogue

PART = 16
"""Bytes of one access."""

BLOCK = 16
"""Rows that are left together."""

_BANK_WORDS = 4
"""Of one exchange."""


@dataclass(frozen=True)
class Run:
    """Neighbouring sums of a row that a thread holds.

    Attributes:
        number: of the first among the thread's sums.
        count: 1, or 2 from an even column on.
        group: of the rows, an expression; groups lie one below the other.
        block: of the group's rows, 16 each.
        row: of the block, an expression.
        column: of the tile, an expression.
    """

    number: int
    count: int
    group: Any
    block: int
    row: Any
    column: Any


@dataclass(frozen=True)
class Place:
    """A tile and where its results go.

    Attributes:
        rows: of the tile, ``groups`` times as many as a group has.
        groups: of rows.
        columns: of the tile.
        threads: of the block.
        shared_bytes: that it may use.
        sum_type: of its sums.
        pixels: rows of the result.
        channels: columns of the result.
        first: first row and column of the tile, expressions.
        product: number of the product, an expression; results of one lie behind the other.
    """

    rows: int
    groups: int
    columns: int
    threads: int
    shared_bytes: int
    sum_type: str
    pixels: int
    channels: int
    first: tuple[Any, Any]
    product: Any = 0

    @property
    def passes(self) -> int:
        """In how many turns the sums fit in shared memory."""
        blocks = self.rows // self.groups // BLOCK
        fitting = (n for n in range(1, blocks + 1) if blocks % n == 0)
        return next(n for n in fitting if self.rows * self.columns * 4 <= n * self.shared_bytes)

    def lanes(self, dtype: str) -> int:
        """Neighbouring results of a type that are one access everywhere."""
        size = SIZE[dtype]
        return gcd(PART, self.channels * size) // size


@dataclass(frozen=True)
class _Line:
    """One access: its row of all products, its first result, and where its sums were left."""

    row: Any
    index: Any
    left_row: Any
    left_column: Any


def _pieces(buffer: Any, lanes: int) -> Iterator[tuple[int, int]]:
    """Accesses to ``lanes`` elements: where each starts, and its bytes."""
    size = int(buffer.dtype.itemsize)
    each = min(PART, lanes * size)
    return ((at, each) for at in range(0, lanes, each // size))


class Results:
    """Emits what brings a tile's sums to memory.

    Args:
        kb: a ``GridBuilder`` whose shared memory is the tile's.
        place: the tile.
        runs: all sums of a thread.
        sums: the array that holds them.
    """

    def __init__(self, kb: Any, place: Place, runs: Callable[[], Iterator[Run]], sums: Any) -> None:
        self.kb, self.place, self.runs, self.sums = kb, place, runs, sums
        self.left = kb.overlay(place.sum_type, place.shared_bytes // 4, "left")

    def store(self, y: Any, start: Any) -> None:
        """Stores the sums as they are, from element ``start`` of ``y`` on."""
        lanes = self.place.lanes("f32")
        for turn in range(self.place.passes):
            self._leave(turn)
            with self._column(lanes) as column, self._lines(turn, lanes, column) as line:
                held = self.kb.alloc(self.place.sum_type, lanes, "held")
                self._take(held, line)
                self._copy_out(y, start + line.index, held, lanes)

    def finish(
        self, at: epilogue.Pointers, out: Epilogue, terms: Any = None, own_bias: bool = False
    ) -> None:
        """Finishes and stores results.

        Args:
            at: what the epilogue reads and writes.
            out: the epilogue.
            terms: int32 that are added to the sums of each row of each product.
            own_bias: whether each product has biases of its own.
        """
        lanes = self.place.lanes(out.out)
        for turn in range(self.place.passes):
            self._leave(turn)
            with self._column(lanes) as column:
                bias_at = column + self.place.product * self.place.channels if own_bias else column
                held = replace(at, bias=self._held(at.bias, bias_at, lanes))
                for name in ("multiplier", "ratio"):
                    if getattr(at, name) is not None:
                        factors = self._held(getattr(at, name), column, lanes)
                        held = replace(held, **{name: factors})
                with self._lines(turn, lanes, column) as line:
                    self._finish_line(at, held, out, terms, line, lanes)

    def _finish_line(
        self, at: Any, held: Any, out: Epilogue, terms: Any, line: _Line, lanes: int
    ) -> None:
        """One access of results; ``held``: with the numbers of its channels."""
        kb = self.kb
        sums = kb.alloc(self.place.sum_type, lanes, "held")
        self._take(sums, line)
        results = kb.alloc(NUMPY[out.out], lanes, "results")
        residual = None
        if at.residual is not None:
            residual = self._held(at.residual, line.index, lanes)
        local = replace(held, y=results, residual=residual)
        term = None if terms is None else kb.let(kb.load(terms, line.row), "term")
        for lane in range(lanes):
            total = kb.load(sums, lane)
            total = total if term is None else total + term
            channel = epilogue.Channels(kb.load(held.bias, lane))
            if held.multiplier is not None:
                channel.multiplier = kb.load(held.multiplier, lane)
            if held.ratio is not None:
                channel.ratio = kb.load(held.ratio, lane)
            epilogue.finish(kb, local, channel, total, lane, 1, out.out)
        self._copy_out(at.y, line.index, results, lanes)

    # -- sums in shared memory --------------------------------------------------------------------

    def _blocks(self) -> int:
        """Blocks of a group's rows in one turn."""
        return self.place.rows // self.place.groups // BLOCK // self.place.passes

    def _word(self, row: Any, column: Any) -> Any:
        """Where the sum of a row and column is left."""
        units = self.place.columns // _BANK_WORDS
        turned = tir.tirx.bitwise_xor(row % 4 * 2, column // 32 % 4) if units > 4 else row % 2 * 2
        unit = tir.tirx.bitwise_xor(column // _BANK_WORDS, turned)
        return row * self.place.columns + unit * _BANK_WORDS + column % _BANK_WORDS

    def _leave(self, turn: int) -> None:
        """Leaves the sums of a turn, when all are done with what was there before."""
        kb, blocks = self.kb, self._blocks()
        kb.sync()
        for run in self.runs():
            block = run.block - turn * blocks
            if 0 <= block < blocks:
                row = (run.group * blocks + block) * BLOCK + run.row
                to = self._word(kb.let(row, "row"), kb.let(run.column, "column"))
                if run.count == 1:
                    kb.store(self.left, to, kb.load(self.sums, run.number))
                else:
                    source = kb.address(self.sums, run.number)
                    kb.call("dlcc_store8", kb.address(self.left, to), source)
        kb.sync()

    def _take(self, held: Any, line: _Line) -> None:
        """Takes up the sums of one access."""
        lanes = int(held.shape[0])
        each = min(lanes, _BANK_WORDS)
        for lane in range(0, lanes, each):
            place = self._word(line.left_row, line.left_column + lane)
            self._copy_in(held, lane, self.left, place, each)

    # -- accesses ---------------------------------------------------------------------------------

    @contextmanager
    def _column(self, lanes: int) -> Iterator[Any]:
        """The first channel that a thread stores, where there is one."""
        kb, place = self.kb, self.place
        part = kb.thread % (place.columns // lanes)
        column = kb.let(place.first[1] + part * lanes, "column")
        inside = column < place.channels if place.channels % place.columns else True
        with kb.when(inside):
            yield column

    @contextmanager
    def _lines(self, turn: int, lanes: int, column: Any) -> Iterator[_Line]:
        """The rows that a thread stores, one after the other."""
        kb, place, blocks = self.kb, self.place, self._blocks()
        parts = place.columns // lanes
        at_once, rows = place.threads // parts, place.groups * blocks * BLOCK
        with kb.loop(0, -(-rows // at_once), "step") as step:
            left = kb.let(kb.thread // parts + step * at_once, "left_row")
            each = place.rows // place.groups
            row = left
            if place.passes > 1:
                row = left // (blocks * BLOCK) * each + left % (blocks * BLOCK)
                row = row + turn * blocks * BLOCK
            row = kb.let(place.first[0] + row, "row")
            tests = [row < place.pixels] if place.pixels % place.rows else []
            if rows % at_once:
                tests.append(left < rows)
            with kb.when(tir.tirx.all(*tests) if tests else True):
                line = kb.let(row + place.product * place.pixels, "line")
                index = kb.let(line * place.channels + column, "index")
                yield _Line(line, index, left, kb.let(column - place.first[1], "left_column"))

    def _held(self, buffer: Any, index: Any, lanes: int) -> Any:
        """``lanes`` elements from ``index`` on in an array of the thread."""
        held = self.kb.alloc(str(buffer.dtype), lanes, str(buffer.name))
        self._copy_in(held, 0, buffer, index, lanes)
        return held

    def _copy_in(self, held: Any, lane: int, buffer: Any, index: Any, lanes: int) -> None:
        kb = self.kb
        if lanes == 1:
            kb.store(held, lane, kb.load(buffer, index))
            return
        for at, width in _pieces(buffer, lanes):
            kb.call(
                f"dlcc_load{width}", kb.address(held, lane + at), kb.address(buffer, index + at)
            )

    def _copy_out(self, buffer: Any, index: Any, held: Any, lanes: int) -> None:
        kb = self.kb
        if lanes == 1:
            kb.store(buffer, index, kb.load(held, 0))
            return
        for at, width in _pieces(buffer, lanes):
            kb.call(f"dlcc_store{width}", kb.address(buffer, index + at), kb.address(held, at))
