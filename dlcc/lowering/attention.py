"""Attention by one kernel: products and softmax become one op where a target has a row for it.

After the passes attention is ``matmul -> [mul] -> [add] -> softmax -> matmul``. Where nobody else
reads what is between, and one kernel is predicted to take less time than those of the parts, the
scores need not go to memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from dlcc.ir import F32, Graph, Node, Value
from dlcc.lowering.choice import predicted_seconds
from dlcc.lowering.target import Target
from dlcc.ops.base import build, op_of

OP = "attention"


@dataclass
class _Parts:
    """What is fused: nodes from the last one back to the first, and their operands."""

    nodes: list[Node]
    mask: Value | None = None
    scale: float = 1.0
    made: list[Node] = field(default_factory=list)


def fuse_attention(
    graph: Graph, targets: Sequence[Target], fused: Collection[str] | None = None
) -> None:
    """Make ``attention`` nodes in place, where every target serves them and the first gains.

    Args:
        graph: what is lowered.
        targets: for which, from the least to the best.
        fused: the layers to make whatever the first gains, as a report names them; None: by gain.
    """
    rows = [[row for row in target.rows if OP in row.ops] for target in targets]
    if not rows or not all(rows):
        return
    for last in [node for node in graph.nodes if node.op == "matmul"]:
        parts = _parts(graph, last)
        if parts is None:
            continue
        node = _fused(graph, parts)
        keys = parts.nodes[-1].input(1).producer
        served = all(any(not row.refuses(node) for row in some) for some in rows)
        wanted = served and (
            _gains(node, parts, targets[0]) if fused is None else node.loc in fused
        )
        if wanted:
            graph.replace_all_uses(last.output, node.output)
            _erase(graph, [*parts.nodes, keys])
        else:
            _erase(graph, [node, *reversed(parts.made)])


def _gains(node: Node, parts: _Parts, target: Target) -> bool:
    """Whether one kernel is predicted to need less time than those of the parts."""
    apart = sum(predicted_seconds(part, target) for part in parts.nodes)
    return predicted_seconds(node, target) < apart


def attention_layers(layers: Sequence[Mapping[str, Any]]) -> set[str]:
    """The layers of a report that were made so."""
    return {str(row["layer"]) for row in layers if row["op"] == OP}


def _parts(graph: Graph, last: Node) -> _Parts | None:
    """What computes the attention whose second product is ``last``, if that is one."""
    powers = _producer(graph, last.input(0), "softmax")
    plain = _plain(last) and not op_of(last).get(last, "transpose_b")
    if powers is None or not plain:
        return None
    rank = powers.output.type.rank
    if int(op_of(powers).get(powers, "axis")) % rank != rank - 1:
        return None
    found, scores = _Parts([last, powers]), powers.input(0)
    add = _producer(graph, scores, "add")
    if add is not None:
        inner = [i for i in (0, 1) if _scores(graph, add.input(i)) is not None]
        if not inner or add.input(inner[0]).type.shape != add.output.type.shape or not _plain(add):
            return None
        found.nodes.append(add)
        scores, found.mask = add.input(inner[0]), add.input(1 - inner[0])
        if found.mask.type.dtype != F32:
            return None
    product = _scores(graph, scores)
    if product is None:
        return None
    scaled = scores.producer
    if scaled is not None and scaled is not product:
        factor = _factor(scaled)
        assert factor is not None
        found.nodes.append(scaled)
        found.scale = factor
    found.nodes.append(product)
    q, k, v = product.input(0), product.input(1), last.input(1)
    if any(x.is_constant or x.type.shape[:-2] != q.type.shape[:-2] for x in (q, k, v)):
        return None
    return found


def _scores(graph: Graph, value: Value) -> Node | None:
    """The product that ``value`` is, or is a multiple of; None: nobody else may read it."""
    product = _producer(graph, value, "matmul")
    if product is None:
        scaled = _producer(graph, value, "mul")
        if scaled is None or _factor(scaled) is None:
            return None
        product = _producer(graph, scaled.input(0), "matmul")
    return product if product is not None and _plain(product) else None


def _factor(node: Node | None) -> float | None:
    """The one known number that a ``mul`` multiplies its first operand by."""
    if node is None or not _plain(node) or node.input(0).type.shape != node.output.type.shape:
        return None
    number = node.input(1)
    if not number.is_constant or number.type.elements != 1:
        return None
    return float(number.decoded().reshape(-1)[0])


def _producer(graph: Graph, value: Value, op: str) -> Node | None:
    """What makes ``value``, if that is an ``op`` of float32 numbers and has this reader alone."""
    node = value.producer
    alone = graph.use_count(value) == 1 and not graph.is_output(value)
    real = value.type.dtype == F32 and (value.type.is_dense or bool(value.type.short_float))
    return node if node is not None and node.op == op and alone and real else None


def _plain(node: Node) -> bool:
    """Whether a node has no clamp and adds nothing."""
    op, limits = op_of(node), {"act_min": -inf, "act_max": inf}
    bare = all(op.get(node, name) == limit for name, limit in limits.items() if name in node.attrs)
    return bare and (node.op != "matmul" or node.optional_input(2) is None)


def _fused(graph: Graph, parts: _Parts) -> Node:
    """The node that computes all parts, in front of the last of them."""
    last, product = parts.nodes[0], parts.nodes[-1]
    k = product.input(1)
    if not op_of(product).get(product, "transpose_b"):
        k = _turned(graph, k, last, parts)
    operands = [product.input(0), k, last.input(1), *([parts.mask] if parts.mask else [])]
    attrs = {"scale": parts.scale}
    types = [last.output.type]
    return build(graph, OP, operands, attrs, loc=last.loc, types=types, before=last)


def _turned(graph: Graph, value: Value, before: Node, parts: _Parts) -> Value:
    """``value`` with its last two axes exchanged; a transposition that makes it is not repeated."""
    rank, source = value.type.rank, value
    perm = [*range(rank - 2), rank - 1, rank - 2]
    if value.producer is not None and value.producer.op == "transpose":
        order = value.producer.attrs["perm"]
        assert isinstance(order, tuple)
        source, perm = value.producer.input(0), [int(order[axis]) for axis in perm]
        if perm == list(range(rank)):
            return source
    shape = tuple(source.type.shape[axis] for axis in perm)
    types = [value.type.with_(shape=shape)]
    node = build(
        graph,
        "transpose",
        [source],
        {"perm": tuple(perm)},
        loc=value.producer.loc if value.producer is not None else value.name,
        types=types,
        before=before,
    )
    parts.made.append(node)
    return node.output


def _erase(graph: Graph, nodes: Sequence[Node | None]) -> None:
    """Erase those of ``nodes`` whose results nobody reads."""
    for node in nodes:
        unread = node is not None and not any(
            graph.use_count(v) or graph.is_output(v) for v in node.outputs
        )
        if node is not None and unread:
            graph.erase(node)
