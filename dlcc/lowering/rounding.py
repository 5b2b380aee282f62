"""Early rounding: data that moves between layouts moves as bfloat16 where it is read as such.

A layer of bfloat16 products rounds a float32 operand as it reads it. Where all readers of a moved
tensor do so, it is rounded while it moves: the same numbers, half the bytes.
"""

from __future__ import annotations

from dlcc.ir import BFLOAT16, F32, Graph, Node, Value
from dlcc.lowering.views import is_view
from dlcc.ops.base import op_of


def round_moved(graph: Graph) -> None:
    """Give results of ``relayout`` nodes that are only multiplied as bfloat16 this encoding."""
    outputs = set(graph.outputs)
    for node in graph.nodes:
        if node.op != "relayout" or is_view(node) or node.output in outputs:
            continue
        value = node.output
        if value.type.dtype == F32 and value.type.is_dense and _only_rounded(value):
            value.type = value.type.with_(encoding=BFLOAT16)


def _only_rounded(value: Value) -> bool:
    return bool(value.uses) and all(_rounds(user, index) for user, index in value.uses)


def _rounds(node: Node, index: int) -> bool:
    """Whether ``node`` rounds operand ``index`` before it multiplies."""
    op = op_of(node)
    others = [i for i in op.multiplied if i != index]
    return index in op.multiplied and any(node.input(i).type.is_bfloat16 for i in others)
