"""Signedness normalisation: every quantised activation becomes unsigned.

``s8`` with zero point z and ``u8`` with zero point z + 128 hold the same real numbers; the dot
product units of x86 take unsigned activations only. Kernels therefore see one form. What the caller
passes in or gets back keeps its type, through an exact ``requantize``.
"""

from __future__ import annotations

from dlcc.ir import Affine, Graph, Value
from dlcc.ops.base import build


def unsigned_twin(encoding: Affine) -> Affine:
    """The unsigned encoding of the same real numbers."""
    shift = 1 << (encoding.bits - 1)
    return Affine(
        encoding.bits,
        False,
        encoding.scales,
        tuple(z + shift for z in encoding.zero_points),
        encoding.axis,
        encoding.narrow,
    )


def _is_signed_activation(value: Value) -> bool:
    encoding = value.type.encoding
    return isinstance(encoding, Affine) and encoding.signed and encoding.bits <= 8


def make_activations_unsigned(graph: Graph) -> None:
    """Rewrite the encodings of all activations to unsigned ones, in place."""
    for value in [v for v in graph.inputs if _is_signed_activation(v)]:
        twin = value.type.with_(encoding=unsigned_twin(value.type.affine))
        uses = list(value.uses)
        first = graph.nodes[0]
        inner = build(
            graph, "requantize", [value], loc=value.name, types=[twin], before=first
        ).output
        for node, index in uses:
            node.set_input(index, inner)
    _restore_outputs(graph)
    outputs = set(graph.outputs)
    for node in graph.nodes:
        for value in node.outputs:
            if _is_signed_activation(value) and value not in outputs:
                value.type = value.type.with_(encoding=unsigned_twin(value.type.affine))


def _restore_outputs(graph: Graph) -> None:
    swapped = []
    for value in graph.outputs:
        if _is_signed_activation(value) and value.producer is not None:
            value = build(
                graph,
                "requantize",
                [value],
                loc=value.name,
                types=[value.type],
                after=value.producer,
            ).output
        swapped.append(value)
    graph.set_outputs(swapped, graph.output_names)
