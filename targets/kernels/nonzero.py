"""Places of what is not zero, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key


def nonzero(count: int, operands: Sequence[KernelArg]) -> KernelStep:
    """The only step: parameters x, places, found; one work item."""
    key = name_key("nonzero", count)
    args: tuple[KernelArg, ...] = (*operands, ("out", 0), ("out", 1))
    return KernelStep(key, lambda: nonzero_function(key, count), args, 1)


def nonzero_function(name: str, count: int) -> Any:
    """The kernel, for a row of ``count`` numbers."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    places, found = (kb.pointer(n, "int64", align=8) for n in ("places", "found"))
    number = kb.alloc("int32", 1, "number")
    with kb.loop(kb.begin, kb.end, "step"):
        kb.store(number, 0, kb.const(0, "int32"))
        with kb.loop(0, count, "place") as place:
            # written in any case, and written over unless it counts: no branch to mispredict
            at = kb.let(kb.load(number, 0), "at")
            kb.store(places, at, kb.cast(place, "int64"))
            one, zero = kb.const(1, "int32"), kb.const(0, "int32")
            counts = kb.load(x, place) > kb.const(0, "uint8")
            kb.store(number, 0, at + tir.expr.select(counts, one, zero))
        total = kb.let(kb.load(number, 0), "total")
        kb.store(found, 0, kb.cast(total, "int64"))
        with kb.loop(total, count, "rest") as rest:
            kb.store(places, rest, kb.const(-1, "int64"))
    return kb.build()
