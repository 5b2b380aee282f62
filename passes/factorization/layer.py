"""A layer as factorisation sees it, the layers it may become, and how they enter a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build, op_of
from dlcc.ops.windows import Pair, Quad
from passes.quantization.structure import key

Ranks = tuple[int, ...]
"""One rank for a matrix; those of the input and of the output channels for Tucker-2."""

_BIAS, _RESIDUAL = 2, 3
_EPILOGUE = ("act_min", "act_max")


@dataclass(frozen=True)
class Layer:
    """A conv2d without groups, or a linear layer seen as a 1x1 convolution.

    Attributes:
        node: the layer.
        weight: float64 [O, I, KH, KW].
    """

    node: Node
    weight: Array

    @staticmethod
    def of(node: Node, weight: Array) -> Layer:
        """The view of ``node``, whose weight is ``weight``."""
        four = weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim))
        return Layer(node, four.astype(np.float64))

    @property
    def loc(self) -> str:
        """Name of the layer in remarks."""
        return self.node.loc or key(self.node)

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Input channels."""
        return int(self.weight.shape[1])

    @property
    def kernel(self) -> Pair:
        """Height and width of the kernel."""
        return int(self.weight.shape[2]), int(self.weight.shape[3])

    @cached_property
    def energy(self) -> float:
        """Sum of the squared weights."""
        return float(np.square(self.weight).sum())

    def geometry(self) -> Geometry:
        """Strides, dilations and pads of the convolution."""
        if self.node.op == "linear":
            return Geometry()
        op = op_of(self.node)
        return Geometry(*(op.get(self.node, k) for k in ("strides", "dilations", "pads")))


@dataclass(frozen=True)
class Geometry:
    """How a factor slides: as the attributes of conv2d."""

    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    pads: Quad = (0, 0, 0, 0)

    def along(self, axis: int) -> Geometry:
        """The part of it along height (0) or width (1); nothing happens along the other axis."""
        pads = tuple(p if i % 2 == axis else 0 for i, p in enumerate(self.pads))
        return Geometry(_only(self.strides, axis), _only(self.dilations, axis), pads)  # type: ignore[arg-type]


def _only(pair: Pair, axis: int) -> Pair:
    return (pair[0], 1) if axis == 0 else (1, pair[1])


@dataclass(frozen=True)
class Factor:
    """One of the layers that replace a layer.

    Attributes:
        suffix: what its name adds to the layer's.
        shape: of its weight [O, I / groups, KH, KW].
        geometry: how it slides.
        groups: channel groups.
    """

    suffix: str
    shape: tuple[int, int, int, int]
    geometry: Geometry = field(default_factory=Geometry)
    groups: int = 1

    @property
    def elements(self) -> int:
        """Weights."""
        return int(np.prod(self.shape))

    def attributes(self, op: str) -> dict[str, Any]:
        """Attributes of the node (none for a linear layer)."""
        if op == "linear":
            return {}
        g = self.geometry
        return {
            "strides": g.strides,
            "dilations": g.dilations,
            "pads": g.pads,
            "groups": self.groups,
        }


def add_chain(
    graph: Graph,
    node: Node,
    factors: Sequence[Factor],
    weights: Sequence[Value],
    operands: Mapping[int, Value | None],
    before: Node | None = None,
) -> list[Node]:
    """Add the nodes of a chain of factors that computes what ``node`` computes.

    Bias, residual and activation stay with the last of them, stride and pads go where the factors
    say.

    Args:
        graph: where to add them.
        node: the layer, of this graph or of another one.
        factors: from the input to the output.
        weights: constants of the factors' shapes ([O, I] for a linear layer).
        operands: input (0), bias (2) and residual (3) of the layer.
        before: insert before this node.
    """
    nodes: list[Node] = []
    taken = {n.loc for n in graph.nodes}
    value = operands[0]
    for factor, weight in zip(factors, weights, strict=True):
        last = factor is factors[-1]
        attrs = factor.attributes(node.op)
        if last:
            attrs |= {k: v for k, v in node.attrs.items() if k in _EPILOGUE}
        extra = [operands.get(_BIAS), operands.get(_RESIDUAL)] if last else []
        loc = _unique(f"{node.loc or key(node)}.{factor.suffix}", taken)
        made = build(graph, node.op, [value, weight, *extra], attrs, loc=loc, before=before)
        nodes.append(made)
        value = made.output
    return nodes


def replace_layer(
    graph: Graph, node: Node, factors: Sequence[Factor], arrays: Sequence[Array], bias: Value | None
) -> list[Node]:
    """Put a chain of factors in the place of a layer; the result keeps its name.

    Args:
        graph: the network.
        node: the layer.
        factors: from the input to the output.
        arrays: their weights, rounded here to the layer's dtype.
        bias: of the last one.
    """
    weight = node.input(1)
    constants = []
    for factor, array in zip(factors, arrays, strict=True):
        shaped = array.reshape(array.shape[: weight.type.rank]).astype(weight.type.dtype.numpy)
        name = f"{weight.name}.{factor.suffix}"
        constants.append(graph.add_constant(np.ascontiguousarray(shaped), name=name))
    operands = {0: node.input(0), _BIAS: bias, _RESIDUAL: node.optional_input(_RESIDUAL)}
    nodes = add_chain(graph, node, factors, constants, operands, before=node)
    name = node.output.name
    graph.replace(node, [nodes[-1].output])
    graph.rename(nodes[-1].output, name)
    return nodes


def _unique(loc: str, taken: set[str]) -> str:
    """``loc``, with a number where a layer has this name."""
    name, count = loc, 0
    while name in taken:
        count += 1
        name = f"{loc}_{count}"
    taken.add(name)
    return name


__all__ = ["Factor", "Geometry", "Layer", "Ranks", "add_chain", "replace_layer"]
