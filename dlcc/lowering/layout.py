"""Layout assignment: which values lie in memory as NHWC, and where data must be moved for it.

Convolutions and pooling want NHWC (channels innermost: contiguous vectors and GEMM-like inner
loops); shape-changing ops and the caller's buffers are row-major in logical order. Everything else
can have any mix of layouts, because default TIR is written in logical indices. Which layout such an
op takes is a minimum cut: ops that want NHWC on one side, those that want row-major order on the
other, and every value that crosses costs its elements times what moving one costs there.
"""

from __future__ import annotations

import networkx as nx

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import build

NHWC_OPS = frozenset({"conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "resize2d"})
ROW_MAJOR_OPS = frozenset(
    {"reshape", "linear", "matmul", "attention", "transpose", "loop_enter", "loop_again"}
)
"""Served by kernels that need logical order, or (transpose) cheapest to see in it."""

ABSORBED_COST = 2
"""Per element: an op reads an operand in the other layout, one strided access in its own loop."""

RELAYOUT_COST = 3
"""Per element: a pass of its own, with a strided and a contiguous access."""


def assign_layouts(graph: Graph) -> None:
    """Set ``TensorType.layout`` on every value and insert ``relayout`` nodes where needed."""
    apply_layouts(graph, _free_ops_in_nhwc(graph))


def apply_layouts(graph: Graph, free: set[Node]) -> None:
    """As :func:`assign_layouts`; ``free``: the ops without a layout of their own in NHWC."""
    outputs = set(graph.outputs)
    for node in list(graph.nodes):
        if node.op in NHWC_OPS:
            _assign_nhwc(graph, node, outputs)
        elif node.op in ROW_MAJOR_OPS:
            for index, value in enumerate(node.inputs):
                if value is not None and value.type.layout and node.op != "transpose":
                    node.set_input(index, _converted(graph, node, value, ""))
        elif node in free:
            _assign_free(graph, node, outputs)
    for index, value in enumerate(graph.outputs):
        if value.type.layout:
            raise AssertionError(f"output {index} of {graph.name} left in {value.type.layout}")


def _free_ops_in_nhwc(graph: Graph) -> set[Node]:
    """The ops without a layout of their own that take NHWC where as little as possible moves."""
    if not any(node.op in NHWC_OPS for node in graph.nodes):
        return set()
    network = nx.DiGraph()
    network.add_nodes_from(("nhwc", "row-major"))
    for node in graph.nodes:
        if node.op in NHWC_OPS:
            network.add_edge("nhwc", id(node))
        elif node.op in ROW_MAJOR_OPS:
            network.add_edge(id(node), "row-major")
    for value in _images(graph):
        _add_value(network, graph, value)
    _, (side, _) = nx.minimum_cut(network, "nhwc", "row-major")
    own = NHWC_OPS | ROW_MAJOR_OPS
    return {node for node in graph.nodes if node.op not in own and id(node) in side}


def _images(graph: Graph) -> list[Value]:
    made = [value for node in graph.nodes for value in node.outputs]
    return [value for value in (*graph.inputs, *made) if value.type.rank == 4]


def _add_value(network: nx.DiGraph, graph: Graph, value: Value) -> None:
    """Edges that are cut, once each, where readers of ``value`` are on its producer's other side.

    A transposition reads any layout as it is. The caller's buffers are row-major.
    """
    producer: object = "row-major" if value.producer is None else id(value.producer)
    readers = {node for node in value.users if node.op != "transpose"}
    own = NHWC_OPS | ROW_MAJOR_OPS
    for kind, cost in (("fixed", RELAYOUT_COST), ("free", ABSORBED_COST)):
        ends: list[object] = [id(n) for n in readers if (n.op in own) == (kind == "fixed")]
        if kind == "fixed" and value in graph.outputs:
            ends.append("row-major")
        if not ends:
            continue
        # a value is converted once however many fixed ops read it; free ops read it one by one
        for number, group in enumerate([ends] if kind == "fixed" else [[end] for end in ends]):
            gate = (id(value), kind, number)
            weight = cost * value.type.elements
            network.add_edge(producer, (*gate, "down"), capacity=weight)
            network.add_edge((*gate, "up"), producer, capacity=weight)
            for end in group:
                network.add_edge((*gate, "down"), end)
                network.add_edge(end, (*gate, "up"))


def _activations(node: Node) -> list[tuple[int, Value]]:
    """4-D operands that are images: the data and the residual, not weights."""
    return [
        (i, v)
        for i, v in enumerate(node.inputs)
        if v is not None and v.type.rank == 4 and not v.is_constant
    ]


def _set_result_layout(graph: Graph, node: Node, layout: str, outputs: set[Value]) -> None:
    for value in node.outputs:
        if value.type.rank != 4:
            continue
        value.type = value.type.with_(layout=layout)
        if value in outputs and layout:
            _restore_output(graph, node, value)


def _restore_output(graph: Graph, node: Node, value: Value) -> None:
    """The caller reads row-major: convert what leaves the graph, keep the inner uses."""
    plain = value.type.with_(layout="")
    converted = build(graph, "relayout", [value], loc=node.loc, types=[plain], after=node).output
    swapped = [converted if out is value else out for out in graph.outputs]
    graph.set_outputs(swapped, graph.output_names)


def _assign_nhwc(graph: Graph, node: Node, outputs: set[Value]) -> None:
    for index, value in _activations(node):
        if value.type.layout != "nhwc":
            node.set_input(index, _converted(graph, node, value, "nhwc"))
    _set_result_layout(graph, node, "nhwc", outputs)


def _assign_free(graph: Graph, node: Node, outputs: set[Value]) -> None:
    """NHWC for the results and for constant operands; other operands are read as they lie."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_constant and value.type.rank == 4 and value.constant:
            typed = value.type.with_(layout="nhwc")
            twin = graph.add_stored(value.constant.parts, typed, name=value.name)
            node.set_input(index, twin)
    _set_result_layout(graph, node, "nhwc", outputs)


def _converted(graph: Graph, user: Node, value: Value, layout: str) -> Value:
    """``value`` in ``layout``, by its producer where that is free, else by a relayout node."""
    producer = value.producer
    absorbed = producer is not None and _can_absorb(producer, value, layout)
    if absorbed and not graph.is_output(value):  # the caller reads row-major
        value.type = value.type.with_(layout=layout)
        return value
    for other in value.users:
        if other.op == "relayout" and other.output.type.layout == layout:
            return other.output
    loc = producer.loc if producer is not None else value.name
    types = [value.type.with_(layout=layout)]
    if producer is None:
        first = graph.nodes[0]
        return build(graph, "relayout", [value], loc=loc, types=types, before=first).output
    return build(graph, "relayout", [value], loc=loc, types=types, after=producer).output


def _can_absorb(producer: Node, value: Value, layout: str) -> bool:
    """Default TIR can write any layout; allowed if every reader wants it or can read any.

    The caller's NHWC images are transposed by giving the result that layout.
    """
    if producer.op == "transpose" and layout == "nhwc":
        given = producer.input(0).type.layout
        as_it_is = not given and producer.attrs["perm"] == (0, 3, 1, 2)
        return as_it_is and all(user.op in NHWC_OPS for user in value.users)
    if producer.op in NHWC_OPS | ROW_MAJOR_OPS or len(producer.outputs) != 1:
        return False
    if not layout:
        return False
    return all(user.op in NHWC_OPS for user in value.users)
