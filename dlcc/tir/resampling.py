"""Default TIR of resize2d: tables of input indices and weights per output row and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcc.ir import Node
from dlcc.ir.encodings import Array
from dlcc.tir.access import TirContext
from dlcc.tir.rounding import separate
from dlcc.tir.staging import real_reader, write_real


def emit(node: Node, ctx: TirContext, taps: Sequence[tuple[Array, Array]]) -> None:
    """Declare the output; ``taps`` holds (indices, weights), each [taps, extent], of both axes."""
    (row_index, row_weight), (column_index, column_weight) = (
        (ctx.constant(indices), ctx.constant(weights)) for indices, weights in taps
    )
    rows, columns = taps[0][0].shape[0], taps[1][0].shape[0]
    same = node.input(0).type.encoding == node.output.type.encoding
    if rows == columns == 1:
        x = ctx.read(0)
        if same:
            ctx.output(0, lambda n, c, h, w: x(n, c, row_index[0, h], column_index[0, w]))
            return
    x = real_reader(ctx, 0)

    def down(n: Any, c: Any, h: Any, column: Any) -> Any:
        """Weighted sum over the rows, every product rounded by itself."""
        return _sum(
            separate(x(n, c, row_index[t, h], column) * row_weight[t, h]) for t in range(rows)
        )

    def body(n: Any, c: Any, h: Any, w: Any) -> Any:
        return _sum(
            separate(down(n, c, h, column_index[t, w]) * column_weight[t, w])
            for t in range(columns)
        )

    write_real(ctx, body)


def _sum(terms: Any) -> Any:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total
