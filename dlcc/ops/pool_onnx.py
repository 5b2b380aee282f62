"""Importers of MaxPool, AveragePool, LpPool and the global pools, in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value
from dlcc.ops import volumes
from dlcc.ops.conv_onnx import conv_geometry, spatial_rank
from dlcc.ops.weights import reshape_value
from dlcc.ops.windows import Window, ceil_pads


@dataclass(frozen=True)
class Geometry:
    """Windows of a pool node: over the plane (or line), and over the depth of a volume.

    ``ceil``: the pads must grow for windows that only ``ceil_mode`` adds.
    """

    plane: Window
    depth: Window | None
    ceil: bool

    def grown(self) -> Geometry:
        """With the pads of ``ceil_mode``."""
        if not self.ceil:
            return self
        depth = None if self.depth is None else replace(self.depth, pads=ceil_pads(self.depth))
        return Geometry(replace(self.plane, pads=ceil_pads(self.plane)), depth, False)


def geometry(node: OnnxNode, x: Value) -> Geometry:
    """Windows of a pool node, without ceil padding."""
    rank = spatial_rank(node, x.type.rank)
    size, kernel = x.type.shape[2:], node.attrs["kernel_shape"]
    same = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    ceil = bool(node.attrs.get("ceil_mode", 0)) and not same
    if rank < 3:
        return Geometry(conv_geometry(node, size, kernel), None, ceil)
    depth, plane = (conv_geometry(node, size, kernel, axes) for axes in ((0,), (1, 2)))
    upright = Window(
        (depth.size[1], plane.output[0] * plane.output[1]),
        (depth.kernel[1], 1),
        (depth.strides[1], 1),
        (depth.dilations[1], 1),
        (depth.pads[1], 0, depth.pads[3], 0),
    )
    return Geometry(plane, upright, ceil)


def pool_attrs(window: Window) -> dict[str, Any]:
    """Attributes of a pool node."""
    return {
        "kernel": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.pads,
    }


Pooling = Callable[[Value, Window, str], Value]
"""Pools images over one window: (images, window, suffix) -> images."""


def pooled(node: OnnxNode, x: Value, shape: Geometry, pool: Pooling) -> Value:
    """``pool`` over all spatial axes of ``x`` [N, C, *spatial].

    Pools are separable: a volume's planes are pooled first, then its depth.
    """
    if x.type.rank == 3:
        n, c, length = x.type.shape
        made = pool(reshape_value(node, x, (n, c, 1, length), ".rows"), shape.plane, "")
        return reshape_value(node, made, (n, c, made.type.shape[3]), ".flat")
    if shape.depth is None:
        return pool(x, shape.plane, "")
    images = volumes.planes(node, x)
    if shape.plane.kernel != (1, 1) or shape.plane.strides != (1, 1) or any(shape.plane.pads):
        images = pool(images, shape.plane, ".plane")
    plane = images.type.shape[2], images.type.shape[3]
    lines = volumes.along_depth(node, images, x.type.shape[0])
    depth = replace(shape.depth, size=(lines.type.shape[2], lines.type.shape[3]))
    if depth.kernel != (1, 1) or depth.strides != (1, 1) or any(depth.pads):
        lines = pool(lines, depth, ".depth")
    return volumes.from_depth(node, lines, plane)


@onnx_op("MaxPool")
def import_max_pool(node: OnnxNode) -> Sequence[Value]:
    """MaxPool, with the places of the maxima where they are asked for."""
    x, shape = node.input(0), geometry(node, node.input(0)).grown()

    def pool(images: Value, window: Window, suffix: str) -> Value:
        return node.build("max_pool2d", [images], pool_attrs(window), suffix=suffix)[0]

    values = pooled(node, x, shape, pool)
    if node.output_count < 2:
        return [values]
    attrs = {**_all_axes(shape), "column_major": bool(node.attrs.get("storage_order", 0))}
    return [values, *node.build("max_pool_indices", [x], attrs, suffix=".indices")]


def _all_axes(shape: Geometry) -> dict[str, Any]:
    """Attributes of a pool over every spatial axis (a line has height 1)."""
    plane, depth = pool_attrs(shape.plane), shape.depth
    if depth is None:
        return plane
    whole = {key: (pool_attrs(depth)[key][0], *plane[key]) for key in plane}
    (front, _, back, _), (top, left, bottom, right) = depth.pads, shape.plane.pads
    return {**whole, "pads": (front, top, left, back, bottom, right)}


@onnx_op("AveragePool")
def import_average_pool(node: OnnxNode) -> Sequence[Value]:
    """AveragePool."""
    x, shape = node.input(0), geometry(node, node.input(0))

    def pool(images: Value, window: Window, suffix: str) -> Value:
        images, attrs = average_operands(node, images, window, shape.ceil, suffix)
        return node.build("avg_pool2d", [images], attrs, suffix=suffix)[0]

    return [pooled(node, x, shape, pool)]


def average_operands(
    node: OnnxNode, x: Value, window: Window, ceil: bool, suffix: str = ""
) -> tuple[Value, dict[str, Any]]:
    """4-D input and attributes of an AveragePool.

    Positions that only ``ceil_mode`` adds never count, also with ``count_include_pad``: then the
    counted pads become an explicit pad node.
    """
    include = bool(node.attrs.get("count_include_pad", 0))
    if not ceil:
        return x, {**pool_attrs(window), "count_include_pad": include}
    grown = ceil_pads(window)
    if not include or not any(window.pads):
        return x, pool_attrs(replace(window, pads=grown))
    extra = (0, 0, grown[2] - window.pads[2], grown[3] - window.pads[3])
    if not any(extra):
        return x, {**pool_attrs(window), "count_include_pad": True}
    top, left, bottom, right = window.pads
    pads = {"pads": (0, 0, top, left, 0, 0, bottom, right)}
    (x,) = node.build("pad", [x], pads, suffix=suffix + ".pad")
    return x, pool_attrs(replace(window, size=window.padded, pads=extra))


# -- Lp pools ----------------------------------------------------------------------------------


def _power(node: OnnxNode, x: Value, p: float, suffix: str) -> Value:
    """|x|^p."""
    if p == 2:
        return node.build("mul", [x, x], suffix=suffix)[0]
    (size,) = node.build("abs", [x], suffix=suffix + ".abs")
    return size if p == 1 else _raised(node, size, p, suffix)


def _root(node: OnnxNode, x: Value, p: float, suffix: str) -> Value:
    """x^(1/p)."""
    if p == 2:
        return node.build("sqrt", [x], suffix=suffix)[0]
    return x if p == 1 else _raised(node, x, 1.0 / p, suffix)


def _raised(node: OnnxNode, x: Value, p: float, suffix: str) -> Value:
    exponent = node.graph.add_constant(np.asarray(p, x.type.dtype.numpy), name="p")
    return node.build("pow", [x, exponent], suffix=suffix)[0]


def _norm(node: OnnxNode) -> float:
    p = float(node.attrs.get("p", 2))
    if p <= 0:
        raise Unsupported(f"a norm with p = {p:g}")
    return p


@onnx_op("LpPool")
def import_lp_pool(node: OnnxNode) -> Sequence[Value]:
    """LpPool: the p-th root of the sum of p-th powers; pads count as 0."""
    p, shape = _norm(node), geometry(node, node.input(0)).grown()

    def pool(images: Value, window: Window, suffix: str) -> Value:
        attrs = {**pool_attrs(window), "count_include_pad": True}
        (mean,) = node.build("avg_pool2d", [images], attrs, suffix=suffix + ".mean")
        taps = np.asarray(math.prod(window.kernel), mean.type.dtype.numpy)
        factor = node.graph.add_constant(taps, name="taps")
        return node.build("mul", [mean, factor], suffix=suffix + ".sum")[0]

    total = pooled(node, _power(node, node.input(0), p, ".power"), shape, pool)
    return [_root(node, total, p, "")]


# -- global pools ------------------------------------------------------------------------------


def _over_space(node: OnnxNode, op: str, x: Value, suffix: str = "") -> Value:
    return node.build(op, [x], {"axes": tuple(range(2, x.type.rank))}, suffix=suffix)[0]


@onnx_op("GlobalAveragePool")
def import_global_average_pool(node: OnnxNode) -> Sequence[Value]:
    """The mean over all spatial axes."""
    return [_over_space(node, "reduce_mean", node.input(0))]


@onnx_op("GlobalMaxPool")
def import_global_max_pool(node: OnnxNode) -> Sequence[Value]:
    """The maximum over all spatial axes."""
    return [_over_space(node, "reduce_max", node.input(0))]


@onnx_op("GlobalLpPool", since=2)
def import_global_lp_pool(node: OnnxNode) -> Sequence[Value]:
    """The p-th root of the sum of p-th powers over all spatial axes."""
    p, x = _norm(node), node.input(0)
    if p in (1.0, 2.0):
        return [_over_space(node, f"reduce_l{p:g}", x)]
    total = _over_space(node, "reduce_sum", _power(node, x, p, ".power"), ".sum")
    return [_root(node, total, p, "")]
