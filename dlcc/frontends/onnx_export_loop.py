"""ONNX form of loops of the run time."""

from __future__ import annotations

from dlcc.frontends.onnx_export import OnnxWriter, exports
from dlcc.ir import BOOL, I64, Graph, Node, TensorType
from dlcc.ops.base import op_of

_SCALAR, _FLAG = TensorType((), I64), TensorType((), BOOL)


@exports("loop")
def _loop(writer: OnnxWriter, node: Node) -> str:
    """Loop without a trip count; values that stay what they are are seen from around the body."""
    body: Graph = op_of(node).get(node, "body")
    condition, *values = writer.operands(node)
    carried = len(body.outputs) - 1
    inputs = [writer.name(f"{node.outputs[0].name}_{v.name}") for v in body.inputs[:carried]]
    types = [v.type for v in body.inputs[:carried]]
    trip, go = (writer.name(f"{node.outputs[0].name}_{part}") for part in ("trip", "go"))
    graph = writer.body(
        body,
        names=[*inputs, *values[carried:]],
        inputs=[(trip, _SCALAR), (go, _FLAG), *zip(inputs, types, strict=True)],
    )
    writer.define_several(node, "Loop", ["", condition, *values[:carried]], body=graph)
    return ""
