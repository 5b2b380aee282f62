"""Runs a network node by node on all chunks of the samples, so that passes can act in between."""

from __future__ import annotations

from dlcc.analysis.execute import constant_array, run_node
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array

Live = dict[Value, list[Array]]
"""What is needed of a network's values: one array per chunk."""


def use_counts(graph: Graph) -> dict[Value, int]:
    """How many operands each value is, before the first step."""
    return {v: len(v.uses) for v in graph.values()}


def operands(node: Node, live: Live, run: int) -> list[Array | None]:
    """Operands of a node in one run, as its reference receives them."""
    return [
        None if v is None else constant_array(v) if v.is_constant else live[v][run]
        for v in node.inputs
    ]


def step(node: Node, live: Live, uses: dict[Value, int]) -> list[Array]:
    """Run one node on all chunks and drop what nobody needs any more.

    Returns:
        The first output, per chunk.
    """
    moving = [v for v in node.inputs if v is not None and not v.is_constant]
    count = max((len(live[v]) for v in moving), default=1)
    results: list[list[Array]] = [[] for _ in node.outputs]
    for index in range(count):
        made = run_node(node, {v: live[v][index] for v in moving})
        for kept, array in zip(results, made, strict=True):
            kept.append(array)
    live.update(zip(node.outputs, results, strict=True))
    for value in moving:
        uses[value] -= 1
        if not uses[value]:
            live.pop(value, None)
    for value in node.outputs:
        if not uses.get(value, 0):
            live.pop(value, None)
    return results[0]


__all__ = ["Live", "operands", "step", "use_counts"]
