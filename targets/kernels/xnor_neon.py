"""Counting differing bits on NEON, for :mod:`xnor`: ``eor``, ``cnt`` and a sum of bytes.

Lanes of 32 bits are outputs: a vector holds a word of the weights of four of them, and meets a word
of a pixel in every lane. ``cnt`` counts in bytes. Their sums stay in bytes as long as these hold
them (31 words), then ``uadalp`` adds neighbours in 16 bits, of which an output has two. Where there
are dot products, ``udot`` by ones adds an output's four bytes in 32 bits at once, in the place of
the addition of bytes: 128 products take three instructions either way, and the former also what
moves sums on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dlcc import tir

LANES = 4
"""Outputs of a vector."""

SIZE = 16
"""Bytes of a vector."""

LOADED = 4
"""Words of a pixel that one load brings."""

MOST_WORDS = 31
"""Words after which sums in bytes are full: 31 * 8 <= 255."""

CHUNK = 28
"""Words after which they are moved on in longer runs: whole loads."""

NeonUnit = Literal["cnt", "cnt-dot"]
"""How counts are summed."""


@dataclass(frozen=True)
class Window:
    """The words that make an output.

    Attributes:
        loops: (count, words between) of the two loops over runs.
        run: neighbouring words of a run.
        vectors: of weights that are stored side by side.
    """

    loops: tuple[tuple[int, int], tuple[int, int]]
    run: int
    vectors: int


class NeonCounter:
    """Emits the counts of some pixels by some vectors of outputs.

    Args:
        kb: the kernel.
        unit: how counts are summed.
        window: what makes an output.
        memory: words of the activations, words of the weights.
        sources: where the pixels start.
        first: word of the weights where those of the vectors start.
        vectors: of outputs that are counted.
    """

    def __init__(
        self,
        kb: tir.KernelBuilder,
        unit: NeonUnit,
        window: Window,
        memory: tuple[Any, Any],
        sources: list[Any],
        first: Any,
        vectors: int,
    ) -> None:
        self.kb, self.unit, self.window, self.memory = kb, unit, window, memory
        self.sources, self.first, self.vectors = sources, first, vectors
        self.sums = len(sources) * vectors
        self.wide: Any = None

    def counts(self) -> list[list[Any]]:
        """Of each pixel, vectors of int32."""
        self.wide = self._zeros("uint16" if self.unit == "cnt" else "int32")
        (rows, _), (cols, _) = self.window.loops
        if self._fits(rows * cols):
            self._chunk(self._rows)
        else:
            with self.kb.loop(0, rows, "tap") as i:
                if self._fits(cols):
                    self._chunk(lambda acc: self._cols(acc, i))
                else:
                    with self.kb.loop(0, cols, "tap") as j:
                        self._run(i, j)
        made = [self._total(i) for i in range(self.sums)]
        return [made[i : i + self.vectors] for i in range(0, self.sums, self.vectors)]

    def _zeros(self, dtype: str) -> Any:
        kb, lanes = self.kb, SIZE * 8 // tir.tirx.IntImm(dtype, 0).ty.dtype.bits
        acc = kb.alloc(dtype, self.sums * lanes)
        for i in range(self.sums):
            kb.store(acc, i * lanes, kb.const(0, dtype, lanes))
        return acc

    def _fits(self, runs: int) -> bool:
        """Whether sums of so many runs stay where they are made."""
        return self.unit == "cnt-dot" or runs * self.window.run <= MOST_WORDS

    def _chunk(self, emit: Callable[[Any], None]) -> None:
        """Some words, summed where they are made, and moved on."""
        if self.unit == "cnt-dot":
            emit(self.wide)
            return
        kb, acc = self.kb, self._zeros("uint8")
        emit(acc)
        for i in range(self.sums):
            half = SIZE // 2
            total = kb.load(self.wide, i * half, half)
            total = tir.neon.accumulate_pairs(total, kb.load(acc, i * SIZE, SIZE))
            kb.store(self.wide, i * half, total)

    def _total(self, which: int) -> Any:
        kb = self.kb
        if self.unit == "cnt-dot":
            return kb.load(self.wide, which * LANES, LANES)
        pairs = kb.load(self.wide, which * SIZE // 2, SIZE // 2)
        return kb.let(tir.neon.accumulate_pairs(kb.const(0, "int32", LANES), pairs), "sums")

    def _rows(self, acc: Any) -> None:
        with self.kb.loop(0, self.window.loops[0][0], "tap") as i:
            self._cols(acc, i)

    def _cols(self, acc: Any, row: Any) -> None:
        with self.kb.loop(0, self.window.loops[1][0], "tap") as j:
            self._words(acc, *self._starts(row, j), self.window.run)

    def _run(self, row: Any, col: Any) -> None:
        """A run in chunks."""
        kb, run = self.kb, self.window.run
        starts, weights = self._starts(row, col)

        def chunk(first: Any, words: int) -> None:
            at = [kb.let(start + first, "at") for start in starts]
            there = kb.let(weights + first * (self.window.vectors * LANES), "weights")
            self._chunk(lambda acc: self._words(acc, at, there, words))

        size = run if run <= MOST_WORDS else CHUNK
        with kb.loop(0, run // size, "chunk") as index:
            chunk(kb.let(index * size, "first"), size)
        if run % size:
            chunk(kb.const(run // size * size, "int32"), run % size)

    def _starts(self, row: Any, col: Any) -> tuple[list[Any], Any]:
        """Where a run starts in each pixel and in the weights."""
        kb, window = self.kb, self.window
        (_, down), (cols, right) = window.loops
        shift = kb.let(row * down + col * right, "shift")
        length = window.run * window.vectors * LANES
        weights = kb.let(self.first + (row * cols + col) * length, "weights")
        return [kb.let(source + shift, "at") for source in self.sources], weights

    def _words(self, acc: Any, starts: list[Any], weights: Any, words: int) -> None:
        """Neighbouring words, as many at a time as one load brings."""
        kb, step = self.kb, self.window.vectors * LANES
        whole, rest = divmod(words, LOADED)
        if whole:
            with kb.loop(0, whole, "load") as load:
                at = [kb.let(start + load * LOADED, "at") for start in starts]
                self._load(acc, at, kb.let(weights + load * (LOADED * step), "weights"), LOADED)
        done = whole * LOADED
        for size in (2, 1):
            if rest & size:
                self._load(acc, [s + done for s in starts], weights + done * step, size)
                done += size

    def _load(self, acc: Any, starts: list[Any], weights: Any, words: int) -> None:
        """``words`` words of each pixel by all vectors."""
        kb, step = self.kb, self.window.vectors * LANES
        x, w = self.memory
        loaded = [kb.let(kb.load(x, start, words), "x") for start in starts]
        for word in range(words):
            rows = [
                kb.splat(v, LANES) if words == 1 else kb.shuffle(v, [word] * LANES) for v in loaded
            ]
            rows = [kb.let(kb.reinterpret(row, "uint8", SIZE), "x") for row in rows]
            for v in range(self.vectors):
                raw = kb.load(w, weights + (word * step + v * LANES), LANES)
                weight = kb.let(kb.reinterpret(raw, "uint8", SIZE), "w")
                for pixel, row in enumerate(rows):
                    differ = tir.tirx.bitwise_xor(row, weight)
                    self._add(acc, pixel * self.vectors + v, differ)

    def _add(self, acc: Any, which: int, differ: Any) -> None:
        kb = self.kb
        count = kb.pure("llvm.ctpop", "uint8", SIZE, differ)
        if self.unit == "cnt":
            at = which * SIZE
            kb.store(acc, at, kb.load(acc, at, SIZE) + count)
            return
        at, ones = which * LANES, kb.const(1, "uint8", SIZE)
        kb.store(acc, at, tir.neon.dot(kb.load(acc, at, LANES), count, ones))


def word_cycles(pixels: int, vectors: int) -> float:
    """Cycles of a word of a pixel by ``vectors`` vectors, on two vector pipes."""
    return 0.5 * (3.0 * vectors + 0.5 * vectors / pixels + 1.25)
