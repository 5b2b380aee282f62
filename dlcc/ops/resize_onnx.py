"""Importers of Resize and Upsample: any axes of any rank, as resize2d over one or two at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, Value
from dlcc.ops.resize import COORDINATES
from dlcc.ops.weights import reshape_value

CROP = "tf_crop_and_resize"


@dataclass(frozen=True)
class _Line:
    """What happens to one axis: its size before and after, scale, and region shown."""

    before: int
    after: int
    scale: float
    start: float = 0.0
    end: float = 1.0

    def changed(self, crop: bool) -> bool:
        """Whether anything does."""
        moved = crop and (self.start, self.end) != (0.0, 1.0)
        return moved or self.before != self.after or abs(self.scale - 1.0) > 1e-12

    @property
    def exact(self) -> bool:
        """Whether the scale is that of the sizes."""
        return self.after == self.before * self.scale


def _resized(node: OnnxNode, lines: Sequence[_Line], attrs: dict[str, Any]) -> Sequence[Value]:
    """The result of resizing every axis; integers are interpolated in float32."""
    x = node.input(0)
    kind = x.type.dtype
    if not kind.is_integer or attrs["mode"] == "nearest":
        return [_over_axes(node, x, lines, attrs)]
    (x,) = node.build("cast", [x], {"to": str(F32)}, suffix=".real")
    made = _over_axes(replace(node, name=node.name + ".numbers"), x, lines, attrs)
    (rounded,) = node.build("round", [made], suffix=".round")
    return node.build("cast", [rounded], {"to": str(kind)})


def _over_axes(node: OnnxNode, x: Value, lines: Sequence[_Line], attrs: dict[str, Any]) -> Value:
    """Interpolation is separable: two axes at once where they are an image's, else one by one."""
    changed = [k for k, line in enumerate(lines) if line.changed(attrs["coordinate"] == CROP)]
    if not changed:
        return x
    rank, wide = len(lines), bool(attrs.get("antialias"))
    shape = tuple(line.after for line in lines)
    if rank == 4 and set(changed) <= {1, 2} and not wide:  # channels last
        (x,) = node.build("transpose", [x], {"perm": (0, 3, 1, 2)}, suffix=".nchw")
        made = _step(node, x, [lines[1], lines[2]], attrs, "")
        return node.build("transpose", [made], {"perm": (0, 2, 3, 1)}, suffix=".nhwc")[0]
    last = {rank - 2, rank - 1}
    if set(changed) <= last and not (wide and len(changed) == 2) and rank > 1:
        flat = x.type.shape if rank == 4 else (1, math.prod(x.type.shape[:-2]), *x.type.shape[-2:])
        image = reshape_value(node, x, flat, ".image")
        made = _step(node, image, lines[-2:], attrs, "")
        return reshape_value(node, made, shape, ".shape")
    sizes = list(x.type.shape)
    for axis in changed:
        lead, tail = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
        image = reshape_value(node, x, (1, lead, sizes[axis], tail), f".axis{axis}")
        image = _step(node, image, [lines[axis], _Line(tail, tail, 1.0)], attrs, f".resize{axis}")
        sizes[axis] = lines[axis].after
        x = reshape_value(node, image, tuple(sizes), f".shape{axis}")
    return x


def _step(
    node: OnnxNode, image: Value, lines: Sequence[_Line], attrs: dict[str, Any], suffix: str
) -> Value:
    """One resize2d over the last two axes."""
    exact = all(line.exact for line in lines)
    attrs = {
        **attrs,
        "sizes": tuple(line.after for line in lines),
        "scales": () if exact else tuple(line.scale for line in lines),
        "roi": (*(line.start for line in lines), *(line.end for line in lines)),
    }
    return node.build("resize2d", [image], attrs, suffix=suffix)[0]


@onnx_op("Upsample")
def import_upsample(node: OnnxNode) -> Sequence[Value]:
    """Upsample (opset 7 to 9): asymmetric coordinates, floor for nearest."""
    scales = node.attrs.get("scales")
    if scales is None:
        scales = node.constant(1, "the scales").reshape(-1).tolist()
    lines = [
        _Line(d, int(np.floor(d * s)), float(s))
        for d, s in zip(node.input(0).type.shape, scales, strict=True)
    ]
    attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate": "asymmetric",
        "nearest_mode": "floor",
    }
    return _resized(node, lines, attrs)


@onnx_op("Resize", since=10)
def import_resize_10(node: OnnxNode) -> Sequence[Value]:
    """Resize of opset 10: as Upsample."""
    return import_upsample(node)


@onnx_op("Resize", since=11)
def import_resize(node: OnnxNode) -> Sequence[Value]:
    """Resize by scales or sizes, in every mode."""
    coordinate = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if coordinate not in COORDINATES:
        raise Unsupported(f"coordinate mode {coordinate}")
    attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate": coordinate,
        "nearest_mode": node.attrs.get("nearest_mode", "round_prefer_floor"),
        "cubic_coeff": float(node.attrs.get("cubic_coeff_a", -0.75)),
        "exclude_outside": bool(node.attrs.get("exclude_outside", 0)),
        "antialias": bool(node.attrs.get("antialias", 0)),
        "extrapolation": float(node.attrs.get("extrapolation_value", 0.0)),
    }
    return _resized(node, _targets(node, coordinate == CROP), attrs)


def _targets(node: OnnxNode, crop: bool) -> list[_Line]:
    """What happens to every axis."""
    shape = node.input(0).type.shape
    rank = len(shape)
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    lines = [_Line(d, d, 1.0) for d in shape]
    if crop:
        roi = node.constant(1, "the region of interest").reshape(-1)
        for k, axis in enumerate(axes):
            start, end = float(roi[k]), float(roi[k + len(axes)])
            lines[axis] = replace(lines[axis], start=start, end=end)
    given = node.optional(2)
    if given is not None and given.type.elements:
        known = node.constant(2, "the scales").reshape(-1)
        for axis, scale in zip(axes, known.tolist(), strict=True):
            line = lines[axis]
            shown = line.before * (line.end - line.start) if crop else line.before
            lines[axis] = replace(line, after=int(np.floor(shown * scale)), scale=scale)
        return lines
    wanted = [int(s) for s in node.constant(3, "the sizes").reshape(-1)]
    ratios = [size / shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [ratio] * len(axes)
        wanted = [int(np.floor(shape[axis] * ratio + 0.5)) for axis in axes]
    for axis, size, ratio in zip(axes, wanted, ratios, strict=True):
        lines[axis] = replace(lines[axis], after=size, scale=ratio)
    return lines
