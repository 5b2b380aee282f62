"""Error of one network against another, per output and per layer.

*Accumulated*: both networks run whole on the same inputs. *Isolated*: each layer of ``b`` runs
alone, its operands taken from ``a`` (and quantised where ``b`` holds them quantised), so that the
number tells what this layer itself adds.

Layers are matched by ``loc``, the name of the original node, which survives every rewrite. A layer
of one network may have swallowed the layers after it (batch norm, activation, residual add), so
each takes with it the chain of single users that have no layer of their own in the other network;
the ends of both chains are compared. Where chains meet (a residual add), the common part belongs to
the layer that the other network computes last.

Cross-layer equalisation scales the channels between two layers and changes nothing else. A layer
whose result differs so is compared with ``a``'s channels scaled alike, and says so (``rescaled``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlcc.analysis.execute import execute, run_node
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import Executable, Feed, ReferenceNetwork
from dlcc.ir import Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array


@dataclass
class Error:
    """Running sums over samples of the difference between a reference and an approximation."""

    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    power: float = 0.0
    max_abs: float = 0.0
    elements: int = 0

    def add(self, reference: Array, approximation: Array) -> None:
        """Take one more sample of both, as real values. Equal infinities are no difference."""
        a = np.asarray(reference, np.float64).ravel()
        b = np.asarray(approximation, np.float64).ravel()
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            delta = np.where(same, 0.0, b - a)
        delta = np.where(np.isnan(delta), np.inf, delta)
        finite = np.isfinite(a) & np.isfinite(b)
        fa, fb = a[finite], b[finite]
        self.signal += float(fa @ fa)
        self.power += float(fb @ fb)
        self.dot += float(fa @ fb)
        self.noise += float(delta @ delta)
        self.max_abs = max(self.max_abs, float(np.max(np.abs(delta), initial=0.0)))
        self.elements += a.size

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise, 10 log10(sum a^2 / sum (b-a)^2), in dB."""
        if self.noise == 0.0:
            return math.inf
        if self.signal == 0.0 or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 where both are all zeros."""
        if self.signal == 0.0 and self.power == 0.0:
            return 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.power)
        return self.dot / norm if norm else 0.0

    def to_json(self) -> dict[str, float]:
        """The three measures."""
        return {"sqnr_db": self.sqnr_db, "max_abs": self.max_abs, "cosine": self.cosine}


@dataclass
class LayerError:
    """Errors of one layer of ``b``.

    Attributes:
        layer: its name.
        op: its op.
        reference: name of the layer of ``a`` whose result it is compared with.
        rescaled: ``a``'s channels were scaled by least squares before.
        isolated: fed with ``a``'s values.
        accumulated: fed with ``b``'s own values.
    """

    layer: str
    op: str
    reference: str
    rescaled: bool = False
    isolated: Error = field(default_factory=Error)
    accumulated: Error = field(default_factory=Error)


@dataclass
class Comparison:
    """What ``dlcc compare`` shows.

    Attributes:
        samples: batches that were run.
        outputs: error of each output, by ``b``'s name.
        layers: per matched layer in execution order; empty unless both are models.
        unmatched: layers of ``b`` without counterpart.
    """

    samples: int
    outputs: dict[str, Error]
    layers: list[LayerError]
    unmatched: list[str]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return {
            "samples": self.samples,
            "outputs": {name: error.to_json() for name, error in self.outputs.items()},
            "layers": [
                {
                    "layer": row.layer,
                    "op": row.op,
                    "reference": row.reference,
                    "rescaled": row.rescaled,
                    "isolated": row.isolated.to_json(),
                    "accumulated": row.accumulated.to_json(),
                }
                for row in self.layers
            ],
            "unmatched": self.unmatched,
        }


def compare(a: Executable, b: Executable, feeds: Iterable[Mapping[str, Array]]) -> Comparison:
    """Error of ``b`` against ``a``.

    Args:
        a: the reference.
        b: the approximation. Layers are compared where both are models, else outputs alone.
        feeds: inputs of ``a`` by name; ``b`` gets them by the same names, quantised where it takes
            codes and ``a`` real values.

    Raises:
        DlccError: DATA, if the networks have different inputs or outputs, or there is no sample.
    """
    pairs = _output_pairs(a, b)
    outputs = {name: Error() for _, name in pairs}
    matcher: _LayerComparison | None = None
    if isinstance(a, ReferenceNetwork) and isinstance(b, ReferenceNetwork):
        matcher = _LayerComparison(a.graph, b.graph)
    samples = 0
    for feed in feeds:
        samples += 1
        other = _feed_for(a, b, feed)
        if matcher is None:
            result_a, result_b = a.run(feed), b.run(other)
        else:
            result_a, result_b = matcher.run(feed, other)
        for name_a, name_b in pairs:
            real_a = _real(result_a[name_a], _output_type(a, name_a))
            outputs[name_b].add(real_a, _real(result_b[name_b], _output_type(b, name_b)))
    if not samples:
        raise DlccError(ExitCode.DATA, "there are no samples to compare on", fix="give some")
    rows = [] if matcher is None else list(matcher.rows.values())
    return Comparison(samples, outputs, rows, [] if matcher is None else matcher.unmatched)


# -- borders -----------------------------------------------------------------------------------


def _output_pairs(a: Executable, b: Executable) -> list[tuple[str, str]]:
    """Outputs by equal names, else by position."""
    names_a, names_b = [t.name for t in a.outputs], [t.name for t in b.outputs]
    if len(names_a) != len(names_b):
        raise DlccError(
            ExitCode.DATA,
            "the networks have different outputs",
            why=f"{a.path} has {names_a}, {b.path} has {names_b}",
            fix="compare forms of one network",
        )
    by_name = set(names_a) == set(names_b)
    pairs = [(n, n) for n in names_a] if by_name else list(zip(names_a, names_b, strict=True))
    shapes_a = {t.name: t.shape for t in a.outputs}
    shapes_b = {t.name: t.shape for t in b.outputs}
    for left, right in pairs:
        if shapes_a[left] != shapes_b[right]:
            raise DlccError(
                ExitCode.DATA,
                "the outputs have different shapes",
                where=right,
                why=f"{list(shapes_a[left])} and {list(shapes_b[right])}",
                fix="compare forms of one network, imported with the same --shape",
            )
    return pairs


def _feed_for(a: Executable, b: Executable, feed: Mapping[str, Array]) -> Feed:
    names_a, names_b = [t.name for t in a.inputs], [t.name for t in b.inputs]
    if len(names_a) != len(names_b):
        raise DlccError(
            ExitCode.DATA,
            "the networks have different inputs",
            why=f"{a.path} takes {names_a}, {b.path} takes {names_b}",
            fix="compare forms of one network",
        )
    if set(names_a) != set(names_b):
        feed = {nb: feed[na] for na, nb in zip(names_a, names_b, strict=True)}
    out: Feed = {}
    for info in b.inputs:
        type_ = _input_type(b, info.name)
        array = feed[info.name]
        quantise = isinstance(type_.encoding, Affine) and array.dtype == type_.dtype.numpy
        out[info.name] = type_.affine.quantise(array) if quantise else array
    return out


def _input_type(network: Executable, name: str) -> TensorType:
    if isinstance(network, ReferenceNetwork):
        return next(v.type for v in network.graph.inputs if v.name == name)
    return next(v.type for v in network.signature().inputs if v.name == name)


def _output_type(network: Executable, name: str) -> TensorType | None:
    if not isinstance(network, ReferenceNetwork):
        return None
    graph = network.graph
    return graph.outputs[graph.output_names.index(name)].type


def _real(array: Array, type_: TensorType | None) -> Array:
    """Real values of a stored array."""
    if type_ is not None and isinstance(type_.encoding, Affine):
        return type_.encoding.dequantise(array)
    return array


def _stored(real: Array, type_: TensorType) -> Array:
    """``real`` as a value of ``type_`` holds it."""
    if isinstance(type_.encoding, Affine):
        return type_.encoding.quantise(real)
    return real.astype(type_.storage.numpy, copy=False)


# -- layers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A layer in both networks: its first and last node in ``b``, and the last one in ``a``."""

    start: Node
    end: Node
    reference: Node


def match_layers(a: Graph, b: Graph) -> list[Match]:
    """The layers that both have, in the order of ``b``; see the module's docstring."""
    last_a = {node.loc: node for node in a.nodes if node.loc and len(node.outputs) == 1}
    last_b = {node.loc: node for node in b.nodes if node.loc and len(node.outputs) == 1}
    place_a = {node: place for place, node in enumerate(a.nodes)}
    shared = [node for node in b.nodes if last_b.get(node.loc) is node and node.loc in last_a]
    # Of two layers that meet, the fused network computes the one later that holds the meeting
    # point: its order decides in the other one.
    by_a = sorted(shared, key=lambda n: place_a[last_a[n.loc]], reverse=True)
    chains_b = _chains(b, by_a, last_a)
    chains_a = _chains(a, [last_a[n.loc] for n in reversed(shared)], last_b)
    matches = []
    for start in shared:
        found = _equal_shapes(chains_b[start], chains_a[last_a[start.loc]])
        if found is not None:
            matches.append(Match(start, *found))
    return matches


def _chains(graph: Graph, starts: list[Node], other: Mapping[str, Node]) -> dict[Node, list[Node]]:
    """Each start with the single users after it without layer in ``other``; the first one wins."""
    taken = set(starts)
    chains: dict[Node, list[Node]] = {}
    for start in starts:
        chain = chains[start] = [start]
        while graph.use_count(chain[-1].output) == 1 and chain[-1].output.uses:
            node = chain[-1].output.uses[0][0]
            if node.loc in other or not node.loc or len(node.outputs) != 1 or node in taken:
                break
            chain.append(node)
            taken.add(node)
    return chains


def _equal_shapes(chain: list[Node], reference: list[Node]) -> tuple[Node, Node] | None:
    """The last member of ``chain`` with one of its shape in ``reference``, and the last such."""
    for node in reversed(chain):
        for candidate in reversed(reference):
            if candidate.output.type.shape == node.output.type.shape:
                return node, candidate
    return None


LEAST_SPREAD = 1.25
"""Largest over smallest channel scale from which channels count as rescaled on purpose."""

LEAST_GAIN_DB = 6.0
"""And by how much scaling has to lift the SQNR."""

LEAST_ELEMENTS = 16
"""And how many numbers each channel needs."""


def channel_scales(reference: Array, other: Array) -> Array | None:
    """Factors per channel that turn ``reference`` into ``other``; None if they are alike.

    Least squares, b = d a; channels that are silent in either get 1. Channels are axis 1 of images,
    else the last axis. A few numbers per channel would fit noise: those are never scaled.
    """
    channels = 1 if reference.ndim == 4 else reference.ndim - 1
    if reference.ndim < 2 or reference.shape != other.shape or reference.shape[channels] < 2:
        return None
    if reference.size < LEAST_ELEMENTS * reference.shape[channels]:
        return None
    axes = tuple(i for i in range(reference.ndim) if i != channels)
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    power, cross = np.sum(a * a, axes), np.sum(a * b, axes)
    with np.errstate(invalid="ignore", divide="ignore"):
        scales = np.where((power > 0) & (cross > 0), cross / power, 1.0)
    if scales.max() < LEAST_SPREAD * scales.min():
        return None
    shaped = scales.reshape([-1 if i == channels else 1 for i in range(a.ndim)])
    before, after = Error(), Error()
    before.add(a, b)
    after.add(a * shaped, b)
    return shaped if after.sqnr_db > before.sqnr_db + LEAST_GAIN_DB else None


def _between(matches: list[Match]) -> set[Node]:
    """The inner nodes of the chains."""
    inner: set[Node] = set()
    for match in matches:
        node = match.start
        while node is not match.end:
            node = node.output.uses[0][0]
            inner.add(node)
    return inner


class _LayerComparison:
    """Runs both graphs and feeds the layers' error sums."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.a, self.b = a, b
        matches = match_layers(a, b)
        self.matches = {match.end: match.reference for match in matches}
        self.rows = {
            match.end: LayerError(match.start.loc, match.start.op, match.reference.loc)
            for match in matches
        }
        covered = {match.start for match in matches} | _between(matches)
        self.unmatched = [n.loc or n.op for n in b.nodes if n not in covered]
        self._wanted = {reference.output for reference in self.matches.values()}
        self._scales: dict[Node, Array | None] = {}

    def run(self, feed_a: Mapping[str, Array], feed_b: Mapping[str, Array]) -> tuple[Feed, Feed]:
        """One sample; returns the outputs of both."""
        real: dict[Value, Array] = {}

        def observe_a(value: Value, array: Array) -> None:
            if value in self._wanted:
                real[value] = _real(array, value.type)

        def observe_b(value: Value, array: Array) -> None:
            node = value.producer
            if node is not None and node in self.rows:
                found = _real(array, value.type)
                self.rows[node].accumulated.add(self._reference(node, real, found), found)

        outputs_a = execute(self.a, feed_a, observe_a)
        outputs_b = execute(self.b, feed_b, observe_b)
        self._isolated(real, feed_b)
        return outputs_a, outputs_b

    def _reference(
        self, node: Node, real: Mapping[Value, Array], found: Array | None = None
    ) -> Array:
        """``a``'s result for a layer of ``b``; ``found`` tells of rescaled channels, once."""
        reference = real[self.matches[node].output]
        if found is not None and node not in self._scales:
            self._scales[node] = channel_scales(reference, found)
            self.rows[node].rescaled = self._scales[node] is not None
        scales = self._scales.get(node)
        return reference if scales is None else np.asarray(reference * scales, reference.dtype)

    def _isolated(self, real: Mapping[Value, Array], feed: Mapping[str, Array]) -> None:
        """Each layer on ``a``'s values; layers without counterpart pass theirs on."""
        ideal: dict[Value, Array] = {v: feed[v.name] for v in self.b.inputs}
        last_use = {
            v: node for node in self.b.nodes for v in (*node.inputs, *node.outputs) if v is not None
        }
        for node in self.b.nodes:
            results = run_node(node, ideal)
            for value, array in zip(node.outputs, results, strict=True):
                ideal[value] = array
            if node in self.rows:
                value = node.output
                reference = self._reference(node, real)
                self.rows[node].isolated.add(reference, _real(results[0], value.type))
                ideal[value] = _stored(reference, value.type)
            for operand in (*node.inputs, *node.outputs):
                if operand is not None and last_use[operand] is node:
                    ideal.pop(operand, None)


__all__ = [
    "Comparison",
    "Error",
    "LayerError",
    "Match",
    "channel_scales",
    "compare",
    "match_layers",
]
