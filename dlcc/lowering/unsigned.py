"""Signedness normalisation: every quantised activation becomes unsigned.

``s8`` with zero point z and ``u8`` with zero point z + 128 hold the same real numbers; the dot
product units of x86 take unsigned activations only. Kernels therefore see one form. What the caller
passes in or gets back, and what ``reinterpret`` reads or makes, keeps its type; an exact
``requantize`` stands between.
"""

from __future__ import annotations

from dlcc.ir import Affine, Graph, Node, TensorType, Value
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
    return (
        isinstance(encoding, Affine)
        and encoding.signed
        and encoding.bits <= 8
        and encoding.axis is None  # rows of codes are the caller's: no kernel multiplies them
    )


def make_activations_unsigned(graph: Graph) -> None:
    """Rewrite the encodings of all activations to unsigned ones, in place."""
    first = graph.nodes[0] if graph.nodes else None
    for value in [v for v in graph.inputs if _is_signed_activation(v)]:
        _convert_uses(graph, value, before=first)
    for node in list(graph.nodes):
        if node.op != "reinterpret":
            continue
        source = node.input(0)
        if _is_signed_activation(source) and not source.is_constant:
            kept = _requantized(graph, source, source.type, before=node)
            node.set_input(0, kept)
        if _is_signed_activation(node.output):
            _convert_uses(graph, node.output, after=node)
    _restore_outputs(graph)
    _retype(graph)


def _requantized(
    graph: Graph,
    value: Value,
    type_: TensorType,
    before: Node | None = None,
    after: Node | None = None,
) -> Value:
    loc = value.producer.loc if value.producer is not None else value.name
    return build(
        graph, "requantize", [value], loc=loc, types=[type_], before=before, after=after
    ).output


def _convert_uses(
    graph: Graph, value: Value, before: Node | None = None, after: Node | None = None
) -> None:
    """Let the users of a value that keeps its signed type read its unsigned twin."""
    uses = [(node, index) for node, index in value.uses if node.op != "reinterpret"]
    if not uses:
        return
    twin = value.type.with_(encoding=unsigned_twin(value.type.affine))
    inner = _requantized(graph, value, twin, before, after)
    for node, index in uses:
        node.set_input(index, inner)


def _restore_outputs(graph: Graph) -> None:
    swapped = []
    for value in graph.outputs:
        if _is_signed_activation(value) and value.producer is not None:
            value = _requantized(graph, value, value.type, after=value.producer)
        swapped.append(value)
    graph.set_outputs(swapped, graph.output_names)


def _retype(graph: Graph) -> None:
    """The unsigned encoding for everything inside."""
    fixed = set(graph.outputs)
    for node in graph.nodes:
        if node.op == "reinterpret":
            fixed.update(v for v in (*node.inputs, *node.outputs) if v is not None)
    for node in graph.nodes:
        for value in node.outputs:
            if _is_signed_activation(value) and value not in fixed:
                value.type = value.type.with_(encoding=unsigned_twin(value.type.affine))
