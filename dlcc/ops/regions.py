"""Pooling of regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, I64, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present

_ONE, _HALF = np.float32(1), np.float32(0.5)

MOST = np.float32(1 << 24)
"""Samples along one axis of a bin that are numbered: beyond, float32 has no next number."""

MOST_SAMPLES = 4096
"""Samples along one axis of a bin that an attribute may ask for."""


class _Regions(Op):
    """Base: x f32[N,H,W,C] (channels innermost) and regions -> f32[R,PH,PW,C].

    How many pixels a bin holds depends on the regions, so there is no default TIR: the loops are
    written by a kernel generator.
    """

    def infer(self, node: Node) -> list[TensorType]:
        """[N,H,W,C] -> [R,PH,PW,C]."""
        x, rois, columns = node.input(0).type, node.input(1).type, 4
        if self.name == "max_roi_pool":
            columns = 5
        if x.rank != 4 or x.dtype != F32 or rois.dtype != F32:
            raise type_error(node, "images and regions must be float32, the images with 4 axes")
        if rois.rank != 2 or rois.shape[1] != columns:
            raise type_error(node, f"a region has {columns} numbers")
        height, width = (int(v) for v in self.get(node, "size"))
        if min(height, width) < 1:
            raise type_error(node, f"the result would be {height} x {width}")
        return [TensorType((rois.shape[0], height, width, x.shape[3]), F32)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range and 0: bins may be empty or outside."""
        assert xs[0] is not None
        return [xs[0].union(Interval(0.0, 0.0))]


class RoiAlign(_Regions):
    """roi_align(x, rois, images): the mean (or maximum) of samples in every bin of every region.

    rois f32[R,4] (left, top, right, bottom, times ``scale`` in pixels), images i64[R]. A bin has
    ``sampling`` x ``sampling`` samples, or, where that is 0, one for each pixel of its extent,
    rounded up (He et al. 2017, "Mask R-CNN"). ``half_pixel`` shifts regions by half a pixel; else a
    region is at least a pixel large. Samples are bilinear; those more than a pixel outside count 0.
    ``maximum`` takes the largest of the four weighted pixels of each sample, as ONNX Runtime does.
    """

    name = "roi_align"
    operands = ("x", "rois", "images")
    attributes: ClassVar[Mapping[str, Any]] = {
        "size": ...,
        "scale": 1.0,
        "sampling": 0,
        "half_pixel": True,
        "maximum": False,
    }

    def infer(self, node: Node) -> list[TensorType]:
        """[N,H,W,C] -> [R,PH,PW,C]."""
        images, rois = node.input(2).type, node.input(1).type
        sampling = int(self.get(node, "sampling"))
        if not 0 <= sampling <= MOST_SAMPLES:
            why = f"{sampling} samples along an axis of a bin, must be 0 to {MOST_SAMPLES}"
            raise type_error(node, why)
        if images.shape != rois.shape[:1] or not images.dtype.is_integer:
            raise type_error(node, "there must be one image number for each region")
        return super().infer(node)

    def samples(self, node: Node, start: Any, extent: Any, bins: int, size: int) -> list[Any]:
        """(places inside, number of samples) of each bin along one axis, in float32."""
        sampling = int(self.get(node, "sampling"))
        bin_size = extent / np.float32(bins)
        count = np.float32(sampling) if sampling else np.ceil(bin_size)
        count = np.float32(count if count > 0 else 0)  # NaN too
        found = []
        for k in range(bins):
            corner = start + np.float32(k) * bin_size
            step = bin_size / max(count, _ONE)
            low, high = (0, sampling) if sampling else sample_range(corner, step, count, size)
            places = corner + (np.arange(low, high).astype(np.float32) + _HALF) * step
            inside = places[(places >= -1) & (places <= size)]
            found.append((inside, count))
        return found

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Bin by bin."""
        x, rois, images = (present(v) for v in xs)
        out = np.zeros(node.output.type.shape, np.float32)
        sizes = tuple(int(v) for v in self.get(node, "size"))
        shift = _HALF if self.get(node, "half_pixel") else np.float32(0)
        with np.errstate(all="ignore"):
            for r, box in enumerate(rois * np.float32(self.get(node, "scale")) - shift):
                lines = []
                for axis in (0, 1):
                    extent = box[3 - axis] - box[1 - axis]
                    if not self.get(node, "half_pixel"):
                        extent = np.fmax(extent, _ONE)
                    pixels = x.shape[1 + axis]
                    lines.append(self.samples(node, box[1 - axis], extent, sizes[axis], pixels))
                image = x[min(max(int(images[r]), 0), len(x) - 1)]
                for place in np.ndindex(*sizes):
                    (ys, rows), (xs_, columns) = lines[0][place[0]], lines[1][place[1]]
                    out[(r, *place)] = self._bin(node, image, ys, xs_, rows * columns)
        return [out]

    def _bin(self, node: Node, image: Array, ys: Array, xs: Array, count: Any) -> Array:
        """The result of one bin with samples at all ``ys`` and ``xs`` inside, of ``count``."""
        if not len(ys) or not len(xs):
            return np.zeros(image.shape[-1], np.float32)
        (top, bottom, down), (left, right, across) = (
            _neighbours(places, size) for places, size in zip((ys, xs), image.shape, strict=False)
        )
        parts = [
            (wy[:, None] * wx)[..., None] * image[np.ix_(rows, columns)]
            for rows, wy in ((top, _ONE - down), (bottom, down))
            for columns, wx in ((left, _ONE - across), (right, across))
        ]
        if not self.get(node, "maximum"):
            total = (parts[0] + parts[1] + parts[2] + parts[3]).sum(axis=(0, 1))
            return np.asarray(total / max(count, _ONE), np.float32)
        best = np.max(parts, axis=(0, 1, 2))
        everywhere = len(ys) * len(xs) >= count
        return np.asarray(best if everywhere else np.maximum(best, 0), np.float32)


def sample_range(corner: Any, step: Any, count: Any, size: int) -> tuple[int, int]:
    """Numbers of the first and past the last sample that may lie within a pixel of the image.

    A region of millions of pixels has millions of samples; only those near the image can count.
    """
    if not step > 0:
        return 0, 0
    low = np.floor((np.float32(-1) - corner) / step) - np.float32(2)
    high = np.ceil((np.float32(size) - corner) / step) + np.float32(2)
    first, last = (np.fmin(np.fmax(v, np.float32(0)), min(count, MOST)) for v in (low, high))
    return int(first), int(last)


def _neighbours(places: Array, size: int) -> tuple[Array, Array, Array]:
    """The pixels before and after each place, and how far it is past the former."""
    at = np.maximum(places, np.float32(0))
    low = np.minimum(at.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, np.where(low >= size - 1, np.float32(0), at - low.astype(np.float32))


class MaxRoiPool(_Regions):
    """max_roi_pool(x, rois): the largest pixel of every bin of every region; 0 for an empty bin.

    rois f32[R,5]: image, left, top, right, bottom, the last four times ``scale`` rounded to pixels
    that are both inside (Girshick 2015, "Fast R-CNN").
    """

    name = "max_roi_pool"
    operands = ("x", "rois")
    attributes: ClassVar[Mapping[str, Any]] = {"size": ..., "scale": 1.0}

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Bin by bin."""
        x, rois = present(xs[0]), present(xs[1])
        out = np.zeros(node.output.type.shape, np.float32)
        sizes, scale = self.get(node, "size"), np.float32(self.get(node, "scale"))
        with np.errstate(all="ignore"):
            for r, roi in enumerate(rois):
                box = _rounded(roi[1:] * scale)
                image = x[int(np.clip(np.nan_to_num(roi[0]), 0, len(x) - 1))]
                ranges = []
                for axis in (0, 1):
                    start, end, size = box[1 - axis], box[3 - axis], x.shape[1 + axis]
                    extent = np.fmax(end - start + _ONE, _ONE) / np.float32(sizes[axis])
                    k = np.arange(sizes[axis]).astype(np.float32)
                    low = np.clip(np.floor(k * extent) + start, 0, size).astype(int)
                    high = np.clip(np.ceil((k + _ONE) * extent) + start, 0, size).astype(int)
                    ranges.append(list(zip(low, high, strict=True)))
                for i, (top, bottom) in enumerate(ranges[0]):
                    for j, (left, right) in enumerate(ranges[1]):
                        if bottom > top and right > left:
                            out[r, i, j] = image[top:bottom, left:right].max(axis=(0, 1))
        return [out]


def _rounded(values: Array) -> Array:
    """Half away from zero, as C's round, within a million; a million before 0 for NaN."""
    whole = np.floor(np.abs(values) + _HALF)
    signed = np.where(values < 0, -whole, whole)
    return np.minimum(np.where(signed > -1e6, signed, -1e6), 1e6).astype(np.float32)


# -- ONNX --------------------------------------------------------------------------------------


def _of_images(node: OnnxNode, op: str, operands: Sequence[Value], attrs: Any) -> Sequence[Value]:
    x = node.input(0)
    if x.type.rank != 4:
        raise Unsupported(f"images with {x.type.rank} axes")
    (last,) = node.build("transpose", [x], {"perm": (0, 2, 3, 1)}, suffix=".last")
    (made,) = node.build(op, [last, *operands], attrs, suffix=".bins")
    return node.build("transpose", [made], {"perm": (0, 3, 1, 2)})


@onnx_op("RoiAlign", since=10)
def import_roi_align(node: OnnxNode) -> Sequence[Value]:
    """RoiAlign; regions are shifted by half a pixel by default from opset 16 on."""
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    mode = str(node.attrs.get("coordinate_transformation_mode", default))
    attrs = {
        "size": (int(node.attrs.get("output_height", 1)), int(node.attrs.get("output_width", 1))),
        "scale": float(node.attrs.get("spatial_scale", 1.0)),
        "sampling": max(0, int(node.attrs.get("sampling_ratio", 0))),
        "half_pixel": mode == "half_pixel",
        "maximum": str(node.attrs.get("mode", "avg")) == "max",
    }
    images = node.input(2)
    if images.type.dtype != I64:
        (images,) = node.build("cast", [images], {"to": str(I64)}, suffix=".images")
    return _of_images(node, "roi_align", [node.input(1), images], attrs)


@onnx_op("MaxRoiPool")
def import_max_roi_pool(node: OnnxNode) -> Sequence[Value]:
    """MaxRoiPool."""
    size = tuple(int(v) for v in node.attrs["pooled_shape"])
    attrs = {"size": size, "scale": float(node.attrs.get("spatial_scale", 1.0))}
    return _of_images(node, "max_roi_pool", [node.input(1)], attrs)
