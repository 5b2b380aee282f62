"""Runs the dense and the compressed network side by side and re-fits layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from dlcc.ir import Dense, Graph, Node, Sparse
from dlcc.ir.encodings import Array
from passes.compression import refit
from passes.compression.pruning import Candidate
from passes.compression.rows import groups_of
from passes.compression.side_by_side import GetSums, SideBySide, name_of, why_not_fitted
from passes.quantization.samples import Samples
from passes.quantization.structure import key

ROUNDS = 4
"""In how many steps weights are chosen again, where that is affordable."""

ROUND_WORK = 4e11
"""Floating-point operations that these steps may cost in a layer."""


@dataclass(frozen=True)
class Choice:
    """Which weights of a layer remain is chosen anew, as the fit goes on.

    Attributes:
        candidate: the layer before it was pruned.
        keep: units that remain in the end.
    """

    candidate: Candidate
    keep: int


@dataclass
class Refitted:
    """What the fit did, by the key of a layer.

    Attributes:
        before: norm of the error of a layer's result over the norm of its deviation from the mean,
            on the pruned prefix, with the weights as pruned.
        after: the same, with the weights as fitted.
        skipped: why a layer was not fitted.
    """

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def reconstruct(
    graph: Graph,
    dense: Samples,
    layers: Mapping[str, Choice | None],
    rng: np.random.Generator,
    advance: Callable[[float], None],
    silent: Collection[str] = (),
) -> Refitted:
    """Fit the remaining weights and the biases of compressed layers of ``graph``, in place.

    Args:
        graph: the compressed network.
        dense: the samples, with the network as it was before.
        layers: keys of the layers whose weights were compressed; with a choice where it is not
            settled yet which weights remain.
        rng: chooses the rows.
        advance: told the part done, 0 to 1.
        silent: keys of those among them that add nothing any more and are not fitted.
    """
    return _Run(graph, dense, layers, rng, silent).run(advance)


class _Run:
    """One fit of a network."""

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        layers: Mapping[str, Choice | None],
        rng: np.random.Generator,
        silent: Collection[str],
    ) -> None:
        self.layers = layers
        self.silent = silent
        self.graph = {key(n): n for n in graph.nodes}
        self.owner = graph
        self.both = SideBySide(samples, rng)
        self.report = Refitted()

    def run(self, advance: Callable[[float], None]) -> Refitted:
        """Fit every layer."""
        self.both.run(self.layers, self._visit, advance)
        return self.report

    def _visit(self, node: Node, sums: GetSums) -> None:
        self.both.follow(node, self.graph[name_of(node)])
        if name_of(node) in self.silent:
            node.set_input(2, None)
        else:
            self._fit(node, sums)

    def _reason(self, node: Node) -> str:
        """Why a layer cannot be fitted, or ""."""
        encoding = self.graph[name_of(node)].input(1).type.encoding
        inner = encoding.inner if isinstance(encoding, Sparse) else encoding
        if not isinstance(inner, Dense) or not node.output.type.is_dense:
            return f"its weights are {inner.name}, which least squares does not give"
        if len(self.graph[name_of(node)].input(1).uses) > 1:
            return "its weight is shared"
        reason = why_not_fitted(node, self.both.samples)
        if reason:
            return reason
        mask = _rows(node, node.input(1).decoded()) != 0
        needed = refit.work(mask)
        return f"it would take {needed:.1g} operations" if needed > refit.WORK else ""

    def _fit(self, node: Node, sums: GetSums) -> None:
        reason = self._reason(node)
        if reason:
            self.report.skipped[name_of(node)] = reason
            return
        weight = _rows(node, node.input(1).decoded()).astype(np.float64)
        bias = np.zeros(weight.shape[:2])
        if node.optional_input(2) is not None:
            bias = node.input(2).decoded().astype(np.float64).reshape(bias.shape)
        fitted, held = sums()
        every = fitted + held
        choice = self.layers[name_of(node)]
        start = weight if choice is None else _chosen(choice, node, every)
        found = refit.fit(start, start != 0, fitted, held)
        self.report.before[name_of(node)] = every.relative_error(weight, bias)
        self.report.after[name_of(node)] = every.relative_error(found.weight, found.bias)
        for owner, twin in ((self.owner, self.graph[name_of(node)]), (self.both.new, node)):
            _store(owner, twin, found)


def _chosen(choice: Choice, node: Node, sums: refit.Sums) -> Array:
    """The dense weights that remain, [groups, O / groups, K]; 0 where dropped.

    The least worth weights go in rounds, each a like share of what is left; after a round the
    others are fitted, and judged as fitted (Frantar and Alistarh 2022, "Optimal Brain Compression",
    remove one at a time).
    """
    candidate, units = choice.candidate, choice.candidate.units
    dense = _rows(node, candidate.layer.values).astype(np.float64)
    weight, share = dense, choice.keep / units.count
    rounds = _rounds(dense.shape, share)
    for number in range(1, rounds + 1):
        worth = refit.surgeon(weight, weight != 0, sums, units.columns)
        worth = worth.reshape(candidate.layer.values.shape)
        keep = round(units.count * share ** (number / rounds))
        mask = units.kept(units.scores(worth), keep)
        weight = dense * mask.reshape(dense.shape)
    return weight


def _rounds(shape: tuple[int, ...], share: float) -> int:
    """As many rounds as a layer of ``shape`` [groups, O / groups, K] may cost."""
    groups, outputs, depth = shape
    for rounds in range(ROUNDS, 1, -1):
        depths = [depth * share ** (number / rounds) for number in range(1, rounds)]
        if groups * outputs * sum(2 * d**3 for d in depths) <= ROUND_WORK:
            return rounds
    return 1


def _rows(node: Node, weight: Array) -> Array:
    """A weight as [groups, O / groups, K]."""
    groups = groups_of(node)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _store(graph: Graph, node: Node, found: refit.Fit) -> None:
    old, bias = node.input(1), node.optional_input(2)
    values = found.weight.reshape(old.type.shape).astype(old.type.dtype.numpy)
    made = graph.add_constant(values, encoding=old.type.encoding, name=old.name)
    node.set_input(1, made)
    hint = f"{old.name}.bias" if bias is None else bias.name
    array = found.bias.reshape(-1).astype(old.type.dtype.numpy)
    node.set_input(2, graph.add_constant(array, name=hint))


__all__ = ["Choice", "Refitted", "reconstruct"]
