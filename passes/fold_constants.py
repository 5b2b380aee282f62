"""Pass ``fold-constants``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.analysis.execute import run_node
from dlcc.ir import Affine, Dense, Graph, Node
from passes.base import Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes whose operands are all constant.

    The results are those of the numpy reference. A node stays where its result would need
    ``growth`` more bytes than its operands (an ``expand`` of a scalar), and where folding would
    undo a compression: a result that is dense while an operand is stored compressed.

    ::

        %w = transpose(@w0) {perm=[1,0]}        %y = linear(%x, @w)
        %y = linear(%x, %w)               ->
    """

    name: ClassVar[str] = "fold-constants"
    bodies: ClassVar[bool] = True

    growth: int = option(
        1 << 20, "a node whose result is larger than its operands by more stays", unit="bytes"
    )

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """One sweep in execution order."""
        result = PassResult(statistics={"folded": 0})
        for node in list(graph.nodes):
            if not all(v is None or v.is_constant for v in node.inputs):
                continue
            loc = node.loc or node.op
            reason = self._refusal(node)
            if reason is not None:
                result.count("refused")
                result.remarks.append(self.remark("refused", loc, reason))
                continue
            arrays = run_node(node, {})
            values = [
                graph.add_stored({"values": array}, value.type.with_(layout=""), name=value.name)
                for value, array in zip(node.outputs, arrays, strict=True)
            ]
            graph.replace(node, values)
            result.modified = True
            result.count("folded")
            result.remarks.append(self.remark("applied", loc, f"computed {node.op}"))
        return result

    def _refusal(self, node: Node) -> str | None:
        if node.op == "loop":
            return "how long it would take is not known"
        operands = [v for v in node.inputs if v is not None]
        for value in node.outputs:
            encoding = value.type.encoding
            if not isinstance(encoding, Dense | Affine):
                return f"its result is stored as {encoding.name}"
            packed = [v for v in operands if not v.type.is_dense]
            if isinstance(encoding, Dense) and packed:
                return (
                    f"%{packed[0].name} is stored as {packed[0].type.encoding.name}; folding "
                    "would store it dense"
                )
        before = sum(v.type.encoding.stored_bytes(v.constant.parts) for v in operands if v.constant)
        grown = sum(v.type.bytes for v in node.outputs) - before
        if grown > self.growth:
            return f"the result needs {grown} bytes more than the operands (growth={self.growth})"
        return None
