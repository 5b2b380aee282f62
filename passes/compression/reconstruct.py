"""Runs the dense and the compressed network side by side and re-fits layer after layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.ir import Dense, Graph, Node, Sparse
from dlcc.ir.encodings import Array
from passes.compression import refit
from passes.compression.rows import groups_of, input_rows, output_rows, row_count, sampled
from passes.compression.stepping import Live, step, use_counts
from passes.quantization.observe import PRE, without_clamps
from passes.quantization.samples import Samples
from passes.quantization.structure import LAYERS, key, residual_slot

DEEPEST = 4608
"""Longest sum whose covariance is worth its memory."""

ROWS_PER_INPUT = 16
"""Input rows per weight of an output, where there are as many."""

FEWEST_ROWS = 8192
"""Rows that are taken for layers of few inputs too."""

_HELD = 4
"""Every fourth sample chooses the ridge and does not take part in the fit."""

_BLOCK_NUMBERS = 1 << 24
"""Most numbers in the rows of one product."""


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
    layers: Collection[str],
    rng: np.random.Generator,
    advance: Callable[[float], None],
) -> Refitted:
    """Fit the remaining weights and the biases of compressed layers of ``graph``, in place.

    Args:
        graph: the compressed network.
        dense: the samples, with the network as it was before.
        layers: keys of the layers whose weights were compressed.
        rng: chooses the rows.
        advance: told the part done, 0 to 1.
    """
    return _Run(graph, dense, rng).run(set(layers), advance)


class _Run:
    """Both networks, in step."""

    def __init__(self, graph: Graph, samples: Samples, rng: np.random.Generator) -> None:
        self.graph = {key(n): n for n in graph.nodes}
        self.owner = graph
        self.rng = rng
        self.old = without_clamps(samples.network)
        self.new = without_clamps(samples.network)
        self.feeds = list(samples.chunks())
        self.samples = samples.count
        self.report = Refitted()

    def run(self, layers: set[str], advance: Callable[[float], None]) -> Refitted:
        """Fit every layer of ``layers``."""
        chosen = [n.op in LAYERS and _name(n) in layers for n in self.new.nodes]
        end = max((i + 1 for i, c in enumerate(chosen) if c), default=0)
        live_old, live_new = self._inputs(self.old), self._inputs(self.new)
        uses_old, uses_new = use_counts(self.old), use_counts(self.new)
        for index in range(end):
            node = self.new.nodes[index]
            with single_threaded_blas():
                wanted = step(self.old.nodes[index], live_old, uses_old)
                if chosen[index]:
                    self._follow(node)
                    self._fit(node, live_new, wanted)
                step(node, live_new, uses_new)
            advance((index + 1) / end)
        return self.report

    def _inputs(self, network: Graph) -> Live:
        return {v: [feed[v.name] for feed in self.feeds] for v in network.inputs}

    def _follow(self, node: Node) -> None:
        """Give a layer of the running network the weight that it has in the compressed one."""
        weight = self.graph[_name(node)].input(1)
        assert weight.constant is not None
        twin = self.new.add_stored(weight.constant.parts, weight.type, name=weight.name)
        node.set_input(1, twin)

    def _reason(self, node: Node) -> str:
        """Why a layer cannot be fitted, or ""."""
        encoding = self.graph[_name(node)].input(1).type.encoding
        inner = encoding.inner if isinstance(encoding, Sparse) else encoding
        if not isinstance(inner, Dense) or not node.output.type.is_dense:
            return f"its weights are {inner.name}, which least squares does not give"
        if node.op == "conv_transpose2d":
            return "conv_transpose2d is not fitted"
        if len(self.graph[_name(node)].input(1).uses) > 1:
            return "its weight is shared"
        if node.optional_input(2) is not None and not node.input(2).is_constant:
            return "its bias is not constant"
        mask = _rows(node, node.input(1).decoded()) != 0
        if mask.shape[2] > DEEPEST:
            return f"its sums of {mask.shape[2]} products are longer than {DEEPEST}"
        if self.samples < _HELD or node.output.type.rank < 2:
            return f"it takes a batch axis and {_HELD} samples at least"
        needed = refit.work(mask)
        return f"it would take {needed:.1g} operations" if needed > refit.WORK else ""

    def _fit(self, node: Node, live: Live, wanted: list[Array]) -> None:
        reason = self._reason(node)
        if reason:
            self.report.skipped[_name(node)] = reason
            return
        weight = _rows(node, node.input(1).decoded()).astype(np.float64)
        bias = np.zeros(weight.shape[:2])
        if node.optional_input(2) is not None:
            bias = node.input(2).decoded().astype(np.float64).reshape(bias.shape)
        fitted, held = self._sums(node, live, wanted)
        found = refit.fit(weight, weight != 0, fitted, held)
        every = fitted + held
        self.report.before[_name(node)] = _relative(every, weight, bias)
        self.report.after[_name(node)] = _relative(every, found.weight, found.bias)
        for owner, twin in ((self.owner, self.graph[_name(node)]), (self.new, node)):
            _store(owner, twin, found)

    def _sums(self, node: Node, live: Live, wanted: list[Array]) -> tuple[refit.Sums, refit.Sums]:
        """Sums over the rows to fit, and over those that choose the ridge."""
        shape = node.input(1).type.shape
        groups, depth = groups_of(node), math.prod(shape[1:])
        parts = [refit.Sums.zero(groups, depth, shape[0] // groups) for _ in range(2)]
        rows = max(ROWS_PER_INPUT * depth, FEWEST_ROWS)
        slot = residual_slot(node)
        residual = None if slot is None else node.optional_input(slot)
        total, number = sum(map(len, wanted)), 0
        for index, y in enumerate(wanted):
            x = live[node.input(0)][index]
            added = None if residual is None else live[residual][index]
            own = (number + np.arange(len(y))) % _HELD == _HELD - 1
            number += len(y)
            for part, images in zip(parts, (~own, own), strict=True):
                if images.any():
                    share = math.ceil(rows * np.count_nonzero(images) / total)
                    target = y[images] if added is None else y[images] - added[images]
                    self._add(part, node, x[images], target, share)
        return parts[0], parts[1]

    def _add(self, part: refit.Sums, node: Node, x: Array, target: Array, wanted: int) -> None:
        """Add sampled rows, in blocks that do not take much memory."""
        chosen = sampled(row_count(node, target), wanted, self.rng)
        numbers = chosen.size * math.prod(node.input(1).type.shape[1:]) * groups_of(node)
        for rows in np.array_split(chosen, -(-numbers // _BLOCK_NUMBERS)):
            part.add(input_rows(node, x, rows), output_rows(node, target, rows))


def _name(node: Node) -> str:
    """The key of the node in the network whose layers still have their clamps."""
    return key(node).removesuffix(PRE)


def _rows(node: Node, weight: Array) -> Array:
    """A weight as [groups, O / groups, K]."""
    groups = groups_of(node)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _relative(sums: refit.Sums, weight: Array, bias: Array) -> float:
    spread = sums.tt - sums.t**2 / sums.count
    error = sums.squared_error(weight, bias).sum()
    return float(np.sqrt(error / max(float(spread.sum()), 1e-30)))


def _store(graph: Graph, node: Node, found: refit.Fit) -> None:
    old, bias = node.input(1), node.optional_input(2)
    values = found.weight.reshape(old.type.shape).astype(old.type.dtype.numpy)
    made = graph.add_constant(values, encoding=old.type.encoding, name=old.name)
    node.set_input(1, made)
    hint = f"{old.name}.bias" if bias is None else bias.name
    array = found.bias.reshape(-1).astype(old.type.dtype.numpy)
    node.set_input(2, graph.add_constant(array, name=hint))


__all__ = ["Refitted", "reconstruct"]
