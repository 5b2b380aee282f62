"""Selection and placement by indices: gather and scatter in ONNX's three spellings each.

Indices are integer tensors; negative ones count from the end, as in ONNX. A gather by an index
outside the axis takes the nearest place inside: what a branch or a trip that is not taken computes
may not fail, nor read foreign memory. Indices that are constants must be inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, model_error, onnx_op
from dlcc.ir import U64, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present
from dlcc.ops.shape import Movement, axis_of

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


def _place(index: Any, size: int) -> Any:
    """A run-time index as a place in an axis of ``size``: negative from the end, clamped."""
    from dlcc.tir import expr

    index = index.astype("int32")
    return expr.clamp(expr.select(index < 0, index + size, index), 0, size - 1)


def _inside(node: Node, indices: Array, size: int) -> Array:
    """The reference's form of :func:`_place`.

    Raises:
        IndexError: an index is outside, and a constant.
    """
    places: Array = np.where(indices < 0, indices.astype(np.int64) + size, indices)
    if not node.input(1).is_constant:
        return np.clip(places, 0, size - 1)
    if places.size and (places.min() < 0 or places.max() >= size):
        raise IndexError(f"indices from {indices.min()} to {indices.max()} in an axis of {size}")
    return places


def _check_constant(node: OnnxNode, sizes: Sequence[int]) -> None:
    """Refuse constant indices outside the axes that they index.

    Args:
        node: its input 1 holds the indices.
        sizes: the one axis that all index, or those of the places along the last axis.

    Raises:
        DlccError: MODEL, with the range of the indices.
    """
    value = node.input(1)
    if not value.is_constant or not value.type.elements or not value.type.dtype.is_integer:
        return
    places = value.decoded()
    for k, size in enumerate(sizes):
        part = places if len(sizes) == 1 else places[..., k]
        low, high = int(part.min()), int(part.max())
        if low < -size or high >= size:
            raise model_error(
                f"indices lie outside an axis of {size}",
                where=node.name,
                why=f"they go from {low} to {high}",
                fix="the model is damaged; export it again",
            )


def _checked_indices(node: Node, position: int = 1) -> TensorType:
    indices = node.input(position).type
    if not indices.dtype.is_integer or indices.dtype == U64:
        raise type_error(node, f"indices have type {indices.dtype}, must be integers that i64 has")
    return indices


def _check_named(node: Node, indices: TensorType, sizes: Sequence[int]) -> None:
    """Axes that indices name have something to name."""
    if indices.elements and 0 in sizes:
        raise type_error(node, "an index into an axis of size 0")


_NAMING = ("gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd")


def check_places(node: Node) -> None:
    """Hold the constant indices of a gather or scatter against the axes that they name.

    Raises:
        DlccError: MODEL, with the range of the indices.
    """
    if node.op not in _NAMING or not node.input(1).is_constant or not node.input(1).type.elements:
        return
    shape, places = node.input(0).type.shape, node.input(1).decoded()
    if node.op.endswith("_nd"):
        first = int(node.attrs.get("batch_dims", 0))  # type: ignore[arg-type]
        columns = list(zip(np.moveaxis(places, -1, 0), shape[first:], strict=False))
    else:
        columns = [(places, shape[int(node.attrs.get("axis", 0))])]  # type: ignore[arg-type]
    for part, size in columns:
        low, high = int(part.min()), int(part.max())
        if low < -size or high >= size:
            raise type_error(node, f"indices from {low} to {high} in an axis of {size}")


def _fit_elsewhere(indices: TensorType, x: TensorType, axis: int) -> bool:
    """Whether the indices lie inside ``x`` along all axes but the one whose places they hold."""
    return (
        indices.rank == x.rank
        and 0 <= axis < x.rank
        and all(
            i <= d for k, (i, d) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != axis
        )
    )


class _Gather(Movement):
    """Base of gathers: the result holds numbers of the first operand."""

    operands = ("x", "indices")

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The range of the data."""
        assert xs[0] is not None
        return [xs[0]]


class Gather(_Gather):
    """gather(x, indices) {axis=0}: slices of ``x`` along ``axis``, in the indices' shape."""

    name = "gather"
    attributes = {"axis": 0}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The axis is replaced by the shape of the indices."""
        x, indices, axis = node.input(0).type, _checked_indices(node), int(self.get(node, "axis"))
        if not 0 <= axis < x.rank:
            raise type_error(node, f"there is no axis {axis}")
        _check_named(node, indices, [x.shape[axis]])
        return [TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's take."""
        x, axis = present(xs[0]), int(self.get(node, "axis"))
        return [np.take(x, _inside(node, present(xs[1]), x.shape[axis]), axis=axis)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """An indirect read."""
        x, indices, axis = ctx.read(0), ctx.read(1), int(self.get(node, "axis"))
        size, rank = node.input(0).type.shape[axis], node.input(1).type.rank

        def body(*i: Any) -> Any:
            place = _place(indices(*i[axis : axis + rank]), size)
            return x(*i[:axis], place, *i[axis + rank :])

        ctx.output(0, body)


class GatherElements(_Gather):
    """gather_elements(x, indices) {axis=0}: y[.., i, ..] = x[.., indices[.., i, ..], ..]."""

    name = "gather_elements"
    attributes = {"axis": 0}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The shape of the indices."""
        x, indices, axis = node.input(0).type, _checked_indices(node), int(self.get(node, "axis"))
        if not _fit_elsewhere(indices, x, axis):
            raise type_error(node, f"the indices do not fit along axis {axis}")
        _check_named(node, indices, [x.shape[axis]])
        return [TensorType(indices.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's take_along_axis, with indices that may be smaller than the data."""
        x, indices, axis = present(xs[0]), present(xs[1]), int(self.get(node, "axis"))
        part = tuple(slice(d if k != axis else None) for k, d in enumerate(indices.shape))
        places = _inside(node, indices, x.shape[axis])
        return [np.take_along_axis(x[part], places, axis)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """An indirect read."""
        x, indices, axis = ctx.read(0), ctx.read(1), int(self.get(node, "axis"))
        size = node.input(0).type.shape[axis]
        ctx.output(0, lambda *i: x(*i[:axis], _place(indices(*i), size), *i[axis + 1 :]))


class GatherND(_Gather):
    """gather_nd(x, indices) {batch_dims=0}: each row of ``indices`` names a slice of ``x``."""

    name = "gather_nd"
    attributes = {"batch_dims": 0}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The indices' shape without its last axis, then the axes of ``x`` that are not named."""
        x, indices, batch = node.input(0).type, _checked_indices(node), self.get(node, "batch_dims")
        depth = indices.shape[-1] if indices.rank else 0
        if not depth or not 0 <= batch < indices.rank or batch + depth > x.rank:
            raise type_error(node, f"rows of {depth} indices do not fit {x.rank} axes")
        if x.shape[:batch] != indices.shape[:batch]:
            raise type_error(node, "the batch axes differ")
        _check_named(node, indices, x.shape[batch : batch + depth])
        return [TensorType((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's advanced indexing, with explicit indices for the batch axes."""
        x, indices, batch = present(xs[0]), present(xs[1]), int(self.get(node, "batch_dims"))
        outer = np.indices(indices.shape[:batch])
        spread = (1,) * (indices.ndim - 1 - batch)
        batches = [o.reshape(*o.shape, *spread) for o in outer]
        named = enumerate(np.moveaxis(indices, -1, 0))
        return [x[(*batches, *(_inside(node, part, x.shape[batch + k]) for k, part in named))]]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """An indirect read with several indices."""
        x, indices, batch = ctx.read(0), ctx.read(1), int(self.get(node, "batch_dims"))
        shape, rows = node.input(0).type.shape, node.input(1).type.shape
        depth = rows[-1]

        def body(*i: Any) -> Any:
            row, rest = i[: len(rows) - 1], i[len(rows) - 1 :]
            named = [_place(indices(*row, k), shape[batch + k]) for k in range(depth)]
            return x(*i[:batch], *named, *rest)

        ctx.output(0, body)


_REDUCTIONS = ("none", "add", "mul", "min", "max")
_UFUNCS: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}


class _Scatter(Op):
    """Base of scatters: ``x`` with ``updates`` put at places, the last one winning.

    With a reduction, updates are combined with what is there instead. Quantised operands are not
    taken: a reduction would need a common scale.
    """

    operands = ("x", "indices", "updates")

    def _check(self, node: Node) -> TensorType:
        x = node.input(0).type
        _checked_indices(node)
        if node.input(2).type.dtype != x.dtype:
            raise type_error(node, "the updates have another type than x")
        if self.get(node, "reduction") not in _REDUCTIONS:
            raise type_error(node, f"there is no reduction {self.get(node, 'reduction')!r}")
        return x

    def _put(self, node: Node, x: Array, places: tuple[Array, ...], updates: Array) -> Array:
        out = x.copy()
        reduction = self.get(node, "reduction")
        if reduction == "none":
            out[places] = updates
        else:
            _UFUNCS[reduction].at(out, places, updates)
        return out

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The union of both ranges, unless numbers are added or multiplied."""
        x, updates = xs[0], xs[2]
        if x is None or updates is None or self.get(node, "reduction") in ("add", "mul"):
            return [Interval(-np.inf, np.inf)]
        return [x.union(updates)]

    def scanned(self, node: Node) -> int:
        """Every place looks at all updates of its line, or at all rows of them."""
        indices = node.input(1).type
        lines = indices.shape[int(self.get(node, "axis"))] if "axis" in self.attributes else 0
        return node.output.type.elements * (lines or indices.elements)

    def _combine(
        self, node: Node, ctx: TirContext, count: int, hit: Any, old: Any, new: Any
    ) -> None:
        """Declare the result: each place looks at all ``count`` updates.

        Args:
            node: the scatter.
            ctx: its context.
            count: updates that a place looks at.
            hit: (place indices, k) -> whether update k goes there.
            old: place indices -> what ``x`` holds.
            new: (place indices, k) -> update k.
        """
        from dlcc.tir import expr

        shape = node.output.type.shape
        reduction = self.get(node, "reduction")
        if reduction == "none":
            minus = expr.const(-1, "int32")
            last = ctx.stage(
                shape,
                expr.reduced("max", count, lambda i, k: expr.select(hit(i, k), k, minus)),
                "last",
            )
            ctx.output(
                0, lambda *i: expr.guarded(last[i] >= 0, new(i, expr.maximum(last[i], 0)), old(i))
            )
            return
        neutral = expr.neutral(reduction, str(node.output.type.dtype.numpy))
        parts = ctx.stage(
            shape,
            expr.reduced(reduction, count, lambda i, k: expr.select(hit(i, k), new(i, k), neutral)),
            "parts",
        )
        ctx.output(0, lambda *i: expr.combined(reduction, old(i), parts[i]))


class ScatterElements(_Scatter):
    """scatter_elements(x, indices, updates) {axis=0, reduction="none"}."""

    name = "scatter_elements"
    attributes = {"axis": 0, "reduction": "none"}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The type of ``x``."""
        x, axis = self._check(node), int(self.get(node, "axis"))
        indices = node.input(1).type
        if indices.shape != node.input(2).type.shape or not _fit_elsewhere(indices, x, axis):
            raise type_error(node, f"indices and updates do not fit along axis {axis}")
        return [TensorType(x.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's indexed assignment."""
        x, indices, updates = (present(v) for v in xs)
        places: list[Array] = list(np.indices(indices.shape))
        axis = int(self.get(node, "axis"))
        places[axis] = _inside(node, indices, x.shape[axis])
        return [self._put(node, x, tuple(places), updates)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Each place looks at the updates in its line."""
        from dlcc.tir import expr

        x, indices, updates = (ctx.read(k) for k in range(3))
        axis, shape = int(self.get(node, "axis")), node.input(0).type.shape
        lines = node.input(1).type.shape

        def at(i: Any, k: Any) -> list[Any]:
            """Place of update k of this line; other axes clamped where the updates are smaller."""
            inside = [expr.minimum(v, d - 1) if d < s else v
                      for v, d, s in zip(i, lines, shape, strict=True)]  # fmt: skip
            return [*inside[:axis], k, *inside[axis + 1 :]]

        def hit(i: Any, k: Any) -> Any:
            inside = [i[a] < d for a, d in enumerate(lines) if a != axis and d < shape[a]]
            here = _place(indices(*at(i, k)), shape[axis]) == i[axis]
            # no plain "and": TVM would drop the clamp of a place that the other condition bounds
            return expr.guarded(expr.both(*inside), here, False) if inside else here

        self._combine(node, ctx, lines[axis], hit, lambda i: x(*i), lambda i, k: updates(*at(i, k)))


class ScatterND(_Scatter):
    """scatter_nd(x, indices, updates) {reduction="none"}: rows of ``indices`` name slices of x."""

    name = "scatter_nd"
    attributes = {"reduction": "none"}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The type of ``x``."""
        x, indices = self._check(node), node.input(1).type
        depth = indices.shape[-1] if indices.rank else 0
        if not 0 < depth <= x.rank:
            raise type_error(node, f"rows of {depth} indices do not fit {x.rank} axes")
        if node.input(2).type.shape != (*indices.shape[:-1], *x.shape[depth:]):
            raise type_error(node, "the updates do not fit the indices")
        return [TensorType(x.shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's indexed assignment."""
        x, indices, updates = (present(v) for v in xs)
        named = enumerate(np.moveaxis(indices, -1, 0))
        places = tuple(_inside(node, part, x.shape[k]) for k, part in named)
        return [self._put(node, x, places, updates)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Each place looks at all rows."""
        from dlcc.tir import expr

        x, indices, updates = (ctx.read(k) for k in range(3))
        shape, rows = node.input(0).type.shape, node.input(1).type.shape[:-1]
        depth = node.input(1).type.shape[-1]
        count = int(np.prod(rows, dtype=np.int64))

        def hit(i: Any, k: Any) -> Any:
            row = expr.unflatten(k, rows)
            return expr.both(*(_place(indices(*row, d), shape[d]) == i[d] for d in range(depth)))

        def new(i: Any, k: Any) -> Any:
            return updates(*expr.unflatten(k, rows), *i[depth:])

        self._combine(node, ctx, count, hit, lambda i: x(*i), new)


# -- importers ---------------------------------------------------------------------------------


def _along(node: OnnxNode, op: str) -> Sequence[Value]:
    axis = axis_of(node.attrs.get("axis", 0), node.input(0).type.rank)
    _check_constant(node, [node.input(0).type.shape[axis]])
    return node.build(op, [node.input(0), node.input(1)], {"axis": axis})


@onnx_op("Gather")
def _gather(node: OnnxNode) -> Sequence[Value]:
    return _along(node, "gather")


@onnx_op("GatherElements", since=11)
def _gather_elements(node: OnnxNode) -> Sequence[Value]:
    return _along(node, "gather_elements")


@onnx_op("GatherND", since=11)
def _gather_nd(node: OnnxNode) -> Sequence[Value]:
    batch = node.attrs.get("batch_dims", 0)
    _check_rows(node, batch)
    return node.build("gather_nd", [node.input(0), node.input(1)], {"batch_dims": batch})


def _check_rows(node: OnnxNode, batch: int) -> None:
    """:func:`_check_constant` for rows of indices, one for each axis from ``batch`` on."""
    rows = node.input(1).type.shape
    if rows and batch + rows[-1] <= node.input(0).type.rank:
        _check_constant(node, node.input(0).type.shape[batch : batch + rows[-1]])


def _scatter(node: OnnxNode, op: str, attrs: dict[str, Any]) -> Sequence[Value]:
    reduction = node.attrs.get("reduction", "none")
    if reduction not in _REDUCTIONS:
        raise Unsupported(f"reduction {reduction!r}")
    operands = [node.input(k) for k in range(3)]
    return node.build(op, operands, {**attrs, "reduction": reduction})


@onnx_op("Scatter", since=9)
@onnx_op("ScatterElements", since=11)
def _scatter_elements(node: OnnxNode) -> Sequence[Value]:
    axis = axis_of(node.attrs.get("axis", 0), node.input(0).type.rank)
    _check_constant(node, [node.input(0).type.shape[axis]])
    return _scatter(node, "scatter_elements", {"axis": axis})


@onnx_op("ScatterND", since=11)
def _scatter_nd(node: OnnxNode) -> Sequence[Value]:
    _check_rows(node, 0)
    return _scatter(node, "scatter_nd", {})
