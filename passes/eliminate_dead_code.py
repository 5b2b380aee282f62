"""Pass ``eliminate-dead-code``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph
from passes.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes whose results nobody reads.

    Constants that only they read go with them. Graph inputs stay: they are the interface.

    ::

        %a = exp(%x)                    %y = neg(%x)
        %y = neg(%x)            ->      output "y" %y
        output "y" %y
    """

    name: ClassVar[str] = "eliminate-dead-code"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """One sweep from the last node to the first."""
        result = PassResult(statistics={"removed": 0})
        for node in reversed(list(graph.nodes)):
            if not any(graph.use_count(value) for value in node.outputs):
                graph.erase(node)
                result.modified = True
                result.count("removed")
                loc = node.loc or node.op
                result.remarks.append(self.remark("applied", loc, f"removed unused {node.op}"))
        return result
