"""Parts of tensors put together, cut out, and padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, type_error
from dlcc.ops.pointwise import present, same_dtype
from dlcc.ops.shape import Movement, axis_of, integers

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Concat(Movement):
    """concat(xs*) {axis}: the operands one after the other along ``axis``."""

    name = "concat"
    operands = ("xs*",)
    attributes = {"axis": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """Sizes along the axis add up; all other axes agree."""
        types = [v.type for v in node.inputs if v is not None]
        axis = int(self.get(node, "axis"))
        if not types or not 0 <= axis < types[0].rank:
            raise type_error(node, f"there is no axis {axis} to join along")
        rests = {t.shape[:axis] + t.shape[axis + 1 :] for t in types}
        if len(rests) > 1 or len({t.rank for t in types}) > 1:
            raise type_error(node, f"the shapes differ in more than axis {axis}")
        first = types[0].shape
        total = sum(t.shape[axis] for t in types)
        return [TensorType((*first[:axis], total, *first[axis + 1 :]), same_dtype(node).dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's concatenate."""
        return [np.concatenate([present(x) for x in xs], axis=int(self.get(node, "axis")))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A chain of guarded reads."""
        from dlcc.tir import expr

        axis = int(self.get(node, "axis"))
        readers = [ctx.read(k) for k in range(len(node.inputs))]
        sizes = [node.input(k).type.shape[axis] for k in range(len(readers))]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]

        def body(*i: Any) -> Any:
            def part(k: int) -> Any:
                return readers[k](*i[:axis], i[axis] - starts[k], *i[axis + 1 :])

            value = part(len(readers) - 1)
            for k in range(len(readers) - 2, -1, -1):
                value = expr.guarded(i[axis] < starts[k + 1], part(k), value)
            return value

        ctx.output(0, body)


class Slice(Movement):
    """slice(x) {starts, ends, axes, steps}: every steps-th number of starts up to before ends.

    Starts and ends are places in the axis, already clipped to it: no negative numbers counted from
    the end. With a negative step, an end of -1 means that place 0 is included.
    """

    name = "slice"
    attributes = {"starts": ..., "ends": ..., "axes": ..., "steps": ...}  # noqa: RUF012

    def ranges(self, node: Node) -> list[range]:
        """The places read along each axis of the operand."""
        places = [range(d) for d in node.input(0).type.shape]
        keys = ("starts", "ends", "axes", "steps")
        for start, end, axis, step in zip(*(self.get(node, k) for k in keys), strict=True):
            places[axis] = range(start, end, step)
        return places

    def infer(self, node: Node) -> list[TensorType]:
        """As many numbers as the ranges have."""
        x = node.input(0).type
        try:
            places = self.ranges(node)
        except (ValueError, IndexError, TypeError):
            raise type_error(node, "starts, ends, axes and steps do not fit together") from None
        for place, size in zip(places, x.shape, strict=True):
            if len(place) and not (0 <= place[0] < size and 0 <= place[-1] < size):
                raise type_error(node, f"{place} lies outside an axis of {size}")
        return [TensorType(tuple(len(p) for p in places), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's slicing."""
        index = tuple(
            slice(p.start, p.stop if p.stop >= 0 else None, p.step) for p in self.ranges(node)
        )
        return [present(xs[0])[index]]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """An affine map of indices; the step of a single place may be any number, and is none."""
        x, places = ctx.read(0), self.ranges(node)
        rows = [(p.start, p.step if len(p) > 1 else 0) for p in places]
        ctx.output(0, lambda *i: x(*(a + k * step for (a, step), k in zip(rows, i, strict=True))))


class Pad(Movement):
    """pad(x) {pads, mode="constant", value=0}: x with a border.

    Args of the node: ``pads`` are 2 * rank non-negative sizes, all before-sizes first; ``mode``
    is constant, reflect (the edge not repeated), edge or wrap; ``value`` is a real number, encoded
    as the nearest code where the result is quantised.
    """

    name = "pad"
    attributes = {"pads": ..., "mode": "constant", "value": 0.0}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """Each axis grows by its two pads."""
        x, pads = node.input(0).type, tuple(self.get(node, "pads"))
        rank, mode = x.rank, self.get(node, "mode")
        if len(pads) != 2 * rank or any(p < 0 for p in pads):
            raise type_error(node, f"pads {list(pads)} do not fit {rank} axes")
        if mode not in ("constant", "reflect", "edge", "wrap"):
            raise type_error(node, f"there is no padding mode {mode!r}")
        slack = {"reflect": -1, "wrap": 0}.get(mode)
        for axis, size in enumerate(x.shape):
            if slack is not None and max(pads[axis], pads[rank + axis]) > size + slack:
                raise type_error(node, f"{mode} padding of axis {axis} is wider than the axis")
        shape = tuple(d + pads[k] + pads[rank + k] for k, d in enumerate(x.shape))
        return [TensorType(shape, x.dtype)]

    def _value(self, node: Node) -> Any:
        """The border's number as it is stored."""
        value = float(self.get(node, "value"))
        out = node.output.type
        if isinstance(out.encoding, Affine):
            return out.encoding.quantise(np.asarray(value)).reshape(-1)[0]
        return out.dtype.numpy.type(value)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's pad."""
        x, pads = present(xs[0]), tuple(self.get(node, "pads"))
        widths = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
        mode = self.get(node, "mode")
        if mode == "constant":
            return [np.pad(x, widths, constant_values=self._value(node))]
        return [np.pad(x, widths, mode=mode)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """With the border's value."""
        x = xs[0]
        assert x is not None
        if self.get(node, "mode") != "constant" or not any(self.get(node, "pads")):
            return [x]
        value = float(self.get(node, "value"))
        return [x.union(Interval(value, value))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A guarded read, or a map of indices into the axis."""
        from dlcc.tir import expr
        from dlcc.tir.access import element

        x, shape, mode = ctx.read(0), node.input(0).type.shape, self.get(node, "mode")
        before = tuple(self.get(node, "pads"))[: len(shape)]

        def place(index: Any, pad: int, size: int) -> Any:
            k = index - pad
            if mode == "wrap":
                return expr.floormod(k + size, size)
            if mode == "edge":
                return expr.clamp(k, 0, size - 1)
            k = expr.maximum(k, expr.negative(k))
            return expr.minimum(k, 2 * (size - 1) - k)

        def body(*i: Any) -> Any:
            if mode != "constant":
                return x(*(place(k, p, d) for k, p, d in zip(i, before, shape, strict=True)))
            inner = [k - p for k, p in zip(i, before, strict=True)]
            conditions = [
                c
                for k, d, whole in zip(inner, shape, node.output.type.shape, strict=True)
                if d != whole
                for c in (k >= 0, k < d)
            ]
            if not conditions:
                return x(*inner)
            border = expr.const(self._value(node).item(), element(node.output.type))
            return expr.guarded(expr.both(*conditions), x(*inner), border)

        ctx.output(0, body)


# -- importers ---------------------------------------------------------------------------------


@onnx_op("Concat", since=4)
def _concat(node: OnnxNode) -> Sequence[Value]:
    parts = [v for v in node.inputs if v is not None]
    axis = axis_of(node.attrs["axis"], parts[0].type.rank)
    filled = [v for v in parts if v.type.shape[axis]] or parts[:1]
    if len(filled) == 1:
        return filled
    return node.build("concat", filled, {"axis": axis})


def sliced(
    node: OnnxNode,
    x: Value,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
    suffix: str = "",
) -> Value:
    """``x`` cut as ONNX's Slice says (negative and too large places allowed)."""
    rank = x.type.rank
    rows: list[tuple[int, int, int, int]] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis_of(axis, rank)
        size = x.type.shape[axis]
        if step == 0:
            raise Unsupported("a step of 0")
        start, end, _ = slice(start, end, step).indices(size)
        if (start, end, step) != (0, size, 1):
            rows.append((start, end, axis, step))
    if not rows:
        return x
    attrs = {
        key: tuple(row[k] for row in rows)
        for k, key in enumerate(("starts", "ends", "axes", "steps"))
    }
    return node.build("slice", [x], attrs, suffix=suffix)[0]


@onnx_op("Slice")
def _slice_attributes(node: OnnxNode) -> Sequence[Value]:
    starts, ends = node.attrs["starts"], node.attrs["ends"]
    axes = node.attrs.get("axes", range(len(starts)))
    return [sliced(node, node.input(0), starts, ends, axes, [1] * len(starts))]


@onnx_op("Slice", since=10)
def _slice(node: OnnxNode) -> Sequence[Value]:
    starts = integers(node.constant(1, "starts"))
    ends = integers(node.constant(2, "ends"))
    axes = node.optional_constant(3, "axes")
    steps = node.optional_constant(4, "steps")
    return [
        sliced(
            node,
            node.input(0),
            starts,
            ends,
            range(len(starts)) if axes is None else integers(axes),
            [1] * len(starts) if steps is None else integers(steps),
        )
    ]


@onnx_op("Split")
def _split(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    axis = axis_of(node.attrs.get("axis", 0), x.type.rank)
    size = x.type.shape[axis]
    given = node.attrs.get("split") if node.opset < 13 else node.optional_constant(1, "split")
    if given is not None:
        parts = integers(np.asarray(given))
    else:
        count = node.attrs.get("num_outputs", node.output_count)
        if count != node.output_count:
            raise Unsupported(f"num_outputs is {count}, it has {node.output_count}")
        part = math.ceil(size / count)
        parts = tuple(max(0, min(part, size - k * part)) for k in range(count))
    if sum(parts) != size or min(parts, default=0) < 0:
        raise Unsupported(f"parts {list(parts)} do not add up to {size}")
    ends = np.cumsum(parts).tolist()
    return [
        sliced(node, x, [end - part], [end], [axis], [1], suffix=f"/{k}")
        for k, (part, end) in enumerate(zip(parts, ends, strict=True))
    ]


@onnx_op("Pad")
def _pad_attributes(node: OnnxNode) -> Sequence[Value]:
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    return _padded(node, pads, float(node.attrs.get("value", 0.0)))


@onnx_op("Pad", since=11)
def _pad(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    given = integers(node.constant(1, "pads"))
    value = node.optional_constant(2, "the value")
    axes = node.optional_constant(3, "axes")
    pads = given
    if axes is not None:
        whole = [0] * (2 * x.type.rank)
        count = len(given) // 2
        for k, axis in enumerate(integers(axes)):
            place = axis_of(axis, x.type.rank)
            whole[place], whole[x.type.rank + place] = given[k], given[count + k]
        pads = tuple(whole)
    number = 0.0 if value is None or not value.size else float(value.reshape(-1)[0])
    return _padded(node, pads, number)


def _padded(node: OnnxNode, pads: Sequence[int], value: float) -> list[Value]:
    """Negative pads cut, then the positive ones pad."""
    x = node.input(0)
    rank = x.type.rank
    if len(pads) != 2 * rank:
        raise Unsupported(f"{len(pads)} pads for {rank} axes")
    if any(p < 0 for p in pads):
        starts = [max(0, -p) for p in pads[:rank]]
        ends = [d + min(0, p) for d, p in zip(x.type.shape, pads[rank:], strict=True)]
        if any(end < start for start, end in zip(starts, ends, strict=True)):
            raise Unsupported(f"pads {list(pads)} cut more than there is of {list(x.type.shape)}")
        x = sliced(node, x, starts, ends, range(rank), [1] * rank, suffix="/cut")
    grown = tuple(max(0, p) for p in pads)
    if not any(grown):
        return [x]
    mode = node.attrs.get("mode", "constant")
    return node.build("pad", [x], {"pads": grown, "mode": mode, "value": value})
