"""Ops of ONNX along a time axis with a position per sample: TensorScatter, ReverseSequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, Value
from dlcc.ops.cast import cast_to
from dlcc.ops.shape import axis_of, integers, reshaped


class _Samples:
    """Integers of shape [samples, time] being computed for one node, with numbered names."""

    def __init__(self, node: OnnxNode) -> None:
        self.node = node
        self.count = 0

    def build(self, op: str, operands: Sequence[Value], **attrs: object) -> Value:
        """One more node."""
        self.count += 1
        suffix = f"/{op}{self.count}"
        return self.node.build(op, operands, attrs, suffix=suffix)[0]  # type: ignore[arg-type]

    def numbers(self, *values: int) -> Value:
        """A constant row."""
        row = np.asarray(values, np.int64).reshape(1, -1)
        return self.node.graph.add_constant(row, name="positions")

    def column(self, value: Value) -> Value:
        """One number per sample as [samples, 1], int64."""
        flat = cast_to(self.node, value, I64, "/int64")
        return reshaped(self.node, flat, (value.type.elements, 1), "/column")

    def moved(self, x: Value, order: tuple[int, ...]) -> Value:
        """``x`` with its axes in ``order``."""
        return x if order == tuple(range(len(order))) else self.build("transpose", [x], perm=order)

    def gathered(self, x: Value, places: Value) -> Value:
        """``x[b, places[b, t], ...]``."""
        rows = self.build("reshape", [places], shape=(*places.type.shape, 1))
        return self.build("gather_nd", [x, rows], batch_dims=1)


@onnx_op("TensorScatter", since=24)
def _tensor_scatter(node: OnnxNode) -> Sequence[Value]:
    """The cache with ``update`` from each sample's position on; both bring time to axis 1."""
    cache, update, start = node.input(0), node.input(1), node.optional(2)
    axis, make = axis_of(int(node.attrs.get("axis", -2)), cache.type.rank), _Samples(node)
    if not axis:
        raise Unsupported("axis 0 is the batch")
    size, count, batch = cache.type.shape[axis], update.type.shape[axis], cache.type.shape[0]
    if start is None:
        first = make.column(node.graph.add_constant(np.zeros(batch, np.int64), name="start"))
    else:
        first = make.column(start)
    offset = make.build("sub", [make.numbers(*range(size)), first])
    if node.attrs.get("mode", "linear") == "circular":
        offset = make.build("mod", [offset, make.numbers(size)])
    inside = make.build(
        "and",
        [
            make.build("greater_equal", [offset, make.numbers(0)]),
            make.build("less", [offset, make.numbers(count)]),
        ],
    )
    nearest = make.build("maximum", [offset, make.numbers(0)])
    nearest = make.build("minimum", [nearest, make.numbers(count - 1)])
    rank = cache.type.rank
    order = (0, axis, *(k for k in range(1, rank) if k != axis))
    written = make.gathered(make.moved(update, order), nearest)
    back = tuple(order.index(k) for k in range(rank))
    shape = tuple(d if k in (0, axis) else 1 for k, d in enumerate(cache.type.shape))
    mask = make.build("reshape", [inside], shape=shape)
    return node.build("where", [mask, make.moved(written, back), cache])


@onnx_op("ReverseSequence", since=10)
def _reverse_sequence(node: OnnxNode) -> Sequence[Value]:
    x, make = node.input(0), _Samples(node)
    batch, time = int(node.attrs.get("batch_axis", 1)), int(node.attrs.get("time_axis", 0))
    if {batch, time} != {0, 1}:
        raise Unsupported(f"axes {batch} and {time}")
    if node.input(1).is_constant:
        longest = max(integers(node.input(1).decoded()), default=0)
        if longest > x.type.shape[time]:
            raise Unsupported(f"a sequence of {longest} in {x.type.shape[time]} steps")
    order = (batch, time, *range(2, x.type.rank))
    steps, lengths = make.numbers(*range(x.type.shape[time])), make.column(node.input(1))
    last = make.build("sub", [lengths, make.numbers(1)])
    mirrored = make.build("sub", [last, steps])
    places = make.build("where", [make.build("less", [steps, lengths]), mirrored, steps])
    return [make.moved(make.gathered(make.moved(x, order), places), order)]
