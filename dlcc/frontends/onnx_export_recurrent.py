"""ONNX forms of recurrent layers, whose input projection is a layer before them.

ONNX's LSTM, GRU and RNN hold that projection: here it multiplies by the identity, which is exact.
Recurrent weights that are codes are dequantised in front of the layer, whose states stay float: the
states' codes (:mod:`dlcc.ops.recurrent_codes`) have no form in ONNX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlcc.frontends.onnx_export import OnnxWriter, export_error, exports
from dlcc.ir import Node
from dlcc.ops.base import op_of
from dlcc.ops.recurrent import ACTIVATIONS, Recurrent


def _export(writer: OnnxWriter, node: Node, kind: str, **attributes: Any) -> str:
    op = op_of(node)
    assert isinstance(op, Recurrent)
    _, _, units = op.sizes(node)
    names = [operand.rstrip("?") for operand in op.operands]
    given = dict(zip(names, writer.operands(node), strict=False))
    gates = given["gates"]
    if given.get("products"):
        gates = writer.emit("Add", [gates, given["products"]], node)
    identity = np.eye(op.gates * units, dtype=np.float32)[None]
    recurrent = _lifted(writer, node, given.get("recurrent", ""))
    if not recurrent:
        zeros = np.zeros((1, op.gates * units, units), np.float32)
        recurrent = writer.constant(zeros, "no_recurrence")
    inputs = [
        gates, writer.constant(identity, "identity"), recurrent, _bias(writer, node, given, units),
        given.get("lengths", ""),
        *(_lifted(writer, node, given.get(name, "")) for name in ("h0", "c0", "peephole")),
    ]  # fmt: skip
    while not inputs[-1]:
        inputs.pop()
    limit = float(op.get(node, "clip"))
    if math.isfinite(limit):
        attributes["clip"] = limit
    results = [writer.name(f"{value.name}_{kind}") for value in node.outputs]
    direction = "reverse" if op.get(node, "reverse") else "forward"
    writer.emit_several(
        kind, inputs, node, results, hidden_size=units, direction=direction,
        **_activations(op, node), **attributes,
    )  # fmt: skip
    final = writer.result_names(node)
    for index, (result, name) in enumerate(zip(results, final, strict=True)):
        axis = writer.integers([0 if index else 1], "axis")  # that of directions
        writer.emit("Squeeze", [result, axis], node, name)
    writer.define_results(node, final)
    return final[0]


def _lifted(writer: OnnxWriter, node: Node, name: str) -> str:
    """With an axis of directions in front; "" stays absent."""
    return writer.emit("Unsqueeze", [name, writer.integers([0], "axis")], node) if name else ""


def _bias(writer: OnnxWriter, node: Node, given: dict[str, str], units: int) -> str:
    """The candidates' bias of a GRU, behind those that are part of the gates already."""
    if not given.get("bias"):
        return ""
    zeros = writer.constant(np.zeros(5 * units, np.float32), "zeros")
    return _lifted(writer, node, writer.emit("Concat", [zeros, given["bias"]], node, axis=0))


def _activations(op: Recurrent, node: Node) -> dict[str, Any]:
    """Names in ONNX's spelling, and the parameters of those that have some."""
    functions = op.activations_of(node)
    spelled = ["".join(p.capitalize() for p in f.name.split("_")) for f in functions]
    alphas = [f.alpha for f in functions if ACTIVATIONS[f.name][0] is not None]
    betas = [f.beta for f in functions if ACTIVATIONS[f.name][1] is not None]
    out: dict[str, Any] = {"activations": spelled}
    if alphas:
        out["activation_alpha"] = alphas
    if betas:
        out["activation_beta"] = betas
    return out


@exports("lstm")
def _lstm(writer: OnnxWriter, node: Node) -> str:
    forget = int(bool(op_of(node).get(node, "input_forget")))
    return _export(writer, node, "LSTM", input_forget=forget)


@exports("gru")
def _gru(writer: OnnxWriter, node: Node) -> str:
    """Products that the reset gate scales have no place in ONNX's GRU."""
    if node.optional_input(5) is not None:
        raise export_error(node, "its recurrent product is a layer of its own")
    after = int(bool(op_of(node).get(node, "reset_after")))
    return _export(writer, node, "GRU", linear_before_reset=after)


@exports("rnn")
def _rnn(writer: OnnxWriter, node: Node) -> str:
    return _export(writer, node, "RNN")
