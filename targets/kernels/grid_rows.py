"""Rows whose numbers depend on sums over them, on a GPU: the threads of a block share a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine

_MOST_THREADS = 256
_ROW_SECONDS = 1.5e-6
_BYTES_PER_SECOND = 5e11


def threads_of(length: int) -> int:
    """Threads for a row of ``length`` elements, a power of two."""
    threads = 32
    while threads < min(length // 2, _MOST_THREADS):
        threads *= 2
    return threads


def rows_cost(rows: int, length: int, machine: Machine) -> float:
    """Predicted seconds of a pass over all rows, each read a few times."""
    waves = -(-rows // (8 * machine.multiprocessors))
    return LAUNCH_SECONDS + waves * _ROW_SECONDS + 12 * rows * length / _BYTES_PER_SECOND


class BlockRow:
    """Emits a kernel with a block for each row of ``length`` neighbouring elements.

    Attributes:
        kb: the builder; parameters are declared before :meth:`begin`.
        start: index of the row's first element.
    """

    def __init__(self, key: str, length: int) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.length, self.threads = length, threads_of(length)
        self.kb = GridBuilder(key, self.threads)
        self.start: Any = None
        self._shared: dict[str, Any] = {}

    def begin(self) -> None:
        """The row of this block."""
        self.start = self.kb.let(self.kb.block * self.length, "start")

    @contextmanager
    def elements(self) -> Iterator[Any]:
        """Runs what follows for each element of the thread's, every ``threads``-th: its place."""
        kb, length = self.kb, self.length
        with kb.loop(0, -(-length // self.threads), "turn") as turn:
            place = kb.let(turn * self.threads + kb.thread, "place")
            with kb.when(True if length % self.threads == 0 else place < length):
                yield place

    def folded(
        self, dtype: str, term: Callable[[Any], Any], first: float, join: Callable[[Any, Any], Any]
    ) -> Any:
        """The terms of all places joined, the same in every thread; the order is always one."""
        kb = self.kb
        own = kb.alloc(dtype, 1, "own")
        kb.store(own, 0, kb.const(first, dtype))
        with self.elements() as place:
            value = term(place)
            kb.store(own, 0, join(kb.load(own, 0), value))
        if dtype not in self._shared:
            self._shared[dtype] = kb.shared(dtype, self.threads, "shared")
        shared = self._shared[dtype]
        kb.store(shared, kb.thread, kb.load(own, 0))
        half = self.threads // 2
        while half:
            kb.sync()
            with kb.when(kb.thread < half):
                pair = kb.load(shared, kb.thread), kb.load(shared, kb.thread + half)
                kb.store(shared, kb.thread, join(*pair))
            half //= 2
        kb.sync()
        result = kb.let(kb.load(shared, 0), "result")
        kb.sync()
        return result

    def summed(self, dtype: str, term: Callable[[Any], Any]) -> Any:
        """The sum of the terms of all places."""
        return self.folded(dtype, term, 0, lambda a, b: a + b)
