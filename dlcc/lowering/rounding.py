"""Early rounding: data that moves between layouts moves in 16 bits where it is read as such.

A layer of products of bfloat16 or float16 numbers rounds a float32 operand as it reads it.
Where all readers of a moved tensor do so, it is rounded while it moves: the same numbers, half the
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Encoding, Graph, Node
from dlcc.lowering.target import Target
from dlcc.lowering.views import is_view
from dlcc.ops.base import op_of


def round_moved(graph: Graph) -> None:
    """Give results of ``relayout`` that are only multiplied as 16-bit floats their encoding."""
    outputs = set(graph.outputs)
    for node in graph.nodes:
        if node.op != "relayout" or is_view(node) or node.output in outputs:
            continue
        value = node.output
        if value.type.dtype == F32 and value.type.is_dense:
            read_as = {_rounds(user, index) for user, index in value.uses}
            encoding = read_as.pop() if len(read_as) == 1 else None
            if encoding is not None:
                value.type = value.type.with_(encoding=encoding)


def _rounds(node: Node, index: int) -> Encoding | None:
    """What ``node`` rounds operand ``index`` to before it multiplies."""
    op = op_of(node)
    return op.rounds_factors(node) if index in op.multiplied else None


def check_short_floats(graph: Graph, targets: Sequence[Target]) -> None:
    """That every target has the conversions for the 16-bit floats of ``graph``.

    Raises:
        DlccError: one lacks them.
    """
    for node in graph.nodes:
        for value in (*node.inputs, *node.outputs):
            encoding = None if value is None else value.type.short_float
            for target in targets:
                if encoding is not None and encoding.name not in target.short_floats:
                    raise DlccError(
                        ExitCode.TARGET,
                        f"target {target.name} has no instructions for {encoding.name} numbers",
                        where=node.loc,
                        why="such numbers are widened and rounded by instructions of the CPU",
                        fix=f"round to {target.short_floats[0]} instead "
                        f"(round-to-{target.short_floats[0]}), or name a target that has them",
                    )
