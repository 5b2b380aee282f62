"""Runs the dense and the compressed network side by side, so that layers can be fitted in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ir.encodings import Array
from passes.compression.refit import Sums
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

HELD = 4
"""Every fourth sample is held back: it judges a fit and does not take part in it."""

_BLOCK_NUMBERS = 1 << 24
"""Most numbers in the rows of one product."""

GetSums = Callable[[], tuple[Sums, Sums]]
"""Gathers a layer's sums over the rows to fit, and over those held back: inputs of the compressed
network, and results of the dense one less the compressed network's residual."""

Visit = Callable[[Node, GetSums], None]
"""Called with a layer of the running compressed network; may change its weight and bias."""


class SideBySide:
    """Both networks, in step.

    Attributes:
        new: the compressed network that runs, without fused clamps; a copy of the dense one at
            first.
        samples: number of samples.
    """

    def __init__(self, samples: Samples, rng: np.random.Generator) -> None:
        self.rng = rng
        self.old = without_clamps(samples.network)
        self.new = without_clamps(samples.network)
        self.feeds = list(samples.chunks())
        self.samples = samples.count

    def run(self, layers: Collection[str], visit: Visit, advance: Callable[[float], None]) -> None:
        """Run as far as the last of ``layers``, and call ``visit`` before each of them runs.

        Args:
            layers: names of layers' results in the dense network.
            visit: told of each layer.
            advance: told the part done, 0 to 1.
        """
        chosen = [n.op in LAYERS and name_of(n) in layers for n in self.new.nodes]
        end = max((i + 1 for i, c in enumerate(chosen) if c), default=0)
        live_old, live_new = self._inputs(self.old), self._inputs(self.new)
        uses_old, uses_new = use_counts(self.old), use_counts(self.new)
        for index in range(end):
            node = self.new.nodes[index]
            with single_threaded_blas():
                wanted = step(self.old.nodes[index], live_old, uses_old)
                if chosen[index]:
                    visit(node, lambda n=node, w=wanted: gather(n, live_new, w, self.rng))  # type: ignore[misc]
                step(node, live_new, uses_new)
            advance((index + 1) / end)

    def follow(self, node: Node, twin: Node) -> None:
        """Give a layer of the running network the weight and bias of its twin."""
        for index in (1, 2):
            value = twin.optional_input(index)
            if value is not None and value.constant is not None:
                parts, type_ = value.constant.parts, value.type
                node.set_input(index, self.new.add_stored(parts, type_, name=value.name))

    def _inputs(self, network: Graph) -> Live:
        return {v: [feed[v.name] for feed in self.feeds] for v in network.inputs}


def gather(
    node: Node, live: Live, wanted: Sequence[Array], rng: np.random.Generator
) -> tuple[Sums, Sums]:
    """Sums over the rows to fit, and over those that choose the ridge.

    Args:
        node: a layer of a running network; its operands are numbers or their codes.
        live: values of that network.
        wanted: the layer's results in the dense network, before a clamp, per chunk.
        rng: chooses the rows.
    """
    shape = node.input(1).type.shape
    groups, depth = groups_of(node), math.prod(shape[1:])
    parts = [Sums.zero(groups, depth, shape[0] // groups) for _ in range(2)]
    rows = max(ROWS_PER_INPUT * depth, FEWEST_ROWS)
    slot = residual_slot(node)
    residual = None if slot is None else node.optional_input(slot)
    total, number = sum(map(len, wanted)), 0
    for index, y in enumerate(wanted):
        x = _real(node.input(0), live[node.input(0)][index])
        added = None if residual is None else _real(residual, live[residual][index])
        own = (number + np.arange(len(y))) % HELD == HELD - 1
        number += len(y)
        for part, images in zip(parts, (~own, own), strict=True):
            if images.any():
                share = math.ceil(rows * np.count_nonzero(images) / total)
                target = y[images] if added is None else y[images] - added[images]
                _add(part, node, x[images], target, share, rng)
    return parts[0], parts[1]


def _real(value: Value, array: Array) -> Array:
    encoding = value.type.encoding
    return encoding.dequantise(array) if isinstance(encoding, Affine) else array


def _add(
    part: Sums, node: Node, x: Array, target: Array, wanted: int, rng: np.random.Generator
) -> None:
    """Add sampled rows, in blocks that do not take much memory."""
    chosen = sampled(row_count(node, target), wanted, rng)
    numbers = chosen.size * math.prod(node.input(1).type.shape[1:]) * groups_of(node)
    for rows in np.array_split(chosen, -(-numbers // _BLOCK_NUMBERS)):
        part.add(input_rows(node, x, rows), output_rows(node, target, rows))


class Ahead:
    """The dense network, run as far as it is asked for."""

    def __init__(self, samples: Samples) -> None:
        """Start; ``samples.network`` is copied."""
        self._network = without_clamps(samples.network)
        feeds = list(samples.chunks())
        self._live: Live = {v: [f[v.name] for f in feeds] for v in self._network.inputs}
        self._uses = use_counts(self._network)
        self._next = 0

    def result(self, name: str) -> list[Array] | None:
        """Results of the layer of this key before its clamp; None if it was passed already."""
        while self._next < len(self._network.nodes):
            node = self._network.nodes[self._next]
            self._next += 1
            made = step(node, self._live, self._uses)
            if node.op in LAYERS and name_of(node) == name:
                return made
        return None


def why_not_fitted(node: Node, samples: int) -> str:
    """Why a layer's results on data cannot be looked at, or ""."""
    if node.op == "conv_transpose2d":
        return "conv_transpose2d is not fitted"
    if node.optional_input(2) is not None and not node.input(2).is_constant:
        return "its bias is not constant"
    depth = math.prod(node.input(1).type.shape[1:])
    if depth > DEEPEST:
        return f"its sums of {depth} products are longer than {DEEPEST}"
    if samples < HELD or node.output.type.rank < 2:
        return f"it takes a batch axis and {HELD} samples at least"
    return ""


def name_of(node: Node) -> str:
    """The key of a running layer in the network whose layers still have their clamps."""
    return key(node).removesuffix(PRE)


__all__ = [
    "Ahead",
    "GetSums",
    "SideBySide",
    "Visit",
    "gather",
    "name_of",
    "why_not_fitted",
]
