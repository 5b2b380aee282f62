"""If, Loop and Scan: branches selected, loops unrolled.

The IR has no control flow. What is decidable at import is decided: an If on a known condition is
one of its branches, a Loop or Scan of known trip count is as many copies of its body. On a
condition of the run time both branches are computed and ``where`` selects between the results; a
Loop that may end early runs all its trips, and a trip after the end changes nothing. That is right
because nodes have no side effects and no input makes one fail: ``where`` selects and does not
multiply, so a NaN or infinity of what was not taken goes nowhere; integer division by zero is
defined (:func:`dlcc.tir.expr.quotient`), and reads by an index of the run time stay inside their
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx

from dlcc.frontends.bounded import largest
from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import OnnxNode, Padded, Unsupported
from dlcc.frontends.run_time_loops import Ends, looped
from dlcc.frontends.scopes import FAILED, Binding, Empty, Failed, Scope, ValueList
from dlcc.ir import Graph, Value
from dlcc.ops.movement import sliced
from dlcc.ops.shape import axis_of, integers, reshaped

MOST_NODES = 10_000
"""Nodes that the copies of one loop's body may have together."""

MOST_TRIPS = 64
"""Trips of a loop that data may end, up to which it is unrolled."""

MOST_COPIED = 50_000
"""Nodes of bodies that are copied in all for one model, those that are folded away included."""

MOST_ATTEMPTS = 3
"""Loops whose copies turned out to be too many, and so allow :data:`MOST_COPIED` others."""


class TooManyTrips(Unsupported):
    """A loop is not unrolled at once: data may end it, after too many trips or any number."""


class TooLarge(TooManyTrips):
    """A loop is not unrolled: it would have too many nodes."""


class Importer(Protocol):
    """What control flow needs of the importer of a model."""

    graph: Graph
    padded: dict[Value, Padded]
    remarks: list[str]
    copied: int
    loops: int
    trips_around: int
    refusals: list[Any]

    def body(
        self, proto: onnx.GraphProto, scope: Scope, versions: Mapping[str, int], prefix: str
    ) -> list[Binding]:
        """Import the nodes of a graph into ``scope``, named after ``prefix``; its outputs."""


@dataclass(frozen=True)
class Call:
    """A node whose operands may be lists, or that has bodies.

    Attributes:
        importer: imports bodies.
        node: the node; its inputs are left out.
        operands: what its inputs stand for.
        scope: the names around it, which its bodies see.
        versions: opsets of its bodies.
    """

    importer: Importer
    node: OnnxNode
    operands: Sequence[Binding]
    scope: Scope
    versions: Mapping[str, int]

    def operand(self, index: int) -> Binding:
        """Operand ``index``; None where it is left out."""
        return self.operands[index] if index < len(self.operands) else None

    def tensor(self, index: int) -> Value:
        """Operand ``index``, which must be a tensor."""
        value = self.operand(index)
        if not isinstance(value, Value):
            raise Unsupported(f"input {index} is no tensor")
        return value

    def body(self, name: str = "body") -> onnx.GraphProto:
        """The graph in attribute ``name``."""
        graph = self.node.attrs[name]
        if not isinstance(graph, onnx.GraphProto):
            raise Unsupported(f"its attribute {name!r} is no graph")
        return graph

    def built(self, op: str, inputs: Sequence[Value], attrs: Mapping[str, Any], part: str) -> Value:
        """A node of the IR, folded where its operands are known."""
        graph = self.importer.graph
        start = len(graph.nodes)
        return fold_nodes(graph, start, self.node.build(op, inputs, dict(attrs), suffix=part))[0]

    def run(
        self,
        body: onnx.GraphProto,
        given: Sequence[Binding],
        prefix: str,
        *,
        copied: bool = True,
    ) -> list[Binding]:
        """A copy of ``body`` on these inputs; ``copied`` if there may be several."""
        names = [proto.name for proto in body.input]
        if len(names) != len(given):
            raise Unsupported(f"its body has {len(names)} inputs and is given {len(given)}")
        if copied:
            self.importer.copied += max(1, len(body.node))
            self.check_copied()
        inner = Scope(dict(zip(names, given, strict=True)), parent=self.scope)
        return self.importer.body(body, inner, self.versions, prefix)

    def check_copied(self) -> None:
        """Refuse more copies than a model may have; each loop that is not unrolled allows more."""
        most = MOST_COPIED * (1 + min(self.importer.loops, MOST_ATTEMPTS))
        if self.importer.copied > most:
            raise TooLarge(
                f"the bodies of loops and branches have more than {most} nodes, each trip counted"
            )

    def within_limits(self, trips: int, start: int) -> None:
        """Refuse a loop that has made more nodes since ``start`` than a program should have."""
        nodes = len(self.importer.graph.nodes) - start
        if nodes > MOST_NODES:
            raise TooLarge(
                f"unrolled, it is too large: {nodes} nodes after {trips} trips, and the limit is "
                f"{MOST_NODES}"
            )


def _known(value: Value) -> bool | None:
    """A condition that is a constant, else None."""
    return bool(value.decoded().reshape(-1)[0]) if value.is_constant else None


def _selected(call: Call, condition: Value, yes: Binding, no: Binding, part: str) -> Binding:
    """``yes`` where ``condition``, else ``no``: tensors of equal shapes, or lists of such."""
    if yes is no:
        return yes
    if isinstance(yes, Failed) or isinstance(no, Failed):
        return FAILED
    if isinstance(yes, ValueList) and isinstance(no, ValueList):
        if len(yes.items) != len(no.items):
            raise Unsupported(
                f"a condition of the run time chooses between sequences of {len(yes.items)} and "
                f"{len(no.items)} elements"
            )
        pairs = enumerate(zip(yes.items, no.items, strict=True))
        parts = [_selected(call, condition, a, b, f"{part}.{k}") for k, (a, b) in pairs]
        return ValueList(tuple(v for v in parts if isinstance(v, Value)))
    if not isinstance(yes, Value) or not isinstance(no, Value):
        raise Unsupported(
            "a condition of the run time chooses between values of different kinds; if an input "
            "decides it that is always the same, bind that with --constant NAME=VALUE"
        )
    if (yes.type.shape, yes.type.dtype) != (no.type.shape, no.type.dtype):
        raise Unsupported(
            "a condition of the run time chooses between "
            f"{yes.type.dtype}{list(yes.type.shape)} and {no.type.dtype}{list(no.type.shape)}; if "
            "an input decides it that is always the same, bind that with --constant NAME=VALUE"
        )
    if yes in call.importer.padded or no in call.importer.padded:
        raise Unsupported(
            "a condition of the run time chooses between values whose size depends on the data"
        )
    return call.built("where", [condition, yes, no], {}, part)


def branch(call: Call) -> list[Binding]:
    """If: the branch that a known condition takes, else both and a selection."""
    condition = call.tensor(0)
    taken = _known(condition)
    name = call.node.name
    if taken is not None:
        return call.run(call.body("then_branch" if taken else "else_branch"), [], "")
    yes = call.run(call.body("then_branch"), [], f"{name}/then/")
    no = call.run(call.body("else_branch"), [], f"{name}/else/")
    call.importer.remarks.append(
        f"import: {name}: the condition is not known, so both branches are computed"
    )
    scalar = _scalar(call, condition, "/condition")
    pairs = enumerate(zip(yes, no, strict=True))
    return [_selected(call, scalar, a, b, f"/{k}") for k, (a, b) in pairs]


def _scalar(call: Call, value: Value, part: str) -> Value:
    if value.type.elements != 1:
        raise Unsupported(f"its condition has {value.type.elements} elements")
    return reshaped(call.node, value, (), part)


# -- Loop --------------------------------------------------------------------------------------


def loop(call: Call) -> list[Binding]:
    """Loop: copies of the body, or one whose trips the run time counts.

    A loop whose end is known at import is unrolled as long as the copies are no more nodes than
    :data:`MOST_NODES`; one that data may end, up to :data:`MOST_TRIPS` trips. Others become the
    IR's ``loop``. What cannot, because it carries lists or changing shapes, is unrolled after all.
    """
    graph, refusals = call.importer.graph, len(call.importer.refusals)
    start = len(graph.nodes)

    def again() -> None:
        """Back to before the loop was begun."""
        graph.cut(start)
        del call.importer.refusals[refusals:]

    try:
        return _unrolled(call, MOST_TRIPS)
    except TooManyTrips as reason:
        again()
        call.importer.loops += 1
        try:
            return looped(call, _ends(call))
        except Unsupported as refusal:
            again()
            refused = Unsupported(f"{reason}; as a loop of the run time: {refusal}")
            if isinstance(reason, TooLarge):
                raise refused from None
            try:
                return _unrolled(call, None)
            except TooManyTrips:
                raise refused from None


def _ends(call: Call) -> Ends:
    most, count = _trip_count(call)
    if most is not None and count is None:
        count = call.importer.graph.add_constant(np.asarray(most, np.int64), name="trips")
    begins = _condition(call, call.operand(1), None, "/condition")
    return Ends(most, count, begins if isinstance(begins, Value) else None)


def _unrolled(call: Call, most_open: int | None) -> list[Binding]:
    """As many copies of the body as it runs, or at most runs.

    While the conditions fold to constants they decide. From the first one on that does not, each
    copy's results are selected by whether the loop still runs there; a maximal trip count must be
    known then. Scan outputs have a row for each trip that may be made, and the number of those made
    (:mod:`dlcc.frontends.bounded`).

    Args:
        call: the loop.
        most_open: trips at most where data may end it; None: any number.

    Raises:
        TooManyTrips: there would be too many.
    """
    body = call.body()
    carried = list(call.operands[2:])
    rows: list[list[Binding]] = [[] for _ in body.output[1 + len(carried) :]]
    most, limit = _trip_count(call)
    if limit is not None:
        _check_countable(most)
    runs = _condition(call, call.operand(1), None, "/condition")
    start, trip = len(call.importer.graph.nodes), 0
    open_trips: list[Value] = []
    while runs is not False and (most is None or trip < most):
        if isinstance(runs, Value):
            _check_open(most, trip + most_open if most_open is not None else None)
        prefix = f"{call.node.name}/{trip}/"
        if limit is not None:
            here = call.importer.graph.add_constant(np.asarray(trip, np.int64), name="trip")
            more = call.built("less", [here, limit], {}, f"/{trip}/more")
            runs = _condition(call, more, runs, f"/{trip}/counted")
        index = call.importer.graph.add_constant(np.asarray(trip, np.int64), name=f"{prefix}trip")
        whole = call.importer.graph.add_constant(np.asarray(True), name="runs")
        results = call.run(body, [index, whole, *carried], prefix)
        if any(isinstance(v, Failed) for v in results):
            call.check_copied()  # as one in the body may have been
            return [FAILED] * len(results[1:])
        new, made = results[1 : 1 + len(carried)], results[1 + len(carried) :]
        if isinstance(runs, Value):
            open_trips.append(runs)
            pairs = enumerate(zip(new, carried, strict=True))
            new = [_selected(call, runs, a, b, f"/{trip}/carried.{k}") for k, (a, b) in pairs]
        carried = new
        for column, row in zip(rows, made, strict=True):
            column.append(row)
        trip += 1
        call.within_limits(trip, start)
        runs = _condition(call, results[0], runs, f"/{trip}/runs")
    stacked = [_stacked(call, column, 0, f"/out.{k}") for k, column in enumerate(rows)]
    if open_trips and stacked:
        count = _number_made(call, trip - len(open_trips), open_trips)
        stacked = [call.node.bounded(value, 0, count) for value in stacked]
    return [*carried, *stacked]


def _check_open(most: int | None, limit: int | None) -> None:
    """Refuse to unroll what data may end where it makes more trips than ``limit``, if it may."""
    if most is None:
        raise TooManyTrips(
            "a condition of the run time ends it, and no maximal trip count is known at import"
        )
    if limit is not None and most > limit:
        raise TooManyTrips(f"data may end it, and it makes up to {most} trips")


def _number_made(call: Call, certain: int, open_trips: Sequence[Value]) -> Value:
    """How many trips are made: those ``certain`` to be, and those whose conditions hold."""
    total = call.importer.graph.add_constant(np.asarray(certain, np.int64), name="trips")
    for k, runs in enumerate(open_trips):
        one = call.built("cast", [runs], {"to": "i64"}, f"/{certain + k}.one")
        total = call.built("add", [total, one], {}, f"/{certain + k}.made")
    return total


def _trip_count(call: Call) -> tuple[int | None, Value | None]:
    """The maximal number of trips (None where there is none), and the run time's own, if any."""
    given = call.operand(0)
    if given is None or isinstance(given, Empty):
        return None, None
    count = call.tensor(0)
    if count.is_constant:
        return int(count.decoded().reshape(-1)[0]), None
    most = largest(count)
    return None if most == math.inf else max(0, int(most)), _scalar(call, count, "/trips")


def _check_countable(most: int | None) -> None:
    """Refuse to unroll a loop whose trip count is no constant, if it may be large."""
    if most is None or most > MOST_NODES:
        raise TooManyTrips(
            "its trip count is known only at run time; if an input decides it that is always the "
            "same, bind that with --constant NAME=VALUE, else bound it in the model (Min with a "
            "constant)"
        )


def _condition(
    call: Call, given: Binding, before: Value | bool | None, part: str
) -> Value | bool | None:
    """Whether the loop goes on: ``before`` and ``given``; None and True are both yes."""
    if given is None or isinstance(given, Empty):
        return before
    if not isinstance(given, Value):
        raise Unsupported("its condition is no tensor")
    known = _known(given)
    if known is not None:
        return before if known else False
    scalar = _scalar(call, given, f"{part}.scalar")
    if not isinstance(before, Value):
        return scalar
    return call.built("and", [before, scalar], {}, part)


def _stacked(call: Call, rows: Sequence[Binding], axis: int, part: str) -> Value:
    """Tensors of one shape along a new axis."""
    tensors = [row for row in rows if isinstance(row, Value)]
    if len(tensors) != len(rows):
        raise Unsupported("a scan output is no tensor")
    if not tensors:
        raise Unsupported("it makes no trip, so that its scan outputs are empty")
    if any(t in call.importer.padded for t in tensors):
        raise Unsupported("the sizes of a scan output's rows depend on the data")
    if len({(t.type.shape, t.type.dtype) for t in tensors}) > 1:
        raise Unsupported("the rows of a scan output have different shapes")
    shape = tensors[0].type.shape
    axis = axis_of(axis, len(shape) + 1)
    lifted = (*shape[:axis], 1, *shape[axis:])
    names = [f"{part}.{k}" for k in range(len(tensors))]
    columns = [
        call.built("reshape", [t], {"shape": lifted}, name)
        for t, name in zip(tensors, names, strict=True)
    ]
    return columns[0] if len(columns) == 1 else call.built("concat", columns, {"axis": axis}, part)


# -- Scan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scans:
    """How a Scan cuts its inputs and puts its outputs together; one entry for each."""

    input_axes: tuple[int, ...]
    input_backward: tuple[bool, ...]
    output_axes: tuple[int, ...]
    output_backward: tuple[bool, ...]


def scan(call: Call) -> list[Binding]:
    """Scan: a copy of the body for every place along the scanned axes."""
    if call.node.opset < 9:
        return _scan_batches(call)
    attrs, count = call.node.attrs, _scan_inputs(call, len(call.operands))
    states = len(call.operands) - count
    outputs = len(call.body().output) - states
    scans = _Scans(
        attrs.get("scan_input_axes", (0,) * count),
        tuple(map(bool, attrs.get("scan_input_directions", (0,) * count))),
        attrs.get("scan_output_axes", (0,) * outputs),
        tuple(map(bool, attrs.get("scan_output_directions", (0,) * outputs))),
    )
    tensors = [call.tensor(k) for k in range(len(call.operands))]
    return _scanned(call, tensors[:states], tensors[states:], scans, "")


def _scan_inputs(call: Call, operands: int) -> int:
    """How many of the operands are cut."""
    count = int(call.node.attrs["num_scan_inputs"])
    if not 1 <= count <= operands:
        raise Unsupported(f"{count} of its {operands} operands are scanned")
    return count


def _scanned(
    call: Call, states: Sequence[Binding], inputs: Sequence[Value], scans: _Scans, part: str
) -> list[Binding]:
    axes = [axis_of(a, v.type.rank) for a, v in zip(scans.input_axes, inputs, strict=True)]
    lengths = {v.type.shape[axis] for v, axis in zip(inputs, axes, strict=True)}
    if len(lengths) != 1:
        raise Unsupported(f"its scan inputs have the lengths {sorted(lengths)}")
    (length,) = lengths
    carried = list(states)
    rows: list[list[Binding]] = [[] for _ in scans.output_axes]
    start = len(call.importer.graph.nodes)
    for trip in range(length):
        here = f"{part}/{trip}"
        parts: list[Binding] = []
        for k, (value, axis, back) in enumerate(
            zip(inputs, axes, scans.input_backward, strict=True)
        ):
            parts.append(_place(call, value, axis, length - 1 - trip if back else trip, here, k))
        results = call.run(call.body(), [*carried, *parts], f"{call.node.name}{here}/")
        if any(isinstance(v, Failed) for v in results):
            return [FAILED] * len(results)
        carried = results[: len(carried)]
        for column, row in zip(rows, results[len(carried) :], strict=True):
            column.append(row)
        call.within_limits(trip + 1, start)
    made = zip(rows, scans.output_axes, scans.output_backward, strict=True)
    return [
        *carried,
        *(
            _stacked(call, column[::-1] if back else column, axis, f"{part}/out.{k}")
            for k, (column, axis, back) in enumerate(made)
        ),
    ]


def _place(call: Call, value: Value, axis: int, index: int, part: str, number: int) -> Value:
    """``value`` at one place of an axis, which goes."""
    graph = call.importer.graph
    start = len(graph.nodes)
    cut = sliced(call.node, value, [index], [index + 1], [axis], [1], f"{part}/in.{number}")
    shape = (*value.type.shape[:axis], *value.type.shape[axis + 1 :])
    return fold_nodes(graph, start, [reshaped(call.node, cut, shape, f"{part}/row.{number}")])[0]


def _scan_batches(call: Call) -> list[Binding]:
    """Scan of opset 8: everything has a batch axis in front, and the scanned one follows."""
    attrs, count = call.node.attrs, _scan_inputs(call, len(call.operands) - 1)
    tensors = [call.tensor(k) for k in range(1, len(call.operands))]
    states, inputs = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
    lengths = call.operand(0)
    if isinstance(lengths, Value):
        whole = inputs[0].type.shape[1]
        if not lengths.is_constant or set(integers(lengths.decoded())) != {whole}:
            raise Unsupported(f"its sequences are not all known to have the length {whole}")
    outputs = len(call.body().output) - len(states)
    backward = tuple(map(bool, attrs.get("directions", (0,) * count)))
    scans = _Scans((0,) * count, backward, (0,) * outputs, (False,) * outputs)
    batches: list[list[Binding]] = []
    for item in range(inputs[0].type.shape[0]):
        part = f"/batch.{item}"
        cut = [_place(call, v, 0, item, part, k) for k, v in enumerate(tensors)]
        batches.append(_scanned(call, cut[: len(states)], cut[len(states) :], scans, part))
    columns = enumerate(zip(*batches, strict=True))
    return [_stacked(call, column, 0, f"/out.{k}") for k, column in columns]


CONTROL: dict[str, Callable[[Call], list[Binding]]] = {"If": branch, "Loop": loop, "Scan": scan}
"""Ops with bodies."""

__all__ = ["CONTROL", "MOST_COPIED", "MOST_NODES", "Call"]
