"""Windows as an axis of their own (im2col along one axis), and their sum back (col2im)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present
from dlcc.ops.shape import Movement
from dlcc.ops.weights import reshape_value

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Unfold(Movement):
    """unfold(x) {axis, taps, stride=1, dilation=1, pads=(0, 0)}: the taps of every window.

    x [..., D, ..., C] -> y [..., O, ..., taps, C] with y[.., o, .., k, c] =
    x[.., o * stride + k * dilation - pads[0], .., c], 0 outside: the taps become an axis before the
    last one. A convolution over ``axis`` is then a product over that axis. Pads may be negative
    (cropping). Codes are moved as they are; the border is the code of 0.
    """

    name = "unfold"
    attributes: ClassVar[Mapping[str, Any]] = {
        "axis": ...,
        "taps": ...,
        "stride": 1,
        "dilation": 1,
        "pads": (0, 0),
    }

    def _geometry(self, node: Node) -> tuple[int, int, int, int, int]:
        """Axis, taps, stride, dilation, windows."""
        axis, taps, stride, dilation = (
            int(self.get(node, key)) for key in ("axis", "taps", "stride", "dilation")
        )
        size = node.input(0).type.shape[axis] + sum(self.get(node, "pads"))
        return axis, taps, stride, dilation, (size - (taps - 1) * dilation - 1) // stride + 1

    def places(self, node: Node) -> Array:
        """int64 [windows, taps]: the place of each tap in the axis, outside of it in the pads."""
        _, taps, stride, dilation, count = self._geometry(node)
        first = -int(self.get(node, "pads")[0])
        return first + np.add.outer(np.arange(count) * stride, np.arange(taps) * dilation)

    def infer(self, node: Node) -> list[TensorType]:
        """One axis more; the windowed axis has one place per window."""
        x, axis = node.input(0).type, int(self.get(node, "axis"))
        if not 0 <= axis < x.rank - 1:
            raise type_error(node, f"axis {axis} is no axis before the last one")
        axis, taps, stride, dilation, count = self._geometry(node)
        if min(taps, stride, dilation) < 1:
            raise type_error(node, "taps, stride and dilation must be at least 1")
        if count < 1:
            raise type_error(node, f"no window of {(taps - 1) * dilation + 1} fits")
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 : -1], taps, x.shape[-1])
        return [TensorType(shape, x.dtype)]

    def _border(self, node: Node) -> Any:
        """0 as it is stored."""
        encoding = node.output.type.encoding
        return encoding.zero_point if isinstance(encoding, Affine) else 0

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's take, and the border where a tap lies outside."""
        x, places = present(xs[0]), self.places(node)
        axis = int(self.get(node, "axis"))
        size = x.shape[axis]
        taken = np.take(x, np.clip(places, 0, size - 1), axis=axis)
        outside = ((places < 0) | (places >= size)).reshape(
            *places.shape, *(1,) * (x.ndim - axis - 1)
        )
        taken = np.where(outside, x.dtype.type(self._border(node)), taken)
        return [np.ascontiguousarray(np.moveaxis(taken, axis + 1, -2))]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range, with 0 where there is a border."""
        x = xs[0]
        assert x is not None
        padded = max(self.get(node, "pads")) > 0
        return [x.union(Interval(0.0, 0.0)) if padded else x]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A read, guarded where there is a border; vectors run along the last axis."""
        from dlcc.tir import expr
        from dlcc.tir.access import element

        x, size = ctx.read(0), node.input(0).type.shape[int(self.get(node, "axis"))]
        axis, _, stride, dilation, _ = self._geometry(node)
        places = self.places(node)
        border = expr.const(self._border(node), element(node.output.type))

        def body(*i: Any) -> Any:
            *outer, tap, channel = i
            place = outer[axis] * stride + tap * dilation + int(places[0, 0])
            conditions = [
                condition
                for needed, condition in (
                    (places.min() < 0, place >= 0),
                    (places.max() >= size, place < size),
                )
                if needed
            ]
            value = x(*outer[:axis], place, *outer[axis + 1 :], channel)
            return expr.guarded(expr.both(*conditions), value, border) if conditions else value

        ctx.output(0, body)


class Fold(Op):
    """fold(x) {sizes, kernel, strides, dilations, pads}: every tap added at its place (col2im).

    x [N, C, prod(kernel), prod(windows)] -> y [N, C, *sizes]: the transposed :class:`Unfold`, over
    all spatial axes at once. ``pads`` are all begins, then all ends; they may be negative.
    """

    name = "fold"
    attributes: ClassVar[Mapping[str, Any]] = {
        "sizes": ...,
        "kernel": ...,
        "strides": ...,
        "dilations": ...,
        "pads": ...,
    }

    def windows(self, node: Node) -> tuple[int, ...]:
        """Windows along each axis."""
        sizes, kernel, strides, dilations, pads = self._attributes(node)
        return tuple(
            (d + pads[k] + pads[k + len(sizes)] - (kernel[k] - 1) * dilations[k] - 1) // strides[k]
            + 1
            for k, d in enumerate(sizes)
        )

    def _attributes(self, node: Node) -> list[tuple[int, ...]]:
        return [tuple(int(v) for v in self.get(node, key)) for key in self.attributes]

    def infer(self, node: Node) -> list[TensorType]:
        """[N, C, taps, windows] -> [N, C, *sizes]."""
        x, (sizes, kernel, strides, dilations, pads) = node.input(0).type, self._attributes(node)
        rank = len(sizes)
        if {len(kernel), len(strides), len(dilations)} != {rank} or len(pads) != 2 * rank:
            raise type_error(node, f"the attributes are not all for {rank} axes")
        if min((*sizes, *kernel, *strides, *dilations), default=0) < 1:
            raise type_error(node, "sizes, kernel, strides and dilations must be at least 1")
        windows = self.windows(node)
        if x.rank != 4 or x.shape[2:] != (math.prod(kernel), math.prod(windows)):
            raise type_error(
                node, f"{math.prod(kernel)} taps of {math.prod(windows)} windows were expected"
            )
        if min(windows) < 1:
            raise type_error(node, "no window fits")
        return [TensorType((*x.shape[:2], *sizes), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Every tap of all windows added by one strided slice."""
        x, windows = present(xs[0]), self.windows(node)
        sizes, kernel, strides, dilations, pads = self._attributes(node)
        rank = len(sizes)
        reach = [
            max((w - 1) * s + (k - 1) * d + 1, pads[a] + sizes[a])
            for a, (w, s, k, d) in enumerate(zip(windows, strides, kernel, dilations, strict=True))
        ]
        lead = [max(0, -p) for p in pads[:rank]]  # negative pads: places before the first window
        extents = [r + extra for r, extra in zip(reach, lead, strict=True)]
        full = np.zeros((*x.shape[:2], *extents), x.dtype)
        taps = x.reshape(*x.shape[:2], *kernel, *windows)
        for tap in np.ndindex(*kernel):
            place: Any = tuple(
                slice(b + t * d, b + t * d + (w - 1) * s + 1, s)
                for b, t, d, w, s in zip(lead, tap, dilations, windows, strides, strict=True)
            )
            full[(..., *place)] += taps[(slice(None), slice(None), *tap)]
        kept: Any = tuple(
            slice(p + extra, p + extra + d)
            for p, extra, d in zip(pads[:rank], lead, sizes, strict=True)
        )
        return [np.ascontiguousarray(full[(..., *kept)])]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """As many terms as a place can have taps, any of which may be missing."""
        assert xs[0] is not None
        taps = math.prod(self.get(node, "kernel"))
        return [Interval(min(0.0, xs[0].low) * taps, max(0.0, xs[0].high) * taps)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Each place looks at its taps (:mod:`dlcc.tir.folding`)."""
        from dlcc.tir.folding import emit

        emit(node, ctx, self._attributes(node), self.windows(node))


# -- ONNX --------------------------------------------------------------------------------------


@onnx_op("Col2Im", since=18)
def import_col2im(node: OnnxNode) -> Sequence[Value]:
    """Col2Im of any number of axes; the image's and the block's shape are known."""
    x = node.input(0)
    sizes = tuple(int(v) for v in node.constant(1, "the image's shape").reshape(-1))
    kernel = tuple(int(v) for v in node.constant(2, "the block's shape").reshape(-1))
    taps, rank = math.prod(kernel), len(sizes)
    if x.type.rank != 3 or not taps or x.type.shape[1] % taps:
        raise Unsupported(f"an input of shape {list(x.type.shape)} for blocks of {list(kernel)}")
    n, columns, windows = x.type.shape
    split = reshape_value(node, x, (n, columns // taps, taps, windows), ".taps")
    attrs = {
        "sizes": sizes,
        "kernel": kernel,
        "strides": tuple(node.attrs.get("strides") or (1,) * rank),
        "dilations": tuple(node.attrs.get("dilations") or (1,) * rank),
        "pads": tuple(node.attrs.get("pads") or (0,) * (2 * rank)),
    }
    return node.build("fold", [split], attrs)
