"""Predicted times of layers with fewer channels."""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.ir import AttrValue, Graph, Node, TensorType, Value
from dlcc.ops.base import op_of
from passes.base import LayerCost
from passes.compression.channels import LayerSides, replaced
from passes.compression.rows import groups_of
from passes.compression.stand_ins import operand_of_type


class LayerTimes:
    """Predicts layers by how many channels they read and make; the same is asked for once."""

    def __init__(self, layers: Sequence[LayerSides], cost: LayerCost) -> None:
        self.layers = layers
        self.cost = cost
        self._known: dict[tuple[int, int, int], float] = {}

    def __call__(self, index: int, reads: int, makes: int) -> float:
        """Seconds of a layer; 0 of one without channels.

        Args:
            index: of the layer.
            reads: channels that its weight reads; 1 where they are not told apart or tied.
            makes: channels that it makes.
        """
        if not reads or not makes:
            return 0.0
        at = (index, reads, makes)
        if at not in self._known:
            self._known[at] = self.cost(resized(self.layers[index], reads, makes))
        return self._known[at]


def resized(side: LayerSides, reads: int, makes: int) -> Node:
    """A layer of other widths, in a graph of its own, on operands without contents.

    Args:
        side: the layer.
        reads: channels that its weight reads, where they are told apart and not tied.
        makes: channels that it makes.
    """
    node, graph = side.node, Graph("layer")
    x, weight = node.input(0).type, node.input(1).type
    axis = x.rank - 1 if node.op == "linear" else 1
    shape, attrs = weight.shape, dict(node.attrs)
    if side.tied is not None:
        share = makes / len(side.tied.atoms)
        groups = round(groups_of(node) * share)
        attrs["groups"] = groups
        x = x.with_(shape=replaced(x.shape, axis, round(x.shape[axis] * share)))
        shape = replaced(shape, side.tied.axis, round(shape[side.tied.axis] * share))
    else:
        made, read = side.axes()
        shape = replaced(shape, made, makes)
        if side.reads is not None:
            shape = replaced(shape, read, reads)
            x = x.with_(shape=replaced(x.shape, axis, reads))
    types = {0: x, 1: weight.with_(shape=shape)}
    return _node(graph, node, types, attrs, axis, makes)


def _node(
    graph: Graph,
    node: Node,
    types: dict[int, TensorType],
    attrs: dict[str, AttrValue],
    axis: int,
    makes: int,
) -> Node:
    """The node on operands of new types; a bias and a residual follow the result's channels."""
    result = node.output.type.with_(shape=replaced(node.output.type.shape, axis, makes))
    operands: list[Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            operands.append(None)
            continue
        new = types.get(index)
        if new is None:
            new = value.type.with_(shape=(makes,)) if value.type.rank == 1 else result
        operands.append(operand_of_type(graph, value, new))
    made = graph.add_node(node.op, operands, [result], attrs=attrs, loc=node.loc)
    inferred = op_of(made).infer(made)
    made.output.type = result.with_(shape=inferred[0].shape)
    return made


__all__ = ["LayerTimes", "resized"]
