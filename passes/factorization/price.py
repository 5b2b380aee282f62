"""Predicted time of a layer's factors."""

from __future__ import annotations

from dlcc.ir import Constant, Graph, Node, TensorType, Value
from passes.base import LayerCost
from passes.factorization.forms import Form
from passes.factorization.layer import Factor, Layer, Ranks, add_chain

_NOTHING = Constant({})
"""Contents of a constant of which only the type matters."""


class Pricing:
    """Prices the factors of one layer; equal factors are asked for once."""

    def __init__(self, layer: Layer, cost: LayerCost) -> None:
        self.layer = layer
        self.cost = cost
        self.seconds = cost(layer.node)
        self._known: dict[tuple[str, Factor, bool], float] = {}

    def __call__(self, form: Form, ranks: Ranks) -> float:
        """Seconds of all factors of a form."""
        factors = form.factors(ranks)
        keys = [(form.name, f, f is factors[-1]) for f in factors]
        if not all(key in self._known for key in keys):
            nodes = self._nodes(factors)
            for key, node in zip(keys, nodes, strict=True):
                if key not in self._known:
                    self._known[key] = self.cost(node)
        return sum(self._known[key] for key in keys)

    def _nodes(self, factors: tuple[Factor, ...]) -> list[Node]:
        """The factors as nodes of a graph of their own, on constants without contents."""
        node, graph = self.layer.node, Graph("factors")
        operands: dict[int, Value | None] = {}
        for index, value in enumerate(node.inputs):
            if value is None or index == 1:
                continue
            if value.is_constant:
                operands[index] = _constant(graph, value.type)
            else:
                given = graph.add_input(graph.unique_name("x") + ".in", value.type)
                computed = value.producer is not None
                operands[index] = (
                    graph.add_node("relu", [given], [value.type]).output if computed else given
                )
        rank, dtype = node.input(1).type.rank, node.input(1).type.dtype
        weights = [_constant(graph, TensorType(f.shape[:rank], dtype)) for f in factors]
        return add_chain(graph, node, factors, weights, operands)


def _constant(graph: Graph, type_: TensorType) -> Value:
    value = Value(graph.unique_name("c"), type_)
    value.constant = _NOTHING
    return value
