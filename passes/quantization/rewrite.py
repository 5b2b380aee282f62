"""Rewrites a float graph into a quantised one, step by step, from decisions kept by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dlcc.ir import DENSE, F32, Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build
from passes.quantization.ranges import asymmetric
from passes.quantization.stored import like
from passes.quantization.structure import (
    LAYERS,
    Structure,
    activations,
    is_real,
    key,
    output_axis,
    weight_codes,
)

Encodings = Mapping[str, Affine]
"""Encoding of every group, by its representative."""


Holding = Callable[[float, float, int], Affine]
"""The encoding of a width that holds [low, high]."""


class Rewriter:
    """Gives a graph's values their encodings and puts the borders between codes and floats.

    Layers get their codes later, through :func:`set_layer`; until then the graph does not run.
    """

    def __init__(
        self,
        graph: Graph,
        structure: Structure,
        encodings: Encodings,
        holding: Holding = asymmetric,
    ) -> None:
        """Start.

        Args:
            graph: the graph.
            structure: which nodes work on codes.
            encodings: of the groups of values.
            holding: the encoding of constant operands.
        """
        self.graph = graph
        self.structure = structure
        self.encodings = encodings
        self.holding = holding
        self._codes: dict[Value, Value] = {}
        self._reals: dict[Value, Value] = {}

    def run(self) -> tuple[int, int]:
        """Rewrite everything but the layers' constants.

        Returns:
            Number of quantize and of dequantize nodes put in.
        """
        for node in list(self.graph.nodes):
            if key(node) in self.structure.integer:
                self._make_integer(node)
            else:
                self._make_float(node)
        outputs = [self._real(v, None) for v in self.graph.outputs]
        self.graph.set_outputs(outputs, self.graph.output_names)
        return len(self._codes), len(self._reals)

    def _encoding(self, value: Value) -> Affine:
        return self.encodings[self.structure.find(value.name)]

    def _make_integer(self, node: Node) -> None:
        coded = {v for v in activations(node) if v.type.dtype == F32}
        constant = next((v for v in coded if not v.is_constant), None)
        for index, value in enumerate(node.inputs):
            if value in coded and is_real(value):
                node.set_input(index, self._coded(value, node, constant))
        for value in node.outputs:
            if is_real(value) and key(node) not in self.structure.dense_result:
                value.type = value.type.with_(encoding=self._encoding(value))

    def _coded(self, value: Value, node: Node, sibling: Value | None) -> Value:
        """The codes of a real operand: a constant encoded, or a quantize node behind it."""
        if value.is_constant:
            encoding = self._constant_encoding(value, node, sibling)
            return self.graph.add_constant(value.decoded(), encoding=encoding, name=value.name)
        if value not in self._codes:
            type_ = value.type.with_(encoding=self._encoding(value))
            made = build(
                self.graph,
                "quantize",
                [value],
                loc=f"{value.name}.quantize",
                types=[type_],
                names=[f"{value.name}.codes"],
                before=self._place(value, node),
            )
            self._codes[value] = made.output
        return self._codes[value]

    def _place(self, value: Value, user: Node) -> Node:
        """The node before which a conversion of ``value`` for ``user`` belongs."""
        if value.producer is None:
            return self.graph.nodes[0] if self.graph.nodes else user
        return self.graph.nodes[self.graph.nodes.index(value.producer) + 1]

    def _constant_encoding(self, value: Value, node: Node, sibling: Value | None) -> Affine:
        names = [v.name for v in node.outputs if v.name in self.structure.group]
        if sibling is not None and names:
            root = self.structure.find(names[0])
            if sibling.name in self.structure.group and self.structure.find(sibling.name) == root:
                return self.encodings[root]
        array = value.decoded()
        bits = max(e.bits for e in self.encodings.values())
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        return self.holding(low, high, bits)

    def _make_float(self, node: Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in self.structure.group:
                node.set_input(index, self._real(value, node))

    def _real(self, value: Value, user: Node | None) -> Value:
        """A dense float view of a value."""
        ours = value.name in self.structure.group and isinstance(value.type.encoding, Affine)
        if not ours or value.type.dtype != F32 or value.is_constant:
            return value
        if value not in self._reals:
            made = build(
                self.graph,
                "dequantize",
                [value],
                loc=f"{value.name}.dequantize",
                types=[value.type.with_(encoding=DENSE)],
                names=[f"{value.name}.real"],
                before=user if user is not None else None,
            )
            self._reals[value] = made.output
        return self._reals[value]


def layer_constants(node: Node) -> tuple[Array, Array]:
    """Float weight as [O, K] (K in the order of the weight's own axes) and bias [O] of a layer."""
    weight = node.input(1).decoded()
    axis = output_axis(node)
    rows = np.moveaxis(weight, axis, 0)
    if node.op == "conv_transpose2d":
        rows = rows.reshape(rows.shape[0], -1)
        outputs = weight.shape[1] * int(node.attrs.get("groups", 1))  # type: ignore[arg-type]
    else:
        rows = rows.reshape(rows.shape[0], -1)
        outputs = weight.shape[0]
    bias = node.optional_input(2)
    real = np.zeros(outputs) if bias is None else bias.decoded().astype(np.float64)
    return np.asarray(rows, np.float32), real


def set_layer(
    graph: Graph, node: Node, codes: Array, weight: Affine, bias: Array | None, bias_scales: Array
) -> None:
    """Give an integer layer its codes.

    A sparse weight stays sparse, of the same pattern; one that holds these codes stays as it is.

    Args:
        graph: the graph of ``node``.
        node: a conv2d, conv_transpose2d or linear node.
        codes: weight codes [O, K].
        weight: their encoding.
        bias: int32 codes [O], or None for no bias.
        bias_scales: [O], real value of one accumulator unit.
    """
    assert node.op in LAYERS
    old = node.input(1)
    axis = output_axis(node)
    moved = (old.type.shape[axis], *(s for a, s in enumerate(old.type.shape) if a != axis))
    stored = np.moveaxis(codes.reshape(moved), 0, axis)
    own = weight_codes(node)
    if own is None or (own.scales, own.bits) != (weight.scales, weight.bits):
        type_ = old.type.with_(encoding=like(old.type.encoding, weight))
        dtype = weight.storage(F32).numpy
        parts = {"values": np.ascontiguousarray(stored).astype(dtype)}
        if not isinstance(type_.encoding, Affine):
            parts = type_.encoding.encode(weight.dequantise(parts["values"]))
        node.set_input(1, graph.add_stored(parts, type_, name=old.name))
    if bias is None:
        return
    scales = tuple(float(s) for s in bias_scales)
    encoding = Affine(32, True, scales, (0,) * len(scales), 0)
    bias_type = TensorType((len(scales),), F32, encoding)
    old_bias = node.optional_input(2)
    hint = old_bias.name if old_bias is not None else f"{old.name}.bias"
    node.set_input(2, graph.add_stored({"values": bias.astype(np.int32)}, bias_type, name=hint))
