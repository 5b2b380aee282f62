"""Loops of the run time: a body becomes part of the list of nodes, with a mark before and behind.

::

    %y = loop(%c, %x, %w) {body}        %v = loop_enter(%c, %x)
                                         ... the body's nodes, over %v and %w
                                         %y = loop_again(%c2, %v2, %v)

Kernels, layouts and views see the nodes of the body as they see any others. Before memory is
planned, :func:`pin_loops` gives every carried value one buffer for all trips: what comes in is
copied there, and what a trip makes is copied there at its end. The two conditions are copied too,
into bytes that the runtime reads after the step that wrote them (:class:`dlcc.program.Jump`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Node, Value
from dlcc.lowering.memory import Span
from dlcc.lowering.target import Target
from dlcc.lowering.views import MARKS, root
from dlcc.ops.base import build


def expand_loops(graph: Graph) -> None:
    """Write the bodies of all loops, those within each other too, into the list of nodes."""
    while loops := [node for node in graph.nodes if node.op == "loop"]:
        for node in loops:
            _expand(graph, node)


def _expand(graph: Graph, node: Node) -> None:
    """Replace one loop by its body. What is the same in every trip is computed once, before it."""
    body = node.attrs["body"]
    assert isinstance(body, Graph)
    count = len(node.outputs)
    condition, *given = (node.input(k) for k in range(len(node.inputs)))
    if condition.is_constant and not bool(condition.decoded()):
        graph.replace(node, given[:count])
        return
    enter = build(
        graph, "loop_enter", [condition, *given[:count]], loc=node.loc, before=node,
        outputs=count, names=[v.name for v in node.outputs],
    )  # fmt: skip
    twins = dict(zip(body.inputs, [*enter.outputs, *given[count:]], strict=True))
    varying = set(enter.outputs)
    for inner in body.nodes:
        operands = [None if v is None else _twin(graph, v, twins) for v in inner.inputs]
        varies = any(v in varying for v in operands)
        made = graph.add_node(
            inner.op, operands, [v.type for v in inner.outputs], attrs=inner.attrs, loc=inner.loc,
            names=[v.name for v in inner.outputs], before=node if varies else enter,
        )  # fmt: skip
        twins.update(zip(inner.outputs, made.outputs, strict=True))
        varying.update(made.outputs if varies else ())
    results = [_twin(graph, v, twins) for v in body.outputs]
    again = build(
        graph, "loop_again", [*results, *enter.outputs], loc=node.loc, before=node,
        outputs=count, names=[v.name for v in node.outputs],
    )  # fmt: skip
    graph.replace(node, again.outputs)


def _twin(graph: Graph, value: Value, twins: dict[Value, Value]) -> Value:
    """What stands for a value of a body in the graph around it."""
    if value.constant is not None and value not in twins:
        twins[value] = graph.add_stored(value.constant.parts, value.type, name=value.name)
    return twins[value]


def pin_loops(graph: Graph) -> None:
    """Copy what comes into loops and what their trips make, and the conditions, before the marks.

    All that a trip makes is complete before any of it is copied: a new value may be the old one of
    another place.
    """
    for node in [n for n in graph.nodes if n.op in MARKS]:
        count = len(node.outputs)
        if node.op == "loop_again":
            old = {root(v) for v in node.inputs[1 + count :] if v is not None}
            for index in range(1 + count):
                if root(node.input(index)) in old:
                    _copy_operand(graph, node, index)
        for index in [*range(1, 1 + count), 0]:
            _copy_operand(graph, node, index)


def _copy_operand(graph: Graph, node: Node, index: int) -> None:
    value = node.input(index)
    copied = build(
        graph, "relayout", [value], {"copy": True}, loc=node.loc, types=[value.type], before=node
    )
    node.set_input(index, copied.output)


def mark_of(node: Node) -> Node | None:
    """The mark whose condition the copy ``node`` is, if it is one."""
    for user, index in node.outputs[0].uses if node.op == "relayout" else ():
        if user.op in MARKS and index == 0:
            return user
    return None


@dataclass(frozen=True)
class Trips:
    """The steps of a loop's trips, the copy of the next condition included.

    The step before them copies the condition of the first trip.
    """

    first: int
    last: int

    @property
    def jumps(self) -> tuple[tuple[int, int, bool], ...]:
        """The step after which the run may go on elsewhere, where, and on which condition."""
        return (self.first - 1, self.last + 1, False), (self.last, self.first, True)


def trips_of(marks: Sequence[Node | None]) -> list[Trips]:
    """The loops, from the mark that each step writes the condition of; inner ones come first."""
    begun: list[int] = []
    found = []
    for index, mark in enumerate(marks):
        if mark is not None and mark.op == "loop_enter":
            begun.append(index + 1)
        elif mark is not None:
            found.append(Trips(begun.pop(), index))
    return found


def hold_over(loops: Sequence[tuple[int, int]], spans: Iterable[Span]) -> None:
    """Keep what comes from before a loop until after it, where a trip reads or writes it.

    Args:
        loops: first and last time of the trips of each.
        spans: all buffers, live as if everything ran once.
    """
    for span in spans:
        for first, last in loops:
            if span.first < first <= span.last <= last:
                span.cover(last + 1)


def check_loops(graph: Graph, targets: Sequence[Target]) -> None:
    """That the runtimes of all targets have loops.

    Raises:
        DlccError: TARGET, one has none.
    """
    found = next((node for node in graph.nodes if node.op == "loop_again"), None)
    for target in targets:
        if found is not None and target.device:
            raise DlccError(
                ExitCode.TARGET,
                f"target {target.name} has no loops of the run time",
                where=found.loc,
                why="a GPU's steps are put into a queue, before any condition is known",
                fix="bound the trips (--constant NAME=VALUE for an input that is always the "
                "same), so that the loop is unrolled, or compile for a CPU",
            )


__all__ = [
    "Trips",
    "check_loops",
    "expand_loops",
    "hold_over",
    "mark_of",
    "pin_loops",
    "trips_of",
]
