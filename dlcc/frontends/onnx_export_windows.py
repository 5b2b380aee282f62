"""ONNX forms of ops over windows and places: unfold, fold, and what samples images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlcc.frontends.onnx_export import OnnxWriter, export_error, exports
from dlcc.ir import Node
from dlcc.ops.base import op_of
from dlcc.ops.grid_sample import GridSample
from dlcc.ops.pool_indices import MaxPoolIndices
from dlcc.ops.unfold import Fold, Unfold


@exports("unfold")
def _unfold(writer: OnnxWriter, node: Node) -> str:
    """Pad, then Gather by a table of places, then the taps moved before the last axis."""
    op = op_of(node)
    assert isinstance(op, Unfold)
    axis, places = int(op.get(node, "axis")), op.places(node)
    source, shape = writer.operand(node, 0), node.input(0).type.shape
    before, after = (
        max(0, -int(places.min())),
        max(0, int(places.max()) + 1 - shape[axis]),
    )
    if before or after:
        pads = np.zeros((2, len(shape)), np.int64)
        pads[:, axis] = before, after
        source = writer.emit("Pad", [source, writer.integers(pads.reshape(-1).tolist(), "pads")],
                             node, mode="constant")  # fmt: skip
    table = writer.constant(places + before, "places")
    taken = writer.emit("Gather", [source, table], node, axis=axis)
    rank = len(shape) + 1
    order = [k for k in range(rank) if k != axis + 1]
    order.insert(rank - 2, axis + 1)
    return writer.emit("Transpose", [taken], node, writer.result_name(node), perm=order)


@exports("fold")
def _fold(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    assert isinstance(op, Fold)
    if writer.opset < 18:
        raise export_error(node, "Col2Im is there from opset 18 on", "export with --opset 18")
    if min(op.get(node, "pads")) < 0:
        raise export_error(node, "Col2Im has no negative pads")
    n, c, taps, windows = node.input(0).type.shape
    flat = [writer.operand(node, 0), writer.integers((n, c * taps, windows), "shape")]
    operands = [
        writer.emit("Reshape", flat, node),
        writer.integers(op.get(node, "sizes"), "image_shape"),
        writer.integers(op.get(node, "kernel"), "block_shape"),
    ]
    attributes: dict[str, Any] = {
        key: [int(v) for v in op.get(node, key)] for key in ("strides", "dilations", "pads")
    }
    return writer.emit("Col2Im", operands, node, writer.result_name(node), **attributes)


@exports("max_pool_indices")
def _max_pool_indices(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    assert isinstance(op, MaxPoolIndices)
    lines = op.geometry(node)
    last = [int(v) for v in op.get(node, "pads")][-len(lines) :]
    return writer.emit(
        "MaxPool",
        [writer.operand(node, 0)],
        node,
        writer.result_name(node),
        unused=1,
        kernel_shape=[line[1] for line in lines],
        strides=[line[2] for line in lines],
        dilations=[line[3] for line in lines],
        pads=[*(line[4] for line in lines), *last],
        storage_order=int(op.get(node, "column_major")),
    )


@exports("grid_sample")
def _grid_sample(writer: OnnxWriter, node: Node) -> str:
    """Channels moved to where ONNX has them; a grid in pixels normalised and reversed."""
    op = op_of(node)
    assert isinstance(op, GridSample)
    mode, padding, coordinates = (str(op.get(node, key)) for key in op.attributes)
    sizes, rank = node.input(0).type.shape[1:-1], node.input(0).type.rank - 2
    grid = writer.operand(node, 1)
    if rank not in (2, 3) or (writer.opset < 20 and rank == 3):
        raise export_error(node, f"GridSample of opset {writer.opset} has no {rank} axes")
    pixels = node.input(1).type.shape[1:-1]
    if len(pixels) != rank:  # ONNX's grid has as many axes as the image
        folded = (*pixels[: rank - 1], math.prod(pixels[rank - 1 :]))
        shape = (node.input(1).type.shape[0], *folded, *(1,) * (rank - len(folded)), rank)
        grid = writer.emit("Reshape", [grid, writer.integers(shape, "shape")], node)
    if coordinates == "pixels":
        if padding != "zeros":
            raise export_error(node, "a grid in pixels has zeros outside in ONNX")
        half = writer.constant(np.asarray(0.5, np.float32), "half")
        factors = writer.constant(np.asarray([2 / d for d in sizes], np.float32), "factors")
        one = writer.constant(np.asarray(1.0, np.float32), "one")
        scaled = writer.emit("Mul", [writer.emit("Add", [grid, half], node), factors], node)
        order = writer.integers(range(rank)[::-1], "order")
        normal = writer.emit("Sub", [scaled, one], node)
        grid = writer.emit("Gather", [normal, order], node, axis=-1)
    old = {"linear": "bilinear", "cubic": "bicubic"}
    image = writer.emit("Transpose", [writer.operand(node, 0)], node,
                        perm=[0, rank + 1, *range(1, rank + 1)])  # fmt: skip
    sampled = writer.emit(
        "GridSample",
        [image, grid],
        node,
        mode=old.get(mode, mode) if writer.opset < 20 else mode,
        padding_mode=padding,
        align_corners=int(coordinates == "corners"),
    )
    result, wanted = writer.result_name(node), node.output.type.shape
    last = [0, *range(2, rank + 2), 1]
    if len(pixels) == rank:
        return writer.emit("Transpose", [sampled], node, result, perm=last)
    moved = writer.emit("Transpose", [sampled], node, perm=last)
    return writer.emit("Reshape", [moved, writer.integers(wanted, "shape")], node, result)


@exports("roi_align", "max_roi_pool")
def _regions(writer: OnnxWriter, node: Node) -> str:
    """Channels moved to where ONNX has them."""
    op = op_of(node)
    image = writer.emit("Transpose", [writer.operand(node, 0)], node, perm=[0, 3, 1, 2])
    height, width = (int(v) for v in op.get(node, "size"))
    scale = float(op.get(node, "scale"))
    if node.op == "max_roi_pool":
        pooled = writer.emit(
            "MaxRoiPool",
            [image, writer.operand(node, 1)],
            node,
            pooled_shape=[height, width],
            spatial_scale=scale,
        )
    else:
        pooled = writer.emit(
            "RoiAlign",
            [image, writer.operand(node, 1), writer.operand(node, 2)],
            node,
            output_height=height,
            output_width=width,
            spatial_scale=scale,
            sampling_ratio=int(op.get(node, "sampling")),
            mode="max" if op.get(node, "maximum") else "avg",
            coordinate_transformation_mode=(
                "half_pixel" if op.get(node, "half_pixel") else "output_half_pixel"
            ),
        )
    return writer.emit("Transpose", [pooled], node, writer.result_name(node), perm=[0, 2, 3, 1])
