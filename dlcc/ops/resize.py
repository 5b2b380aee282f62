"""Resizing of images: nearest, linear, cubic; importers are in :mod:`dlcc.ops.resize_onnx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed, float_dtype

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


class Resize2d(Op):
    """Separable resampling of x [N,C,H,W] to ``sizes`` (OH, OW), as ONNX Resize defines it.

    Attributes: ``mode`` nearest, linear or cubic; ``coordinate`` how output pixels map to input
    ones; ``nearest_mode`` the rounding of nearest; ``scales`` (height, width) where they are not
    exactly output / input; ``cubic_coeff`` the a of Keys' kernel; ``exclude_outside`` drops taps
    outside the image and rescales the rest; ``antialias`` widens the kernels of linear and cubic
    where an axis shrinks, so that every input pixel counts. With tf_crop_and_resize ``roi`` (start
    height, start width, end height, end width; 0 and 1 are the outermost pixels) is what is shown,
    and ``extrapolation`` stands outside the image.

    Nearest moves codes; linear and cubic are float.
    """

    name = "resize2d"
    attributes: ClassVar[Mapping[str, Any]] = {
        "sizes": ...,
        "mode": "nearest",
        "coordinate": "half_pixel",
        "nearest_mode": "round_prefer_floor",
        "scales": (),
        "cubic_coeff": -0.75,
        "exclude_outside": False,
        "antialias": False,
        "roi": (0.0, 0.0, 1.0, 1.0),
        "extrapolation": 0.0,
    }
    quantised = Quantised.INTEGER

    def infer(self, node: Node) -> list[TensorType]:
        """[N,C,H,W] -> [N,C,OH,OW]."""
        x, sizes = node.input(0).type, self.get(node, "sizes")
        if x.rank != 4 or len(sizes) != 2 or min(*sizes, *x.shape[2:]) < 1:
            raise type_error(node, "a 4-axis input and two positive sizes are needed")
        if any(not 0 < scale < np.inf for scale in self.get(node, "scales")):
            raise type_error(node, f"scales {self.get(node, 'scales')} are not positive numbers")
        if self.get(node, "mode") not in ("nearest", "linear", "cubic"):
            raise type_error(node, f"unknown mode {self.get(node, 'mode')!r}")
        if self.get(node, "coordinate") not in COORDINATES:
            raise type_error(node, f"unknown coordinate mode {self.get(node, 'coordinate')!r}")
        if self.get(node, "nearest_mode") not in NEAREST:
            raise type_error(node, f"unknown nearest mode {self.get(node, 'nearest_mode')!r}")
        return [TensorType((*x.shape[:2], *sizes), x.dtype)]

    def taps(self, node: Node, axis: int) -> tuple[Array, Array]:
        """Where output pixels of spatial ``axis`` (0, 1) come from.

        Returns:
            int32 [taps, extent] input indices and float32 weights of the same shape (nearest: one
            tap of weight 1).
        """
        size, where, scale = self._positions(node, axis)
        mode = self.get(node, "mode")
        if mode == "nearest":
            index = nearest_index(self.get(node, "nearest_mode"), where)
            indices, weights = index[None], np.ones((1, len(where)))
        elif self.get(node, "antialias") and scale < 1:
            a = float(self.get(node, "cubic_coeff")) if mode == "cubic" else None
            indices, weights = wide_taps(where, scale, a)
        elif mode == "linear":
            base = np.floor(where)
            indices = np.stack([base, base + 1])
            weights = np.stack([1 - (where - base), where - base])
        else:
            base = np.floor(where)
            indices = np.stack([base - 1, base, base + 1, base + 2])
            weights = cubic_weights(where - base, float(self.get(node, "cubic_coeff")))
        if self.get(node, "exclude_outside") and mode != "nearest":
            weights = np.where((indices >= 0) & (indices < size), weights, 0)
            weights = weights / weights.sum(axis=0)
        return np.clip(indices, 0, size - 1).astype(np.int32), weights.astype(np.float32)

    def _positions(self, node: Node, axis: int) -> tuple[int, Array, float]:
        """Input size, input position of every output pixel, and scale of spatial ``axis``."""
        size, out = node.input(0).type.shape[axis + 2], self.get(node, "sizes")[axis]
        scales, coordinate = self.get(node, "scales"), self.get(node, "coordinate")
        scale = float(scales[axis]) if scales else out / size
        if coordinate == "tf_crop_and_resize":
            start, end = (float(self.get(node, "roi")[k]) for k in (axis, axis + 2))
            return size, cropped_positions(size, out, start, end), scale
        return size, source_positions(coordinate, size, out, scale), scale

    def outside(self, node: Node, axis: int) -> Array:
        """Which of the output pixels of spatial ``axis`` lie outside the image, as bools."""
        size, where, _ = self._positions(node, axis)
        if self.get(node, "coordinate") != "tf_crop_and_resize":
            return np.zeros(where.shape, np.bool_)
        return np.asarray((where < 0) | (where > size - 1))

    def beyond(self, node: Node) -> Any:
        """``extrapolation`` as it is stored."""
        value, encoding = float(self.get(node, "extrapolation")), node.output.type.encoding
        if isinstance(encoding, Affine):
            return encoding.quantise(np.asarray(value)).reshape(-1)[0]
        return node.output.type.dtype.numpy.type(value)

    def _extrapolated(self, node: Node, out: Array, value: Any) -> Array:
        rows, columns = (self.outside(node, axis) for axis in (0, 1))
        if rows.any() or columns.any():
            out = np.where(rows[:, None] | columns, out.dtype.type(value), out)
        return out

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Rows, then columns; the sums in float32."""
        x = xs[0]
        assert x is not None
        if self.get(node, "mode") == "nearest":
            rows, columns = self.taps(node, 0)[0][0], self.taps(node, 1)[0][0]
            moved = np.ascontiguousarray(x[:, :, rows][:, :, :, columns])
            coded = x.dtype == node.output.type.storage.numpy
            value = self.beyond(node) if coded else float(self.get(node, "extrapolation"))
            return [self._extrapolated(node, moved, value)]
        dtype = float_dtype(x)
        out = x.astype(dtype, copy=False)
        for axis in (0, 1):
            indices, weights = self.taps(node, axis)
            shape = (-1, 1) if axis == 0 else (-1,)
            out = sum(
                np.take(out, index, axis=axis + 2) * weight.astype(dtype).reshape(shape)
                for index, weight in zip(indices, weights, strict=True)
            )
        out = self._extrapolated(node, np.asarray(out), float(self.get(node, "extrapolation")))
        return [np.rint(out).astype(x.dtype) if x.dtype.kind in "iu" else out.astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Nearest selects codes; the other modes have no integer form."""
        same = all(v.type.encoding == node.output.type.encoding for v in (node.input(0),))
        if self.get(node, "mode") == "nearest" and same:
            return self.evaluate(node, xs)
        return evaluate_mixed(self, node, xs)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range; cubic weights may overshoot it."""
        assert xs[0] is not None
        x = xs[0]
        if self.outside(node, 0).any() or self.outside(node, 1).any():
            value = float(self.get(node, "extrapolation"))
            x = x.union(Interval(value, value))
        if self.get(node, "mode") != "cubic":
            return [x]
        gain = float(
            np.prod([np.abs(self.taps(node, axis)[1]).sum(axis=0).max() for axis in (0, 1)])
        )
        largest = max(abs(x.low), abs(x.high)) * gain
        return [Interval(-largest, largest)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Tables of taps (:mod:`dlcc.tir.resampling`)."""
        from dlcc.tir.resampling import emit

        taps = [self.taps(node, axis) for axis in (0, 1)]
        outside = [self.outside(node, axis) for axis in (0, 1)]
        emit(node, ctx, taps, outside, self.beyond(node))


def source_positions(coordinate: str, size: int, out: int, scale: float) -> Array:
    """float64 input position of each of ``out`` pixels (ONNX Resize, computed in float32 there)."""
    at = np.arange(out, dtype=np.float64)
    if coordinate == "asymmetric":
        return at / scale
    if coordinate == "align_corners":
        return at * ((size - 1) / (out - 1)) if out > 1 else np.zeros(1)
    if coordinate == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    if coordinate == "tf_half_pixel_for_nn":
        return np.asarray((at + 0.5) / scale)
    centred = (at + 0.5) / scale - 0.5
    if coordinate == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        return np.asarray(size / 2 * (1 - adjustment) + centred)
    return centred


def cropped_positions(size: int, out: int, start: float, end: float) -> Array:
    """float64 input positions of a crop from ``start`` to ``end`` (TensorFlow's CropAndResize)."""
    if out == 1:
        return np.asarray([0.5 * (start + end) * (size - 1)])
    return np.asarray(
        start * (size - 1) + np.arange(out) * ((end - start) * (size - 1) / (out - 1))
    )


def wide_taps(where: Array, scale: float, a: float | None) -> tuple[Array, Array]:
    """Indices and weights of a kernel stretched by 1 / ``scale``: the triangle, or Keys' with a."""
    reach = (1 if a is None else 2) / scale
    count = int(np.ceil(reach))
    steps = np.arange(1 - count, count + 1)[:, None]
    indices = np.floor(where) + steps
    distance = np.abs(indices - where) * scale
    if a is None:
        weights = np.maximum(1 - distance, 0)
    else:
        near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return indices, weights / weights.sum(axis=0)


def nearest_index(mode: str, where: Array) -> Array:
    """Rounding of nearest resampling, to float64 integers.

    Positions are cut to 12 decimals first, so that 0.5 that came out as 0.49999999999999994 counts
    as a tie.
    """
    where = np.round(where, 12)
    if mode == "round_prefer_floor":
        return np.asarray(np.ceil(where - 0.5))
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(where + 0.5))
    return np.asarray(np.floor(where) if mode == "floor" else np.ceil(where))


def cubic_weights(offset: Array, a: float) -> Array:
    """Keys' (1981) kernel at distances 1 + t, t, 1 - t, 2 - t; shape [4, len(offset)]."""

    def near(d: Array) -> Array:
        return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: Array) -> Array:
        return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return np.stack([far(1 + offset), near(offset), near(1 - offset), far(2 - offset)])
