"""Pass ``fuse-epilogues``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import op_of
from passes.base import Pass, PassContext, PassResult
from passes.patterns import Match, Rule, any_, apply_rules, attr, op, users_text
from passes.rules.arithmetic import INF, float_attr, merged_clamp

CLAMPED = ("conv2d", "conv_transpose2d", "linear", "matmul", "add")
RESIDUAL = ("conv2d", "linear", "matmul")


class FuseClip(Rule):
    """clip(layer(...)) -> layer(...) with act_min and act_max."""

    pattern = op(("clip", "relu"), op(CLAMPED, capture="layer"), capture="clip")

    def _bounds(self, m: Match) -> tuple[float, float]:
        if m.node("clip").op == "relu":
            return 0.0, INF
        return float_attr(m, "clip", "min"), float_attr(m, "clip", "max")

    def check(self, m: Match) -> str | None:
        low, high = self._bounds(m)
        if not m.root.output.type.dtype.is_float:
            return "fused activations are for real numbers"
        return None if low <= high else f"its min {low:g} is above its max {high:g}"

    def rewrite(self, m: Match) -> list[Value]:
        layer = m.node("layer")
        own = float_attr(m, "layer", "act_min"), float_attr(m, "layer", "act_max")
        low, high = merged_clamp(own, self._bounds(m))
        attrs = {**layer.attrs, "act_min": low, "act_max": high}
        return m.build(layer.op, layer.inputs, attrs, loc=layer.loc)

    def describe(self, m: Match) -> str:
        low, high = self._bounds(m)
        return f"fused into {m.node('layer')!r} as a clamp to {low:g}..{high:g}"


class FuseResidual(Rule):
    """add(layer(...), r) -> layer(..., residual=r); of two layers the later one."""

    pattern = op("add", any_("a"), any_("b"), capture="add")

    def _problem(self, m: Match, layer: Node, other: Value) -> str | None:
        """Why ``other`` cannot become the layer's residual."""
        slot = op_of(layer).operands.index("residual?")
        if layer.optional_input(slot) is not None:
            return f"{layer!r} has a residual already"
        if attr(layer, "act_min") != -INF or attr(layer, "act_max") != INF:
            return f"the activation of {layer!r} comes before the add"
        if other.is_constant:
            return "the other operand is constant"
        if other.type.shape != layer.output.type.shape:
            return "the shapes of the operands differ"
        if m.graph.use_count(layer.output) != 1:
            others = users_text(m.graph, layer.output, m.root)
            return f"the result of {layer!r} is also used by {others or 'the other operand'}"
        return None

    def _choose(self, m: Match) -> tuple[Node, Value] | str:
        pairs = [(m.value("a"), m.value("b")), (m.value("b"), m.value("a"))]
        found = [(v.producer, other) for v, other in pairs if v.producer is not None]
        layers = [(node, other) for node, other in found if node.op in RESIDUAL]
        if not layers or not m.root.output.type.dtype.is_float:
            return ""
        layers.sort(key=lambda pair: m.graph.nodes.index(pair[0]), reverse=True)
        problems = []
        for node, other in layers:
            problem = self._problem(m, node, other)
            if problem is None:
                return node, other
            problems.append(problem)
        return "; ".join(problems)

    def check(self, m: Match) -> str | None:
        found = self._choose(m)
        return found if isinstance(found, str) else None

    def rewrite(self, m: Match) -> list[Value]:
        found = self._choose(m)
        assert not isinstance(found, str)
        layer, other = found
        slot = op_of(layer).operands.index("residual?")
        operands = [layer.optional_input(i) for i in range(slot)]
        attrs = {**layer.attrs, **{k: attr(m.root, k) for k in ("act_min", "act_max")}}
        new = m.build(layer.op, [*operands, other], attrs, loc=layer.loc)
        m.nodes.append(layer)
        return new

    def describe(self, m: Match) -> str:
        found = self._choose(m)
        assert not isinstance(found, str)
        return f"fused into {found[0]!r} as its residual"


@dataclass(frozen=True)
class FuseEpilogues(Pass):
    """Fuse clamps and residual adds into the layer before them.

    A clip after a conv2d, conv_transpose2d, linear, matmul or add becomes the layer's ``act_min``
    and ``act_max``. An add of a conv2d, linear or matmul result and another tensor of the same
    shape becomes the layer's ``residual`` operand; where both operands come from layers, the later
    one takes it. The layer's own result must have no other reader.

    ::

        %a = conv2d(%x, @w, @b)
        %s = add(%a, %x)              ->   %y = conv2d(%x, @w, @b, %x) {act_min=0.0}
        %y = clip(%s) {min=0.0}
    """

    name: ClassVar[str] = "fuse-epilogues"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Apply the rules to a fixed point; residuals first, their clamp follows."""
        return apply_rules(graph, [FuseResidual(), FuseClip()], self.name)
