"""What a search for widths may turn: weights of layers and what they read, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ir.encodings import Array
from passes.compression.sensitivity import Rerun
from passes.names import names
from passes.quantization import weights
from passes.quantization.ranges import asymmetric
from passes.quantization.rewrite import layer_constants
from passes.quantization.samples import Samples
from passes.quantization.structure import LAYERS, Structure, key, output_axis, weight_codes
from passes.quantization.walk import Knob

Seconds = Callable[[Node], float]


@dataclass
class Part:
    """A knob's layers.

    Attributes:
        kind: "weights", or "inputs" for what the layers read.
        nodes: the layers, in execution order.
    """

    kind: str
    nodes: list[Node] = field(default_factory=list)

    @property
    def locs(self) -> list[str]:
        """Names of the layers."""
        return list(dict.fromkeys(n.loc for n in self.nodes))

    @property
    def name(self) -> str:
        """For remarks."""
        return ", ".join(self.locs)


def parts(
    graph: Graph,
    plan: Structure,
    kinds: Collection[str],
    fixed: Mapping[str, Sequence[str]],
) -> list[Part]:
    """The knobs of a network.

    Args:
        graph: the float network.
        plan: which layers work on codes.
        kinds: "weights", "inputs" or both.
        fixed: by kind, patterns of layers whose widths are given.
    """
    found: dict[tuple[str, str], Part] = {}
    for node in graph.nodes:
        if node.op not in LAYERS or key(node) not in plan.integer:
            continue
        groups = {"weights": node.loc, "inputs": plan.find(node.input(0).name)}
        for kind in kinds:
            if any(names(pattern, node.loc) for pattern in fixed.get(kind, ())):
                continue
            if kind == "inputs" or weight_codes(node) is None:
                found.setdefault((kind, groups[kind]), Part(kind)).nodes.append(node)
    return list(found.values())


def knobs(
    found: Sequence[Part],
    widths: Sequence[int],
    samples: Samples,
    seconds: Seconds | None,
    advance: Callable[[float], None],
) -> list[Knob]:
    """Measure what each width of each part alone does to the outputs of the float network.

    Args:
        found: the parts.
        widths: to look at.
        samples: to run.
        seconds: predicted time of a layer, if that is the cost; else it is bytes.
        advance: told the part done, 0 to 1.
    """
    errors = np.zeros((len(found), len(widths)))
    run, signal = Rerun(samples, None), 0.0
    chunks = list(samples.chunks())
    rounded = {
        key(n): [_rounded(n, bits) for bits in widths]
        for part in found
        for n in part.nodes
        if part.kind == "weights"
    }
    for number, feed in enumerate(chunks):
        run.start(feed, number * samples.chunk)
        signal += run.signal
        for i, part in enumerate(found):
            for j, bits in enumerate(widths):
                if part.kind == "weights":
                    errors[i, j] += sum(run.changed([n], rounded[key(n)][j])[0] for n in part.nodes)
                else:
                    errors[i, j] += _moved(run, part, bits)
            advance((number + (i + 1) / len(found)) / len(chunks))
    errors /= signal or 1.0
    return [
        Knob(
            part.name,
            {bits: float(errors[i, j]) for j, bits in enumerate(widths)},
            {bits: _cost(part, bits, seconds) for bits in widths},
        )
        for i, part in enumerate(found)
    ]


def _rounded(node: Node, bits: int) -> Array:
    """A layer's weight, rounded to nearest with a scale per channel, in its shape."""
    made = _nearest(node, bits)
    shape, axis = node.input(1).type.shape, output_axis(node)
    moved = (shape[axis], *(s for a, s in enumerate(shape) if a != axis))
    return np.moveaxis(made.real.reshape(moved), 0, axis)


def _nearest(node: Node, bits: int) -> weights.QuantisedWeights:
    rows, _ = layer_constants(node)
    return weights.quantise_weight(rows, bits, np.zeros(len(rows)), None)


def _moved(run: Rerun, part: Part, bits: int) -> float:
    """Squared change of the outputs where the layers of a part read narrow codes."""

    def change(array: Array) -> Array:
        codes = asymmetric(float(min(array.min(), 0.0)), float(max(array.max(), 0.0)), bits)
        return codes.dequantise(codes.quantise(array))

    readers: dict[Value, list[Node]] = {}
    for node in part.nodes:
        readers.setdefault(node.input(0), []).append(node)
    return sum(run.moved(nodes, change) for nodes in readers.values())


def _cost(part: Part, bits: int, seconds: Seconds | None) -> float:
    """Bytes of weights, or of activations of one batch; or predicted seconds of the layers."""
    if part.kind == "inputs":
        values = {n.input(0) for n in part.nodes}
        return sum(v.type.elements for v in values) * bits / 8
    if seconds is None:
        return sum(n.input(1).type.elements for n in part.nodes) * bits / 8
    return sum(seconds(coded(n, bits)) for n in part.nodes)


def coded(node: Node, bits: int) -> Node:
    """A layer in a graph of its own, whose weight has codes of some width."""
    graph = Graph("layer")
    made = _nearest(node, bits)
    axis = output_axis(node)
    encoding = Affine.symmetric(bits, made.scales, axis)
    operands: list[Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            operands.append(None)
        elif index == 1:
            real = _rounded(node, bits).astype(np.float32)
            operands.append(graph.add_constant(real, encoding=encoding, name="w"))
        elif value.is_constant:
            operands.append(graph.add_constant(value.decoded(), name="b"))
        else:
            given = graph.add_input(f"x{index}", value.type)
            computed = value.producer is not None
            operands.append(
                graph.add_node("relu", [given], [value.type]).output if computed else given
            )
    types = [v.type for v in node.outputs]
    return graph.add_node(node.op, operands, types, attrs=node.attrs, loc=node.loc)


__all__ = ["Part", "Seconds", "coded", "knobs", "parts"]
