"""Which groups of channels are removed: saliencies, multiply-accumulates, and the choice."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.ir import Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.compression.channel_branches import Branches
from passes.compression.channel_times import LayerTimes
from passes.compression.channels import Channels, Cut, LayerSides


@dataclass(frozen=True)
class Bundle:
    """Groups of channels that the same axes lose: all but interchangeable to the machine.

    Attributes:
        groups: free groups, the least salient first.
        size: of free and frozen groups together.
        step: the number of groups kept is a multiple of it (or all).
        least: fewest groups to keep.
    """

    groups: Array
    size: int
    step: int
    least: int

    def lower(self, removed: int) -> int:
        """How many groups are removed after the next step down, at ``removed``; as before if none.

        The first step goes to the next lower multiple.
        """
        kept = self.size - removed
        target = (kept - 1) // self.step * self.step
        removed_then = self.size - target
        allowed = target >= self.least and removed_then <= len(self.groups)
        return removed_then if allowed else removed

    def at_most(self, wanted: int) -> int:
        """The most groups, up to ``wanted``, that can be removed."""
        removed = 0
        while (then := self.lower(removed)) != removed and then <= wanted:
            removed = then
        return removed


class Work:
    """Multiply-accumulates of a network, by which groups of channels are kept.

    Attributes:
        layers: whose work depends on it.
        places: int64 [groups, 2 * layers]: places of each group along the read and the made axis of
            each layer (a tied axis counts as made).
        total: multiply-accumulates of the whole network as it is.
    """

    def __init__(self, graph: Graph, channels: Channels) -> None:
        self.layers: list[LayerSides] = channels.layers()
        count = len(self.layers)
        self.places = np.zeros((channels.count, 2 * count), np.int64)
        extents = np.ones((2, count), np.int64)
        for index, layer in enumerate(self.layers):
            for side, cut in enumerate((layer.reads, layer.results)):
                if cut is not None:
                    groups = channels.groups(cut)
                    np.add.at(self.places[:, side * count + index], groups, 1)
                    extents[side, index] = len(groups)
        self._full = extents
        macs = np.array([layer.macs for layer in self.layers], np.float64)
        self._unit = macs / extents.prod(axis=0)
        self.total = float(sum(op_of(n).macs(n) for n in graph.nodes))
        self._varying = float(macs.sum())

    def saved(self, gone: Array, lost: Array) -> float:
        """Work saved by losing more places.

        Args:
            gone: int [2 * layers]: places lost already.
            lost: the same, of those to lose.
        """
        count = len(self.layers)
        before = self._full - gone.reshape(2, count)
        after = before - lost.reshape(2, count)
        return float((self._unit * (before.prod(axis=0) - after.prod(axis=0))).sum())

    def seconds_saved(self, gone: Array, lost: Array, times: LayerTimes) -> float:
        """Predicted time saved by losing more places; negative where kernels suit the rest less.

        Args:
            gone: int [2 * layers]: places lost already.
            lost: the same, of those to lose.
            times: of the layers.
        """
        count = len(self.layers)
        before = self._full - gone.reshape(2, count)
        after = before - lost.reshape(2, count)
        total = 0.0
        for index in np.flatnonzero(lost.reshape(2, count).any(axis=0)).tolist():
            total += times(index, *map(int, before[:, index]))
            total -= times(index, *map(int, after[:, index]))
        return total

    def seconds(self, times: LayerTimes) -> float:
        """Predicted time of all layers as they are."""
        return sum(times(i, *map(int, self._full[:, i])) for i in range(len(self.layers)))

    def of(self, kept: Array) -> float:
        """Work of the network with the groups of ``kept`` (bool [groups])."""
        gone = self.places[~kept].sum(axis=0)
        return self.total - self.saved(np.zeros_like(gone), gone)


def magnitudes(channels: Channels) -> Array:
    """Saliency of each group: the shares of its filters in the squares of their layers' weights."""
    return _summed(channels, [(s.results, _squares(s.node)) for s in channels.layers()])


def root_mean_squares(channels: Channels) -> Array:
    """Root of the mean square of the weights of all filters of each group."""
    layers = channels.layers()
    squares, counts = np.zeros(channels.count), np.zeros(channels.count)
    for side in layers:
        values = np.square(side.node.input(1).decoded(), dtype=np.float64)
        _add(squares, channels, side.results, values)
        _add(counts, channels, side.results, np.ones(values.shape))
    return np.asarray(np.sqrt(squares / np.maximum(counts, 1)))


def by_readers(channels: Channels, layers: Sequence[LayerSides], shares: list[Array]) -> Array:
    """Saliency of each group from those of the single weights that read it.

    Args:
        channels: the groups.
        layers: the layers that read channels.
        shares: of each, what is lost with each weight, see :mod:`passes.compression.saliency`.
    """
    pairs = [(s.reads, e) for s, e in zip(layers, shares, strict=True) if s.reads is not None]
    return _summed(channels, pairs)


def _squares(node: Node) -> Array:
    squares = np.square(node.input(1).decoded(), dtype=np.float64)
    return np.asarray(squares / (squares.sum() or 1.0))


def _summed(channels: Channels, parts: Sequence[tuple[Cut, Array]]) -> Array:
    out = np.zeros(channels.count)
    for cut, values in parts:
        _add(out, channels, cut, values)
    return out


def _add(out: Array, channels: Channels, cut: Cut, values: Array) -> None:
    """Add up what lies at each place of a cut axis."""
    others = tuple(a for a in range(values.ndim) if a != cut.axis)
    np.add.at(out, channels.groups(cut), values.sum(axis=others))


def bundles(
    channels: Channels, work: Work, saliency: Array, multiple: int, least: int
) -> list[Bundle]:
    """The groups that may be removed, by the axes that they lie on.

    Args:
        channels: the groups.
        work: of the network.
        saliency: of each group.
        multiple: the number of channels that layers make is to be one of it.
        least: fewest channels to keep; 0 lets residual branches go as a whole.
    """
    branches = Branches(channels)
    alike: dict[bytes, list[int]] = {}
    for group, row in enumerate(work.places):
        if row.any():
            alike.setdefault(row.tobytes(), []).append(group)
    out = []
    for members in alike.values():
        free = np.array([g for g in members if g not in channels.frozen], np.int64)
        if not len(free):
            continue
        made = work.places[members[0], len(work.layers) :]
        each = int(made.max(initial=0)) or 1
        step = multiple // math.gcd(multiple, each)
        order = free[np.argsort(saliency[free], kind="stable")]
        fewest = max(step, -(-least // each))
        if not least and branches.may_go(members):
            fewest = 0
        out.append(Bundle(order, len(members), step, fewest))
    return out


Gain = Callable[[Array, Array], float]
"""(gone, lost) -> what is saved by losing places [2 * layers] when others are lost already."""


def gain_of(work: Work, times: LayerTimes | None) -> Gain:
    """The share of the network's work that is saved, and of its time where that is predicted."""
    total = work.total or 1.0
    if times is None:
        return lambda gone, lost: work.saved(gone, lost) / total
    seconds = work.seconds(times) or 1.0
    return lambda gone, lost: (
        work.saved(gone, lost) / total + work.seconds_saved(gone, lost, times) / seconds
    )


def by_work(
    found: Sequence[Bundle],
    work: Work,
    saliency: Array,
    wanted: float,
    kept: Array,
    gain: Gain,
) -> Array:
    """Remove, step by step, what is least salient for what it saves.

    Args:
        found: the bundles.
        work: of the network.
        saliency: of each group.
        wanted: multiply-accumulates to save.
        kept: bool [groups]: those that are kept so far.
        gain: by which savings are compared.

    Returns:
        Those that are kept in the end. Less is saved than wanted where no step is left.
    """
    kept = kept.copy()
    removed = [int(np.count_nonzero(~kept[b.groups])) for b in found]
    gone = work.places[~kept].sum(axis=0)
    left = wanted - work.saved(np.zeros_like(gone), gone)
    steps = [_steps(b, r, work, saliency) for b, r in zip(found, removed, strict=True)]
    while left > 0:
        best, price = None, sys.float_info.max
        for index, choices in enumerate(steps):
            for step in choices:
                gained = gain(gone, step.lost) if work.saved(gone, step.lost) > 0 else 0.0
                if gained > 0 and step.cost / gained < price - _ALIKE * abs(price):
                    best, price = (index, step), step.cost / gained
        if best is None:
            break
        index, step = best
        left -= work.saved(gone, step.lost)
        kept[step.groups] = False
        gone = gone + step.lost
        removed[index] += len(step.groups)
        steps[index] = _steps(found[index], removed[index], work, saliency)
    return kept


_ALIKE = 1e-9
"""Prices that differ by less are equal; the smaller step is taken then."""

LOOK_AHEAD = 4
"""Steps of a bundle that are weighed at once: a kernel may gain nothing by the first of them."""


@dataclass(frozen=True)
class _Step:
    """Groups of a bundle to go together, the places that they lie on, and their saliency."""

    groups: Array
    lost: Array
    cost: float


def _steps(bundle: Bundle, removed: int, work: Work, saliency: Array) -> list[_Step]:
    """The next steps of a bundle, each with those before it."""
    out: list[_Step] = []
    then = removed
    while len(out) < LOOK_AHEAD and (after := bundle.lower(then)) != then:
        then = after
        groups = bundle.groups[removed:then]
        cost = float(saliency[groups].sum())
        out.append(_Step(groups, work.places[groups].sum(axis=0), cost))
    return out


def by_count(found: Sequence[Bundle], wanted: Sequence[int], kept: Array) -> Array:
    """Remove from each bundle the least salient groups, up to a number of them."""
    kept = kept.copy()
    for bundle, count in zip(found, wanted, strict=True):
        kept[bundle.groups[: bundle.at_most(count)]] = False
    return kept


__all__ = [
    "Bundle",
    "Gain",
    "Work",
    "bundles",
    "by_count",
    "by_readers",
    "by_work",
    "gain_of",
    "magnitudes",
    "root_mean_squares",
]
