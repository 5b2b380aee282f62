"""Concats of hundreds of operands, cut to a size that code generation takes.

The code of a concat has a parameter and a level of selections for each operand. TVM and LLVM walk
that selection recursively, in time that grows faster than its depth, and overflow the stack at some
thousands. Such a concat becomes a tree of concats, in time linear in its operands; the price is
that each number is copied once more for each further level of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import build

MOST_OPERANDS = 64
"""Of a concat: two levels do for 4096 operands."""


def split_wide_concats(graph: Graph) -> None:
    """Make trees of the concats of more than ``MOST_OPERANDS`` operands, in place."""
    for node in [n for n in graph.nodes if n.op == "concat"]:
        parts = [v for v in node.inputs if v is not None]
        while len(parts) > MOST_OPERANDS:
            runs = (parts[k : k + MOST_OPERANDS] for k in range(0, len(parts), MOST_OPERANDS))
            parts = [_joined(graph, node, run) for run in runs]
        if len(parts) < len(node.inputs):
            node.set_inputs(parts)


def _joined(graph: Graph, node: Node, run: Sequence[Value]) -> Value:
    """A run of the operands of ``node``, put together in front of it as the node would."""
    if len(run) == 1:
        return run[0]
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    shape = list(node.output.type.shape)
    shape[axis] = sum(v.type.shape[axis] for v in run)
    type_ = node.output.type.with_(shape=tuple(shape))
    return build(
        graph, "concat", run, {"axis": axis}, loc=node.loc, types=[type_], before=node
    ).output
