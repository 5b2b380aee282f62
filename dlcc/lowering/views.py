"""Which values are the same bytes in memory: views, and the buffers behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dlcc.ir import Graph, Node, Value
from dlcc.lowering.memory import Span
from dlcc.ops.base import build

VIEW_OPS = frozenset({"reshape", "relayout", "transpose", "reinterpret"})

MARKS = frozenset({"loop_enter", "loop_again"})
"""Ops that compute nothing, whose results are operands (:mod:`dlcc.lowering.loops`)."""


def _significant(axes: list[int], shape: tuple[int, ...]) -> list[int]:
    """Axes that move data: those longer than 1."""
    return [axis for axis in axes if shape[axis] != 1]


def is_view(node: Node) -> bool:
    """True if the output has the bytes of operand 0 in the same order."""
    if node.op not in VIEW_OPS:
        return False
    source, result = node.input(0), node.output
    if source.is_constant or source.type.storage != result.type.storage:
        return False
    shape = source.type.shape
    before = list(source.type.permutation)
    if node.op == "reshape":
        return not source.type.layout and not result.type.layout
    after = list(result.type.permutation)
    if node.op == "transpose":
        order = node.attrs["perm"]
        assert isinstance(order, tuple)
        after = [int(order[axis]) for axis in after]
    return _significant(before, shape) == _significant(after, shape)


@dataclass
class Buffer:
    """One span of memory that a set of values shares.

    ``kind`` "arena" buffers get their ``span`` placed by the memory plan; ``index`` counts the
    caller's inputs or outputs.
    """

    kind: Literal["arena", "input", "output"]
    size: int
    index: int = 0
    values: list[Value] = field(default_factory=list)
    span: Span = field(init=False)

    def __post_init__(self) -> None:
        self.span = Span(self.size)


def pin_outputs(graph: Graph) -> None:
    """Make every output own its buffer: copy what is an input, a constant, or claimed before."""
    claimed: set[Value] = set()
    result = []
    for value in graph.outputs:
        source = root(value)
        if source.producer is None or source in claimed:
            last = graph.nodes[-1] if graph.nodes else None
            source = value = build(
                graph,
                "relayout",
                [value],
                {"copy": True},
                loc=value.name,
                types=[value.type],
                after=last,
            ).output
        claimed.add(source)
        result.append(value)
    graph.set_outputs(result, graph.output_names)


def root(value: Value) -> Value:
    """The value whose bytes ``value`` is a view of (itself if it is none)."""
    while value.producer is not None and is_aliased(value.producer):
        value = _source(value)
    return value


def _source(value: Value) -> Value:
    """The operand that a result of an aliased node shares its bytes with."""
    node = value.producer
    assert node is not None
    if node.op not in MARKS:
        return node.input(0)
    return node.input(1 + value.index + (len(node.outputs) if node.op == "loop_again" else 0))


def is_aliased(node: Node) -> bool:
    """True if the lowering emits no code for ``node``: a mark, or a view that need be no copy."""
    return node.op in MARKS or (is_view(node) and not node.attrs.get("copy", False))


def computes(node: Node) -> bool:
    """True if a kernel runs for ``node``: it is no view, and its results have elements."""
    return not is_aliased(node) and any(v.type.elements for v in node.outputs)


def assign_buffers(graph: Graph) -> dict[Value, Buffer]:
    """The buffer of every non-constant value; views share their source's buffer."""
    buffers: dict[Value, Buffer] = {}
    for index, value in enumerate(graph.inputs):
        buffers[value] = Buffer("input", value.type.bytes, index, values=[value])
    for node in graph.nodes:
        for value in node.outputs:
            if is_aliased(node):
                buffers[value] = buffers[_source(value)]
                buffers[value].values.append(value)
                if node.op == "loop_again":  # the next trip reads there what this one makes
                    buffers[node.input(1 + value.index)] = buffers[value]
            else:
                buffers[value] = Buffer("arena", value.type.bytes, values=[value])
    for index, value in enumerate(graph.outputs):
        buffer = buffers[value]
        assert buffer.kind == "arena", "pin_outputs gives every output a buffer of its own"
        buffer.kind, buffer.index = "output", index
    return buffers
