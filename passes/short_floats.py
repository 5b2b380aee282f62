"""What the passes share that round a network to 16-bit floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dlcc.ir import F32, Dense, Graph, Node, ShortFloat, Sparse, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of
from passes.base import Pass, PassContext, PassResult, Stage, option
from passes.names import named

_WEIGHT = 1


@dataclass(frozen=True)
class RoundToShortFloat(Pass):
    """Store weights and activations of layers made of products as 16-bit floats."""

    encoding: ClassVar[ShortFloat]
    lossy: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.REST

    exclude: tuple[str, ...] = option((), "layers that stay float32, by name; * and ? match")

    @property
    def layer_bits(self) -> int:
        """All factors have 16 bits."""
        return 16

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Rewrite the types in place."""
        result = PassResult()
        chosen: set[Node] = set()
        for node in graph.nodes:
            reason = self._reason(node, bool(context.target.get("sparse_short_floats")))
            if not reason:
                chosen.add(node)
            elif any(v.type.dtype.is_float for v in node.outputs):
                result.remarks.append(self.remark("refused", node.loc, reason))
                result.count("float32_nodes")
        layers = [n for n in graph.nodes if n in chosen and op_of(n).multiplied]
        if not layers:
            result.remarks.append(self.remark("note", "", "no layer to round"))
            return result
        result.modified = True
        worst = 0.0
        for node in layers:
            worst = max(worst, self._round_weight(graph, node, result))
        for value in _activations(graph, chosen, set(layers)):
            value.type = value.type.with_(encoding=self.encoding)
            result.count(f"{self.encoding.name}_values")
        self._round_moved_constants(graph, chosen, result)
        result.statistics[f"{self.encoding.name}_layers"] = len(layers)
        result.statistics["max_weight_error"] = worst
        return result

    def _reason(self, node: Node, sparse: bool) -> str:
        """Why ``node`` keeps float32 operands and results; "" if it need not.

        ``sparse``: the target has kernels of pruned weights in 16 bits.
        """
        op = op_of(node)
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if named(self.exclude, node.loc):
            return "excluded by option"
        pruned = node.input(_WEIGHT) if sparse and op.multiplied and node.op != "matmul" else None
        if pruned is not None and _is_pruned(pruned):
            values.remove(pruned)
        if any(v.type.dtype.is_float and not v.type.is_dense for v in values):
            return "already has operands in another encoding"
        if any(v.type.dtype.is_float and v.type.dtype != F32 for v in values):
            return "not on float32 numbers"
        if op.quantised in (Quantised.FLOAT, Quantised.WEIGHTS):
            return f"{node.op} has no form on rounded numbers"
        if op.multiplied and node.op != "matmul" and not node.input(_WEIGHT).is_constant:
            return "its weight is not constant"
        return self._too_large(node)

    def _too_large(self, node: Node) -> str:
        """Says that finite constants of ``node`` would become infinite, if any would."""
        op = op_of(node)
        moved = range(len(node.inputs)) if op.quantised is Quantised.SAME else ()
        for index in (*op.multiplied, *moved):
            value = node.optional_input(index)
            if value is not None and value.is_constant and value.type.dtype == F32:
                real = value.decoded()
                lost = np.isfinite(real) & ~np.isfinite(self.encoding.rounded(real))
                if lost.any():
                    return (
                        f"{lost.sum()} of its weights are too large for {self.encoding.name} "
                        f"(up to {np.abs(real[lost]).max():.6g}, {self.encoding.largest:.6g} is "
                        "the largest)"
                    )
        return ""

    def _round_weight(self, graph: Graph, node: Node, result: PassResult) -> float:
        """Round a layer's constant factors; returns the largest error over the largest number."""
        worst = 0.0
        for index in op_of(node).multiplied:
            value = node.input(index)
            if not value.is_constant:
                continue
            real = value.decoded()
            given = value.type.encoding
            sparse = replace(given, inner=self.encoding) if isinstance(given, Sparse) else None
            rounded = graph.add_constant(real, encoding=sparse or self.encoding, name=value.name)
            node.set_input(index, rounded)
            worst = max(worst, _error(real, rounded.decoded()))
            result.count("saved_bytes", _stored_bytes(value) - _stored_bytes(rounded))
        message = (
            f"{node.op} on {self.encoding.name}, "
            f"largest weight error {worst:.2g} of the largest weight"
        )
        result.remarks.append(self.remark("applied", node.loc, message))
        return worst

    def _round_moved_constants(self, graph: Graph, chosen: set[Node], result: PassResult) -> None:
        """Round constants that ops only move into a 16-bit result: tables of embeddings."""
        for node in graph.nodes:
            moves = op_of(node).quantised is Quantised.SAME
            if node not in chosen or not moves or not node.outputs[0].type.short_float:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.is_constant and value.type.dtype == F32:
                    real = value.decoded()
                    node.set_input(
                        index, graph.add_constant(real, encoding=self.encoding, name=value.name)
                    )
                    result.count("saved_bytes", real.nbytes // 2)


def _stored_bytes(constant: Value) -> int:
    assert constant.constant is not None
    return constant.type.encoding.stored_bytes(constant.constant.parts)


def _is_pruned(weight: Value) -> bool:
    """Whether the weight is stored without its zeros, and not rounded."""
    encoding = weight.type.encoding
    return isinstance(encoding, Sparse) and isinstance(encoding.inner, Dense)


def _error(real: Array, rounded: Array) -> float:
    """Largest finite difference over the largest finite number."""
    finite = np.isfinite(real)
    largest = float(np.abs(real[finite]).max(initial=0.0))
    difference = float(np.abs(real[finite] - rounded[finite]).max(initial=0.0))
    return difference / largest if largest else 0.0


def _activations(graph: Graph, chosen: set[Node], layers: set[Node]) -> list[Value]:
    """Values to store in 16 bits: between nodes that can, with a layer behind them."""
    before_layer: set[Node] = set()
    for node in reversed(graph.nodes):
        users = {user for v in node.outputs for user in v.users}
        if users & layers or users & before_layer:
            before_layer.add(node)
    out: dict[Value, None] = {}
    for node in graph.nodes:
        if node not in chosen or node not in before_layer:
            continue
        moved = [v for v in node.inputs if v is not None and v.type.dtype.is_float]
        sources = [v for v in moved if not v.is_constant]
        if op_of(node).quantised is Quantised.SAME and not all(v in out for v in sources):
            continue
        for value in node.outputs:
            inner = not graph.is_output(value) and all(user in chosen for user in value.users)
            if value.type.dtype == F32 and inner:
                out[value] = None
    return list(out)
