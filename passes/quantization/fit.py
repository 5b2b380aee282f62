"""Weights, layer after layer, on what the already quantised prefix of the network computes.

Every layer's bias is set so that the mean of each output channel over the samples equals that of
the float network (Nagel et al. 2019, section 4.2; Finkelstein et al. 2019), given the codes that
really arrive: errors of earlier layers are corrected too and do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.ir import Affine, Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from dlcc.ops.conv import window_of
from passes.compression import refit
from passes.compression.rows import conv_rows, groups_of, sampled
from passes.compression.side_by_side import Ahead, gather, why_not_fitted
from passes.compression.stepping import Live, operands, step, use_counts
from passes.quantization import recurrent, weights
from passes.quantization.observe import Observation
from passes.quantization.rewrite import layer_constants, set_layer
from passes.quantization.rounding import Rounding
from passes.quantization.samples import Samples
from passes.quantization.stored import stored_weights
from passes.quantization.structure import (
    LAYERS,
    Structure,
    fitted,
    is_pruned,
    key,
    output_axis,
    residual_slot,
    weight_codes,
)
from passes.quantization.widths import BitWidths

DEEPEST = 2304
"""Longest sum whose covariance is worth its memory; deeper layers are rounded to nearest."""

ROWS_PER_INPUT = 16
"""Fewest input patches per weight from which a covariance is estimated."""

MOST_ROWS = 1 << 16
"""Most input patches from which a covariance is estimated."""

PATCH_NUMBERS = 1 << 25
"""Most numbers in all patches of a covariance beyond the fewest patches."""

COVARIANCE_WORK = 4e9
"""Multiply-accumulates that a layer's covariance may cost beyond the fewest patches."""


EncodingAt = Callable[[str, int], Affine]
"""The encoding of a group of values, by its representative, at a width of its codes."""


@dataclass(frozen=True)
class FitOptions:
    """What is done beyond rounding to nearest.

    Attributes:
        bias_correction: match the means of the float network.
        rounding: of the weights; nearest needs no covariance of the layer's input.
        seed: of the choice of patches.
    """

    bias_correction: bool = True
    rounding: Rounding = "gptq"
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """A graph whose values have their encodings, and what its layers are fitted with.

    Attributes:
        graph: the graph.
        twin: the same for the batches of ``samples``.
        plan: which nodes work on codes.
        widths: of all codes.
        options: of the fit.
        samples: the samples.
        seen: what the float network does on them.
        encoding_at: encodings of other widths.
        dense: the float network on the samples, where weights are fitted to its results.
    """

    graph: Graph
    twin: Graph
    plan: Structure
    widths: BitWidths
    options: FitOptions
    samples: Samples
    seen: Observation
    encoding_at: EncodingAt
    dense: Ahead | None = None


@dataclass
class FitReport:
    """What was found.

    Attributes:
        layers: quantised.
        exact: layers whose weights lost nothing.
        bits: key -> width of the weights.
        accumulator: key -> largest possible |accumulator|.
        enlarged: key -> channels whose scale was enlarged so that the bias fits.
        sqnr: key -> signal to quantisation noise of the result on the quantised prefix, dB.
    """

    layers: int = 0
    exact: int = 0
    bits: dict[str, int] = field(default_factory=dict)
    accumulator: dict[str, int] = field(default_factory=dict)
    enlarged: dict[str, int] = field(default_factory=dict)
    sqnr: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layer:
    """What the codes of a layer depend on.

    Attributes:
        node: of the rebatched network.
        weight: real numbers [O, K].
        bias: real numbers [O].
        source: encoding of its input.
        floor: smallest scale of each channel.
        moments: of its input patches; None for transposed convolutions.
        residual_mean: of each channel of a residual operand, or 0.
    """

    node: Node
    weight: Array
    bias: Array
    source: Affine
    floor: Array
    moments: weights.Moments | None
    residual_mean: Array | float

    @property
    def per_tensor(self) -> bool:
        """One scale for all channels: groups of a transposed convolution share columns."""
        node, own = self.node, weight_codes(self.node)
        if own is not None:
            return own.axis is None
        return node.op == "conv_transpose2d" and op_of(node).get(node, "groups") != 1


@dataclass(frozen=True, eq=False)
class Codes:
    """Constants of an integer layer.

    Attributes:
        bits: width of the weights.
        weight: codes and scales.
        bias: int32 codes.
        unit: real value of one accumulator unit, per output channel.
        floor: the smallest scales that were allowed.
    """

    bits: int
    weight: weights.QuantisedWeights
    bias: Array
    unit: Array
    floor: Array

    @property
    def rows(self) -> Array:
        """Weight codes [O, K], a row for each bias (groups share those of a transposed layer)."""
        codes = self.weight.codes
        return np.tile(codes, (len(self.bias) // len(codes), 1))


class Fitter:
    """Fits all layers of ``target`` and of its rebatched twin, in execution order.

    Attributes:
        fits_scales: narrow codes get the scales with the least error, not those of the largest
            weights.
    """

    fits_scales: ClassVar[bool] = True

    def __init__(self, prepared: Prepared) -> None:
        self.target = prepared.graph
        self.twin = prepared.twin
        self.structure = prepared.plan
        self.widths = prepared.widths
        self.options = prepared.options
        self.samples = prepared.samples
        self.observation = prepared.seen
        self._dense = prepared.dense
        self.report = FitReport()
        self._nodes = {key(n): n for n in self.target.nodes}

    def run(self, advance: Callable[[float], None]) -> FitReport:
        """Set every integer layer's constants; execute the twin on the samples as far as needed."""
        feeds = list(self.samples.chunks())
        live: Live = {v: [f[v.name] for f in feeds] for v in self.twin.inputs}
        last = max(fitted(self.twin, self.structure), default=-1)
        uses = use_counts(self.twin)
        work = np.cumsum([1 + sum(v.type.elements for v in n.outputs) for n in self.twin.nodes])
        for index, node in enumerate(self.twin.nodes):
            if index > last:
                break
            self._prepare(node, live)
            if node.op in LAYERS and key(node) in self.structure.integer:
                with single_threaded_blas():
                    self._fit(node, live)
            elif key(node) in self.structure.recurrent:
                self._fit_recurrent(node, live)
            elif node.op == "matmul" and key(node) in self.structure.integer:
                self.report.accumulator[key(node)] = bound = _matmul_bound(node)
                if bound >= weights.ACCUMULATOR:
                    break  # the pass refuses the network
            self._compare(node, step(node, live, uses)[0])
            advance(float(work[index] / work[last]))
        return self.report

    def _prepare(self, node: Node, live: Live) -> None:
        """Called before a node is fitted and run."""

    def _fit(self, node: Node, live: Live) -> None:
        layer = self._layer(node, live)
        self._set(layer, self._quantised(layer, self.widths.weight(key(node)), layer.floor))

    def _fit_recurrent(self, node: Node, live: Live) -> None:
        """Codes of the weights that multiply states."""
        bits, moments = self.widths.weight(key(node)), None
        if self.options.rounding != "nearest":
            count = len(live[node.input(0)])
            with single_threaded_blas():
                moments = recurrent.state_moments(
                    node, [operands(node, live, run) for run in range(count)]
                )
        made = recurrent.quantised(node, bits, moments, self.options.rounding)
        for graph, twin in ((self.target, self._nodes[key(node)]), (self.twin, node)):
            recurrent.set_codes(graph, twin, bits, made)
        self.report.accumulator[key(node)] = recurrent.reach(made)
        self.report.layers += 1
        self.report.bits[key(node)] = bits
        self.report.exact += int(made.exact)

    def _layer(self, node: Node, live: Live) -> Layer:
        """What the codes of a layer depend on."""
        weight, bias = layer_constants(node)
        source = node.input(0).type.affine
        return Layer(
            node,
            self._wanted(node, weight, live),
            bias,
            source,
            weights.scale_floor(_fold(node, np.abs(bias)), source.scale, _residual_reach(node)),
            self._moments(node, live),
            self._residual_means(node, live),
        )

    def _wanted(self, node: Node, weight: Array, live: Live) -> Array:
        """The weights that are rounded: [O, K].

        Narrow ones are fitted to the float network's results on the codes that now come; those
        that were rounded before stay.
        """
        bits, none = self.widths.weight(key(node)), np.zeros(len(weight))
        if self._dense is None or bits >= weights.WIDE or weight_codes(node) is not None:
            return weight
        lattice = weights.channel_scales(weight, bits, none)[1]
        if lattice or why_not_fitted(node, self.samples.count):
            return weight
        wanted = self._dense.result(key(node))
        if wanted is None:
            return weight
        sums = gather(node, live, wanted, np.random.default_rng(self.options.seed))
        rows = weight.reshape(groups_of(node), -1, weight.shape[1]).astype(np.float64)
        fitted = refit.target(rows, is_pruned(node.input(1)), *sums)
        return np.asarray(fitted.reshape(weight.shape), np.float32)

    def _quantised(self, layer: Layer, bits: int, floor: Array) -> Codes:
        """Codes of a layer, with scales of at least ``floor``."""
        bits, result = self._weights(layer, bits, floor)
        bias = layer.bias
        if layer.moments is not None and self.options.bias_correction:
            bias = self._corrected(layer, result, layer.moments)
        unit = layer.source.scale * _spread(layer.node, result.scales, len(bias))
        limit = float(np.iinfo(np.int32).max)
        stored = np.clip(np.rint(bias / unit), -limit, limit).astype(np.int32)
        return Codes(bits, result, stored, unit, floor)

    def _weights(
        self, layer: Layer, bits: int, floor: Array
    ) -> tuple[int, weights.QuantisedWeights]:
        """Weights of a layer and their width: those that it has, or of ``bits`` bits."""
        codes = weight_codes(layer.node)
        stored = stored_weights(layer.node, floor)
        if codes is not None and stored is not None:
            return codes.bits, stored
        return bits, weights.quantise_weight(
            layer.weight,
            bits,
            floor,
            layer.moments,
            self.options.rounding,
            per_tensor=layer.per_tensor,
            fit_scales=self.fits_scales,
            keep_zeros=is_pruned(layer.node.input(1)),
        )

    def one_scale(self, layer: Layer) -> bool:
        """Whether all channels of a layer share a scale."""
        return layer.per_tensor

    def _set(self, layer: Layer, made: Codes) -> None:
        """Give the layer its constants, in both graphs."""
        node, scales = layer.node, made.weight.scales
        wanted = bool(made.bias.any()) or node.optional_input(2) is not None
        encoding = Affine.symmetric(
            made.bits,
            scales[:1] if self.one_scale(layer) else scales,
            None if self.one_scale(layer) else output_axis(node),
        )
        bias = made.bias if wanted else None
        for graph, twin in ((self.target, self._nodes[key(node)]), (self.twin, node)):
            set_layer(graph, twin, made.weight.codes, encoding, bias, made.unit)
        self._note(layer, made)

    def _reach(self, made: Codes, layer: Layer) -> Array:
        """Largest |accumulator| of each output."""
        terms = np.ceil(_residual_reach(layer.node) / made.unit).astype(np.int64)
        return weights.accumulator_reach(made.rows, layer.source, made.bias, terms)

    def _note(self, layer: Layer, made: Codes) -> None:
        node = layer.node
        self.report.accumulator[key(node)] = int(self._reach(made, layer).max(initial=0))
        self.report.layers += 1
        self.report.bits[key(node)] = made.bits
        self.report.exact += int(made.weight.exact)
        enlarged = int((np.float32(made.floor) >= np.float32(made.weight.scales)).sum())
        if enlarged:
            self.report.enlarged[key(node)] = enlarged

    def _compare(self, node: Node, result: Array) -> None:
        """Note how far a layer's result is from the float network's."""
        probe = self.observation.probes.get(key(node))
        if probe is None:
            return
        encoding = node.outputs[0].type.encoding
        real = encoding.dequantise(result) if isinstance(encoding, Affine) else result
        noise = float(np.square(real[: len(probe)] - probe, dtype=np.float64).sum())
        signal = float(np.square(probe, dtype=np.float64).sum())
        self.report.sqnr[key(node)] = 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))

    # -- data ----------------------------------------------------------------------------------

    def _moments(self, node: Node, live: Live) -> weights.Moments | None:
        """Moments of the layer's input patches."""
        if node.op == "conv_transpose2d":
            return None
        chunks, encoding = live[node.input(0)], node.input(0).type.affine
        depth = int(np.prod(node.input(1).type.shape[1:]))
        wanted = self.options.rounding != "nearest" and depth <= DEEPEST
        if node.op == "linear":
            return _linear_moments(chunks, encoding, depth, wanted)
        rng = np.random.default_rng(self.options.seed)
        return _conv_moments(node, chunks, encoding, wanted, rng)

    def _residual_means(self, node: Node, live: Live) -> Array | float:
        """Mean of each channel of what is added to a layer's result."""
        slot = residual_slot(node)
        residual = None if slot is None else node.optional_input(slot)
        if residual is None:
            return 0.0
        return _channel_means(live[residual], residual.type.affine, node)

    def _corrected(
        self, layer: Layer, result: weights.QuantisedWeights, moments: weights.Moments
    ) -> Array:
        target = self.observation.channels[key(layer.node)].mean
        groups = moments.mean.shape[0]
        rows = result.real.reshape(groups, -1, moments.mean.shape[1])
        products = (rows @ moments.mean[:, :, None]).reshape(-1)
        return np.asarray(target - products - layer.residual_mean)


def _matmul_bound(node: Node) -> int:
    """Largest |accumulator| of a product of two activations, the residual included."""
    a, b = node.input(0).type, node.input(1).type
    reach = [max(t.affine.code_range[1] - t.affine.zero_point, t.affine.zero_point) for t in (a, b)]
    residual = math.ceil(_residual_reach(node) / (a.affine.scale * b.affine.scale))
    return int(a.shape[-1] * reach[0] * reach[1] + residual)


def _spread(node: Node, per_column: Array, outputs: int) -> Array:
    """Weight scales per output channel (a grouped transposed convolution shares them)."""
    return np.tile(per_column, outputs // len(per_column))


def _fold(node: Node, per_output: Array) -> Array:
    """Largest of the output channels that share one weight scale."""
    columns = node.input(1).type.shape[output_axis(node)]
    return np.asarray(per_output.reshape(-1, columns).max(axis=0))


def _residual_reach(node: Node) -> float:
    """Largest |real number| that a residual operand can add."""
    slot = residual_slot(node)
    residual = None if slot is None else node.optional_input(slot)
    if residual is None or not isinstance(residual.type.encoding, Affine):
        return 0.0
    return max(abs(r) for r in residual.type.affine.real_range)


def _channel_means(chunks: list[Array], encoding: Affine, node: Node) -> Array:
    """Mean real value of each channel of a residual."""
    axis = (chunks[0].ndim - 1) if node.op == "linear" else 1
    others = tuple(a for a in range(chunks[0].ndim) if a != axis)
    total = sum(c.sum(axis=others, dtype=np.float64) for c in chunks)
    count = sum(c.size // c.shape[axis] for c in chunks)
    return np.asarray((total / count - encoding.zero_point) * encoding.scale)


def _centred(codes: Array, encoding: Affine) -> Array:
    return codes.astype(np.float32) - np.float32(encoding.zero_point)


def _linear_moments(
    chunks: list[Array], encoding: Affine, depth: int, wanted: bool
) -> weights.Moments:
    total, second, count = np.zeros(depth), np.zeros((depth, depth)) if wanted else None, 0
    for chunk in chunks:
        rows = _centred(chunk, encoding).reshape(-1, depth)
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
        if second is not None:
            second += rows.T @ rows
    mean = total / count
    covariance = None if second is None else second / count - np.outer(mean, mean)
    scale = encoding.scale
    return weights.Moments(
        (mean * scale)[None], None if covariance is None else (covariance * scale**2)[None]
    )


def _conv_moments(
    node: Node, chunks: list[Array], encoding: Affine, wanted: bool, rng: np.random.Generator
) -> weights.Moments:
    groups = int(op_of(node).get(node, "groups"))
    weight, window = node.input(1).type.shape, window_of(node)
    kh, kw = window.kernel
    taps = np.zeros((weight[1] * groups, kh, kw))
    depth = weight[1] * kh * kw
    second = np.zeros((groups, depth, depth)) if wanted else None
    numbers = groups * depth
    affordable = int(min(MOST_ROWS, COVARIANCE_WORK / (numbers * depth), PATCH_NUMBERS / numbers))
    patches_per_chunk = -(-max(affordable, ROWS_PER_INPUT * depth) // len(chunks))
    count = rows_seen = 0
    for chunk in chunks:
        padded = window.pad(_centred(chunk, encoding), 0)
        for i in range(kh):
            for j in range(kw):
                taps[:, i, j] += window.tap(padded, i, j).sum(axis=(0, 2, 3), dtype=np.float64)
        positions = window.output[0] * window.output[1]
        count += len(chunk) * positions
        if second is not None:
            rows = sampled(len(chunk) * positions, patches_per_chunk, rng)
            patches = conv_rows(padded, window, groups, rows)
            second += patches.transpose(0, 2, 1) @ patches
            rows_seen += patches.shape[1]
    mean = (taps / count).reshape(groups, depth)
    scale = encoding.scale
    if second is None:
        return weights.Moments(mean * scale, None)
    covariance = second / rows_seen - mean[:, :, None] * mean[:, None, :]
    return weights.Moments(mean * scale, covariance * scale**2)
