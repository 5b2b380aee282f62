"""Predicted time of a layer's factors."""

from __future__ import annotations

from dlcc.ir import Graph, Node, TensorType, Value
from passes.base import LayerCost
from passes.compression.stand_ins import constant_of_type, operand_of_type
from passes.factorization.forms import Form
from passes.factorization.layer import Factor, Layer, Ranks, add_chain


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
        operands: dict[int, Value | None] = {
            index: operand_of_type(graph, value, value.type)
            for index, value in enumerate(node.inputs)
            if value is not None and index != 1
        }
        rank, dtype = node.input(1).type.rank, node.input(1).type.dtype
        weights = [constant_of_type(graph, TensorType(f.shape[:rank], dtype)) for f in factors]
        return add_chain(graph, node, factors, weights, operands)
