"""How much the network's result suffers when one layer is pruned, and what to prune where.

Every layer is pruned alone, to one sparsity after another; what lies behind it runs again on the
samples (Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.2). A total is
distributed so that the sum of the layers' squared errors is least, as if the errors of different
layers were independent; on the convex hulls of the curves the greedy choice is optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.analysis.execute import run_node
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import ranks
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from dlcc.ops.integer import real_of
from passes.compression.pruning import Candidate, keep_at
from passes.quantization.samples import Samples
from passes.quantization.structure import key

SPARSITIES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""At which layers are looked at."""

WORK = 1e12
"""Multiply-accumulates that the distribution of a sparsity may cost."""


@dataclass(frozen=True)
class Point:
    """One layer at one sparsity.

    Attributes:
        sparsity: share of its weights that are zero.
        keep: units that it keeps.
        error: norm of the change of the network's outputs over their norm.
        accuracy: share of samples whose label has the highest score; None without labels.
    """

    sparsity: float
    keep: int
    error: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Curve:
    """A layer at rising sparsities.

    Attributes:
        layer: its name.
        weights: elements of its weight.
        points: what was found.
    """

    layer: str
    weights: int
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """The curve as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Labels:
    """What the network should say.

    Attributes:
        classes: int [samples].
        output: name of the output with the scores.
    """

    classes: Array
    output: str


def check_sparsities(sparsities: Sequence[float]) -> None:
    """Check that sparsities are shares that rise.

    Raises:
        DlccError: USAGE, if they are not.
    """
    steps = [0.0, *sparsities]
    if not sparsities or not all(a < b <= 1 for a, b in pairwise(steps)):
        shown = ", ".join(f"{s:g}" for s in sparsities)
        raise DlccError(
            ExitCode.USAGE,
            "the sparsities are not valid",
            why=f"they are {shown or 'none'}; each must be above the one before, 0 to 1",
            fix="give for example 0.5,0.7,0.9",
        )


def affordable(samples: Samples, layers: int, sparsities: int) -> Samples:
    """As many of the samples as the distribution may take, 16 at least where given."""
    macs = sum(op_of(n).macs(n) for n in samples.network.nodes) / samples.chunk
    runs = max(1.0, 0.5 * layers * sparsities)
    return samples.first(max(16, int(WORK / max(1.0, macs * runs))))


def analyse(
    samples: Samples,
    found: Sequence[Candidate],
    sparsities: Sequence[float],
    advance: Callable[[float], None] = lambda _: None,
    labels: Labels | None = None,
) -> list[Curve]:
    """Prune one layer at a time and run what lies behind it.

    Args:
        samples: the samples, with the network for their chunks.
        found: the layers.
        sparsities: rising, each from 0 to 1; 1 keeps one unit of each group.
        advance: told the part done, 0 to 1.
        labels: to tell accuracies too.

    Raises:
        DlccError: the labels do not fit the output.
    """
    run = Rerun(samples, labels)
    signal = 0.0
    keeps = [[keep_at(c, s) for s in sparsities] for c in found]
    noise = np.zeros((len(found), len(sparsities)))
    hits = np.zeros((len(found), len(sparsities)), np.int64)
    chunks = list(samples.chunks())
    for number, feed in enumerate(chunks):
        run.start(feed, number * samples.chunk)
        signal += run.signal
        for i, candidate in enumerate(found):
            for j, keep in enumerate(keeps[i]):
                values = np.where(candidate.mask(keep), candidate.layer.values, 0)
                noise[i, j], hits[i, j] = np.add(
                    (noise[i, j], hits[i, j]), run.changed(candidate.layer.nodes, values)
                )
            advance((number + (i + 1) / len(found)) / len(chunks))
    count = len(chunks) * run.rows
    return [
        Curve(
            c.layer.loc,
            int(c.layer.values.size),
            tuple(
                Point(
                    _sparsity(c, keep),
                    keep,
                    float(np.sqrt(noise[i, j] / (signal or 1.0))),
                    None if labels is None else float(hits[i, j] / count),
                )
                for j, keep in enumerate(keeps[i])
            ),
        )
        for i, c in enumerate(found)
    ]


def _sparsity(candidate: Candidate, keep: int) -> float:
    kept = np.where(candidate.mask(keep), candidate.layer.values, 0)
    return 1 - np.count_nonzero(kept) / kept.size


class Rerun:
    """The network on one chunk, and again from any layer on.

    Attributes:
        network: a copy of the samples' network.
        nodes: its nodes by key.
        live: values of the chunk, filled by :meth:`start`.
        signal: sum of the squares of its outputs.
        rows: labelled scores in a chunk.
    """

    def __init__(self, samples: Samples, labels: Labels | None = None) -> None:
        self.network = samples.network.copy()
        self.nodes = {key(n): n for n in self.network.nodes}
        self.labels = labels
        self.live: dict[Value, Array] = {}
        self.signal = 0.0
        self.rows = 0
        self._first = 0
        self._behind: dict[tuple[str, ...], list[Node]] = {}

    def start(self, feed: dict[str, Array], first: int) -> None:
        """Run all of it; ``first`` is the number of the chunk's first sample."""
        self.live = {v: feed[v.name] for v in self.network.inputs}
        self._first = first
        self._continue(self.network.nodes, self.live)
        self.signal = sum(float(np.square(y).sum()) for y in self._outputs(self.live))
        if self.labels is not None:
            self.rows = len(self._scores(self.live))

    def changed(self, layers: Sequence[Node], values: Array) -> tuple[float, int]:
        """Squared change of the outputs with another weight, and hits.

        Args:
            layers: that read the weight, nodes of any copy of the network.
            values: real numbers in its shape.
        """
        nodes = [self.nodes[key(n)] for n in layers]
        old = nodes[0].input(1)
        new = Value(f"{old.name}.pruned", old.type)
        twin = Graph("twin").add_constant(
            values.astype(old.type.dtype.numpy), encoding=old.type.encoding
        )
        new.constant = twin.constant
        for node in nodes:
            node.set_input(1, new)
        live = dict(self.live)
        self._continue(self._after(nodes), live)
        for node in nodes:
            node.set_input(1, old)
        return self._noise(live), 0 if self.labels is None else self._hits(live)

    def moved(self, layers: Sequence[Node], change: Callable[[Array], Array]) -> float:
        """Squared change of the outputs where layers read something else.

        Args:
            layers: nodes of any copy of the network that read the same operand 0.
            change: makes what they read, of what they read now.
        """
        nodes = [self.nodes[key(n)] for n in layers]
        read = nodes[0].input(0)
        behind = [n for n in self._after(nodes) if n not in nodes]
        live = dict(self.live)
        self._continue(nodes, live | {read: change(live[read])}, live)
        self._continue(behind, live)
        return self._noise(live)

    def with_results(self, nodes: Sequence[Node], results: Sequence[Array]) -> float:
        """Squared change of the outputs where layers give other results.

        Args:
            nodes: layers of :attr:`network`, none behind another.
            results: an array for each.
        """
        live = dict(self.live)
        live.update(zip((n.output for n in nodes), results, strict=True))
        self._continue([n for n in self._after(nodes) if n not in nodes], live)
        return self._noise(live)

    def _noise(self, live: dict[Value, Array]) -> float:
        pairs = zip(self._outputs(live), self._outputs(self.live), strict=True)
        return sum(float(np.square(after - before).sum()) for after, before in pairs)

    def _after(self, nodes: Sequence[Node]) -> list[Node]:
        name = tuple(key(n) for n in nodes)
        if name not in self._behind:
            touched: set[Value] = set()
            out = []
            for node in self.network.nodes:
                if node in nodes or not touched.isdisjoint(v for v in node.inputs if v):
                    touched.update(node.outputs)
                    out.append(node)
            self._behind[name] = out
        return self._behind[name]

    def _continue(
        self,
        nodes: Collection[Node],
        live: dict[Value, Array],
        into: dict[Value, Array] | None = None,
    ) -> None:
        """Run nodes on ``live``, and enter the results there or elsewhere."""
        for node in nodes:
            with single_threaded_blas():
                results = run_node(node, live)
            (live if into is None else into).update(zip(node.outputs, results, strict=True))

    def _outputs(self, live: dict[Value, Array]) -> list[Array]:
        """Real values of the outputs that depend on the inputs, float64."""
        return [
            real_of(v, live[v]).astype(np.float64)
            for v in self.network.outputs
            if not v.is_constant and v.type.dtype.is_float
        ]

    def _scores(self, live: dict[Value, Array]) -> Array:
        assert self.labels is not None
        index = self.network.output_names.index(self.labels.output)
        value = self.network.outputs[index]
        scores = real_of(value, live[value])
        return np.asarray(scores.reshape(len(scores), -1))

    def _hits(self, live: dict[Value, Array]) -> int:
        assert self.labels is not None
        scores = self._scores(live)
        wanted = self.labels.classes[self._first : self._first + len(scores)]
        if len(wanted) != len(scores) or (wanted >= scores.shape[1]).any() or (wanted < 0).any():
            raise DlccError(
                ExitCode.DATA,
                "the labels do not fit",
                where=f"output {self.labels.output!r}",
                why=f"{len(self.labels.classes)} labels up to {self.labels.classes.max()} for "
                f"{scores.shape[1]} classes",
                fix="give one class number, 0 or more, per sample",
            )
        return int((ranks(scores, wanted) < 1).sum())


def distribute(curves: Sequence[Curve], found: Sequence[Candidate], sparsity: float) -> list[int]:
    """Units that each layer keeps so that together ``sparsity`` of the weights are zero.

    Args:
        curves: of the layers; their last points are as sparse as a layer may get.
        found: the layers.
        sparsity: of all their weights.
    """
    wanted = sparsity * sum(c.weights for c in curves)
    kept = [float(c.units.count) for c in found]
    segments = []
    for index, (curve, candidate) in enumerate(zip(curves, found, strict=True)):
        full = (0.0, 0.0, float(candidate.units.count))
        corners = [
            full,
            *((p.sparsity * curve.weights, p.error**2, float(p.keep)) for p in curve.points),
        ]
        hull = lower_hull(corners)
        for a, b in pairwise(hull):
            segments.append(((b[1] - a[1]) / (b[0] - a[0]), index, b[0] - a[0], b[2]))
    removed = 0.0
    for _, index, gain, keep in sorted(segments):
        part = min(1.0, (wanted - removed) / gain)
        if part <= 0:
            break
        kept[index] += part * (keep - kept[index])
        removed += part * gain
    return [max(1, round(k)) for k in kept]


def lower_hull(corners: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The corners of the lower convex hull, x rising (Andrew's monotone chain)."""
    hull: list[tuple[float, float, float]] = []
    for corner in sorted(set(corners)):
        if hull and corner[0] <= hull[-1][0]:
            continue  # of equal x the lowest comes first
        while len(hull) > 1 and _turns_right(hull[-2], hull[-1], corner):
            hull.pop()
        hull.append(corner)
    return hull


def _turns_right(
    a: tuple[float, float, float], b: tuple[float, float, float], c: tuple[float, float, float]
) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


__all__ = [
    "SPARSITIES",
    "Curve",
    "Labels",
    "Point",
    "Rerun",
    "affordable",
    "analyse",
    "check_sparsities",
    "distribute",
    "lower_hull",
]
