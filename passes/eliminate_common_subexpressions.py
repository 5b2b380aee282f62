"""Pass ``eliminate-common-subexpressions``."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph, Node
from passes.base import Pass, PassContext, PassResult

_COMMUTATIVE = {"add", "mul", "minimum", "maximum", "and", "or", "xor", "equal"}


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute equal nodes once.

    Two nodes are equal if op, attributes, operands and result types are; operands of commutative
    ops may be swapped. The first one in execution order stays.

    ::

        %a = exp(%x)                    %a = exp(%x)
        %b = exp(%x)            ->      %y = add(%a, %a)
        %y = add(%a, %b)
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """One sweep in execution order."""
        result = PassResult(statistics={"removed": 0})
        first: dict[Hashable, Node] = {}
        for node in list(graph.nodes):
            twin = first.setdefault(_key(node), node)
            if twin is node:
                continue
            graph.replace(node, twin.outputs)
            result.modified = True
            result.count("removed")
            message = f"{node.op} is the same as {twin.loc or twin.output.name}"
            result.remarks.append(self.remark("applied", node.loc or node.op, message))
        return result


def _key(node: Node) -> Hashable:
    operands = [id(v) if v is not None else 0 for v in node.inputs]
    if node.op in _COMMUTATIVE:
        operands[:2] = sorted(operands[:2])
    # repr, because equal numbers of different types (1, 1.0, True) are different attributes
    attrs = tuple(sorted((k, repr(v)) for k, v in node.attrs.items()))
    return node.op, tuple(operands), attrs, tuple(v.type for v in node.outputs)
