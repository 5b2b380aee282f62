"""Which layers a compression pass works on: ops with constant weights, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Encoding, Graph, Node, Value
from dlcc.ir.encodings import Array, Parts
from passes.compression.rows import groups_of
from passes.names import named, names, near_misses
from passes.quantization.structure import LAYERS, key

Refuse = Callable[[str, str], None]
"""Called with a layer's ``loc`` and the reason why it is left alone."""


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """A constant weight and the layers that read it (mostly one).

    Attributes:
        nodes: conv2d, conv_transpose2d or linear nodes whose operand 1 is the weight.
        values: the weight's real values, in its shape.
    """

    nodes: tuple[Node, ...]
    values: Array

    @property
    def node(self) -> Node:
        """The first of the layers."""
        return self.nodes[0]

    @property
    def loc(self) -> str:
        """Name of the layer in remarks."""
        return self.node.loc or key(self.node)

    @property
    def weight(self) -> Value:
        """The constant."""
        return self.node.input(1)

    @property
    def stored_bytes(self) -> int:
        """Exact bytes of the weight in the weights file."""
        weight = self.weight
        assert weight.constant is not None
        return weight.type.encoding.stored_bytes(weight.constant.parts)

    def store(self, graph: Graph, parts: Parts, encoding: Encoding) -> None:
        """Give the layers a weight of the same shape, already encoded."""
        type_ = self.weight.type.with_(encoding=encoding)
        made = graph.add_stored(parts, type_, name=self.weight.name)
        for node in self.nodes:
            node.set_input(1, made)


def weight_layers(
    graph: Graph, only: Sequence[str], exclude: Sequence[str], refuse: Refuse
) -> list[WeightLayer]:
    """The layers to work on, in execution order.

    Args:
        graph: the network.
        only: patterns (as of a shell) of ``loc``; empty for all layers.
        exclude: patterns of ``loc`` of layers to leave alone.
        refuse: told of every layer of ``graph`` that is left out, and why.

    Raises:
        DlccError: USAGE, if a pattern of ``only`` matches no layer.
    """
    nodes = [n for n in graph.nodes if n.op in LAYERS]
    check_names(nodes, only)
    chosen: dict[Value, list[Node]] = {}
    for node in nodes:
        reason = _reason(node, only, exclude)
        if reason:
            refuse(node.loc or key(node), reason)
        else:
            chosen.setdefault(node.input(1), []).append(node)
    out = []
    for weight, readers in chosen.items():
        layer = WeightLayer(tuple(readers), weight.decoded())
        reason = _values_reason(layer.values)
        if reason:
            refuse(layer.loc, reason)
        else:
            out.append(layer)
    return out


def without_depthwise(layers: Sequence[WeightLayer], refuse: Refuse) -> list[WeightLayer]:
    """The layers whose outputs read more than one channel; ``refuse`` is told of the others."""
    out = []
    for layer in layers:
        if any(groups_of(n) > 1 and groups_of(n) == n.input(0).type.shape[1] for n in layer.nodes):
            refuse(layer.loc, "depthwise: its few weights carry a channel each")
        else:
            out.append(layer)
    return out


def check_names(nodes: Sequence[Node], only: Sequence[str], where: str = "option only") -> None:
    """Check that every pattern names a layer.

    Args:
        nodes: the layers.
        only: patterns (as of a shell) of ``loc``.
        where: stands in the error.

    Raises:
        DlccError: USAGE, if one matches none of ``nodes``.
    """
    for pattern in only:
        if not any(names(pattern, n.loc) for n in nodes):
            raise no_match(pattern, [n.loc for n in nodes], where)


def _reason(node: Node, only: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a layer is left alone whatever its weight holds, or ""."""
    if only and not named(only, node.loc):
        return "not chosen by option"
    if named(exclude, node.loc):
        return "excluded by option"
    weight = node.input(1)
    if not weight.is_constant:
        return "its weight is not constant"
    others = [n for n, i in weight.uses if n.op not in LAYERS or i != 1]
    if others:
        return f"its weight is read by {others[0].op} {others[0].loc!r} too"
    return ""


def _values_reason(values: Array) -> str:
    if values.dtype.kind != "f":
        return "its weight holds no real numbers"
    if not np.isfinite(values).all():
        return "its weight holds NaN or infinite numbers"
    return "" if values.any() else "its weight is all zero"


def no_match(pattern: str, known: Sequence[str], where: str) -> DlccError:
    """The error of a pattern that matches none of the layers ``known``; near misses are named."""
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    near = ", ".join(repr(name) for name in near_misses(pattern, known))
    return DlccError(
        ExitCode.USAGE,
        f"no layer matches {pattern!r}",
        where=where,
        why=f"the layers are {shown}" if known else "the network has no layers with weights",
        fix=(f"did you mean {near}? " if near else "use names of layers; ") + "* and ? match",
    )


__all__ = ["Refuse", "WeightLayer", "check_names", "no_match", "weight_layers"]
