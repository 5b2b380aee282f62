"""Places of the maxima of a max pool, and MaxUnpool, which puts numbers back to such places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present
from dlcc.ops.weights import reshape_value

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class MaxPoolIndices(Op):
    """max_pool_indices(x) {kernel, strides, dilations, pads}: where each window's maximum lies.

    x [N, C, *spatial] -> int64 [N, C, *windows]: places in the flattened ``x``, row-major, or with
    the last spatial axis varying slowest (``column_major``). Of equal elements it is the first in
    row-major order; padding never wins. A line may be given the attributes of an image of height 1.
    """

    name = "max_pool_indices"
    attributes: ClassVar[Mapping[str, Any]] = {
        "kernel": ...,
        "strides": ...,
        "dilations": ...,
        "pads": ...,
        "column_major": False,
    }

    def geometry(self, node: Node) -> list[tuple[int, ...]]:
        """Size, kernel, stride, dilation, first pad and windows of each spatial axis."""
        sizes = node.input(0).type.shape[2:]
        rank = len(sizes)
        keys = ("kernel", "strides", "dilations")
        columns = [[int(v) for v in self.get(node, key)][-rank:] for key in keys]
        pads = [int(v) for v in self.get(node, "pads")]
        first, last = pads[: len(pads) // 2][-rank:], pads[len(pads) // 2 :][-rank:]
        lines: list[tuple[int, ...]] = []
        for size, kernel, stride, dilation, begin, end in zip(
            sizes, *columns, first, last, strict=True
        ):
            windows = (size + begin + end - (kernel - 1) * dilation - 1) // stride + 1
            lines.append((size, kernel, stride, dilation, begin, windows))
        return lines

    def strides(self, node: Node) -> tuple[int, ...]:
        """Of each spatial axis, in the numbering of places."""
        sizes = node.input(0).type.shape[2:]
        if self.get(node, "column_major"):
            return tuple(math.prod(sizes[:k]) for k in range(len(sizes)))
        return tuple(math.prod(sizes[k + 1 :]) for k in range(len(sizes)))

    def infer(self, node: Node) -> list[TensorType]:
        """[N, C, *spatial] -> int64 [N, C, *windows]."""
        x = node.input(0).type
        lines = self.geometry(node)
        if x.rank < 3 or any(min(line[1:4]) < 1 or line[5] < 1 for line in lines):
            raise type_error(node, "the window does not fit")
        return [TensorType((*x.shape[:2], *(line[5] for line in lines)), I64)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """A running maximum over the taps; a later tap must be larger to win, or the first NaN."""
        x, lines = present(xs[0]), self.geometry(node)
        images, strides = x.shape[0] * x.shape[1], self.strides(node)
        flat = x.reshape(images, *x.shape[2:])
        windows = tuple(line[5] for line in lines)
        best: Array = np.zeros((images, *windows), x.dtype)
        found = np.full((images, *windows), -1, np.int64)
        for tap in np.ndindex(*(line[1] for line in lines)):
            inside, places, numbers = np.asarray(True), [], np.zeros((), np.int64)
            for axis, (line, t) in enumerate(zip(lines, tap, strict=True)):
                size, _, stride, dilation, begin, count = line
                place = np.arange(count) * stride + t * dilation - begin
                spread = (-1, *(1,) * (len(lines) - 1 - axis))
                inside = inside & ((place >= 0) & (place < size)).reshape(spread)
                places.append(np.clip(place, 0, size - 1))
                numbers = numbers + (places[-1] * strides[axis]).reshape(spread)
            value = flat[(slice(None), *np.ix_(*places))]
            larger = (value > best) | ((value != value) & (best == best))
            wins = inside & ((found < 0) | larger)
            best, found = np.where(wins, value, best), np.where(wins, numbers, found)
        found += (np.arange(images) * math.prod(x.shape[2:])).reshape(-1, *(1,) * len(lines))
        return [found.reshape(node.output.type.shape)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """A place in the operand."""
        return [Interval(0.0, float(max(0, node.input(0).type.elements - 1)))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """The maximum, then the smallest place that holds it (:mod:`dlcc.tir.pools`)."""
        from dlcc.tir.pools import emit_indices

        emit_indices(node, ctx, self.geometry(node), self.strides(node))


# -- ONNX --------------------------------------------------------------------------------------


@onnx_op("MaxUnpool", since=9)
def import_max_unpool(node: OnnxNode) -> Sequence[Value]:
    """MaxUnpool: zeros with the numbers scattered to the places, in a larger frame if asked for."""
    x, places = node.input(0), node.input(1)
    kernel = node.attrs["kernel_shape"]
    rank = len(kernel)
    if x.type.rank != rank + 2 or places.type.shape != x.type.shape:
        raise Unsupported(f"{rank}-D windows of {list(x.type.shape)} do not fit the indices")
    strides = node.attrs.get("strides") or (1,) * rank
    pads = node.attrs.get("pads") or (0,) * (2 * rank)
    spatial = tuple(
        (d - 1) * strides[k] - pads[k] - pads[rank + k] + kernel[k]
        for k, d in enumerate(x.type.shape[2:])
    )
    shape, count = (*x.type.shape[:2], *spatial), x.type.elements
    if min(spatial) < 1:
        raise Unsupported(f"the result would have shape {list(shape)}")
    zero = node.graph.add_constant(np.zeros((1,), x.type.dtype.numpy), name=node.name + ".zero")
    whole = {"shape": (math.prod(shape),)}
    (zeros,) = node.build("expand", [zero], whole, suffix=".zeros")
    rows = reshape_value(node, places, (count, 1), ".places")
    updates = reshape_value(node, x, (count,), ".numbers")
    (flat,) = node.build("scatter_nd", [zeros, rows, updates], suffix=".scattered")
    made = reshape_value(node, flat, shape, ".image")
    wanted = node.optional_constant(2, "the output's shape")
    if wanted is None or tuple(int(v) for v in wanted.reshape(-1)) == shape:
        return [made]
    grown = tuple(int(v) - d for v, d in zip(wanted.reshape(-1), shape, strict=True))
    if min(grown) < 0:
        raise Unsupported(f"an output of {wanted.tolist()} is smaller than {list(shape)}")
    return node.build("pad", [made], {"pads": (*(0,) * len(shape), *grown)})
