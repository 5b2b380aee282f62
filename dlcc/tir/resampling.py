"""Default TIR of resize2d: tables of input indices and weights per output row and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te

from dlcc.ir import Affine, Node
from dlcc.ir.encodings import Array
from dlcc.tir import expr
from dlcc.tir.access import Reader, TirContext, element
from dlcc.tir.rounding import separate
from dlcc.tir.staging import real_reader, stage, write_real

UNROLLED = 32
"""Largest number of taps of a pixel that are written out; more are a loop."""


def emit(
    node: Node,
    ctx: TirContext,
    taps: Sequence[tuple[Array, Array]],
    outside: Sequence[Array],
    beyond: Any,
) -> None:
    """Declare the output.

    Args:
        node: the resize2d node.
        ctx: its context.
        taps: (indices, weights), each [taps, extent], of both axes.
        outside: bool [extent] of both axes: where no pixel of the input is shown.
        beyond: what is stored there.
    """
    guard = _guard(ctx, outside)
    same = node.input(0).type.encoding == node.output.type.encoding
    rows, columns = taps[0][0].shape[0], taps[1][0].shape[0]
    if rows == columns == 1 and same:
        x = ctx.read(0)
        row_index, column_index = (ctx.constant(indices) for indices, _ in taps)
        border = expr.const(np.asarray(beyond).item(), element(node.output.type))
        ctx.output(
            0,
            lambda n, c, h, w: guard(h, w, x(n, c, row_index[0, h], column_index[0, w]), border),
        )
        return
    value = _looped(node, ctx, taps) if rows * columns > UNROLLED else _written_out(ctx, taps)
    encoding = node.output.type.encoding
    real = encoding.dequantise(np.asarray(beyond)) if isinstance(encoding, Affine) else beyond
    source = node.input(0).type
    dtype = "float32" if isinstance(source.encoding, Affine) else element(source)
    border = expr.const(np.asarray(real).item(), dtype)
    write_real(ctx, lambda n, c, h, w: guard(h, w, value(n, c, h, w), border))


def _guard(ctx: TirContext, outside: Sequence[Array]) -> Reader:
    """(h, w, value, border) -> the border where pixel (h, w) lies outside, else the value."""
    tables = [ctx.constant(mask.astype(np.int32)) if mask.any() else None for mask in outside]

    def chosen(h: Any, w: Any, value: Any, border: Any) -> Any:
        conditions = [
            table[k] > 0 for table, k in zip(tables, (h, w), strict=True) if table is not None
        ]
        return expr.select(expr.either(*conditions), border, value) if conditions else value

    return chosen


def _written_out(ctx: TirContext, taps: Sequence[tuple[Array, Array]]) -> Reader:
    """Rows, then columns, every product rounded by itself."""
    (row_index, row_weight), (column_index, column_weight) = (
        (ctx.constant(indices), ctx.constant(weights)) for indices, weights in taps
    )
    rows, columns = taps[0][0].shape[0], taps[1][0].shape[0]
    x = real_reader(ctx, 0)

    def down(n: Any, c: Any, h: Any, column: Any) -> Any:
        return _sum(
            separate(x(n, c, row_index[t, h], column) * row_weight[t, h]) for t in range(rows)
        )

    def value(n: Any, c: Any, h: Any, w: Any) -> Any:
        return _sum(
            separate(down(n, c, h, column_index[t, w]) * column_weight[t, w])
            for t in range(columns)
        )

    return value


def _looped(node: Node, ctx: TirContext, taps: Sequence[tuple[Array, Array]]) -> Reader:
    """One loop over all taps of a pixel."""
    (row_index, row_weight), (column_index, column_weight) = (
        (ctx.constant(indices), ctx.constant(weights)) for indices, weights in taps
    )
    down, across = (
        te.reduce_axis((0, indices.shape[0]), name=name)
        for (indices, _), name in zip(taps, ("down", "across"), strict=True)
    )
    x = real_reader(ctx, 0)

    def total(n: Any, c: Any, h: Any, w: Any) -> Any:
        pixel = x(n, c, row_index[down, h], column_index[across, w])
        weight = row_weight[down, h] * column_weight[across, w]
        return te.sum(pixel * weight, axis=[down, across])

    out = node.output.type
    return stage(out.shape, total, "total", out.permutation)


def _sum(terms: Any) -> Any:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total
