"""Determinants by Gaussian elimination with partial pivoting, in float32.

A work item is one matrix, which each thread eliminates in a copy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.tir import expr


def determinants(count: int, size: int, operands: Sequence[KernelArg]) -> KernelStep:
    """The only step, for ``count`` matrices of ``size`` rows; thread scratch of a matrix."""
    key = name_key("determinant", count, size)
    args: tuple[KernelArg, ...] = (*operands, ("thread_scratch", 0), ("out", 0))
    return KernelStep(key, lambda: determinant_function(key, size), args, count)


def determinant_function(name: str, size: int) -> Any:
    """The kernel: parameters x, left (a matrix), y."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "float32", align=4)
    left = kb.pointer("left", "float32", align=4)
    y = kb.pointer("y", "float32", align=4)
    result, best, row = (kb.alloc(t, 1, n) for t, n in _STATE)
    with kb.loop(kb.begin, kb.end, "item") as item:
        with kb.loop(0, size * size, "place") as place:
            kb.store(left, place, kb.load(x, item * (size * size) + place))
        kb.store(result, 0, kb.const(1.0, "float32"))
        with kb.loop(0, size, "k") as k:
            _find_pivot(kb, left, size, k, best, row)
            _exchange(kb, left, size, k, result, row)
            pivot = kb.let(kb.load(left, k * size + k), "pivot")
            product = kb.let(tir.separate(kb.load(result, 0) * pivot), "product")
            # zero once is zero for ever: what a division by it gives is not looked at
            zero = kb.const(0.0, "float32")
            singular = expr.either(kb.load(result, 0).equal(zero), pivot.equal(zero))
            kb.store(result, 0, expr.select(singular, zero, product))
            _subtract(kb, left, size, k, pivot)
        kb.store(y, item, kb.load(result, 0))
    return kb.build()


_STATE = (("float32", "result"), ("float32", "best"), ("int32", "row"))


def _find_pivot(kb: Any, left: Any, size: int, k: Any, best: Any, row: Any) -> None:
    """``row``: the first one from ``k`` on whose number in column ``k`` is largest."""
    kb.store(best, 0, kb.const(-1.0, "float32"))
    kb.store(row, 0, k)
    with kb.loop(k, size, "r") as r:
        number = kb.let(expr.absolute(kb.load(left, r * size + k)), "number")
        with kb.when(number > kb.load(best, 0)):
            kb.store(best, 0, number)
            kb.store(row, 0, r)


def _exchange(kb: Any, left: Any, size: int, k: Any, result: Any, row: Any) -> None:
    """Rows ``k`` and ``row``; the result's sign where they differ."""
    other = kb.let(kb.load(row, 0), "other")
    with kb.when(other > k):
        kb.store(result, 0, kb.const(0.0, "float32") - kb.load(result, 0))
        with kb.loop(0, size, "c") as c:
            kept = kb.let(kb.load(left, k * size + c), "kept")
            kb.store(left, k * size + c, kb.load(left, other * size + c))
            kb.store(left, other * size + c, kept)


def _subtract(kb: Any, left: Any, size: int, k: Any, pivot: Any) -> None:
    """Row ``k`` from those below, so often that their column ``k`` is zero."""
    with kb.loop(k + 1, size, "r") as r:
        factor = kb.let(kb.load(left, r * size + k) / pivot, "factor")
        with kb.loop(k + 1, size, "c") as c:
            change = tir.separate(factor * kb.load(left, k * size + c))
            at = r * size + c
            kb.store(left, at, kb.load(left, at) - change)
