"""ScatterElements and ScatterND by one pass over the updates, in their order.

Default TIR has every place of the result look at all updates that may go there; that is parallel,
but quadratic. Here the data are copied and each update is put to its place, by one work item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.tir import expr


@dataclass(frozen=True)
class Scatter:
    """Updates in rows; each row goes to one run of numbers of the result.

    Attributes:
        total: numbers of the result.
        rows: (extent, stride in the result) of each axis that numbers the rows.
        indices: (size, stride in the result) of each run-time index of a row.
        run: numbers of a row.
        reduction: none, add, mul, min or max.
        dtype: of the numbers.
        index_dtype: of the indices.
    """

    total: int
    rows: tuple[tuple[int, int], ...]
    indices: tuple[tuple[int, int], ...]
    run: int
    reduction: str
    dtype: str
    index_dtype: str


def scatter(layer: Scatter, operands: Sequence[KernelArg]) -> KernelStep:
    """The only step: parameters x, indices, updates, y; one work item."""
    key = name_key("scatter", layer)
    args: tuple[KernelArg, ...] = (*operands, ("out", 0))
    return KernelStep(key, lambda: scatter_function(key, layer), args, 1)


def scatter_function(name: str, layer: Scatter) -> Any:
    """The kernel."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", layer.dtype, align=1)
    indices = kb.pointer("indices", layer.index_dtype, align=1)
    updates = kb.pointer("updates", layer.dtype, align=1)
    y = kb.pointer("y", layer.dtype, align=1)
    with kb.loop(kb.begin, kb.end, "item"):
        with kb.loop(0, layer.total, "place") as place:
            kb.store(y, place, kb.load(x, place))
        _rows(kb, layer, (x, indices, updates, y), 0, kb.const(0, "int32"), kb.const(0, "int32"))
    return kb.build()


def _rows(
    kb: Any, layer: Scatter, buffers: tuple[Any, ...], axis: int, row: Any, start: Any
) -> None:
    """Loops over the axes from ``axis`` on; ``row`` and ``start`` are what the outer ones give."""
    if axis == len(layer.rows):
        _put(kb, layer, buffers, row, start)
        return
    extent, stride = layer.rows[axis]
    with kb.loop(0, extent, f"axis{axis}") as k:
        _rows(
            kb,
            layer,
            buffers,
            axis + 1,
            kb.let(row * extent + k, "row"),
            kb.let(start + k * stride, "start"),
        )


def _put(kb: Any, layer: Scatter, buffers: tuple[Any, ...], row: Any, start: Any) -> None:
    """One row of updates to its place; indices count from the end where negative, and are cut."""
    _, indices, updates, y = buffers
    depth = len(layer.indices)
    for k, (size, stride) in enumerate(layer.indices):
        index = kb.let(kb.load(indices, row * depth + k), "index")
        wide = layer.index_dtype
        count, last, zero = (kb.const(v, wide) for v in (size, size - 1, 0))
        index = expr.select(index < zero, index + count, index)
        index = expr.minimum(expr.maximum(index, zero), last)
        start = kb.let(start + kb.cast(index, "int32") * stride, "start")
    with kb.loop(0, layer.run, "place") as place:
        new = kb.load(updates, row * layer.run + place)
        if layer.reduction != "none":
            new = expr.combined(layer.reduction, kb.load(y, start + place), new)
        kb.store(y, start + place, new)
