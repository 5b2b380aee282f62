"""One pass of the float network over the samples: statistics of values, means of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.analysis.statistics import TensorStatistic
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Value
from dlcc.ir.encodings import Array
from passes.quantization.recurrent import is_recurrent
from passes.quantization.samples import Samples
from passes.quantization.structure import LAYERS

PRE = ".pre"
"""Suffix of a layer's result before its fused clamp."""

PROBES = 2
"""Samples on which every layer's float result is kept, to tell the error of its codes."""


@dataclass
class ChannelStatistic:
    """A layer's results before its clamp, per output channel, over all samples and positions.

    Attributes:
        total: sum.
        squares: sum of squares.
        low: smallest.
        high: largest.
        count: results per channel.
    """

    total: Array
    squares: Array
    low: Array
    high: Array
    count: int = 0

    @property
    def mean(self) -> Array:
        """float64 [O]."""
        return np.asarray(self.total / max(1, self.count))

    @property
    def deviation(self) -> Array:
        """float64 [O]: standard deviation of the results before the clamp."""
        variance = self.squares / max(1, self.count) - self.mean**2
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))


@dataclass
class Observation:
    """What the float network does on the samples.

    Attributes:
        statistics: by value name.
        channels: by the name of a layer's result.
        probes: by the name of a layer's result: that result on the first few samples.
        unbounded: names of values that hold infinities or NaN (masks of attention do, and rows
            that are masked whole); they have no statistics.
    """

    statistics: dict[str, TensorStatistic] = field(default_factory=dict)
    channels: dict[str, ChannelStatistic] = field(default_factory=dict)
    probes: dict[str, Array] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)


def without_clamps(graph: Graph) -> Graph:
    """A copy in which every layer's fused clamp is a ``clip`` of its own.

    The clip's result has the layer's old name; the layer's result has the suffix :data:`PRE`.
    """
    copy = graph.copy()
    for node in [n for n in copy.nodes if n.op in LAYERS and not n.output.type.is_binary]:
        low = float(node.attrs.pop("act_min", -math.inf))  # type: ignore[arg-type]
        high = float(node.attrs.pop("act_max", math.inf))  # type: ignore[arg-type]
        name, result = node.output.name, node.output
        result.name = copy.unique_name(name + PRE)
        users = list(result.uses)
        made = copy.add_node(
            "clip",
            [result],
            [result.type],
            attrs={"min": low, "max": high},
            loc=node.loc,
            after=node,
        )
        for user, index in users:
            user.set_input(index, made.output)
        copy.set_outputs(
            [made.output if v is result else v for v in copy.outputs], copy.output_names
        )
        made.output.name = name
    return copy


def channel_axis(op: str) -> int:
    """Axis of a layer's result along which its output channels lie."""
    return -1 if op == "linear" else 1


def observe(
    samples: Samples, wanted: Collection[str], advance: Callable[[float], None]
) -> Observation:
    """Run the float network on all samples.

    Args:
        samples: the samples and the network for their chunks.
        wanted: names of the values whose statistics are kept.
        advance: told the part done, 0 to 1.

    Raises:
        DlccError: an output of the network is not finite on data that was given.
    """
    network = without_clamps(samples.network)
    out = Observation()
    layers = {n.output: n for n in network.nodes if n.op in LAYERS}
    results = {v.name.removesuffix(PRE) for v in layers}
    results |= {n.outputs[0].name for n in network.nodes if is_recurrent(n)}
    ends = set(network.outputs)

    def see(value: Value, array: Array) -> None:
        if value in layers:
            name = value.name.removesuffix(PRE)
            _add(out.channels, name, array, channel_axis(layers[value].op))
            return
        if value.name in results:
            out.probes.setdefault(value.name, array[:PROBES].copy())
        if not (value.name in wanted or value in ends):
            return
        if not np.isfinite(array).all():
            _refuse(value.name, samples, value in ends)
            out.unbounded.add(value.name)
        elif value.name in wanted:
            out.statistics.setdefault(value.name, TensorStatistic(value.name)).update(array)

    for index, feed in enumerate(samples.chunks()):
        execute(network, feed, see)
        advance(min(1.0, (index + 1) * samples.chunk / samples.count))
    for name in out.unbounded:
        out.statistics.pop(name, None)
    return out


def _refuse(name: str, samples: Samples, is_output: bool) -> None:
    """Complain about what cannot be meant: a network without a result on the data it is given."""
    if is_output and samples.given:
        raise DlccError(
            ExitCode.DATA,
            "the network's output holds NaN or infinite numbers",
            where=name,
            why="it does on the calibration data, without any quantisation",
            fix="check the calibration data and the network",
        )


def _add(channels: dict[str, ChannelStatistic], name: str, array: Array, axis: int) -> None:
    axis %= array.ndim
    others = tuple(a for a in range(array.ndim) if a != axis)
    total = array.sum(axis=others, dtype=np.float64)
    squares = np.square(array).sum(axis=others, dtype=np.float64)
    low, high = array.min(axis=others), array.max(axis=others)
    old = channels.get(name)
    count = array.size // max(1, array.shape[axis])
    if old is None:
        channels[name] = ChannelStatistic(total, squares, low, high, count)
        return
    old.total += total
    old.squares += squares
    old.low, old.high = np.minimum(old.low, low), np.maximum(old.high, high)
    old.count += count
