"""AffineGrid: places to sample at (GridSample's second operand), from affine maps of an image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcc.bounds import check_shape
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value
from dlcc.ir.encodings import Array
from dlcc.ops.linear import build_matmul
from dlcc.ops.shape import integers, reshaped


@onnx_op("AffineGrid", since=20)
def _affine_grid(node: OnnxNode) -> Sequence[Value]:
    """Maps times the known places of the image: one matrix product."""
    theta, size = node.input(0), integers(node.constant(1, "the size"))
    axes = len(size) - 2
    if axes not in (2, 3):
        raise Unsupported(f"a size of {len(size)} numbers, which are 4 or 5")
    if theta.type.shape != (size[0], axes, axes + 1):
        raise Unsupported(f"maps of shape {list(theta.type.shape)} for a size of {list(size)}")
    extents = size[2:]
    check_shape((*extents, axes + 1), theta.type.dtype.bits / 8, node.name)
    if 0 in extents:
        raise Unsupported(f"a size of {list(size)}, which has no places")
    corners = bool(node.attrs.get("align_corners", 0))
    if corners and 1 in extents[-2:]:
        raise Unsupported("with align_corners a single row or column has no place by the standard")
    kind = theta.type.dtype.numpy
    lines = [_places(extent, corners, kind) for extent in extents]
    columns = [grid.reshape(-1) for grid in np.meshgrid(*lines, indexing="ij")][::-1]
    places = np.stack([*columns, np.ones_like(columns[0])])
    base = node.graph.add_constant(places, name=f"{node.name}.places")
    (mapped,) = build_matmul(node, theta, base)
    last = node.build("transpose", [mapped], {"perm": (0, 2, 1)}, suffix=".last")[0]
    return [reshaped(node, last, (size[0], *extents, axes), ".grid")]


def _places(extent: int, corners: bool, kind: np.dtype[Any]) -> Array:
    """Places along an axis, from -1 to 1: of the pixels' centres, or of the outer ones at the ends.

    In the arithmetic of ``kind``, as the standard's function does it.
    """
    two, low = kind.type(2), kind.type(-1)
    if corners:
        step = two / kind.type(extent - 1) if extent > 1 else kind.type(0)
        start = low
    else:
        step = two / kind.type(extent)
        start = low + step / two
    return np.asarray(start + np.arange(extent).astype(kind) * step)
