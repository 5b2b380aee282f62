"""NonMaxSuppression: the best boxes of every class that do not overlap better ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, I64, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.pointwise import present

_F = np.float32


class NonMaxSuppression(Op):
    """non_max_suppression(boxes, scores): (batch, class, box) of each box chosen, and how many.

    boxes f32[B,N,4] (two corners, y before x; ``center``: x, y of the centre, width, height),
    scores f32[B,C,N]. In every class the box with the largest score is chosen (of equal ones the
    first), those whose intersection over union with it is above ``iou`` are dropped, and so on, at
    most ``boxes`` times; with ``filtered``, only scores above ``score`` count (Neubeck and Van Gool
    2006, "Efficient Non-Maximum Suppression"). A score of NaN never counts. Rows i64[B*C*boxes,3]
    after the last one chosen are -1; the second result is the number of rows that are not.
    """

    name = "non_max_suppression"
    operands = ("boxes", "scores")
    attributes: ClassVar[Mapping[str, Any]] = {
        "boxes": ...,
        "iou": 0.0,
        "score": 0.0,
        "filtered": False,
        "center": False,
    }

    def infer(self, node: Node) -> list[TensorType]:
        """As many rows as can be at most."""
        boxes, scores = node.input(0).type, node.input(1).type
        fits = boxes.rank == scores.rank == 3 and boxes.shape[2] == 4
        fits = fits and (boxes.shape[0], boxes.shape[1]) == (scores.shape[0], scores.shape[2])
        if not fits or boxes.dtype != F32 or scores.dtype != F32:
            raise type_error(node, "boxes must be f32[B,N,4] and scores f32[B,C,N]")
        if not 0 < int(self.get(node, "boxes")) <= boxes.shape[1]:
            raise type_error(node, f"{self.get(node, 'boxes')} of {boxes.shape[1]} boxes")
        rows = scores.shape[0] * scores.shape[1] * int(self.get(node, "boxes"))
        return [TensorType((rows, 3), I64), TensorType((), I64)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """-1 or a place; the number of rows."""
        rows = node.outputs[0].type.shape[0]
        largest = max(*node.input(1).type.shape, 1) - 1
        return [Interval(-1.0, float(largest)), Interval(0.0, float(rows))]

    def scanned(self, node: Node) -> int:
        """Boxes that each choice is compared with."""
        return int(self.get(node, "boxes")) * node.input(1).type.elements

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Class by class."""
        boxes, scores = present(xs[0]), present(xs[1])
        rows = [
            (batch, label, box)
            for batch, label in np.ndindex(*scores.shape[:2])
            for box in self._chosen(node, boxes[batch], scores[batch, label])
        ]
        out = np.full(node.outputs[0].type.shape, -1, np.int64)
        if rows:
            out[: len(rows)] = rows
        return [out, np.asarray(len(rows), np.int64)]

    def _chosen(self, node: Node, boxes: Array, scores: Array) -> list[int]:
        counts = scores > _F(self.get(node, "score")) if self.get(node, "filtered") else None
        left = np.nonzero(scores == scores if counts is None else counts)[0]
        with np.errstate(all="ignore"):
            ends = _corners(boxes.astype(_F), bool(self.get(node, "center")))
            chosen: list[int] = []
            while left.size and len(chosen) < int(self.get(node, "boxes")):
                best = left[np.argmax(scores[left])]
                chosen.append(int(best))
                apart = ~_overlap(ends[best], ends[left], _F(self.get(node, "iou")))
                left = left[apart & (left != best)]
        return chosen


def _corners(boxes: Array, center: bool) -> Array:
    """Each box as low y, low x, high y, high x, in float32."""
    a, b, c, d = boxes.T
    if center:
        half_w, half_h = c / _F(2), d / _F(2)
        return np.stack([b - half_h, a - half_w, b + half_h, a + half_w], -1)
    low = [np.where(c < a, c, a), np.where(d < b, d, b)]
    high = [np.where(c < a, a, c), np.where(d < b, b, d)]
    return np.stack([*low, *high], -1)


def _overlap(one: Array, many: Array, most: Any) -> Array:
    """Which of ``many`` have an intersection over union with ``one`` above ``most``."""
    low = np.where(one[:2] < many[:, :2], many[:, :2], one[:2])
    high = np.where(many[:, 2:] < one[2:], many[:, 2:], one[2:])
    sides = high - low
    common = sides[:, 0] * sides[:, 1]
    own = (one[2] - one[0]) * (one[3] - one[1])
    areas = (many[:, 2] - many[:, 0]) * (many[:, 3] - many[:, 1])
    union = own + areas - common
    real = (sides > 0).all(-1) & (own > 0) & (areas > 0) & (union > 0)
    return np.asarray(real & (common / union > most))


@onnx_op("NonMaxSuppression", since=10)
def import_non_max_suppression(node: OnnxNode) -> Sequence[Value]:
    """NonMaxSuppression: as many rows as can be, and the number of those that hold a result."""
    boxes, scores = node.input(0), node.input(1)
    if boxes.type.rank != 3 or scores.type.rank != 3:
        raise Unsupported(f"boxes of {boxes.type.rank} and scores of {scores.type.rank} axes")
    most, iou, score = (
        node.optional_constant(k, what)
        for k, what in ((2, "the number of boxes"), (3, "the threshold"), (4, "the least score"))
    )
    count = 0 if most is None else min(int(most.reshape(-1)[0]), boxes.type.shape[1])
    if count < 1 or not scores.type.elements:
        return [node.graph.add_constant(np.zeros((0, 3), np.int64), name=node.name)]
    attrs = {
        "boxes": count,
        "iou": 0.0 if iou is None else float(iou.reshape(-1)[0]),
        "score": 0.0 if score is None else float(score.reshape(-1)[0]),
        "filtered": score is not None,
        "center": bool(node.attrs.get("center_point_box", 0)),
    }
    rows, found = node.build("non_max_suppression", [boxes, scores], attrs, outputs=2)
    return [node.bounded(rows, 0, found)]
