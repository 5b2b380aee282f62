"""Layout assignment: which values lie in memory as NHWC, and where data must be moved for it.

Convolutions and pooling want NHWC (channels innermost: contiguous vectors and GEMM-like inner
loops); shape-changing ops and the caller's buffers are row-major in logical order. Everything else
follows its operands: default TIR is written in logical indices, so its operands and results may
have any mix of layouts, and a change of layout costs nothing where such a kernel can absorb it.
"""

from __future__ import annotations

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import build

NHWC_OPS = frozenset({"conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "resize2d"})
ROW_MAJOR_OPS = frozenset({"reshape", "linear", "matmul", "transpose"})
"""Served by kernels that need logical order, or (transpose) cheapest to see in it."""


def assign_layouts(graph: Graph) -> None:
    """Set ``TensorType.layout`` on every value and insert ``relayout`` nodes where needed."""
    outputs = set(graph.outputs)
    for node in list(graph.nodes):
        if node.op in NHWC_OPS:
            _assign_nhwc(graph, node, outputs)
        elif node.op in ROW_MAJOR_OPS:
            for index, value in enumerate(node.inputs):
                if value is not None and value.type.layout and node.op != "transpose":
                    node.set_input(index, _converted(graph, node, value, ""))
        else:
            _follow_operands(graph, node, outputs)
    for index, value in enumerate(graph.outputs):
        if value.type.layout:
            raise AssertionError(f"output {index} of {graph.name} left in {value.type.layout}")


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


def _follow_operands(graph: Graph, node: Node, outputs: set[Value]) -> None:
    images = _activations(node)
    if not any(value.type.layout == "nhwc" for _, value in images):
        return
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_constant and value.type.rank == 4 and value.constant:
            typed = value.type.with_(layout="nhwc")
            twin = graph.add_stored(value.constant.parts, typed, name=value.name)
            node.set_input(index, twin)
    _set_result_layout(graph, node, "nhwc", outputs)


def _converted(graph: Graph, user: Node, value: Value, layout: str) -> Value:
    """``value`` in ``layout``, by its producer where that is free, else by a relayout node."""
    producer = value.producer
    if producer is not None and _can_absorb(producer, value, layout):
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
    """Default TIR can write any layout; allowed if every reader wants it or can read any."""
    if producer.op in NHWC_OPS | ROW_MAJOR_OPS or len(producer.outputs) != 1:
        return False
    if not layout:
        return False
    return all(user.op in NHWC_OPS for user in value.users)
