"""Predicted time of single layers, for passes that choose by it before the network is lowered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlcc.ir import BFLOAT16, DENSE, Affine, Dense, Encoding, Graph, Node, Sparse, TensorType, Value
from dlcc.ir.dtypes import F32
from dlcc.lowering.choice import predicted_seconds
from dlcc.lowering.target import Target
from dlcc.lowering.views import root
from dlcc.ops.base import op_of

_CODES = Affine.per_tensor(8, False, 1 / 255, 0)
"""Encoding of activations whose range is not known yet; no kernel's time depends on it."""


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of a layer as it will be once later passes have rounded it.

    Attributes:
        target: the machine.
        bits: 32 if layers keep their encodings, 16 if they are to be rounded to the 16-bit floats
            of the target, 8 if they are to be quantised.
    """

    target: Target
    bits: int = 32

    def __call__(self, node: Node) -> float:
        """Seconds of the cheapest row on one thread.

        Only the types of constants are looked at, except where their pattern is part of the code.

        Raises:
            DlccError: no row of the target's table serves the layer.
        """
        return predicted_seconds(rounded(node, self.bits, self.target.short_floats[0]), self.target)


def rounded(node: Node, bits: int, short: str = BFLOAT16.name) -> Node:
    """A layer with the types that it has after rounding to ``bits``, in a graph of its own.

    Args:
        node: any node; one without products, or on other than float32 numbers, stays as it is.
        bits: 32, 16 or 8.
        short: name of the encoding of 16 bits.
    """
    if bits == 32 or not op_of(node).multiplied or node.output.type.dtype != F32:
        return node
    graph = Graph("layer")
    short_float = Encoding.by_name(short)() if bits == 16 else None
    activation = short_float or _CODES
    operands: list[Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            operands.append(None)
        elif value.is_constant:
            operands.append(_constant(graph, node, index, value, short_float))
        else:
            type_ = _encoded(value.type, activation)
            operands.append(_activation_of_type(graph, type_, root(value).producer is not None))
    result = _encoded(node.output.type, activation)
    return graph.add_node(node.op, operands, [result], attrs=node.attrs, loc=node.loc)


def _activation_of_type(graph: Graph, type_: TensorType, computed: bool) -> Value:
    """An input of the graph, or a value that the network itself computes."""
    value = graph.add_input(graph.unique_name("x") + ".in", type_)
    return graph.add_node("relu", [value], [type_]).output if computed else value


def _constant(
    graph: Graph, node: Node, index: int, value: Value, short_float: Encoding | None
) -> Value:
    """A constant operand with the type that it will have, and the contents that it has now."""
    type_ = value.type
    if index in op_of(node).multiplied:
        axis = 1 if node.op == "conv_transpose2d" else 0
        codes = Affine.symmetric(8, np.ones(type_.shape[axis]), axis)
        type_ = _encoded(type_, short_float or codes)
    elif short_float is None:
        type_ = _encoded(type_, Affine.symmetric(32, np.ones(type_.elements), 0))
    twin = Value(graph.unique_name(value.name), type_)
    twin.constant = value.constant
    return twin


def _encoded(type_: TensorType, encoding: Encoding) -> TensorType:
    """A float type in ``encoding``; of a sparse one the kept elements are; others stay."""
    if isinstance(type_.encoding, Sparse) and isinstance(type_.encoding.inner, Dense):
        inner = encoding if isinstance(encoding, Affine) else DENSE
        return type_.with_(encoding=replace(type_.encoding, inner=inner))
    return type_.with_(encoding=encoding) if type_.is_dense else type_
