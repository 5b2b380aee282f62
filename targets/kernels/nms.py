"""Non-maximum suppression in float32.

A work item is one class of one image. A choice looks once at the boxes that are left: it drops
those that overlap it too much, closes the gaps, and finds the next best on the way. Another step
puts the classes' boxes one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.tir import expr


@dataclass(frozen=True)
class Suppression:
    """Boxes [images, boxes, 4] and scores [images, classes, boxes].

    Attributes:
        images: B, ``classes``: C, ``boxes``: N.
        most: boxes chosen in a class at most.
        iou: largest intersection over union of two that are chosen.
        score: what scores must be above, where ``filtered``.
        filtered: whether they must.
        center: boxes are centres and sizes; else two corners.
    """

    images: int
    classes: int
    boxes: int
    most: int
    iou: float
    score: float
    filtered: bool
    center: bool

    @property
    def items(self) -> int:
        """Classes of all images."""
        return self.images * self.classes

    @property
    def scratch(self) -> tuple[int, int]:
        """Bytes of the chosen boxes of each item, and of their numbers."""
        return 4 * self.items * self.most, 4 * self.items


def suppression(layer: Suppression, operands: Sequence[KernelArg]) -> tuple[KernelStep, ...]:
    """Two steps; ``operands`` are boxes and scores. Thread scratch: int32 for each box."""
    choose, gather = (name_key(stem, layer) for stem in ("nms_choose", "nms_gather"))
    kept: tuple[KernelArg, ...] = (("scratch", 0), ("scratch", 1))
    first: tuple[KernelArg, ...] = (*operands, ("thread_scratch", 0), *kept)
    return (
        KernelStep(choose, lambda: _Choice(choose, layer).build(), first, layer.items),
        KernelStep(
            gather, lambda: gather_function(gather, layer), (*kept, ("out", 0), ("out", 1)), 1
        ),
    )


class _Choice:
    """The first step."""

    def __init__(self, name: str, layer: Suppression) -> None:
        self.layer, self.kb = layer, tir.KernelBuilder(name)
        kb = self.kb
        self.boxes = kb.pointer("boxes", "float32", align=4)
        self.scores = kb.pointer("scores", "float32", align=4)
        self.left = kb.pointer("left", "int32", align=4)
        self.chosen = kb.pointer("chosen", "int32", align=4)
        self.counts = kb.pointer("counts", "int32", align=4)

    def build(self) -> Any:
        """The function."""
        kb, layer = self.kb, self.layer
        self.number = kb.alloc("int32", 2, "number")  # of boxes left: before and after a choice
        self.best = kb.alloc("int32", 1, "best")  # the best one's place among them
        self.most = kb.alloc("float32", 1, "most")  # its score
        zero = kb.const(0, "int32")
        with kb.loop(kb.begin, kb.end, "item") as item:
            kb.store(self.counts, item, zero)
            kb.store(self.number, 1, zero)
            with kb.loop(0, layer.boxes, "box") as box:
                score = kb.let(self.score(item, box), "score")
                counts = expr.float_bits(score) <= expr.INFINITY_BITS  # no NaN
                if layer.filtered:
                    counts = score > self.f32(layer.score)
                with kb.when(counts):
                    self.keep(box, score)
            with kb.loop(0, layer.most, "turn") as turn:
                kb.store(self.number, 0, kb.load(self.number, 1))
                count = kb.let(kb.load(self.number, 0), "count")
                with kb.when(count > 0):
                    self.choose(item, turn, count)
        return kb.build()

    def f32(self, value: float) -> Any:
        return self.kb.const(value, "float32")

    def score(self, item: Any, box: Any) -> Any:
        return self.kb.load(self.scores, item * self.layer.boxes + box)

    def keep(self, box: Any, score: Any) -> None:
        """Puts ``box`` among those that are left."""
        kb = self.kb
        at = kb.let(kb.load(self.number, 1), "at")
        with kb.when(expr.either(at.equal(0), score > kb.load(self.most, 0))):
            kb.store(self.best, 0, at)
            kb.store(self.most, 0, score)
        kb.store(self.left, at, box)
        kb.store(self.number, 1, at + 1)

    def choose(self, item: Any, turn: Any, count: Any) -> None:
        """Takes the best box, and drops those near it."""
        kb, layer = self.kb, self.layer
        image = kb.let(expr.truncdiv(item, kb.const(layer.classes, "int32")), "image")
        place = kb.let(kb.load(self.best, 0), "place")
        best = kb.let(kb.load(self.left, place), "chosen")
        kb.store(self.chosen, item * layer.most + turn, best)
        kb.store(self.counts, item, turn + 1)
        kb.store(self.number, 1, kb.const(0, "int32"))
        one = self.corners(image, best)
        with kb.loop(0, count, "other") as other:
            box = kb.let(kb.load(self.left, other), "box")
            near = kb.alloc("int32", 1, "near")
            self.compare(one, self.corners(image, box), near)
            with kb.when(
                expr.both(kb.load(near, 0).equal(0), expr.either(other < place, other > place))
            ):
                self.keep(box, kb.let(self.score(item, box), "score"))

    def corners(self, image: Any, box: Any) -> list[Any]:
        """Low y, low x, high y, high x."""
        kb = self.kb
        start = kb.let((image * self.layer.boxes + box) * 4, "start")
        a, b, c, d = (kb.let(kb.load(self.boxes, start + k), "side") for k in range(4))
        if self.layer.center:
            half_w, half_h = (kb.let(v / self.f32(2), "half") for v in (c, d))
            ends = [b - half_h, a - half_w, b + half_h, a + half_w]
        else:
            ends = [
                expr.select(c < a, c, a),
                expr.select(d < b, d, b),
                expr.select(c < a, a, c),
                expr.select(d < b, b, d),
            ]
        return [self.kept(v, "end") for v in ends]

    def kept(self, value: Any, name: str) -> Any:
        """``value`` by way of memory: TVM looks into conditions, for long where they are chains."""
        cell = self.kb.alloc("float32", 1, name)
        self.kb.store(cell, 0, value)
        return self.kb.let(self.kb.load(cell, 0), name)

    def compare(self, one: list[Any], other: list[Any], near: Any) -> None:
        """``near``: 1 where the intersection over union of two boxes is above the limit."""
        kb, zero = self.kb, self.f32(0)
        sides = []
        for k in (0, 1):
            low = expr.select(one[k] < other[k], other[k], one[k])
            high = expr.select(other[k + 2] < one[k + 2], other[k + 2], one[k + 2])
            sides.append(self.kept(high - low, "side"))
        common = self.kept(sides[0] * sides[1], "common")
        areas = [
            self.kept(tir.separate((b[2] - b[0]) * (b[3] - b[1])), "area") for b in (one, other)
        ]
        union = self.kept(areas[0] + areas[1] - common, "union")
        kb.store(near, 0, kb.const(0, "int32"))
        real = [v > zero for v in (*sides, *areas, union)]
        with kb.when(expr.both(*real)), kb.when(common / union > self.f32(self.layer.iou)):
            kb.store(near, 0, kb.const(1, "int32"))


def gather_function(name: str, layer: Suppression) -> Any:
    """The second step: parameters chosen, counts, rows, found."""
    kb = tir.KernelBuilder(name)
    chosen, counts = (kb.pointer(n, "int32", align=4) for n in ("chosen", "counts"))
    rows, found = (kb.pointer(n, "int64", align=8) for n in ("rows", "found"))
    total = kb.alloc("int32", 1, "total")
    with kb.loop(kb.begin, kb.end, "step"):
        kb.store(total, 0, kb.const(0, "int32"))
        with (
            kb.loop(0, layer.images, "image") as image,
            kb.loop(0, layer.classes, "label") as label,
        ):
            item = kb.let(image * layer.classes + label, "item")
            count = kb.let(kb.load(counts, item), "count")
            with kb.loop(0, count, "turn") as turn:
                at = kb.let(kb.load(total, 0), "at")
                box = kb.load(chosen, item * layer.most + turn)
                for k, value in enumerate((image, label, box)):
                    kb.store(rows, at * 3 + k, kb.cast(value, "int64"))
                kb.store(total, 0, at + 1)
        number = kb.let(kb.load(total, 0), "number")
        kb.store(found, 0, kb.cast(number, "int64"))
        with kb.loop(number * 3, layer.items * layer.most * 3, "rest") as rest:
            kb.store(rows, rest, kb.const(-1, "int64"))
    return kb.build()
