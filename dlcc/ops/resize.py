"""Resizing of images: nearest, linear, cubic; importers of Resize and Upsample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed, float_dtype
from dlcc.ops.weights import reshape_value

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


class Resize2d(Op):
    """Separable resampling of x [N,C,H,W] to ``sizes`` (OH, OW), as ONNX Resize defines it.

    Attributes: ``mode`` nearest, linear or cubic; ``coordinate`` how output pixels map to input
    ones; ``nearest_mode`` the rounding of nearest; ``scales`` (height, width) where they are not
    exactly output / input; ``cubic_coeff`` the a of Keys' kernel; ``exclude_outside`` drops taps
    outside the image and rescales the rest.

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
    }
    quantised = Quantised.INTEGER

    def infer(self, node: Node) -> list[TensorType]:
        """[N,C,H,W] -> [N,C,OH,OW]."""
        x, sizes = node.input(0).type, self.get(node, "sizes")
        if x.rank != 4 or len(sizes) != 2 or min(sizes) < 1:
            raise type_error(node, "a 4-axis input and two positive sizes are needed")
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
        size, out = node.input(0).type.shape[axis + 2], self.get(node, "sizes")[axis]
        scales = self.get(node, "scales")
        scale = float(scales[axis]) if scales else out / size
        where = source_positions(self.get(node, "coordinate"), size, out, scale)
        mode = self.get(node, "mode")
        if mode == "nearest":
            index = nearest_index(self.get(node, "nearest_mode"), where)
            indices, weights = index[None], np.ones((1, out))
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

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Rows, then columns; the sums in float32."""
        x = xs[0]
        assert x is not None
        if self.get(node, "mode") == "nearest":
            rows, columns = self.taps(node, 0)[0][0], self.taps(node, 1)[0][0]
            return [np.ascontiguousarray(x[:, :, rows][:, :, :, columns])]
        dtype = float_dtype(x)
        out = x.astype(dtype, copy=False)
        for axis in (0, 1):
            indices, weights = self.taps(node, axis)
            shape = (-1, 1) if axis == 0 else (-1,)
            out = sum(
                np.take(out, index, axis=axis + 2) * weight.astype(dtype).reshape(shape)
                for index, weight in zip(indices, weights, strict=True)
            )
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
        if self.get(node, "mode") != "cubic":
            return [xs[0]]
        gain = float(
            np.prod([np.abs(self.taps(node, axis)[1]).sum(axis=0).max() for axis in (0, 1)])
        )
        largest = max(abs(xs[0].low), abs(xs[0].high)) * gain
        return [Interval(-largest, largest)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Tables of taps (:mod:`dlcc.tir.resampling`)."""
        from dlcc.tir.resampling import emit

        emit(node, ctx, [self.taps(node, axis) for axis in (0, 1)])


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


# -- ONNX --------------------------------------------------------------------------------------


def _resized(
    node: OnnxNode, sizes: Sequence[int], scales: Sequence[float], attrs: dict[str, Any]
) -> Sequence[Value]:
    """A resize2d over the last two axes, with the leading ones flattened as needed."""
    x = node.input(0)
    rank = x.type.rank
    shape = x.type.shape
    changed = [i for i in range(rank) if sizes[i] != shape[i] or abs(scales[i] - 1.0) > 1e-12]
    if not changed:
        return [x]
    channels_last = rank == 4 and set(changed) <= {1, 2}
    if channels_last:
        (x,) = node.build("transpose", [x], {"perm": (0, 3, 1, 2)}, suffix=".nchw")
        sizes, scales = ([v[i] for i in (0, 3, 1, 2)] for v in (sizes, scales))  # type: ignore[assignment]
        shape = x.type.shape
    elif changed[0] < rank - 2:
        raise Unsupported(f"resizes axes {changed} of {rank}: only the last two are supported")
    height = (1, 1.0) if rank == 1 else (int(sizes[-2]), float(scales[-2]))
    lead = int(np.prod(shape[:-2], dtype=np.int64)) if rank > 2 else 1
    flat = shape if rank == 4 else (1, lead, 1 if rank == 1 else shape[-2], shape[-1])
    image = reshape_value(node, x, flat, ".image")
    exact = height[0] == flat[2] * height[1] and sizes[-1] == flat[3] * scales[-1]
    attrs = {
        **attrs,
        "sizes": (height[0], int(sizes[-1])),
        "scales": () if exact else (height[1], float(scales[-1])),
    }
    (made,) = node.build("resize2d", [image], attrs)
    if channels_last:
        return node.build("transpose", [made], {"perm": (0, 2, 3, 1)}, suffix=".nhwc")
    return [reshape_value(node, made, tuple(int(s) for s in sizes), ".shape")]


@onnx_op("Upsample")
def import_upsample(node: OnnxNode) -> Sequence[Value]:
    """Upsample (opset 7 to 9): asymmetric coordinates, floor for nearest."""
    scales = node.attrs.get("scales")
    if scales is None:
        scales = tuple(float(s) for s in node.constant(1, "the scales").reshape(-1))
    sizes = [int(np.floor(d * s)) for d, s in zip(node.input(0).type.shape, scales, strict=True)]
    attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate": "asymmetric",
        "nearest_mode": "floor",
    }
    return _resized(node, sizes, scales, attrs)


@onnx_op("Resize", since=10)
def import_resize_10(node: OnnxNode) -> Sequence[Value]:
    """Resize of opset 10: as Upsample."""
    return import_upsample(node)


@onnx_op("Resize", since=11)
def import_resize(node: OnnxNode) -> Sequence[Value]:
    """Resize by scales or sizes, for all modes but region-of-interest cropping."""
    coordinate = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if coordinate not in COORDINATES:
        raise Unsupported(f"coordinate mode {coordinate}")
    if node.attrs.get("antialias", 0):
        raise Unsupported("antialias")
    sizes, scales = _targets(node)
    attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate": coordinate,
        "nearest_mode": node.attrs.get("nearest_mode", "round_prefer_floor"),
        "cubic_coeff": float(node.attrs.get("cubic_coeff_a", -0.75)),
        "exclude_outside": bool(node.attrs.get("exclude_outside", 0)),
    }
    return _resized(node, sizes, scales, attrs)


def _targets(node: OnnxNode) -> tuple[list[int], list[float]]:
    """Output sizes and scales of every axis."""
    shape = node.input(0).type.shape
    rank = len(shape)
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    given = node.optional(2)
    if given is not None and given.type.elements:
        known = node.constant(2, "the scales").reshape(-1)
        scales = [1.0] * rank
        for axis, scale in zip(axes, known, strict=True):
            scales[axis] = float(scale)
        return [int(np.floor(d * s)) for d, s in zip(shape, scales, strict=True)], scales
    wanted = [int(s) for s in node.constant(3, "the sizes").reshape(-1)]
    sizes = list(shape)
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        for axis, size in zip(axes, wanted, strict=True):
            sizes[axis] = size
        return sizes, [s / d for s, d in zip(sizes, shape, strict=True)]
    ratios = [size / shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    scales = [ratio if i in axes else 1.0 for i in range(rank)]
    for axis in axes:
        sizes[axis] = int(np.floor(shape[axis] * ratio + 0.5))
    return sizes, scales
