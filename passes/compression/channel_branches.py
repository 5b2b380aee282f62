"""Residual branches that lose all their channels: the sum goes on without them.

Residual networks are ensembles of shallower ones and lose little without single branches (Veit,
Wilber and Belongie 2016, "Residual networks behave like ensembles of relatively shallow networks").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.analysis.execute import run_node
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.base import PassContext
from passes.compression.channel_constants import bias_is_free
from passes.compression.channels import Channels, Cut, LayerSides
from passes.compression.sensitivity import Rerun
from passes.eliminate_dead_code import EliminateDeadCode
from passes.quantization.samples import Samples
from passes.quantization.structure import key, residual_slot

CLAMP = ("act_min", "act_max")


class Branches:
    """Tells which groups of channels may go as a whole."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._readers: list[tuple[LayerSides, frozenset[int]]] = [
            (side, frozenset(channels.groups(side.reads).tolist()))
            for side in channels.layers()
            if side.reads is not None
        ]

    def readers(self, members: Iterable[int]) -> list[Node]:
        """The layers that read any of these groups."""
        inner = set(map(int, members))
        return [s.node for s, groups in self._readers if not groups.isdisjoint(inner)]

    def may_go(self, members: Iterable[int]) -> bool:
        """Whether a network without any of these groups is one: a residual replaces their readers.

        Args:
            members: groups that the same layers read and make.
        """
        inner = set(map(int, members))
        readers = [(s, groups) for s, groups in self._readers if not groups.isdisjoint(inner)]
        if not readers or not inner.isdisjoint(self.channels.frozen):
            return False
        return all(
            groups <= inner
            and inner.isdisjoint(self.channels.groups(side.results).tolist())
            and _residual(side.node) is not None
            and bias_is_free(side.node)
            for side, groups in readers
        )


def _residual(node: Node) -> Value | None:
    """What a layer adds to its products, where that is computed and of the result's shape."""
    slot = residual_slot(node)
    value = None if slot is None else node.optional_input(slot)
    if value is None or value.is_constant or value.type.shape != node.output.type.shape:
        return None
    return value


def branch_errors(
    samples: Samples, branches: Sequence[Sequence[Node]], advance: Callable[[float], None]
) -> Array:
    """Share of the network's outputs that is lost without each branch, the means it adds left.

    Args:
        samples: the samples, with the network for their chunks.
        branches: the last layers of each, which add a residual.
        advance: told the part done, 0 to 1.

    Returns:
        float64 [branches]: sum of the squared change over that of the squares.
    """
    run, noise, signal = Rerun(samples), np.zeros(len(branches)), 0.0
    ends = [[run.nodes[key(n)] for n in branch] for branch in branches]
    chunks = list(samples.chunks())
    for number, feed in enumerate(chunks):
        run.start(feed, number * samples.chunk)
        signal += run.signal
        for index, nodes in enumerate(ends):
            noise[index] += run.with_results(nodes, [_mean_result(n, run.live) for n in nodes])
            advance((number + (index + 1) / len(ends)) / len(chunks))
    return np.asarray(noise / (signal or 1.0))


def _mean_result(node: Node, live: Mapping[Value, Array]) -> Array:
    """What a layer gives if its products are their means over samples and places."""
    slot = residual_slot(node)
    assert slot is not None
    alone = Graph("alone")
    values = [v for v in node.inputs if v is not None]
    given = {v: alone.add_input(v.name, v.type) for v in values if not v.is_constant}
    operands = [None if v is None else given.get(v, v) for v in node.inputs]
    operands[slot] = None
    plain = {k: v for k, v in node.attrs.items() if k not in CLAMP}
    twin = alone.add_node(node.op, operands, [node.output.type], attrs=plain)
    with single_threaded_blas():
        products = run_node(twin, {new: live[old] for old, new in given.items()})[0]
    axis = products.ndim - 1 if node.op == "linear" else 1
    others = tuple(a for a in range(products.ndim) if a != axis)
    means = products.mean(axis=others, dtype=np.float64, keepdims=True)
    low, high = (float(op_of(node).get(node, name)) for name in CLAMP)
    residual = live[node.input(slot)]
    return np.asarray(np.clip(residual + means, low, high).astype(residual.dtype))


def silence(channels: Channels, kept: Array) -> list[Node]:
    """Take the biases off the layers that read nothing any more, in place.

    What they added on average is left to a fit of the layers behind them.

    Args:
        channels: the groups.
        kept: bool [groups].

    Returns:
        These layers.
    """
    out = [s.node for s in _idle(channels, kept)]
    for node in out:
        node.set_input(2, None)
    return out


def _idle(channels: Channels, kept: Array) -> list[LayerSides]:
    """The layers all of whose channels to read are gone."""
    sides = [(s, s.reads) for s in channels.layers()]
    return [s for s, cut in sides if cut is not None and not kept[channels.groups(cut)].any()]


def without_branches(
    graph: Graph, channels: Channels, kept: Array
) -> tuple[Channels, Array, set[Node]]:
    """Let residuals stand for the layers that read nothing any more, in place.

    Such a layer's result becomes its residual plus its bias; what only it read is erased.

    Args:
        graph: the network.
        channels: its groups.
        kept: bool [groups].

    Returns:
        The groups with the cuts that are left; those kept, without any that are in no value of the
        network any more; and the layers that are gone.
    """
    sides = channels.layers()
    cuts = list(channels.cuts)
    idle = _idle(channels, kept)
    if not idle:
        return channels, kept, set()
    for side in idle:
        cuts += _bypass(graph, side)
    EliminateDeadCode().run(graph, PassContext())
    alive = set(graph.nodes)
    left = replace(
        channels,
        cuts=tuple(c for c in cuts if c.node in alive),
        resizes=tuple(r for r in channels.resizes if r.node in alive),
    )
    present = np.zeros(channels.count, np.bool_)
    for value, track in channels.tracks.items():
        if value.producer is None or value.producer in alive:
            present[channels.group_of[track.atoms]] = True
    for cut in left.cuts:
        present[channels.groups(cut)] = True
    return left, kept & present, {s.node for s in sides} - alive


def _within_clamp(node: Node, value: Value) -> bool:
    """Whether a clamp leaves a value as it is: the layer that made it has as tight a one."""
    low, high = (float(op_of(node).get(node, name)) for name in CLAMP)
    if value.producer is None or not set(CLAMP) <= set(op_of(value.producer).attributes):
        return low == -np.inf and high == np.inf
    least, most = (float(op_of(value.producer).get(value.producer, name)) for name in CLAMP)
    return low <= least and most <= high


def _bypass(graph: Graph, side: LayerSides) -> list[Cut]:
    """Replace a layer by its residual plus its bias; the cut of what the bias becomes, if any."""
    node, residual = side.node, _residual(side.node)
    assert residual is not None
    bias = node.optional_input(2)
    if (bias is None or not bias.decoded().any()) and _within_clamp(node, residual):
        graph.replace(node, [residual])
        return []
    channels = node.output.type.shape[residual.type.rank - 1 if node.op == "linear" else 1]
    values = np.zeros(channels, np.float32) if bias is None else bias.decoded().reshape(-1)
    clamp = {k: v for k, v in node.attrs.items() if k in CLAMP}
    shape = (channels,) if node.op == "linear" else (channels, *(1,) * (residual.type.rank - 2))
    name = node.input(1).name if bias is None else bias.name
    constant = graph.add_constant(values.reshape(shape), name=name)
    made = graph.add_node(
        "add",
        [residual, constant],
        [node.output.type],
        attrs=clamp,
        loc=node.loc,
        before=node,
    )
    graph.replace(node, [made.output])
    return [Cut(made, 1, 0, side.results.atoms, "parameter")]


__all__ = ["Branches", "branch_errors", "without_branches"]
