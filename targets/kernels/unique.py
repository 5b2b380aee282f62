"""Different rows, by insertion into a sorted list of those found so far.

Each row looks for its place by halving; most networks have few different rows, and the list of
places is moved when one is new. One work item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.tir import expr


@dataclass(frozen=True)
class Unique:
    """``rows`` rows of ``width`` numbers of ``dtype``; ``ordered``: the results are sorted."""

    rows: int
    width: int
    dtype: str
    ordered: bool

    @property
    def scratch(self) -> tuple[int, ...]:
        """Bytes of four int32 for each row."""
        return (4 * self.rows,) * len(_LISTS)


_LISTS = ("order", "rank", "place", "times")
"""Different rows are numbered as they are met: their numbers in order, and by number where in that
order they stand, where they were met, and how often."""


def unique(layer: Unique, operands: Sequence[KernelArg]) -> KernelStep:
    """The only step: parameters x, scratch, and the four results."""
    key = name_key("unique", layer)
    kept: tuple[KernelArg, ...] = tuple(("scratch", k) for k in range(len(_LISTS)))
    results: tuple[KernelArg, ...] = tuple(("out", k) for k in range(4))
    return KernelStep(key, lambda: _Search(key, layer).build(), (*operands, *kept, *results), 1)


class _Search:
    def __init__(self, name: str, layer: Unique) -> None:
        self.layer, self.kb = layer, tir.KernelBuilder(name)
        kb = self.kb
        self.x = kb.pointer("x", layer.dtype, align=1)
        self.order, self.rank, self.place, self.times = (
            kb.pointer(n, "int32", align=4) for n in _LISTS
        )
        self.first, self.often, self.number, self.found = (
            kb.pointer(n, "int64", align=8) for n in ("first", "often", "number", "found")
        )

    def build(self) -> Any:
        """The function."""
        kb, layer = self.kb, self.layer
        self.count, self.low, self.high, self.sign, self.new = (
            kb.alloc("int32", 1, n) for n in ("count", "low", "high", "sign", "new")
        )
        with kb.loop(kb.begin, kb.end, "step"):
            kb.store(self.count, 0, self.i32(0))
            with kb.loop(0, layer.rows, "row") as row:
                self.find(row)
                with kb.when(kb.load(self.new, 0) > 0):
                    self.insert(row)
            self.finish()
        return kb.build()

    def i32(self, value: int) -> Any:
        return self.kb.const(value, "int32")

    def find(self, row: Any) -> None:
        """``low``: where among the different rows ``row`` stands; ``new``: whether it is one."""
        kb, layer = self.kb, self.layer
        kb.store(self.low, 0, self.i32(0))
        kb.store(self.high, 0, kb.load(self.count, 0))
        kb.store(self.new, 0, self.i32(1))
        with kb.loop(0, layer.rows.bit_length(), "halving"):
            low, high = (kb.let(kb.load(v, 0), "bound") for v in (self.low, self.high))
            with kb.when(low < high):
                middle = kb.let(expr.truncdiv(low + high, self.i32(2)), "middle")
                known = kb.let(kb.load(self.order, middle), "known")
                self.compare(row, kb.let(kb.load(self.place, known), "other"))
                sign = kb.let(kb.load(self.sign, 0), "sign")
                with kb.when(sign > 0):
                    kb.store(self.low, 0, middle + 1)
                with kb.when(sign < 0):
                    kb.store(self.high, 0, middle)
                with kb.when(sign.equal(0)):
                    kb.store(self.new, 0, self.i32(0))
                    kb.store(self.high, 0, low)  # ends the search
                    kb.store(self.number, row, kb.cast(known, "int64"))
                    kb.store(self.times, known, kb.load(self.times, known) + 1)

    def insert(self, row: Any) -> None:
        """Puts ``row``, which is new, at ``low``."""
        kb = self.kb
        count, at = (kb.let(kb.load(v, 0), "at") for v in (self.count, self.low))
        with kb.loop(0, count - at, "moved") as moved:
            end = kb.let(count - moved, "end")
            kb.store(self.order, end, kb.load(self.order, end - 1))
        kb.store(self.order, at, count)
        kb.store(self.place, count, row)
        kb.store(self.times, count, self.i32(1))
        kb.store(self.number, row, kb.cast(count, "int64"))
        kb.store(self.count, 0, count + 1)

    def compare(self, row: Any, other: Any) -> None:
        """``sign``: -1, 0 or 1, as ``row`` comes before ``other``, equals it, or comes after it."""
        kb, width = self.kb, self.layer.width
        kb.store(self.sign, 0, self.i32(0))
        with kb.loop(0, width, "column") as column, kb.when(kb.load(self.sign, 0).equal(0)):
            a = kb.let(kb.load(self.x, row * width + column), "a")
            b = kb.let(kb.load(self.x, other * width + column), "b")
            for low, high, sign in ((a, b, -1), (b, a, 1)):
                before = low < high
                if self.layer.dtype == "float32":
                    real = expr.float_bits(low) <= expr.INFINITY_BITS
                    before = expr.either(
                        before, expr.both(real, expr.float_bits(high) > expr.INFINITY_BITS)
                    )
                with kb.when(before):
                    kb.store(self.sign, 0, self.i32(sign))

    def finish(self) -> None:
        """The different rows in order of the results, and -1 after them."""
        kb, layer = self.kb, self.layer
        count = kb.let(kb.load(self.count, 0), "total")
        kb.store(self.found, 0, kb.cast(count, "int64"))
        with kb.loop(0, count, "at") as at:
            known = kb.let(kb.load(self.order, at) if layer.ordered else at, "known")
            kb.store(self.rank, known, at)
            for result, kept in ((self.first, self.place), (self.often, self.times)):
                kb.store(result, at, kb.cast(kb.load(kept, known), "int64"))
        with kb.loop(count, layer.rows, "rest") as rest:
            for result in (self.first, self.often):
                kb.store(result, rest, kb.const(-1, "int64"))
        with kb.loop(0, layer.rows, "row") as row:
            known = kb.let(kb.cast(kb.load(self.number, row), "int32"), "known")
            kb.store(self.number, row, kb.cast(kb.load(self.rank, known), "int64"))
