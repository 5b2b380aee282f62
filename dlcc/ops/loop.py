"""Loops whose trips are counted at run time.

``loop`` holds its body as a graph. Lowering writes the body's nodes into the network's own list
(:mod:`dlcc.lowering.loops`), between the two other ops of this module; nothing else makes those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import BOOL, Graph, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Op, op_of, type_error
from dlcc.ops.pointwise import present

MOST_RUNS = 1 << 20
"""Nodes that the numpy reference of one loop runs: a compilation has to end for any input."""


class Loop(Op):
    """loop(condition, values*) {body}: ``while condition: condition, carried = body(values)``.

    The body's inputs stand for the values: first those that are carried from trip to trip, then
    those that stay what they are. Its outputs are the next condition, ``bool[]``, and the carried
    values, of the same types in every trip. The loop's results are the carried values after the
    last trip; with a false condition, as they came.

    The body belongs to the node and is never changed: what rewrites it puts another in its place.
    """

    name = "loop"
    operands = ("condition", "values*")
    attributes: ClassVar[Mapping[str, Any]] = {"body": ...}

    def infer(self, node: Node) -> list[TensorType]:
        """The carried values' types, which the body's have to agree with."""
        body = self.get(node, "body")
        if not isinstance(body, Graph):
            raise type_error(node, "its body is no graph")
        given = [None if v is None else v.type for v in node.inputs]
        if not given or given[0] != TensorType((), BOOL):
            raise type_error(node, "its condition is not bool[]")
        if [v.type for v in body.inputs] != given[1:]:
            raise type_error(node, "its body takes other values than it is given")
        made = [v.type for v in body.outputs]
        if not 1 < len(made) <= len(given) or made[0] != given[0]:
            raise type_error(node, "its body does not give a condition, bool[], and carried values")
        if made[1:] != given[1 : len(made)]:
            raise type_error(node, "a carried value changes its type from trip to trip")
        if any(not t.is_dense for t in made):
            raise type_error(node, "a carried value is not stored as plain numbers")
        return made[1:]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The body's reference, trip after trip.

        Raises:
            DlccError: LIMIT, it would run more than :data:`MOST_RUNS` nodes.
        """
        from dlcc.analysis.execute import constant_array, run_node  # which imports the ops

        body: Graph = self.get(node, "body")
        condition, *values = map(present, xs)
        carried = values[: len(body.outputs) - 1]
        fixed = dict(zip(body.inputs[len(carried) :], values[len(carried) :], strict=True))
        left = MOST_RUNS
        while bool(condition.reshape(-1)[0]):
            left -= 1 + len(body.nodes)
            if left < 0:
                raise _endless(node)
            live = dict(zip(body.inputs, carried, strict=False)) | fixed
            for inner in body.nodes:
                live.update(zip(inner.outputs, run_node(inner, live), strict=True))
            condition, *carried = (
                constant_array(v) if v.is_constant else live[v] for v in body.outputs
            )
        return carried

    def macs(self, node: Node) -> int:
        """Of one trip: how many there are is not known."""
        return sum(op_of(inner).macs(inner) for inner in self.get(node, "body").nodes)


def _endless(node: Node) -> DlccError:
    return DlccError(
        ExitCode.LIMIT,
        "a loop does not end soon enough for the numpy reference",
        where=node.loc,
        why=f"it has run {MOST_RUNS} nodes; with these inputs the loop may never end",
        fix="give inputs for which it ends with --calib or --sample, or do without "
        "--verify-numerics",
    )


class _Mark(Op):
    """A place in the list of a network that is being lowered."""

    operands = ("condition", "values*")

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """A mark has no reference of its own: that of ``loop`` holds."""
        raise type_error(node, "stands in lowered networks only")


class LoopEnter(_Mark):
    """loop_enter(condition, values*): the first trip begins, unless the condition is false.

    The results are the carried values of any trip.
    """

    name = "loop_enter"

    def infer(self, node: Node) -> list[TensorType]:
        """The values' types."""
        return [node.input(k).type for k in range(1, len(node.inputs))]


class LoopAgain(_Mark):
    """loop_again(condition, new*, old*): another trip begins, if the condition is true.

    The old values are the results of ``loop_enter``, whose places the new ones take; so do the
    results, the values after the last trip.
    """

    name = "loop_again"

    def infer(self, node: Node) -> list[TensorType]:
        """The values' types."""
        return [node.input(k).type for k in range(1, 1 + len(node.inputs) // 2)]


__all__ = ["MOST_RUNS", "Loop", "LoopAgain", "LoopEnter"]
