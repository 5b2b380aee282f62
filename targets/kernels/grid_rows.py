"""Rows whose numbers depend on sums over them, on a GPU: the threads of a block share rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dlcc import tir
from dlcc.program import Launch
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine

_WARP = 32
_MOST_THREADS = 256
_ROW_SECONDS = 1.5e-6
_BYTES_PER_SECOND = 5e11
_ELEMENT_CYCLES = 40
"""That a thread waits for one element of those it reads in turn, over all passes."""


@dataclass(frozen=True)
class View:
    """Where rows lie: element p of row (o, i) is at ``o * outer_stride + i * inner_stride +
    p // run * step + p % run``.

    Attributes:
        length: elements of a row.
        outer: number of o; ``inner``: of i.
        beside: whether rows of neighbouring i are neighbours, element by element; a block takes
            several of them then.
    """

    length: int
    outer: int
    outer_stride: int
    inner: int = 1
    inner_stride: int = 0
    run: int = 1
    step: int = 0
    beside: bool = False

    @staticmethod
    def rows(count: int, length: int) -> View:
        """Rows of neighbouring elements."""
        return View(length, count, length, run=length)

    @staticmethod
    def of(outer: int, length: int, inner: int) -> View:
        """The middle axis of a row-major ``[outer, length, inner]``."""
        if inner == 1:
            return View.rows(outer, length)
        return View(length, outer, length * inner, inner, 1, 1, inner, beside=True)

    @property
    def count(self) -> int:
        """Rows."""
        return self.outer * self.inner

    @property
    def together(self) -> int:
        """Rows of a block, a power of two."""
        return min(_WARP, 1 << (self.inner - 1).bit_length()) if self.beside else 1

    @property
    def depth(self) -> int:
        """Threads of a row, a power of two."""
        depth = _WARP // self.together
        while depth < min(self.length // 2, _MOST_THREADS // self.together):
            depth *= 2
        return depth

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.together * self.depth

    @property
    def blocks(self) -> int:
        """Blocks of all rows."""
        return self.outer * -(-self.inner // self.together)

    @property
    def code(self) -> View:
        """What of it is part of the code."""
        return replace(self, outer=1)

    def launch(self, shared_bytes: int) -> Launch:
        """A kernel of :class:`BlockRow`."""
        return Launch((self.blocks, 1, 1), (self.threads, 1, 1), shared_bytes)


def rows_cost(view: View, machine: Machine) -> float:
    """Predicted seconds of a pass over all rows, each read a few times."""
    waves = -(-view.blocks // (8 * machine.multiprocessors))
    turns = -(-view.length // view.depth) * _ELEMENT_CYCLES / machine.clock
    moved = 12 * view.count * view.length / _BYTES_PER_SECOND
    return LAUNCH_SECONDS + waves * (_ROW_SECONDS + turns) + moved


class BlockRow:
    """Emits a kernel with a block for each row, or for some neighbouring ones.

    Attributes:
        kb: the builder; parameters are declared before :meth:`begin`.
        outer: o of the thread's row; ``inner``: its i.
    """

    def __init__(self, key: str, view: View) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.view, self.length, self.threads = view, view.length, view.threads
        self.kb = GridBuilder(key, self.threads)
        self.outer: Any = None
        self.inner: Any = 0
        self._start: Any = None
        self._stores: Any = True
        self._lane: Any = self.kb.thread
        self._shared: dict[str, Any] = {}

    def begin(self) -> None:
        """The row of this thread; where a block has more than there are, the last one again."""
        kb, view, together = self.kb, self.view, self.view.together
        if view.inner == 1:
            self.outer = kb.block
            self._start = kb.let(kb.block * view.outer_stride, "start")
            return
        tiles = -(-view.inner // together)
        self.outer = kb.let(kb.block // tiles, "outer")
        inner = kb.let(kb.block % tiles * together + kb.thread % together, "inner")
        if view.inner % together:
            self._stores = inner < view.inner
            inner = kb.let(tir.tirx.min(inner, view.inner - 1), "inner")
        self.inner = inner
        start = self.outer * view.outer_stride + inner * view.inner_stride
        self._start = kb.let(start, "start")
        self._lane = kb.let(kb.thread // together, "lane")

    def index(self, place: Any) -> Any:
        """Where an element of the row is."""
        view = self.view
        if view.run >= self.length:
            return self._start + place
        if view.run == 1:
            return self._start + place * view.step
        return self._start + place // view.run * view.step + place % view.run

    @contextmanager
    def elements(self) -> Iterator[Any]:
        """Runs what follows for each element of the thread's, every ``depth``-th: its place."""
        kb, length, depth = self.kb, self.length, self.view.depth
        with kb.loop(0, -(-length // depth), "turn") as turn:
            place = kb.let(turn * depth + self._lane, "place")
            with kb.when(True if length % depth == 0 else place < length):
                yield place

    @contextmanager
    def results(self) -> Iterator[Any]:
        """As :meth:`elements`, for what is stored."""
        with self.kb.when(self._stores), self.elements() as place:
            yield place

    @contextmanager
    def once(self) -> Iterator[None]:
        """Runs what follows in one thread of each row."""
        first = self._lane.equal(0)
        with self.kb.when(first if self._stores is True else tir.tirx.all(first, self._stores)):
            yield

    def folded(
        self, dtype: str, term: Callable[[Any], Any], first: float, join: Callable[[Any, Any], Any]
    ) -> Any:
        """The terms of all places joined, the same in every thread of the row; the order is always
        one.
        """
        kb, together = self.kb, self.view.together
        own = kb.alloc(dtype, 1, "own")
        kb.store(own, 0, kb.const(first, dtype))
        with self.elements() as place:
            value = term(place)
            kb.store(own, 0, join(kb.load(own, 0), value))
        if dtype not in self._shared:
            self._shared[dtype] = kb.shared(dtype, self.threads, "shared")
        shared = self._shared[dtype]
        kb.store(shared, kb.thread, kb.load(own, 0))
        half = self.view.depth // 2
        while half:
            kb.sync()
            with kb.when(kb.thread < half * together):
                pair = kb.load(shared, kb.thread), kb.load(shared, kb.thread + half * together)
                kb.store(shared, kb.thread, join(*pair))
            half //= 2
        kb.sync()
        result = kb.let(kb.load(shared, 0 if together == 1 else kb.thread % together), "result")
        kb.sync()
        return result

    def summed(self, dtype: str, term: Callable[[Any], Any]) -> Any:
        """The sum of the terms of all places."""
        return self.folded(dtype, term, 0, lambda a, b: a + b)
