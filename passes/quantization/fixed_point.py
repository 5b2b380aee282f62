"""Fixed point: every scale is a power of two, so that requantisation is a shift.

One exponent for the whole network is plain fixed point; one for each tensor is dynamic fixed point
(Courbariaux et al. 2015, "Training deep neural networks with low precision multiplications",
section 5; Gysel et al. 2016, "Hardware-oriented approximation of convolutional neural networks",
section 3), where the channels of a weight may have exponents of their own.

Kernels multiply accumulators by float32 numbers, here 2^-k, and round half to even. That is the
shift of the integer, bit for bit, as long as the accumulator is a float32 number, which every
integer up to 2^24 is. Scales of weights are doubled until no input can make a larger accumulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlcc.analysis.statistics import TensorStatistic
from dlcc.ir import Affine, Node
from dlcc.ir.encodings import Array
from passes.compression.stepping import Live
from passes.quantization import weights
from passes.quantization.fit import Codes, Fitter, Layer, Prepared
from passes.quantization.grids import uniform
from passes.quantization.rounding import round_weights
from passes.quantization.structure import is_pruned, key, weight_codes

REACH = 1 << 24
"""Integers of this magnitude and below are float32 numbers."""

_FINER = 4
"""How many halvings of the scale that clamps nothing are tried."""

_FRACTIONS = range(-8, 21)
"""Exponents -f that one scale for a whole network is chosen from."""

_BIAS = 1 << 28
"""Largest bias code of a network with one scale, before biases are corrected."""

Sharing = Literal["channel", "tensor", "network"]
"""What has an exponent of its own: each output channel of a weight (and each activation), each
tensor, or only the network as a whole."""


@dataclass(frozen=True)
class FixedPoint:
    """How scales are chosen.

    Attributes:
        per: what has an exponent of its own.
        scale: that of all tensors, where the network has one.
    """

    per: Sharing
    scale: float | None = None

    # -- activations ---------------------------------------------------------------------------

    def activation(self, found: Sequence[TensorStatistic], bits: int, norm: float) -> Affine:
        """Codes of a group of values: unsigned from 0 where none is negative, else around 0.

        Args:
            found: of the values.
            bits: width of the codes.
            norm: power of the error that is minimised.
        """
        low = min((s.with_zero()[0] for s in found), default=0.0)
        high = max((s.with_zero()[1] for s in found), default=0.0)
        best = self.holding(low, high, bits)
        if self.scale is not None:
            return best
        errors = {}
        for finer in range(_FINER + 1):
            tried = _encoding(best.scale * 2.0**-finer, best.zero_point, bits)
            errors[tried] = sum(_error(tried, s, norm) for s in found)
        return min(errors, key=lambda e: errors[e])

    def holding(self, low: float, high: float, bits: int) -> Affine:
        """The codes with the smallest scale at which [low, high] loses nothing at its ends."""
        zero = 1 << (bits - 1) if low < 0 else 0
        first, last = -zero, (1 << bits) - 1 - zero
        if self.scale is not None:
            return _encoding(self.scale, zero, bits)
        needed = max(high / max(last, 1), low / first if first else 0.0)
        return _encoding(_power_above(needed), zero, bits)

    # -- weights -------------------------------------------------------------------------------

    def weight_scales(
        self, weight: Array, bits: int, floor: Array, importance: Array, *, one: bool
    ) -> Array:
        """Scale of every output channel: the power of two with the least error, if allowed.

        Args:
            weight: [O, K].
            bits: width of the codes.
            floor: [O], smallest scales allowed.
            importance: [O, K] or a shape that broadcasts: what a squared error costs.
            one: all channels share a scale, whatever ``per`` says.
        """
        least = np.array([_power_above(f) for f in floor])
        shared = one or self.per != "channel"
        if self.scale is not None:
            allowed = np.full_like(least, least.max()) if shared else least
            return np.asarray(np.maximum(allowed, self.scale))
        last = (1 << (bits - 1)) - 1
        peaks = np.abs(weight).max(axis=1, initial=0.0) / last
        largest = np.array([_power_above(p) for p in peaks])
        if shared:
            largest, least = np.full_like(largest, largest.max()), np.full_like(least, least.max())
        best, chosen = np.full(len(weight), np.inf), largest
        for finer in range(_FINER + 1):
            scales = np.maximum(largest * 2.0**-finer, least)
            codes = np.clip(np.rint(weight / scales[:, None]), -last, last)
            error = np.square(codes * scales[:, None] - weight, dtype=np.float64) * importance
            each = error.sum(axis=1)
            each = np.full_like(each, each.sum()) if shared else each
            chosen = np.where(each < best, scales, chosen)
            best = np.minimum(each, best)
        return np.asarray(chosen)


def _encoding(scale: float, zero: int, bits: int) -> Affine:
    return Affine.per_tensor(bits, False, scale, zero)


def _power_above(value: float) -> float:
    """The smallest power of two that is no less; a small one for 0."""
    return 2.0 ** math.ceil(math.log2(max(value, 2.0**-60)))


def _error(encoding: Affine, statistic: TensorStatistic, norm: float) -> float:
    """Mean |error|^norm of a tensor's codes, over its mean |value|^norm."""
    values, counts = statistic.distribution()
    if not counts.size:
        return 0.0
    change = np.abs(encoding.dequantise(encoding.quantise(values)) - values) ** norm
    return float((change * counts).sum() / max((np.abs(values) ** norm * counts).sum(), 1e-300))


def network_scale(
    groups: Sequence[tuple[Sequence[TensorStatistic], int]],
    layers: Sequence[tuple[Array, Array, int]],
    norm: float,
) -> float:
    """The power of two with the least error of all tensors of a network together.

    The error of a tensor counts relative to its size. Only scales at which every bias fits 32 bits
    are considered.

    Args:
        groups: statistics of the values of each group of activations, and their width.
        layers: weight [O, K], bias [O] and width of each layer.
        norm: power of the error.
    """
    errors = {}
    for fraction in _FRACTIONS:
        scale = 2.0**-fraction
        if any(np.abs(bias).max(initial=0.0) >= _BIAS * scale**2 for _, bias, _ in layers):
            continue
        rule, total = FixedPoint("network", scale), 0.0
        for statistics, bits in groups:
            encoding = rule.activation(statistics, bits, norm)
            total += sum(_error(encoding, s, norm) for s in statistics)
        for weight, _, bits in layers:
            made = Affine.symmetric(bits, np.array([scale]), None)
            change = np.abs(made.dequantise(made.quantise(weight)) - weight) ** norm
            size = max(float((np.abs(weight) ** norm).sum(dtype=np.float64)), 1e-300)
            total += float(change.sum(dtype=np.float64)) / size
        errors[scale] = total
    return min(errors, key=lambda s: errors[s], default=1.0)


@dataclass(frozen=True)
class Exponents:
    """The scales of a layer, as exponents of two.

    Attributes:
        weights: smallest and largest of its weights' scales.
        source: of its input.
        result: of its result; None where that is float.
    """

    weights: tuple[int, int]
    source: int
    result: int | None

    def __str__(self) -> str:
        low, high = self.weights
        text = f"weights 2^{low}" + (f"..2^{high}" if high != low else "")
        text += f", input 2^{self.source}"
        if self.result is None:
            return text
        shifts = sorted({self.result - self.source - w for w in (low, high)})
        return f"{text}, result 2^{self.result}: shifts by " + "..".join(map(str, shifts))


class FixedFitter(Fitter):
    """Fits layers at scales that are powers of two.

    Attributes:
        rule: how scales are chosen.
        exponents: by the key of a layer.
    """

    def __init__(self, prepared: Prepared, rule: FixedPoint) -> None:
        super().__init__(prepared)
        self.rule = rule
        self.exponents: dict[str, Exponents] = {}

    def one_scale(self, layer: Layer) -> bool:
        """Whether all channels of a layer share a scale."""
        return layer.per_tensor or self.rule.per != "channel"

    def _weights(
        self, layer: Layer, bits: int, floor: Array
    ) -> tuple[int, weights.QuantisedWeights]:
        """Weights that have codes keep their width, and are rounded to nearest."""
        stored = weight_codes(layer.node)
        bits = bits if stored is None else stored.bits
        how = self.options.rounding if stored is None else "nearest"
        metric = None
        if layer.moments is not None and how != "nearest":
            metric = layer.moments.metric
        weight, importance = layer.weight, np.ones((1, 1))
        groups = 1 if metric is None else len(metric.order)
        if metric is not None:
            each = np.einsum("gkk->gk", metric.damped)
            importance = np.repeat(each, len(weight) // groups, axis=0)
        scales = self.rule.weight_scales(weight, bits, floor, importance, one=self.one_scale(layer))
        shape = (groups, len(weight) // groups, -1)
        found = round_weights(
            weight.reshape(shape),
            uniform(scales.reshape(shape), bits, weight.shape[1]),
            metric,
            how,
            keep_zeros=is_pruned(layer.node.input(1)),
            refit=False,
        )
        codes = found.codes.reshape(weight.shape).astype(np.int8)
        exact = bool((codes * scales[:, None] == weight).all())
        return bits, weights.QuantisedWeights(codes, scales, exact)

    def _fit(self, node: Node, live: Live) -> None:
        """Codes whose accumulators are float32 numbers."""
        layer, bits = self._layer(node, live), self.widths.weight(key(node))
        made = self._quantised(layer, bits, layer.floor)
        while (reach := self._reach(made, layer)).max(initial=0) > REACH:
            if self.rule.scale is not None:
                break  # the one scale stays; a remark says what this means
            over = reach.reshape(-1, len(made.weight.scales)).max(axis=0) > REACH
            if self.one_scale(layer):
                over[:] = True
            scales = made.weight.scales
            made = self._quantised(layer, bits, np.where(over, 2 * scales, layer.floor))
        self._set(layer, made)
        self._note_exponents(node, made)

    def _note_exponents(self, node: Node, made: Codes) -> None:
        out = node.output.type.encoding
        exponents = np.log2(made.weight.scales)
        self.exponents[key(node)] = Exponents(
            (int(exponents.min()), int(exponents.max())),
            int(math.log2(node.input(0).type.affine.scale)),
            int(math.log2(out.scale)) if isinstance(out, Affine) else None,
        )


__all__ = ["REACH", "Exponents", "FixedFitter", "FixedPoint", "Sharing", "network_scale"]
