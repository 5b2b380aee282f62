"""Codes of weights that are chosen for what a layer computes on data, layer after layer.

The dense and the compressed network run side by side. What a layer's weights should be is fitted
to the dense network's results on the inputs that the compressed prefix gives; those weights are
rounded in the metric of these inputs (:mod:`passes.quantization.rounding`), and a bias brings each
output's mean to that of the dense network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dlcc.ir import Affine, Binary, Codebook, Encoding, Graph, Grouped, Node, Ternary
from dlcc.ir.compressed import from_matrix
from dlcc.ir.encodings import Array
from passes.base import PassContext, PassResult, option
from passes.compression import refit
from passes.compression.layers import WeightLayer
from passes.compression.refit import Sums
from passes.compression.rows import groups_of
from passes.compression.side_by_side import GetSums, SideBySide, name_of, why_not_fitted
from passes.compression.weight_only import Act, Form, WeightOnly, is_pruned_layer
from passes.quantization.grids import Grid, Shared, Three, Two, Uniform, uniform
from passes.quantization.rounding import (
    ROUNDING_HELP,
    Metric,
    Rounding,
    round_weights,
    searched_scales,
)
from passes.quantization.samples import read
from passes.quantization.structure import key


@dataclass(frozen=True, eq=False)
class LayerData:
    """What a layer is to compute.

    Attributes:
        target: float64 [groups, R, K]: the weights that do it best on the inputs that now come.
        metric: of these inputs.
        sums: over all rows of inputs and wanted results.
    """

    target: Array
    metric: Metric
    sums: Sums

    @staticmethod
    def of(layer: WeightLayer, sums: GetSums) -> LayerData:
        """From the sums of :mod:`passes.compression.side_by_side`.

        Raises:
            LinAlgError: the inputs' covariance is too singular.
        """
        weight = rows_of(layer.node, layer.values).astype(np.float64)
        fitted, held = sums()
        every = fitted + held
        weight = refit.target(weight, is_pruned_layer(layer), fitted, held)
        mean = every.x / every.count
        covariance = every.xx / every.count - mean[:, :, None] * mean[:, None, :]
        return LayerData(weight, Metric.of(covariance), every)

    def bias(self, weight: Array) -> Array:
        """[groups, R]: what makes the means of the results those of the dense network."""
        return refit.matching_bias(weight, self.sums)

    def error(self, weight: Array) -> float:
        """Error of the results with this weight and its bias, over their deviation."""
        return self.sums.relative_error(weight, self.bias(weight))


@dataclass(frozen=True)
class RoundedWeights(WeightOnly):
    """Base of the passes that give every weight a code of its own."""

    rounding: Literal["nearest", "gptq", "adaround"] | None = option(
        None, f"{ROUNDING_HELP}; by default adaround with calibration data and nearest without"
    )
    samples: int = option(256, "most calibration samples to use", unit="samples", minimum=1)

    def walk(
        self,
        graph: Graph,
        layers: Sequence[WeightLayer],
        context: PassContext,
        act: Act,
        result: PassResult,
    ) -> None:
        """With data: in execution order, on what the already encoded layers compute."""
        if self.rounding == "nearest" or (self.rounding is None and context.calibration is None):
            super().walk(graph, layers, context, act, result)
            return
        how: Rounding = self.rounding or "adaround"
        samples = read(graph, context.batches(self), self.samples)
        result.statistics.update(samples=samples.count, rounded_layers=0)
        both = SideBySide(samples, context.rng(self.name))
        known = {key(n): layer for layer in layers for n in layer.nodes}
        own = {key(n): n for n in graph.nodes}

        def visit(node: Node, sums: GetSums) -> None:
            layer, twin = known[name_of(node)], own[name_of(node)]
            if twin is layer.node:
                self._one(graph, layer, _reason(layer, samples.count), sums, how, act, result)
            both.follow(node, twin)

        both.run(known, visit, context.advance)

    def _one(
        self,
        graph: Graph,
        layer: WeightLayer,
        reason: str,
        sums: GetSums,
        how: Rounding,
        act: Act,
        result: PassResult,
    ) -> None:
        """Encode one layer and match its means, or round it to nearest and say why."""
        data = None
        if not reason:
            try:
                data = LayerData.of(layer, sums)
            except np.linalg.LinAlgError:
                reason = "the covariance of its inputs is singular"
        if data is None:
            message = f"rounded to nearest: {reason}"
            result.remarks.append(self.remark("note", layer.loc, message))
            act(layer, None)
            return
        near = act(layer, lambda form: _rounded(form, layer, data, how))
        if near is None:
            return
        weight = rows_of(layer.node, layer.weight.decoded()).astype(np.float64)
        plain = rows_of(layer.node, near.encoding.decode(near.parts, layer.values.shape))
        _set_bias(graph, layer, data.bias(weight))
        result.count("rounded_layers")
        before, after = data.error(plain.astype(np.float64)), data.error(weight)
        message = f"{how}: error of its result {after:.3g}, with nearest {before:.3g}"
        result.remarks.append(self.remark("note", layer.loc, message))


def rows_of(node: Node, weight: Array) -> Array:
    """A weight of conv2d or linear as [groups, R, K]."""
    groups = groups_of(node)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _reason(layer: WeightLayer, samples: int) -> str:
    if len(layer.nodes) > 1:
        return "its weight is shared"
    return why_not_fitted(layer.node, samples)


def _rounded(form: Form, layer: WeightLayer, data: LayerData, how: Rounding) -> Form:
    """The same encoding with codes and parameters chosen on data."""
    pruned = is_pruned_layer(layer)
    grid = _grid(form, layer.values.shape, data.target.shape, pruned)
    if isinstance(grid, Uniform):
        grid = searched_scales(data.target, grid, np.einsum("gkk->gk", data.metric.damped))
    found = round_weights(data.target, grid, data.metric, how, keep_zeros=pruned)
    encoding = _encoding(found.grid, form.encoding)
    values = found.numbers.astype(np.float32).reshape(layer.values.shape)
    if isinstance(encoding, Grouped):
        scales = found.grid.parameters.reshape(len(values), -1).astype(np.float32)
        return Form(encoding, encoding.with_scales(values, scales), form.words)
    return Form(encoding, encoding.encode(values), form.words)


def _grid(form: Form, of: tuple[int, ...], shape: tuple[int, ...], pruned: bool) -> Grid:
    """The grid of an encoding that was fitted to a weight of shape ``of``, as [groups, R, K]."""
    encoding = form.encoding

    def parameters(*numbers: tuple[float, ...]) -> Array:
        stacked = np.stack([np.asarray(n, np.float64) for n in numbers], axis=-1)
        return stacked.reshape(1, 1, -1) if len(stacked) == 1 else stacked.reshape(*shape[:2], -1)

    if isinstance(encoding, Affine):
        return uniform(parameters(encoding.scales), encoding.bits, shape[2])
    if isinstance(encoding, Grouped):
        scales = np.asarray(form.parts["scales"], np.float64).reshape(*shape[:2], -1)
        run = from_matrix(np.arange(shape[2])[None] // encoding.group, (1, *of[1:])).reshape(-1)
        return uniform(scales, encoding.bits, shape[2], run=run)
    if isinstance(encoding, Ternary):
        one = encoding.positive == encoding.negative
        both = [encoding.positive] if one else [encoding.positive, encoding.negative]
        return Three(parameters(*both))
    if isinstance(encoding, Binary):
        return Two(parameters(encoding.scales))
    assert isinstance(encoding, Codebook)
    entries = np.asarray(form.parts["codebook"], np.float64)
    zero = int(np.flatnonzero(entries == 0)[0]) if pruned else None
    return Shared(entries[None, None], zero)


def _encoding(grid: Grid, old: Encoding) -> Encoding:
    """The encoding ``old`` with the parameters of a grid."""
    flat = grid.parameters.reshape(-1, grid.parameters.shape[2])
    columns = [tuple(float(v) for v in column) for column in flat.T]
    if isinstance(old, Affine):
        return replace(old, scales=columns[0])
    if isinstance(old, Ternary):
        return replace(old, positive=columns[0], negative=columns[-1])
    return replace(old, scales=columns[0]) if isinstance(old, Binary) else old


def _set_bias(graph: Graph, layer: WeightLayer, bias: Array) -> None:
    node, old = layer.node, layer.node.optional_input(2)
    hint = f"{layer.weight.name}.bias" if old is None else old.name
    array = bias.reshape(-1).astype(layer.weight.type.dtype.numpy)
    node.set_input(2, graph.add_constant(array, name=hint))


__all__ = ["LayerData", "RoundedWeights", "rows_of"]
