"""Draws of control flow and sequences: branches, loops and scans over values of fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.sketch import BOOL, FLOAT, Sketch, Term, Unfit, draw

INT64 = np.dtype(np.int64)
_UNARY = ["Tanh", "Sigmoid", "Neg", "Abs", "Relu", "Identity"]


class _Body:
    """A graph inside a node: its own names, values of the outer one under theirs."""

    def __init__(self, s: Sketch) -> None:
        self.s = s
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op: str, *operands: str, **attributes: Any) -> str:
        name = self.s.name("b")
        self.nodes.append(helper.make_node(op, operands, [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        return self("Constant", value=onnx.numpy_helper.from_array(np.asarray(array)))

    def mixed(self, x: str, y: str) -> str:
        """Something of two values of one shape that is not larger than both together."""
        op = self.s.among(["Add", "Sub", "Max", "Min", "Mul"])
        if op == "Mul":
            y = self("Tanh", y)
        elif op == "Max" and self.s.opset < 8:
            op = "Add"
        return self(self.s.among(_UNARY), self(op, x, y))

    def graph(
        self, inputs: Sequence[tuple[str, Any, Any]], outputs: Sequence[tuple[str, Any, Any]]
    ) -> onnx.GraphProto:
        """Of name, type and shape of each."""

        def info(name: str, dtype: Any, shape: Any) -> onnx.ValueInfoProto:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(name, kind, shape)

        rows = [info(*row) for row in inputs], [info(*row) for row in outputs]
        return helper.make_graph(self.nodes, self.s.name("body"), *rows)


def _pair(s: Sketch) -> tuple[Term, Term]:
    """Two values of one shape."""
    x = s.pick(ranks=(1, 2, 3), small=1e3)
    return x, s.pick((FLOAT,), shape=x.shape, small=1e3)


def _condition(s: Sketch) -> Term:
    """One truth value, known or not."""
    if s.chance(0.4):
        return s.constant(np.bool_(s.integer(0, 1)))
    return s.pick((BOOL,), shape=())


def _captured(s: Sketch, results: list[Term], *outer: Term) -> None:
    """Values that a body reads are used, and how far they may differ goes on."""
    s.used.update(t.name for t in outer)
    error = max([t.error for t in (*outer, *results)])
    s.replace(results, error)


@draw(3)
def branches(s: Sketch) -> None:
    x, y = _pair(s)
    bodies = []
    for _ in range(2):
        body = _Body(s)
        result = body.mixed(x.name, y.name) if s.chance(0.8) else body("Identity", x.name)
        bodies.append(body.graph([], [(result, FLOAT, x.shape)]))
    more = {"then_branch": bodies[0], "else_branch": bodies[1]}
    kinds = [(FLOAT, x.shape)]
    _captured(s, s.node("If", [_condition(s)], types=kinds, bound=x.size + y.size, **more), x, y)


@draw(2)
def loop(s: Sketch) -> None:
    """A count that is known; a state, and a result of each turn."""
    x, y = _pair(s)
    turns, stacked = s.integer(1, 4), s.chance(0.6)
    body, state, number, go = _Body(s), s.name("b"), s.name("b"), s.name("b")
    inner = body("Mul", state, body.constant(np.float32(0.5)))
    if s.chance(0.4):
        turn = body("Cast", number, to=onnx.TensorProto.FLOAT)
        inner = body("Add", inner, turn)
    following = body.mixed(inner, y.name)
    outputs = [(body("Identity", go), BOOL, ()), (following, FLOAT, x.shape)]
    kinds = [(FLOAT, x.shape)]
    if stacked:
        outputs.append((body("Identity", inner), FLOAT, x.shape))
        kinds.append((FLOAT, (turns, *x.shape)))
    graph = body.graph([(number, INT64, ()), (go, BOOL, ()), (state, FLOAT, x.shape)], outputs)
    operands: list[Term | None] = [s.ints(turns), s.constant(np.bool_(True)), x]
    if s.chance(0.3):
        operands[1] = None
    size = x.size + turns * (y.size + turns)
    results = s.node("Loop", operands, outputs=len(kinds), types=kinds, bound=size, body=graph)
    _captured(s, results, x, y)


@draw(1)
def loop_until(s: Sketch) -> None:
    """A loop that ends when a sum that every engine computes alike is large enough."""
    x = s.pick(ranks=(1, 2), exact=True, small=9)
    body, state, number, go = _Body(s), s.name("b"), s.name("b"), s.name("b")
    following = body("Add", state, body.constant(np.float32(1)))
    least = body("ReduceMin", following, keepdims=0)
    again = body("Less", least, body.constant(np.float32(s.integer(-2, 6))))
    inputs = [(number, INT64, ()), (go, BOOL, ()), (state, FLOAT, x.shape)]
    graph = body.graph(inputs, [(again, BOOL, ()), (following, FLOAT, x.shape)])
    operands = [s.ints(s.integer(1, 9)), s.constant(np.bool_(True)), x]
    s.node("Loop", operands, types=[(FLOAT, x.shape)], exact=True, bound=18.0, body=graph)


@draw(2)
def scan(s: Sketch) -> None:
    if s.opset < 9:
        raise Unfit("the oldest one has a batch axis")
    shape = s.shape(s.integer(1, 2), 5)
    steps = s.integer(1, 5)
    axis = s.integer(0, len(shape))
    x = s.pick((FLOAT,), shape=(*shape[:axis], steps, *shape[axis:]), small=1e3)
    state, y = s.pick((FLOAT,), shape=shape, small=1e3), s.pick((FLOAT,), shape=shape, small=1e3)
    body, before, row = _Body(s), s.name("b"), s.name("b")
    following = body.mixed(body("Tanh", before), row)
    result = body("Add", following, y.name)
    graph = body.graph(
        [(before, FLOAT, shape), (row, FLOAT, shape)],
        [(following, FLOAT, shape), (result, FLOAT, shape)],
    )
    out = s.integer(0, len(shape))
    more = {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_output_axes": [out]}
    more |= {"scan_input_directions": [s.integer(0, 1)]}
    more |= {"scan_output_directions": [s.integer(0, 1)]}
    kinds = [(FLOAT, shape), (FLOAT, (*shape[:out], steps, *shape[out:]))]
    size = x.size + y.size + 2
    results = s.node("Scan", [state, x], outputs=2, types=kinds, bound=size, body=graph, **more)
    _captured(s, results, y)


@draw(2)
def sequence(s: Sketch) -> None:
    """Sequences whose lengths are known: made, changed, and taken apart again."""
    if s.opset < 11:
        raise Unfit("there are no sequences")
    x = s.pick(ranks=(2, 3))
    axis, pieces = s.integer(0, x.rank - 1), s.name("q")
    if s.chance(0.5):
        s.raw("SplitToSequence", [x], pieces, axis=axis, keepdims=1)
        rows, length = [1] * x.shape[axis], x.shape[axis]
    else:
        other = s.pick((FLOAT,), shape=x.shape)
        s.raw("SequenceConstruct", [x, other, x], pieces)
        rows, length = [x.shape[axis]] * 3, 3
    if s.chance(0.4):
        shape = (*x.shape[:axis], rows[0], *x.shape[axis + 1 :])
        more, place = s.input(FLOAT, shape), s.integer(0, length)
        longer = s.name("q")
        s.raw("SequenceInsert", [pieces, more, s.ints(place)], longer)
        pieces, rows = longer, [*rows, rows[0]]
    elif length > 1 and s.chance(0.4):
        shorter = s.name("q")
        s.raw("SequenceErase", [pieces, s.ints(s.integer(-length, length - 1))], shorter)
        pieces, rows = shorter, rows[1:]
    if s.chance(0.6):
        kind = (FLOAT, (*x.shape[:axis], sum(rows), *x.shape[axis + 1 :]))
        s.of_sequence("ConcatFromSequence", [pieces], kind, axis=axis)
    else:
        kind = (FLOAT, (*x.shape[:axis], rows[0], *x.shape[axis + 1 :]))
        place = s.ints(s.integer(-len(rows), len(rows) - 1))
        s.of_sequence("SequenceAt", [pieces, place], kind)
