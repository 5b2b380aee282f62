"""Pass ``fold-pads``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import AttrValue, Graph, Node, Value
from dlcc.ops.base import Interval, op_of
from passes.base import Pass, PassContext, PassResult
from passes.patterns import Match, Rule, any_, apply_rules, attr, op

_DEPTH = 8
"""How many producers are followed to find the range of a value."""


def known_interval(value: Value, depth: int = _DEPTH) -> Interval:
    """A range that surely holds every element of ``value``, from its producers alone."""
    if value.is_constant and value.type.dtype.is_float:
        return Interval.of(value.decoded())
    if value.producer is None or depth == 0:
        return Interval(-float("inf"), float("inf"))
    node = value.producer
    operands = [None if v is None else known_interval(v, depth - 1) for v in node.inputs]
    return op_of(node).interval(node, operands)[value.index]


def image_pads(node: Node) -> tuple[int, int, int, int] | str:
    """(top, left, bottom, right) of a pad node that pads the last two axes of four, or why not."""
    pads = attr(node, "pads")
    assert isinstance(pads, tuple)
    rank = node.input(0).type.rank
    if rank != 4 or any(pads[:2]) or any(pads[rank : rank + 2]):
        return "it pads other axes than height and width"
    if attr(node, "mode") != "constant":
        return f"it pads with mode {attr(node, 'mode')}"
    top, left, bottom, right = pads[2], pads[3], pads[6], pads[7]
    return int(top), int(left), int(bottom), int(right)


class _PadRule(Rule):
    def problem(self, m: Match, value: float) -> str | None:
        """Why a border of ``value`` cannot become the window's own padding."""
        raise NotImplementedError

    def extra(self, m: Match) -> dict[str, AttrValue]:
        """Further attributes to set."""
        return {}

    def check(self, m: Match) -> str | None:
        pads = image_pads(m.node("pad"))
        if isinstance(pads, str):
            return pads
        value = attr(m.node("pad"), "value")
        assert isinstance(value, int | float)
        return self.problem(m, float(value))

    def rewrite(self, m: Match) -> list[Value]:
        window, added = m.node("window"), image_pads(m.node("pad"))
        own = attr(window, "pads")
        assert not isinstance(added, str)
        assert isinstance(own, tuple)
        attrs = {**window.attrs, **self.extra(m)}
        attrs["pads"] = tuple(int(a) + int(b) for a, b in zip(own, added, strict=True))
        return m.build(window.op, [m.value("x"), *window.inputs[1:]], attrs)

    def describe(self, m: Match) -> str:
        return f"folded {m.node('pad')!r} into {m.node('window')!r}"


class PadIntoConv(_PadRule):
    """conv2d(pad(x, 0)) -> conv2d(x) with more padding."""

    pattern = op("conv2d", op("pad", any_("x"), capture="pad"), capture="window")

    def problem(self, m: Match, value: float) -> str | None:
        return None if value == 0.0 else f"it pads with {value:g}, a convolution pads with 0"


class PadIntoAveragePool(_PadRule):
    """avg_pool2d(pad(x, 0)) -> avg_pool2d(x) with padding that counts."""

    pattern = op("avg_pool2d", op("pad", any_("x"), capture="pad"), capture="window")

    def problem(self, m: Match, value: float) -> str | None:
        if value != 0.0:
            return f"it pads with {value:g}, pooling pads with 0"
        own = attr(m.node("window"), "pads")
        if any(own if isinstance(own, tuple) else ()) and not attr(
            m.node("window"), "count_include_pad"
        ):
            return "the pool leaves its own padding out of the count, the pad node's is in it"
        return None

    def extra(self, m: Match) -> dict[str, AttrValue]:
        return {"count_include_pad": True}


class PadIntoMaxPool(_PadRule):
    """max_pool2d(pad(x, v)) -> max_pool2d(x) with padding, where v is never above a maximum."""

    pattern = op("max_pool2d", op("pad", any_("x"), capture="pad"), capture="window")

    def problem(self, m: Match, value: float) -> str | None:
        window, added = m.node("window"), image_pads(m.node("pad"))
        own, kernel = attr(window, "pads"), attr(window, "kernel")
        assert not isinstance(added, str)
        assert isinstance(own, tuple)
        assert isinstance(kernel, tuple)
        dilations = attr(window, "dilations")
        assert isinstance(dilations, tuple)
        if any(d != 1 for d in dilations):
            return "the pool is dilated, a window may lie in the border alone"
        for side, pad in enumerate(added):
            if pad + own[side] >= kernel[side % 2]:
                return "a window would lie in the border alone"
        low = known_interval(m.value("x")).low
        if value > low:
            return f"it pads with {value:g}, and the input may be as small as {low:g}"
        return None


@dataclass(frozen=True)
class FoldPads(Pass):
    """Fold zero padding into the layer that reads it.

    ``pad`` becomes the padding of a conv2d; of an avg_pool2d, whose border then counts; and of a
    max_pool2d, if the border cannot win over any element (a border of 0 over an input that is
    never negative).

    ::

        %p = pad(%x) {pads=[0,0,1,1,0,0,1,1]}   ->  %y = conv2d(%x, @w) {pads=[1,1,1,1]}
        %y = conv2d(%p, @w)
    """

    name: ClassVar[str] = "fold-pads"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Apply the rules to a fixed point."""
        rules = [PadIntoConv(), PadIntoAveragePool(), PadIntoMaxPool()]
        return apply_rules(graph, rules, self.name)
