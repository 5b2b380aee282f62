"""Channels that never change, and channels that nobody reads.

A channel is constant where no weight reads anything that changes: its filter is zero, and what is
added to it is constant too. It can be removed exactly, if the layers that read it take its
contribution into their biases. A dead input is a channel that no remaining weight reads (Pan, Dong
and Guo 2016, "DropNeuron", section 3); removing it may leave others dead before it.
"""

from __future__ import annotations

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.compression.channels import Channels, Cut, LayerSides, uncuttable
from passes.compression.rows import groups_of
from passes.quantization.samples import Samples
from passes.quantization.structure import LAYERS, residual_slot


def constant_channels(graph: Graph, channels: Channels) -> dict[Value, Array]:
    """What the channels are that layers read and that never change.

    Args:
        graph: the network.
        channels: its groups of coupled channels.

    Returns:
        For each value that a layer reads: float64, one number per channel, NaN where it changes.
    """
    still = _structure(graph, channels)
    read = {s.node.input(0) for s in channels.layers() if s.reads is not None}
    wanted = {v for v in read if still[v].any()}
    found = {v: np.full(len(still[v]), np.nan) for v in read}
    if not wanted:
        return found

    def see(value: Value, array: Array) -> None:
        if value in wanted:
            rows = np.moveaxis(array, channels.tracks[value].axis, 0).reshape(len(still[value]), -1)
            same = still[value] & (rows == rows[:, :1]).all(axis=1)  # borders may differ
            found[value] = np.where(same & np.isfinite(rows[:, 0]), rows[:, 0], np.nan)

    rng = np.random.default_rng(0)
    execute(graph, {v.name: _typical(v, rng) for v in graph.inputs}, see)
    return found


def _typical(value: Value, rng: np.random.Generator) -> Array:
    """An input's array: normal numbers, zeros where it holds integers."""
    dtype = value.type.storage.numpy
    shape = value.type.shape
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _structure(graph: Graph, channels: Channels) -> dict[Value, Array]:
    """Per channel of each tracked value: whether no weight reads anything that changes."""
    still: dict[Value, Array] = {}
    sides = {s.node: s for s in channels.layers()}
    for node in graph.nodes:
        if node.outputs[0] not in channels.tracks:
            continue
        if node.op in LAYERS:
            still[node.output] = _of_layer(sides[node], still, node)
        else:
            still[node.output] = _handed_on(channels, still, node)
    return still


def _of_layer(side: LayerSides, still: dict[Value, Array], node: Node) -> Array:
    weight = node.input(1).decoded() != 0
    if side.tied is not None:
        members = np.asarray(still[node.input(0)].reshape(groups_of(node), -1).all(axis=1))
        outputs = node.output.type.shape[1]
        out = np.repeat(members, outputs // len(members))
        if node.op != "conv_transpose2d":
            out |= ~weight.reshape(outputs, -1).any(axis=1)
    else:
        made, read = side.axes()
        rows = np.moveaxis(weight, (made, read), (0, 1))
        rows = rows.reshape(*rows.shape[:2], -1).any(axis=2)
        if side.reads is not None:
            rows = rows & ~still[node.input(0)]
        out = ~rows.any(axis=1)
    slot = residual_slot(node)
    residual = None if slot is None else node.optional_input(slot)
    if residual is None or residual.is_constant:
        return np.asarray(out)
    other = still.get(residual)
    return np.asarray(out & (np.False_ if other is None else other))


def _handed_on(channels: Channels, still: dict[Value, Array], node: Node) -> Array:
    """Other ops: a channel is still if all that it comes from is."""
    track = channels.tracks[node.outputs[0]]
    changing: set[int] = set()
    operands = [v for v in node.inputs if v is not None and not v.is_constant]
    by_place = len(operands) > 1 and node.op != "concat"
    for value in operands:
        moves = np.asarray(~still.get(value, np.zeros(1, np.bool_)))
        if value in still and not by_place:
            changing.update(channels.tracks[value].atoms[moves].tolist())
        elif moves.any():
            every = len(moves) != len(track.atoms)  # it is broadcast over them
            changing.update((track.atoms if every else track.atoms[moves]).tolist())
    return ~np.isin(track.atoms, list(changing))


def still_read(channels: Channels, constants: dict[Value, Array], kept: Array) -> Array:
    """Which groups a remaining weight reads in a way that no bias can stand for, bool [groups].

    Args:
        channels: the groups.
        constants: see :func:`constant_channels`.
        kept: bool [groups]: outputs of the others do not count as readers.
    """
    out = np.zeros(channels.count, np.bool_)
    for side in channels.layers():
        if side.reads is None:
            continue
        weight = _read_matrix(side)[kept[channels.groups(side.results)]]
        values = constants[side.node.input(0)]
        exact = ~np.isnan(values) if _absorbs(side.node) else values == 0
        np.logical_or.at(out, channels.groups(side.reads), (weight != 0).any(axis=(0, 2)) & ~exact)
    return out


def _read_matrix(side: LayerSides) -> Array:
    """The weight as [made, read, taps]."""
    weight = np.moveaxis(side.node.input(1).decoded(), side.axes(), (0, 1))
    return np.asarray(weight.reshape(*weight.shape[:2], -1))


def bias_is_free(node: Node) -> bool:
    """Whether a layer's bias is absent or can be changed."""
    bias = node.optional_input(2)
    return bias is None or not uncuttable(bias)


def _absorbs(node: Node) -> bool:
    """Whether a layer's bias can stand for constant inputs exactly: no output misses a weight."""
    if node.op == "conv_transpose2d" or not bias_is_free(node):
        return False
    return node.op == "linear" or not any(op_of(node).get(node, "pads"))


def dead_groups(channels: Channels, constants: dict[Value, Array], left: Array) -> Array:
    """Which groups change nothing when removed, bool [groups]; to a fixed point.

    Args:
        channels: the groups.
        constants: see :func:`constant_channels`.
        left: bool [groups]: those that stay in any case, so that what they read counts.
    """
    frozen = left.copy()
    frozen[list(channels.frozen)] = True
    kept = np.ones(channels.count, np.bool_)
    while True:
        then = kept & (still_read(channels, constants, kept) | frozen)
        if (then == kept).all():
            return ~kept
        kept = then


def with_means(
    channels: Channels, constants: dict[Value, Array], samples: Samples
) -> dict[Value, Array]:
    """The constants, with the means over samples where a channel changes."""
    twins = {v.name: v for n in samples.network.nodes for v in n.outputs}
    read = {twins[v.name]: v for v in constants}
    totals = {v: np.zeros(len(c)) for v, c in constants.items()}
    counts = dict.fromkeys(constants, 0)

    def see(twin: Value, array: Array) -> None:
        if twin in read:
            value = read[twin]
            rows = np.moveaxis(array, channels.tracks[value].axis, 0).reshape(
                len(totals[value]), -1
            )
            totals[value] += rows.sum(axis=1, dtype=np.float64)
            counts[value] += rows.shape[1]

    for feed in samples.chunks():
        execute(samples.network, feed, see)
    return {v: np.where(np.isnan(c), totals[v] / counts[v], c) for v, c in constants.items()}


def stop_reading(
    graph: Graph, channels: Channels, constants: dict[Value, Array], kept: Array
) -> None:
    """Set the weights that read removed channels to zero; biases take what is constant.

    The shapes stay. Where a layer pads its input, the bias stands for a constant other than 0 at
    all outputs but those at the border.

    Args:
        graph: the network.
        channels: its groups.
        constants: what biases take over for removed channels, see :func:`constant_channels` and
            :func:`with_means`; nothing where NaN.
        kept: bool [groups].
    """
    for side in channels.layers():
        cut, node = side.reads, side.node
        if cut is None:
            continue
        gone = ~kept[channels.groups(cut)]
        old = node.input(1)
        if not gone.any():
            continue
        values = np.nan_to_num(constants[node.input(0)][gone])
        if values.any() and bias_is_free(node):
            _absorb(graph, node, _read_matrix(side)[:, gone].sum(axis=2, dtype=np.float64) @ values)
        weight = old.decoded().copy()
        weight[(slice(None),) * cut.axis + (gone,)] = 0
        store(graph, cut, weight)


def _absorb(graph: Graph, node: Node, added: Array) -> None:
    bias = node.optional_input(2)
    old = np.zeros(len(added)) if bias is None else bias.decoded().astype(np.float64)
    name = f"{node.input(1).name}.bias" if bias is None else bias.name
    dtype = node.input(1).type.dtype.numpy
    node.set_input(2, graph.add_constant((old + added).astype(dtype), name=name))


def store(graph: Graph, cut: Cut, values: Array) -> None:
    """Give a node another constant, in the encoding of the old one."""
    old = cut.node.input(cut.operand)
    array = np.ascontiguousarray(values).astype(old.type.dtype.numpy, copy=False)
    made = graph.add_constant(
        array, encoding=old.type.encoding, name=old.name, dtype=old.type.dtype
    )
    cut.node.set_input(cut.operand, made)


__all__ = [
    "bias_is_free",
    "constant_channels",
    "dead_groups",
    "still_read",
    "stop_reading",
    "store",
    "with_means",
]
