"""Inputs for a network without data: structured noise, fitted to the batch-norm statistics.

A batch normalisation knows the mean and the deviation that its input had on the training data
(Nagel et al. 2019, section 4.2.1; Haroush et al. 2020). ``fold-batch-norm`` notes both for every
layer before it folds them away; here the noise is shifted and scaled until the network's first
layer shows the same. A network that keeps no statistics is taken to have normalised inputs, of
mean 0 and deviation 1. Integers are drawn from the range that the graph leaves them
(:mod:`passes.quantization.indices`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlcc.analysis.rebatch import batch_size
from dlcc.ir import BOOL, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, build, op_of
from passes.quantization.indices import integer_range
from passes.quantization.structure import LAYERS

COUNT = 32
"""Synthetic samples."""

Norms = Mapping[str, tuple[Array, Array]]
"""``loc`` of a layer -> mean and deviation of each output channel before its activation."""


def normalised_layers(graph: Graph) -> dict[str, tuple[Array, Array]]:
    """What the batch normalisations of an unfolded graph say about the layers before them.

    The result of a layer and of the batch norm behind it (the layer's result after folding) has
    mean ``shift`` and deviation ``|scale|`` on the training data.
    """
    out: dict[str, tuple[Array, Array]] = {}
    for node in graph.nodes:
        layer = node.input(0).producer if node.op == "batch_norm" else None
        if layer is None or layer.op not in LAYERS or len(layer.output.uses) != 1:
            continue
        scale, shift = node.input(1), node.input(2)
        if scale.is_constant and shift.is_constant:
            mean = shift.decoded().astype(np.float64)
            out[layer.loc] = (mean, np.abs(scale.decoded().astype(np.float64)))
    return out


def synthetic_inputs(
    graph: Graph, norms: Norms, rng: np.random.Generator, batches: int = COUNT
) -> dict[str, Array]:
    """Stacked inputs by name, ``batches`` of the network's own batches, in the inputs' dtypes.

    They are joined along the batch axis, or along an axis of their own where the inputs share none.
    """
    arrays = {v.name: _input(v, norms, rng, batches) for v in graph.inputs}
    if batch_size(graph) is None:
        return {v.name: arrays[v.name].reshape(batches, *v.type.shape) for v in graph.inputs}
    return arrays


def fitted_inputs(graph: Graph, norms: Norms) -> list[str]:
    """Names of the inputs whose noise is fitted to a batch norm."""
    return [v.name for v in graph.inputs if _first_layer(v, norms) is not None]


def is_integer(value: Value) -> bool:
    """Whether an input holds integers that are no codes of real numbers."""
    return not value.type.dtype.is_float and value.type.dtype != BOOL


def _input(value: Value, norms: Norms, rng: np.random.Generator, batches: int) -> Array:
    type_ = value.type
    if not type_.rank and type_.dtype.is_float:
        return np.zeros((batches,), type_.storage.numpy)
    shape = (type_.shape[0] * batches, *type_.shape[1:]) if type_.rank else (batches,)
    if type_.dtype == BOOL:
        return _mask(shape, rng)
    if is_integer(value):
        return integer_range(value).draw(shape, rng).astype(type_.storage.numpy)
    x = noise(shape, rng)
    layer = _first_layer(value, norms)
    if layer is not None:
        x = _fitted(x, layer, *norms[layer.loc])
    return x.astype(type_.storage.numpy)


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Bits by chance, but both of them in every row: a row that is masked whole has no softmax."""
    bits = rng.random(shape) < 0.5
    bits[..., :1], bits[..., 1:][..., -1:] = True, False
    return bits


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Noise of mean 0 and deviation 1; images get the 1/f spectrum of natural ones.

    Axes are [N, C, H, W] for images; other shapes get white noise. White images would excite the
    high-pass filters of a network far more, and all others far less, than photographs do.
    """
    white = rng.standard_normal(shape)
    if len(shape) != 4 or min(shape[2:]) < 4:
        return white
    grey = rng.standard_normal((shape[0], 1, *shape[2:]))
    mixed = 0.9 * grey + 0.45 * white  # the channels of photographs are strongly correlated
    rows = np.fft.fftfreq(shape[2])[:, None]
    columns = np.fft.rfftfreq(shape[3])[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 0.5 / max(shape[2:])
    pink = np.fft.irfft2(np.fft.rfft2(mixed) / frequency, s=shape[2:])
    return np.asarray(pink / pink.std())


def _first_layer(value: Value, norms: Norms) -> Node | None:
    """The layer with statistics that reads an input, directly or through moves of its elements."""
    seen = [value]
    while seen:
        current = seen.pop()
        for node in current.users:
            if node.op in LAYERS and node.loc in norms and node.input(0) is current:
                return node if current is value else None
            if op_of(node).quantised is Quantised.SAME:
                seen += node.outputs
    return None


def _fitted(x: Array, layer: Node, mean: Array, deviation: Array) -> Array:
    """``x`` shifted per channel and scaled so that the layer's results have the given moments."""
    weight = layer.input(1).decoded().astype(np.float64)
    if layer.op == "conv_transpose2d":
        return x
    channel = 1 if layer.op == "conv2d" else x.ndim - 1
    bias = layer.optional_input(2)
    offset = 0.0 if bias is None else bias.decoded().astype(np.float64)
    taps = weight.reshape(weight.shape[0], weight.shape[1], -1).sum(axis=2)
    safe = np.maximum(deviation, 1e-3 * max(float(deviation.max(initial=0.0)), 1e-12))
    gain = float(np.median(safe / np.maximum(_response(x, layer), 1e-12)))
    shift = np.zeros(x.shape[channel])
    if taps.shape[1] == len(shift):
        rows = taps / safe[:, None]
        ridge = (1e-2 * np.trace(rows.T @ rows) / len(shift)) * np.eye(len(shift))
        shift = np.linalg.solve(rows.T @ rows + ridge, rows.T @ ((mean - offset) / safe))
    shape = [1] * x.ndim
    shape[channel] = -1
    return np.asarray(x * gain + shift.reshape(shape))


def _response(x: Array, layer: Node) -> Array:
    """Deviation of each output channel of a layer, without bias, for the noise ``x``."""
    probe = Graph("probe")
    source = probe.add_input("x", TensorType(tuple(x.shape)))
    weight = probe.add_constant(layer.input(1).decoded())
    attrs = {k: v for k, v in layer.attrs.items() if not k.startswith("act_")}
    node = build(probe, layer.op, [source, weight], attrs)
    (y,) = op_of(node).evaluate(node, [x.astype(np.float32), weight.decoded()])
    axes = (0, 2, 3) if layer.op == "conv2d" else tuple(range(y.ndim - 1))
    return np.asarray(y.std(axis=axes, dtype=np.float64))
