"""ONNX forms of ops whose results have data-dependent sizes there: filled up to the largest one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.frontends.onnx_export import OnnxWriter, exports
from dlcc.ir import Node, Value
from dlcc.ops.base import op_of


@exports("determinant")
def _determinant(writer: OnnxWriter, node: Node) -> str:
    return writer.emit("Det", writer.operands(node), node, writer.result_name(node))


@exports("nonzero")
def _nonzero(writer: OnnxWriter, node: Node) -> str:
    places = writer.emit("NonZero", writer.operands(node), node)
    row = writer.emit("Reshape", [places, writer.integers([-1], "row")], node)
    return _define(writer, node, [(row, node.outputs[0])])


@exports("non_max_suppression")
def _non_max_suppression(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    operands = [*writer.operands(node), writer.integers([int(op.get(node, "boxes"))], "boxes")]
    keys = ("iou", "score") if op.get(node, "filtered") else ("iou",)
    operands += [writer.constant(np.asarray([op.get(node, key)], np.float32), key) for key in keys]
    center = int(op.get(node, "center"))
    rows = writer.emit("NonMaxSuppression", operands, node, center_point_box=center)
    return _define(writer, node, [(rows, node.outputs[0])])


@exports("unique_rows")
def _unique(writer: OnnxWriter, node: Node) -> str:
    parts = [writer.name(f"{node.loc}_{part}") for part in ("rows", "first", "number", "often")]
    ordered = int(op_of(node).get(node, "sorted"))
    operands = writer.operands(node)
    writer.emit_several("Unique", operands, node, parts, axis=0, sorted=ordered)
    first, often, number = node.outputs[0], node.outputs[1], node.outputs[2]
    return _define(writer, node, [(parts[1], first), (parts[3], often)], whole={parts[2]: number})


def _define(
    writer: OnnxWriter,
    node: Node,
    cut: Sequence[tuple[str, Value]],
    whole: dict[str, Value] | None = None,
) -> str:
    """Results of true sizes (``cut``) filled up with -1, and their number, the last result."""
    names = dict(zip(node.outputs, writer.result_names(node), strict=True))
    sizes = writer.emit("Shape", [cut[0][0]], node)
    first = writer.constant(np.asarray(0, np.int64), "first")
    count = names[node.outputs[-1]]
    writer.emit("Gather", [sizes, first], node, count, axis=0)
    for name, value in cut:
        shape = value.type.shape
        missing = writer.emit("Sub", [writer.integers(shape[:1], "places"), count], node)
        rest = len(shape) - 1
        before = writer.integers([0] * len(shape), "before")
        parts = [before, missing, *([writer.integers([0] * rest, "after")] if rest else [])]
        pads = writer.emit("Concat", parts, node, axis=0)
        fill = writer.constant(np.asarray(-1, np.int64), "fill")
        writer.emit("Pad", [name, pads, fill], node, names[value])
    for name, value in (whole or {}).items():
        writer.emit("Identity", [name], node, names[value])
    writer.define_results(node, list(names.values()))
    return ""
