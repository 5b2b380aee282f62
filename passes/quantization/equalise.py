"""Cross-layer equalisation: channels of one tensor are brought to one range.

Between two layers, channel c of the tensor may be multiplied by any s_c > 0: the first layer's
weights and bias of that channel by s_c, the second layer's weights that read it by 1 / s_c; every
activation f with f(s x) = s f(x) lets it through (Nagel et al. 2019, section 4.1). A clamp at 6
does not, and is left alone: a channel that rarely fires would be cut off when it does. With one
scale per output channel of a weight, only two roundings see s_c: that of the tensor between the
layers, and that of the second layer's weights, unless it is depthwise, where each channel has a
scale of its own. So s_c is chosen from the range of the tensor's channel alone before a depthwise
layer, and from the balance of both before any other (as in Xiao et al. 2023, SmoothQuant).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.quantization.observe import ChannelStatistic, Observation
from passes.quantization.ranges import lattice
from passes.quantization.structure import Structure, key, residual_slot, weight_codes

LARGEST = 8.0
"""Bound of s_c and 1 / s_c: channels that calibration left silent are not blown up without end."""

DEVIATIONS = 6.0
"""A channel's range is taken to hold at least mean + this many deviations before its activation."""


@dataclass(frozen=True)
class Pair:
    """Two layers and the tensor between them, which nothing else reads."""

    first: Node
    second: Node

    @property
    def depthwise(self) -> bool:
        """The second layer has one input channel per output channel."""
        weight = self.second.input(1).type.shape
        groups = self.second.attrs.get("groups", 1)
        return self.second.op == "conv2d" and weight[1] == 1 and groups == weight[0] > 1


def pairs(graph: Graph, plan: Structure) -> list[Pair]:
    """Pairs of integer layers between which channels can be scaled exactly."""
    found = []
    for node in graph.nodes:
        if node.op not in ("conv2d", "linear") or key(node) not in plan.integer:
            continue
        low = float(node.attrs.get("act_min", -math.inf))  # type: ignore[arg-type]
        high = float(node.attrs.get("act_max", math.inf))  # type: ignore[arg-type]
        slot = residual_slot(node)
        homogeneous = low in (0.0, -math.inf) and high == math.inf
        free = homogeneous and graph.use_count(node.output) == 1
        if not free or (slot is not None and node.optional_input(slot) is not None):
            continue
        second = _reader(graph, node.output)
        if second is None or second.op != node.op or key(second) not in plan.integer:
            continue
        pair = Pair(node, second)
        grouped = int(op_of(second).get(second, "groups")) if second.op == "conv2d" else 1
        if (grouped == 1 or pair.depthwise) and not _on_lattice(pair):
            found.append(pair)
    return found


def _reader(graph: Graph, value: Value) -> Node | None:
    """The layer whose data operand is ``value``, through pools that keep channels apart."""
    while len(value.uses) == 1 and not graph.is_output(value):
        node, index = value.uses[0]
        if node.op in ("conv2d", "linear"):
            return node if index == 0 else None
        if node.op not in ("max_pool2d", "avg_pool2d"):
            return None
        value = node.output
    return None


def _on_lattice(pair: Pair) -> bool:
    """Weights that were quantised before keep their grid, which loses nothing as it is."""
    both = (pair.first, pair.second)
    coded = any(weight_codes(n) is not None for n in both)
    return coded or any(lattice(n.input(1).decoded(), 256) is not None for n in both)


def scales(pair: Pair, seen: ChannelStatistic) -> Array:
    """s_c of every channel of the tensor between both layers, float64 [C]."""
    low = float(pair.first.attrs.get("act_min", -math.inf))  # type: ignore[arg-type]
    spread = DEVIATIONS * seen.deviation
    top = np.maximum(np.maximum(seen.high, seen.mean + spread), 0.0)
    bottom = np.maximum(np.minimum(np.minimum(seen.low, seen.mean - spread), 0.0), low)
    reach = np.maximum(top, -bottom)
    peak = max(float(reach.max(initial=0.0)), 1e-30)
    relative = np.maximum(reach.astype(np.float64) / peak, 1e-6)
    if pair.depthwise:
        wanted = 1.0 / relative
    else:
        importance = _importance(pair.second)
        wanted = np.sqrt(np.maximum(importance, 1e-6) / relative)
    return np.asarray(np.clip(wanted, 1.0 / LARGEST, LARGEST))


def _importance(node: Node) -> Array:
    """Of each input channel: its largest weight over the largest of the same output, in 0..1."""
    weight = np.abs(node.input(1).decoded().astype(np.float64))
    per_input = weight.reshape(weight.shape[0], weight.shape[1], -1).max(axis=2)
    rows = np.maximum(per_input.max(axis=1, keepdims=True), 1e-30)
    result = (per_input / rows).max(axis=0)
    return np.asarray(result / max(float(result.max(initial=0.0)), 1e-30))


def equalise(graph: Graph, plan: Structure, seen: Observation) -> int:
    """Scale the weights of all pairs in place.

    Returns:
        Number of pairs.
    """
    done = 0
    for pair in pairs(graph, plan):
        statistic = seen.channels.get(key(pair.first))
        if statistic is None:
            continue
        factor = scales(pair, statistic)
        _scale_outputs(graph, pair.first, factor)
        _scale_inputs(graph, pair, factor)
        done += 1
    return done


def _scale_outputs(graph: Graph, node: Node, factor: Array) -> None:
    weight = node.input(1)
    shape = [-1] + [1] * (weight.type.rank - 1)
    _set(graph, node, 1, weight.decoded().astype(np.float64) * factor.reshape(shape))
    if node.optional_input(2) is not None:
        _set(graph, node, 2, node.input(2).decoded().astype(np.float64) * factor)


def _scale_inputs(graph: Graph, pair: Pair, factor: Array) -> None:
    weight = pair.second.input(1)
    shape = [1] * weight.type.rank
    shape[0 if pair.depthwise else 1] = -1
    _set(graph, pair.second, 1, weight.decoded().astype(np.float64) / factor.reshape(shape))


def _set(graph: Graph, node: Node, index: int, array: Array) -> None:
    old = node.input(index)
    made = graph.add_constant(array.astype(np.float32), encoding=old.type.encoding, name=old.name)
    node.set_input(index, made)
