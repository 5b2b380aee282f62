"""Widths of weights and activations, layer after layer, that an accumulator is wide enough for.

The order is that of :class:`passes.quantization.fit.Fitter`. Where the first reader of a tensor
comes up, every width of the tensor's codes is tried on the codes that the quantised prefix gives:
with it goes the widest weight that still fits the accumulator, for every layer that reads the
tensor. Of the pairs of widths that no other exceeds in both, the one with the least error of the
layers' results stays (de Bruin, Zivkovic and Corporaal 2018, section V).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dlcc.analysis.accumulators import Bounds, ChannelBounds, widest
from dlcc.ir import Affine, Node
from dlcc.ir.encodings import Array
from passes.compression.rows import groups_of, input_rows, sampled
from passes.compression.stepping import Live
from passes.quantization import weights
from passes.quantization.accumulate import Accumulator, all_rows, any_data, on_rows
from passes.quantization.fit import Codes, Fitter, Layer, Prepared
from passes.quantization.recode import Groups
from passes.quantization.rewrite import layer_constants
from passes.quantization.structure import key

WIDTHS = range(8, 1, -1)
"""Widths to choose from, widest first."""

ROWS = 2048
"""Outputs of a layer on which widths are tried."""

_ROUNDS = 8
"""How often scales are enlarged before a width is given up."""

_REPAIR = 1.03
"""How much a scale may be enlarged where channels share a width: rounding with data moves sums."""

_SPARE = 1.002
"""How much further than needed a scale is enlarged, so that the next rounding fits."""


@dataclass(frozen=True)
class Trial:
    """A pair of widths of one layer.

    Attributes:
        weights: width of the weights.
        activations: width of the input's codes.
        error: squared error of the results over their variance.
    """

    weights: int
    activations: int
    error: float


@dataclass(frozen=True)
class Assigned:
    """What a layer got.

    Attributes:
        weights: width of the weights.
        activations: width of the input's codes.
        bounds: of the accumulator, as guaranteed.
        pairs: the pairs (weights, activations) that were compared.
    """

    weights: int
    activations: int
    bounds: Bounds
    pairs: tuple[tuple[int, int], ...]


class Assigner(Fitter):
    """Fits layers and assigns their widths.

    Attributes:
        assigned: by the key of a layer.
        unfit: keys of layers that fit the accumulator at no width.
    """

    fits_scales: ClassVar[bool] = False  # smaller scales would make larger sums

    def __init__(self, prepared: Prepared, accumulator: Accumulator, stretch: bool) -> None:
        """Start.

        Args:
            prepared: the network.
            accumulator: the register of every layer.
            stretch: enlarge the scales of channels whose sums are too large, instead of giving all
                channels of the layer fewer bits.
        """
        super().__init__(prepared)
        self.accumulator = accumulator
        self.stretch = stretch and accumulator.guarantee != "ranges"
        self.assigned: dict[str, Assigned] = {}
        self.unfit: set[str] = set()
        self._encoding_at = prepared.encoding_at
        self._groups = Groups(prepared)
        self._pairs: dict[str, tuple[tuple[int, int], ...]] = {}

    # -- activations ---------------------------------------------------------------------------

    def _prepare(self, node: Node, live: Live) -> None:
        for root in self._groups.read_by(node):
            self._decide(root, live)
        self._groups.remember(node, live)

    def _decide(self, root: str, live: Live) -> None:
        """Choose the width of a tensor's codes for all layers that read its group."""
        readers = [
            n
            for n in self.twin.nodes
            if n.op in ("conv2d", "linear")
            and key(n) in self.structure.integer
            and self._groups.root(n.input(0)) == root
        ]
        bits = self._choose(root, readers, live)
        encoding = None
        if bits != self.widths.activation(root):
            self.widths.of_group[root] = bits
            encoding = self._encoding_at(root, bits)
        self._groups.close(root, encoding, live)

    def _choose(self, root: str, readers: Sequence[Node], live: Live) -> int:
        found: list[dict[int, Trial]] = []
        offered: set[int] = set()
        for node in readers:
            trials = self._trials(node, root, live)
            pairs = [(t.weights, t.activations) for t in trials.values()]
            if not self.stretch:  # otherwise wide codes of some channels say nothing of the others
                pairs = widest(pairs)
            self._pairs[key(node)] = tuple(pairs)
            offered.update(a for _, a in pairs)
            found.append(trials)
        if not offered:
            return self.widths.activation(root)

        def badness(bits: int) -> tuple[int, float]:
            known = [t[bits].error for t in found if bits in t]
            return len(found) - len(known), sum(known)

        return min(sorted(offered, reverse=True), key=badness)

    def _trials(self, node: Node, root: str, live: Live) -> dict[int, Trial]:
        """By the width of the input's codes: the widest weights that fit."""
        source = node.input(0).type.affine
        weight, bias = layer_constants(node)
        if node.input(0) in live:
            rows = self._rows(node, live[node.input(0)], source)
        else:
            rows = self._drawn(node, root, live)
        wanted = _results(rows, weight)
        out = {}
        for bits in WIDTHS:
            encoding = self._encoding_at(root, bits)
            codes = (encoding.quantise(rows) - np.float32(encoding.zero_point)).astype(np.float32)
            made = self._widest(node, (weight, bias), encoding, codes)
            if made is not None:
                got = _results(codes * np.float32(encoding.scale), made.weight.real)
                out[bits] = Trial(made.bits, bits, _relative(got, wanted))
        return out

    def _rows(self, node: Node, chunks: Sequence[Array], source: Affine) -> Array:
        """Real inputs of some outputs of a layer, [groups, rows, K]."""
        rng = np.random.default_rng(self.options.seed)
        shape = node.output.type.shape
        count = int(np.prod(shape)) // shape[1 if node.op == "conv2d" else -1]
        share = max(1, ROWS // len(chunks))
        parts = [
            input_rows(node, source.dequantise(chunk), sampled(count, share, rng))
            for chunk in chunks
        ]
        return np.concatenate(parts, axis=1)

    def _drawn(self, node: Node, root: str, live: Live) -> Array:
        """Inputs of a layer that is further down, drawn from what is known of the group."""
        rng = np.random.default_rng(self.options.seed)
        known = next(v for v in live if self._groups.root(v) == root)
        codes = np.concatenate([chunk.reshape(-1) for chunk in live[known]])
        groups = groups_of(node)
        depth = int(np.prod(node.input(1).type.shape[1:]))
        rows = rng.choice(codes, (groups, ROWS // groups + 1, depth))
        return known.type.affine.dequantise(rows)

    # -- weights -------------------------------------------------------------------------------

    def _widest(
        self, node: Node, real: tuple[Array, Array], source: Affine, rows: Array
    ) -> Codes | None:
        """The widest weights, rounded to nearest, whose sums fit the accumulator.

        ``real``: weight and bias.
        """
        weight, bias = real
        floor = self._bias_floor(bias, source)

        def make(bits: int, floor: Array) -> Codes:
            made = weights.quantise_weight(weight, bits, floor, None)
            unit = source.scale * made.scales
            return Codes(bits, made, _bias_codes(bias, unit), unit, floor)

        for bits in WIDTHS:
            made = make(bits, floor)
            for _ in range(_ROUNDS):
                excess = self._excess(node, made, source, [rows])
                if excess.max() <= 1:
                    return self._trimmed(made)
                if not self.stretch or _vanished(weight, made, excess):
                    break
                made = make(bits, _raised(made, excess))
            if self.stretch:
                return None
        return None

    def _bias_floor(self, bias: Array, source: Affine) -> Array:
        """Smallest scales for which a bias leaves half of the accumulator to the sum."""
        if self.accumulator.tile:
            return np.zeros(len(bias))
        return np.asarray(np.abs(bias) / (source.scale * (1 << (self.accumulator.bits - 2))))

    def _excess(self, node: Node, made: Codes, source: Affine, rows: Iterable[Array]) -> Array:
        return self.accumulator.excess(self._bounds(node, made, source, rows))

    def _bounds(
        self, node: Node, made: Codes, source: Affine, rows: Iterable[Array]
    ) -> ChannelBounds:
        if self.accumulator.guarantee == "results":
            return on_rows(rows, made.rows, source, made.bias, self.accumulator)
        taps = math.prod(node.input(1).type.shape[2:]) if node.op == "conv2d" else 1
        return any_data(made.rows, made.bits, source, made.bias, self.accumulator, taps)

    def _trimmed(self, made: Codes) -> Codes:
        """The same codes at the smallest width that holds them, if channels do not share one."""
        if not self.stretch:
            return made
        largest = int(np.abs(made.weight.codes.astype(np.int32)).max(initial=0))
        return replace(made, bits=max(2, largest.bit_length() + 1))

    def _fit(self, node: Node, live: Live) -> None:
        layer = self._layer(node, live)
        made = self._fitting(layer, live)
        if made is None:
            self.unfit.add(key(node))
            made = self._quantised(layer, self.widths.weight(key(node)), layer.floor)
        self._set(layer, made)

    def _fitting(self, layer: Layer, live: Live) -> Codes | None:
        """The widest weights, rounded with data, whose sums fit; None if there are none."""
        node, source = layer.node, layer.source
        if node.op == "conv_transpose2d" and self.accumulator.guarantee == "results":
            return None
        name, chunks = key(node), live[node.input(0)]
        base = np.maximum(layer.floor, _folded(self._bias_floor(layer.bias, source), layer))
        sample: list[Array] = []
        if self.accumulator.guarantee == "results":
            sample = [self._rows(node, chunks, source) / np.float32(source.scale)]
        nearest = replace(layer, moments=None)  # rounding with data starts where this one ends
        for bits in WIDTHS:
            made = self._enlarged(nearest, bits, base, lambda: sample)
            if made is not None:
                made = self._enlarged(
                    layer, bits, made.floor, lambda: all_rows(node, chunks, source)
                )
            if made is not None:
                bounds = self._bounds(node, made, source, all_rows(node, chunks, source)).all
                made = self._trimmed(made)
                self.widths.of_layer[name] = made.bits
                self.assigned[name] = Assigned(
                    made.bits, source.bits, bounds, self._pairs.get(name, ())
                )
                return made
        return None

    def _enlarged(
        self, layer: Layer, bits: int, floor: Array, rows: Callable[[], Iterable[Array]]
    ) -> Codes | None:
        """Weights whose sums over ``rows`` fit, scales enlarged as far as that takes."""
        for _ in range(_ROUNDS):
            made = self._quantised(layer, bits, floor)
            excess = self._excess(layer.node, made, layer.source, rows())
            if excess.max() <= 1:
                return made
            if not self.stretch and excess.max() > _REPAIR:
                return None
            if _vanished(layer.weight, made, excess):
                return None
            floor = _raised(made, excess)
        return None


def _bias_codes(bias: Array, unit: Array) -> Array:
    limit = float(np.iinfo(np.int32).max)
    return np.clip(np.rint(bias / unit), -limit, limit).astype(np.int32)


def _folded(per_output: Array, layer: Layer) -> Array:
    """Largest of the output channels that share one weight scale."""
    return np.asarray(per_output.reshape(-1, len(layer.weight)).max(axis=0))


def _raised(made: Codes, excess: Array) -> Array:
    """Scales with which the sums of channels that do not fit would."""
    scales = made.weight.scales
    shared = excess.reshape(-1, len(scales)).max(axis=0)
    return np.asarray(np.where(shared > 1, scales * shared * _SPARE, made.floor))


def _vanished(weight: Array, made: Codes, excess: Array) -> bool:
    """Whether a channel would lose all its weights to a larger scale."""
    peak = np.abs(weight).max(axis=1, initial=0.0)
    over = excess.reshape(-1, len(peak)).max(axis=0) > 1
    return bool((over & (peak > 0) & (peak < made.weight.scales)).any())


def _results(rows: Array, weight: Array) -> Array:
    """Sums of products [groups, rows, O / groups]."""
    turned = weight.reshape(len(rows), -1, weight.shape[1]).transpose(0, 2, 1)
    return np.asarray(rows @ turned.astype(np.float32))


def _relative(got: Array, wanted: Array) -> float:
    """Squared error over variance; a channel's mean error does not count, its bias takes it."""
    change, spread = (a - a.mean(axis=1, keepdims=True) for a in (got - wanted, wanted))
    noise = float(np.square(change, dtype=np.float64).sum())
    return noise / max(float(np.square(spread, dtype=np.float64).sum()), 1e-30)


__all__ = ["Assigned", "Assigner", "Trial"]
