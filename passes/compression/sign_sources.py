"""Activations that are signs already, in the ways that networks write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcc.ir import AttrValue, Binary, Graph, Node, Value
from dlcc.ops.base import build, op_of


@dataclass(frozen=True)
class SignSource:
    """Where signs come from.

    Attributes:
        value: the real numbers whose signs are taken, or a binary activation.
        scale: what a positive sign stands for.
        pads: a border around the numbers, as of ``pad``; () for none.
        border: 1 or -1, the border's sign.
        note: what is not quite the same, or "".
    """

    value: Value
    scale: float = 1.0
    pads: tuple[int, ...] = ()
    border: float = 1.0
    note: str = ""


def _number(value: Value | None) -> float | None:
    """The number that a constant holds everywhere, or None."""
    if value is None or not value.is_constant or not value.type.elements:
        return None
    array = value.decoded()
    first = float(array.reshape(-1)[0])
    return first if array.dtype.kind in "fiu" and np.all(array == array.reshape(-1)[0]) else None


def sign_source(value: Value) -> SignSource | None:
    """What ``value`` is the sign of, or None where it holds other numbers.

    Known are sign(x); sign(sign(x) + c) with 0 < c < 1, which Larq writes so that 0 counts as
    positive; where(x >= 0, s, -s) and its kin; products with a positive constant; ``dequantize`` of
    a binary activation; and borders of s or -s around any of these.
    """
    node = value.producer
    if node is None or str(value.type.dtype) != "f32":
        return None
    if node.op == "dequantize":
        codes = node.input(0)
        return SignSource(codes) if codes.type.is_binary else None
    if node.op == "pad":
        return _bordered(node)
    if node.op == "mul":
        return _scaled(node)
    return _where(node) if node.op == "where" else _sign(node)


def _bordered(node: Node) -> SignSource | None:
    op, inner = op_of(node), sign_source(node.input(0))
    if inner is None or inner.pads or inner.value.type.is_binary:
        return None
    border = float(op.get(node, "value"))
    if op.get(node, "mode") != "constant" or abs(border) != np.float32(inner.scale):
        return None
    pads = tuple(int(p) for p in op.get(node, "pads"))
    return SignSource(inner.value, inner.scale, pads, float(np.sign(border)), inner.note)


def _scaled(node: Node) -> SignSource | None:
    for signs, factor in ((0, 1), (1, 0)):
        scale = _number(node.input(factor))
        inner = sign_source(node.input(signs)) if scale is not None and scale > 0 else None
        if inner is not None and scale is not None and not inner.value.type.is_binary:
            return SignSource(
                inner.value, inner.scale * scale, inner.pads, inner.border, inner.note
            )
    return None


def _sign(node: Node) -> SignSource | None:
    if node.op != "sign":
        return None
    x = node.input(0)
    add = x.producer
    if add is not None and add.op == "add":
        for part, other in ((0, 1), (1, 0)):
            shift, first = _number(add.input(other)), add.input(part).producer
            if shift is not None and 0 < shift < 1 and first is not None and first.op == "sign":
                return SignSource(first.input(0))
    return SignSource(x, note="sign(0), which is 0, becomes 1")


def _where(node: Node) -> SignSource | None:
    compare = node.input(0).producer
    scale, other = _number(node.input(1)), _number(node.input(2))
    if compare is None or scale is None or other != -scale or not scale:
        return None
    if len(compare.inputs) != 2 or _number(compare.input(1)) != 0:
        return None
    positive = {"greater_equal": 1, "greater": 1, "less": -1, "less_equal": -1}
    if positive.get(compare.op, 0) * scale <= 0 or str(compare.input(0).type.dtype) != "f32":
        return None
    inexact = compare.op in ("greater", "less_equal")
    note = "0, which counts as negative, becomes positive" if inexact else ""
    return SignSource(compare.input(0), abs(scale), note=note)


def erase_unused(graph: Graph, value: Value) -> None:
    """Erase the producers of a value that nobody reads any more."""
    node = value.producer
    if node is None or any(graph.use_count(v) for v in node.outputs):
        return
    operands = [v for v in node.inputs if v is not None]
    graph.erase(node)
    for operand in dict.fromkeys(operands):
        if not operand.is_constant:
            erase_unused(graph, operand)


def packed(graph: Graph, source: SignSource, loc: str) -> Value:
    """The binary activation of a source of real numbers, made where these are."""
    value, encoding = source.value, Binary((source.scale,))
    if source.pads:
        attrs: dict[str, AttrValue] = {"pads": source.pads, "value": source.border}
        value = _behind(graph, "pad", value, attrs, f"{loc}.border", None)
    return _behind(graph, "quantize", value, {}, f"{loc}.signs", encoding)


def _behind(
    graph: Graph,
    op: str,
    value: Value,
    attrs: dict[str, AttrValue],
    loc: str,
    encoding: Binary | None,
) -> Value:
    """The result of an op right behind the producer of its operand."""
    types = None if encoding is None else [value.type.with_(encoding=encoding)]
    after = value.producer
    before = graph.nodes[0] if after is None else None
    made = build(graph, op, [value], attrs, loc=loc, types=types, before=before, after=after)
    return made.output


__all__ = ["SignSource", "erase_unused", "packed", "sign_source"]
