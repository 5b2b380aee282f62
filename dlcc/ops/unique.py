"""Unique: the different numbers of a tensor, or its different slices along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from math import prod
from typing import Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.cast import cast_to
from dlcc.ops.pointwise import present
from dlcc.ops.shape import axis_of, reshaped


class UniqueRows(Op):
    """unique_rows(x): the different rows of x[N,M]; i64[N] each, and how many there are.

    For every different row, its first place and how often it occurs; for every row, the number of
    the different row that it is; then the count, i64[]. With ``sorted`` the different rows stand in
    lexicographic order, else in that of their first places. NaN equals NaN and comes last, as in
    numpy. Places and counts after the last different row are -1.
    """

    name = "unique_rows"
    attributes: ClassVar[Mapping[str, Any]] = {"sorted": True}

    def infer(self, node: Node) -> list[TensorType]:
        """One number for each row."""
        x = node.input(0).type
        if x.rank != 2 or not (x.dtype.is_float or x.dtype.is_integer):
            raise type_error(node, "the operand must be rows of numbers")
        row = TensorType((x.shape[0],), I64)
        return [row, row, row, TensorType((), I64)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Row by row."""
        rows: list[list[float]] = present(xs[0]).tolist()
        first: list[int] = []
        sort_key = cmp_to_key(_compare)
        order = sorted(range(len(rows)), key=lambda k: sort_key(rows[k]))
        number = np.zeros(len(rows), np.int64)
        for at, row in enumerate(order):
            if not at or _compare(rows[order[at - 1]], rows[row]):
                first.append(row)
            first[-1] = min(first[-1], row)
            number[row] = len(first) - 1
        if not self.get(node, "sorted"):
            places = np.argsort(first, kind="stable")
            number = np.argsort(places, kind="stable")[number]
            first = [first[k] for k in places]
        count = len(first)
        out = [np.full(len(rows), -1, np.int64) for _ in range(2)]
        out[0][:count] = first
        out[1][:count] = np.bincount(number, minlength=count) if rows else []
        return [*out, number, np.asarray(count, np.int64)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Places, occurrences, numbers, and their count."""
        rows = float(node.input(0).type.shape[0])
        last = max(0.0, rows - 1)
        return [
            Interval(-1.0, last), Interval(-1.0, rows), Interval(0.0, last), Interval(0.0, rows)
        ]  # fmt: skip


def _compare(a: Sequence[float], b: Sequence[float]) -> int:
    """-1, 0 or 1: the first numbers that differ decide."""
    for p, q in zip(a, b, strict=True):
        if p < q or (p == p and q != q):
            return -1
        if q < p or (q == q and p != p):
            return 1
    return 0


@onnx_op("Unique", since=11)
def import_unique(node: OnnxNode) -> Sequence[Value]:
    """Unique: as many as there can be, and how many there are."""
    x = node.input(0)
    if not x.type.elements:
        raise Unsupported("its input has no elements")
    given = node.attrs.get("axis")
    axis = 0 if given is None else axis_of(int(given), x.type.rank)
    if given is None:
        x = reshaped(node, x, (x.type.elements,), "/flat")
    order = (axis, *(k for k in range(x.type.rank) if k != axis))
    rows = x if not axis else node.build("transpose", [x], {"perm": order}, suffix="/rows")[0]
    shape = (x.type.shape[axis], prod(rows.type.shape[1:]))
    keys = reshaped(node, rows, shape, "/keys")
    if keys.type.dtype == DType.parse("bool"):
        keys = cast_to(node, keys, DType.parse("u8"), "/codes")
    attrs = {"sorted": bool(node.attrs.get("sorted", 1))}
    first, often, number, count = node.build(
        "unique_rows", [keys], attrs, outputs=4, suffix="/places"
    )
    (made,) = node.build("gather", [x, first], {"axis": axis})
    return [
        node.bounded(made, axis, count),
        node.bounded(first, 0, count),
        number,
        node.bounded(often, 0, count),
    ]
