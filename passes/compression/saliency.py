"""How much a weight matters: saliencies that can be added up over the weights of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.analysis.gradients import squared_weight_gradients
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.integer import real_of
from passes.compression.layers import WeightLayer
from passes.compression.rows import input_energy
from passes.quantization.samples import Samples
from passes.quantization.structure import key


def magnitudes(layers: Sequence[WeightLayer]) -> list[Array]:
    """Squares of the weights."""
    return [np.square(layer.values, dtype=np.float64) for layer in layers]


def output_errors(
    layers: Sequence[WeightLayer], samples: Samples, advance: Callable[[float], None]
) -> list[Array]:
    """Share of a layer's result that is lost with each weight, correlations neglected.

    For a squared error of the layer's own outputs the Hessian's diagonal is twice the second moment
    of the input of each weight, and the loss of a weight is w^2 h / 2 (LeCun, Denker and Solla
    1990, Optimal Brain Damage, eq. 4, layer by layer as in Dong et al. 2017). Divided by the energy
    of the layer's result the numbers can be compared across layers. Their root is |w| times the
    norm of its input (Sun et al. 2024, Wanda, eq. 1), which compares within each output.

    Args:
        layers: the layers.
        samples: the samples, with the network for their chunks.
        advance: told the part done, 0 to 1.

    Raises:
        DlccError: an activation is not finite.
    """
    nodes = {key(n): n for n in samples.network.nodes}
    readers: dict[Value, list[tuple[int, Node]]] = {}
    results: dict[Value, int] = {}
    for index, layer in enumerate(layers):
        for node in layer.nodes:
            twin = nodes[key(node)]
            readers.setdefault(twin.input(0), []).append((index, twin))
            results[twin.output] = index
    energies = [np.zeros(layer.values.shape) for layer in layers]
    totals = np.zeros(len(layers))

    def see(value: Value, array: Array) -> None:
        if value not in readers and value not in results:
            return
        real = real_of(value, array)
        if not np.isfinite(real).all():
            raise DlccError(
                ExitCode.DATA,
                "an activation is not finite",
                where=f"%{value.name}",
                why="the network gives NaN or infinite numbers for the calibration data",
                fix="check that the data is preprocessed as the network expects",
            )
        if value in results:
            totals[results[value]] += float(np.square(real, dtype=np.float64).sum())
        for index, node in readers.get(value, ()):
            energies[index] += input_energy(node, real)

    for number, feed in enumerate(samples.chunks()):
        execute(samples.network, feed, see)
        advance(min(1.0, (number + 1) * samples.chunk / samples.count))
    return [
        np.square(layer.values, dtype=np.float64) * energy / (total or 1.0)
        for layer, energy, total in zip(layers, energies, totals, strict=True)
    ]


def output_changes(
    layers: Sequence[WeightLayer],
    samples: Samples,
    rng: np.random.Generator,
    advance: Callable[[float], None],
) -> list[Array]:
    """Share of the network's outputs that is lost with each weight, to first order.

    Without a weight w the outputs y move by w dy/dw, to first order. The gradients of random
    projections of the outputs (signs, fresh for every sample) have |dy/dw|^2 as the mean of their
    squares, so that one run backwards tells all weights' w^2 |dy/dw|^2. A loss would have to say
    what the network should do: of the loss against its own outputs the gradient is zero, and these
    squares are the diagonal of its Gauss-Newton matrix (Molchanov et al. 2019, "Importance
    estimation for neural network pruning", take the same squares of the training loss).

    Args:
        layers: the layers.
        samples: the samples, with the network for their chunks.
        rng: makes the signs.
        advance: told the part done, 0 to 1.

    Raises:
        DlccError: an op behind a layer has no gradient.
    """
    network = samples.network
    twins = {key(n): n for n in network.nodes}
    squares = [np.zeros(layer.values.shape) for layer in layers]
    energy = 0.0
    for number, feed in enumerate(samples.chunks()):
        live: dict[Value, Array] = {}
        execute(network, feed, live.__setitem__)
        ends = [v for v in network.outputs if not v.is_constant and v.type.dtype.is_float]
        energy += sum(float(np.square(live[v], dtype=np.float64).sum()) for v in ends)
        seeds = {v: _signs(live[v], rng) for v in ends}
        nodes = [twins[key(n)] for layer in layers for n in layer.nodes]
        found = squared_weight_gradients(network, live, seeds, nodes)
        for square, layer in zip(squares, layers, strict=True):
            square += sum(found[twins[key(n)]] for n in layer.nodes)
        advance(min(1.0, (number + 1) * samples.chunk / samples.count))
    return [
        np.square(layer.values, dtype=np.float64) * square / (energy or 1.0)
        for layer, square in zip(layers, squares, strict=True)
    ]


def _signs(like: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(like.shape) < 0.5, -1, 1).astype(like.dtype)


__all__ = ["magnitudes", "output_changes", "output_errors"]
