"""Loops whose trips are only counted at run time: the IR's ``loop``, its body imported once.

The body's nodes are imported into the network's own graph, over values that stand for what a trip
is given, so that it sees the names and constants around it. Then they are taken out of it again,
and what they read from outside becomes an input of the body.

What such a loop carries from trip to trip are the model's own carried values, the trip's index
where a trip count or the body reads it, and for each scan output the rows made so far: as many as
the trip count allows, of which a trip overwrites one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlcc.frontends.fold import remove_dead
from dlcc.frontends.registry import Unsupported
from dlcc.frontends.scopes import FAILED, Binding, Failed
from dlcc.ir import BOOL, I64, Graph, TensorType, Value
from dlcc.ops.base import build

if TYPE_CHECKING:
    from dlcc.frontends.control import Call

MOST_MOVED = 1 << 34
"""Bytes that a loop's scan outputs may move in all: a trip reads and writes all of their rows."""

MOST_COUNTED = 1 << 24
"""Trips of a loop that only their known number ends, those of such loops around it multiplied."""


@dataclass(frozen=True)
class Ends:
    """What ends a loop.

    Attributes:
        most: trips at most; None: nothing bounds them at import.
        count: the trip count, i64[], a constant or not; None: the condition alone decides.
        condition: whether the first trip is made, bool[]; None: it is, if the count is not 0.
    """

    most: int | None
    count: Value | None
    condition: Value | None

    @property
    def known(self) -> int:
        """The trip count where it is a constant, else 1."""
        count = self.count
        return max(1, int(count.decoded())) if count is not None and count.is_constant else 1


def looped(call: Call, ends: Ends) -> list[Binding]:
    """A Loop as a ``loop`` node.

    Raises:
        Unsupported: what it carries has no fixed shapes, or nothing ends it.
    """
    graph, name = call.importer.graph, call.node.name
    initial = _initial(call)
    start = len(graph.nodes)
    given = [Value(graph.unique_name(f"{name}/carried"), v.type) for v in initial]
    trip = Value(graph.unique_name(f"{name}/trip"), TensorType((), I64))
    runs = graph.add_constant(np.asarray(True), name="runs")
    around = call.importer.trips_around
    call.importer.trips_around *= ends.known if ends.known <= MOST_COUNTED else 1
    try:
        results = call.run(call.body(), [trip, runs, *given], f"{name}/", copied=False)
    finally:
        call.importer.trips_around = around
    if any(isinstance(v, Failed) for v in results):
        graph.cut(start)
        return [FAILED] * len(results[1:])
    made = [_tensor(call, v, f"output {k} of its body") for k, v in enumerate(results)]
    new, rows = made[1 : 1 + len(given)], made[1 + len(given) :]
    _check_types(initial, new)
    carried = [_Carried(*three) for three in zip(initial, given, new, strict=True)]
    counts = bool(trip.uses or rows) or ends.count is not None
    following = _following(call, trip) if counts else trip
    again = _again(call, ends, made[0], following)
    stacks = [_stack(call, ends, row, trip, f"out.{k}") for k, row in enumerate(rows)]
    if counts:
        zero = graph.add_constant(np.asarray(0, np.int64), name="trip")
        carried.append(_Carried(zero, trip, following))
    carried += stacks
    if not carried:
        raise Unsupported("it carries nothing from trip to trip")
    body, captured = _taken_out(graph, start, name, carried, again)
    operands = [_first(call, ends), *(c.initial for c in carried), *captured]
    node = build(
        graph, "loop", operands, {"body": body}, loc=name, outputs=len(carried),
        names=[name] * len(carried),
    )  # fmt: skip
    call.importer.remarks.append(
        f"import: {name}: the run time counts its trips, and only the model itself bounds them"
    )
    values, stacked = node.outputs[: len(given)], node.outputs[len(carried) - len(stacks) :]
    counted = ends.count is not None and ends.count.is_constant and ends.condition is None
    if stacks and not (counted and _is_true(made[0])):
        count = node.outputs[len(given)]
        return [*values, *(call.node.bounded(v, 0, count) for v in stacked)]
    return [*values, *stacked]


@dataclass(frozen=True)
class _Carried:
    """What a loop carries: into the first trip, into any trip, and out of it."""

    initial: Value
    given: Value
    made: Value


def _tensor(call: Call, value: Binding, what: str) -> Value:
    if not isinstance(value, Value):
        raise Unsupported(f"{what} is no tensor")
    if value in call.importer.padded:
        raise Unsupported(f"the size of {what} depends on the data")
    return value


def _initial(call: Call) -> list[Value]:
    """What the first trip is given, as plain numbers."""
    from dlcc.ops.quant import raw_operands

    given = [_tensor(call, v, f"input {k}") for k, v in enumerate(call.operands[2:], 2)]
    plain = raw_operands(call.node, "loop", given)
    return [v for v in plain if v is not None]


def _check_types(initial: Sequence[Value], new: Sequence[Value]) -> None:
    for k, (before, after) in enumerate(zip(initial, new, strict=True)):
        if before.type != after.type:
            raise Unsupported(
                f"carried value {k} is {before.type.dtype}{list(before.type.shape)} before a trip "
                f"and {after.type.dtype}{list(after.type.shape)} after it, and a loop of the run "
                "time has fixed shapes"
            )


def _following(call: Call, trip: Value) -> Value:
    """The next trip's index."""
    one = call.importer.graph.add_constant(np.asarray(1, np.int64), name="one")
    return build(call.importer.graph, "add", [trip, one], loc=f"{call.node.name}/trip").output


def _again(call: Call, ends: Ends, made: Value, trip: Value) -> Value:
    """Whether another trip follows, which would be number ``trip``."""
    graph, name = call.importer.graph, call.node.name
    if made.type.elements != 1:
        raise Unsupported(f"its condition has {made.type.elements} elements")
    known = _is_true(made)
    if known and ends.count is None:
        raise Unsupported("nothing ends it: neither a condition nor a trip count")
    trips = call.importer.trips_around * ends.known
    if known and trips > MOST_COUNTED:
        raise Unsupported(f"{trips} trips are more than {MOST_COUNTED}, and no condition ends it")
    if ends.count is None:
        return _scalar(graph, made, name)
    more = build(graph, "less", [trip, ends.count], loc=f"{name}/more").output
    if known:
        return more
    return build(graph, "and", [more, _scalar(graph, made, name)], loc=f"{name}/again").output


def _is_true(condition: Value) -> bool:
    return condition.is_constant and bool(condition.decoded().reshape(-1)[0])


def _scalar(graph: Graph, value: Value, name: str) -> Value:
    if value.type == TensorType((), BOOL):
        return value
    return build(graph, "reshape", [value], {"shape": ()}, loc=f"{name}/condition").output


def _first(call: Call, ends: Ends) -> Value:
    """Whether the first trip is made."""
    graph, name = call.importer.graph, call.node.name
    if ends.count is None:
        return ends.condition or graph.add_constant(np.asarray(True), name="runs")
    zero = graph.add_constant(np.asarray(0, np.int64), name="trip")
    more = call.built("less", [zero, ends.count], {}, "/first")
    if ends.condition is None:
        return more
    return build(graph, "and", [more, ends.condition], loc=f"{name}/begins").output


def _stack(call: Call, ends: Ends, row: Value, trip: Value, part: str) -> _Carried:
    """A scan output: no rows, those before a trip, and those after it."""
    graph, name = call.importer.graph, f"{call.node.name}/{part}"
    if not row.type.is_dense:
        raise Unsupported("a scan output is not stored as plain numbers")
    size = row.type.bytes
    if ends.most is None or 2 * ends.most**2 * size > MOST_MOVED:
        trips = "no maximal trip count" if ends.most is None else f"at most {ends.most} trips"
        raise Unsupported(
            f"it has a scan output of {size} bytes for each trip, and {trips}; what it may have is "
            f"as many as move {MOST_MOVED} bytes in all (rows are copied from trip to trip)"
        )
    shape = (ends.most, *row.type.shape)
    empty = graph.add_constant(np.zeros(shape, row.type.dtype.numpy), name=name)
    before = Value(graph.unique_name(name), empty.type)
    lifted = build(graph, "reshape", [row], {"shape": (1, *row.type.shape)}, loc=name).output
    index = build(graph, "reshape", [trip], {"shape": (1, 1)}, loc=name).output
    after = build(graph, "scatter_nd", [before, index, lifted], loc=name).output
    return _Carried(empty, before, after)


def _taken_out(
    graph: Graph, start: int, name: str, carried: Sequence[_Carried], again: Value
) -> tuple[Graph, list[Value]]:
    """The nodes of ``graph`` from number ``start`` on as a graph of their own.

    Returns:
        The body, and what it reads of ``graph``: its last inputs.
    """
    body, nodes = Graph(name), graph.nodes[start:]
    results = [again, *(c.made for c in carried)]
    given = [c.given for c in carried]
    inner = {*given, *(v for node in nodes for v in node.outputs)}
    read = [v for node in nodes for v in node.inputs] + results
    captured = list(
        dict.fromkeys(v for v in read if not (v is None or v.is_constant or v in inner))
    )
    coded = next((v for v in captured if not v.type.is_dense), None)
    if coded is not None:
        raise Unsupported(
            f"its body reads %{coded.name} from around it, which is stored as "
            f"{coded.type.encoding.name}; give it the numbers (DequantizeLinear before the Loop)"
        )
    twins = {v: body.add_input(v.name, v.type) for v in (*given, *captured)}

    def twin(value: Value) -> Value:
        if value.constant is not None and value not in twins:
            twins[value] = body.add_stored(value.constant.parts, value.type, name=value.name)
        return twins[value]

    for node in nodes:
        copy = body.add_node(
            node.op, [None if v is None else twin(v) for v in node.inputs],
            [v.type for v in node.outputs], attrs=node.attrs, loc=node.loc,
            names=[v.name for v in node.outputs],
        )  # fmt: skip
        twins.update(zip(node.outputs, copy.outputs, strict=True))
    names = ["again", *(f"carried.{k}" for k in range(len(carried)))]
    body.set_outputs([twin(v) for v in results], names)
    remove_dead(body)
    graph.cut(start)
    return body, captured


__all__ = ["Ends", "looped"]
