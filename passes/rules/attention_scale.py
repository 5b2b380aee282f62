"""Rule of ``fold-batch-norm``: the scalar scale of attention scores, folded into a weight.

softmax(q k^T / sqrt(d)) is computed as mul(matmul(q, k), c), or with q scaled first. A scalar
passes products, reshapes and transposes, so it can be multiplied into the weight and bias that
make q (or k) once and for all.
"""

from __future__ import annotations

import numpy as np

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import build
from passes.patterns import Match, Rule, any_, const, op
from passes.rules.channel_affine import LAYERS, clamp_free, layer_constants

Path = list[tuple[Node, int]]
"""Nodes from the scaled value back to a layer, each with the operand that is followed."""

_MOVES = ("reshape", "transpose")


def find_layer(graph: Graph, value: Value) -> Path | None:
    """The way back to a layer whose constants can be scaled; every value on it has one reader."""
    node = value.producer
    if node is None or graph.use_count(value) != 1:
        return None
    if node.op in LAYERS:
        open_ = clamp_free(node) and node.optional_input(3) is None
        return [(node, 0)] if open_ and not isinstance(layer_constants(node), str) else None
    if node.op in _MOVES:
        operands = 1
    elif node.op == "matmul" and clamp_free(node) and node.optional_input(2) is None:
        operands = 2
    else:
        return None
    for operand in range(operands):
        rest = find_layer(graph, node.input(operand))
        if rest is not None:
            return [(node, operand), *rest]
    return None


class ScaleThroughMoves(Rule):
    """mul(matmul(reshape(layer(x, w, bias)), b), c) -> matmul(reshape(layer(x, c w, c bias)), b).

    For any chain of reshapes, transposes and products between the layer and the mul.
    """

    pattern = op("mul", any_("x"), const("c"), commutative=True)

    def check(self, m: Match) -> str | None:
        c, x = m.array("c"), m.value("x")
        if c.size != 1 or x.type.shape != m.root.output.type.shape:
            return ""
        path = find_layer(m.graph, x)
        if path is None or len(path) == 1:
            return ""
        weight = path[-1][0].input(1)
        largest = np.abs(weight.decoded().astype(np.float64)).max(initial=0) * np.abs(c).max()
        fits = largest <= np.finfo(weight.type.dtype.numpy).max
        return None if fits else "a folded weight would overflow"

    def rewrite(self, m: Match) -> list[Value]:
        path, scale = find_layer(m.graph, m.value("x")), float(m.array("c").reshape(-1)[0])
        assert path is not None
        m.nodes += [node for node, _ in path]
        layer = path[-1][0]
        constants = []
        for old in layer.inputs[1:]:
            assert old is not None
            scaled = (old.decoded().astype(np.float64) * scale).astype(old.type.dtype.numpy)
            constants.append(m.graph.add_constant(scaled, name=old.name))
        value = self._again(m, layer, [layer.input(0), *constants])
        for node, operand in reversed(path[:-1]):
            operands = list(node.inputs)
            operands[operand] = value
            value = self._again(m, node, operands)
        return [value]

    def _again(self, m: Match, node: Node, operands: list[Value | None]) -> Value:
        names, before = [node.output.name], m.root
        new = build(
            m.graph, node.op, operands, node.attrs, loc=node.loc, names=names, before=before
        )
        return new.output

    def describe(self, m: Match) -> str:
        path = find_layer(m.graph, m.value("x"))
        assert path is not None
        return f"folded a scalar mul behind {path[0][0]!r} into {path[-1][0]!r}"
