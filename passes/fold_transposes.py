"""Pass ``fold-transposes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph
from passes.base import Pass, PassContext, PassResult
from passes.patterns import apply_rules
from passes.rules.reshapes import RESHAPES
from passes.rules.transposes import TRANSPOSES


@dataclass(frozen=True)
class FoldTransposes(Pass):
    """Cancel transposes, or fold them into the op that reads them.

    Transposes sink through elementwise ops, reductions, softmax, pads and concats until two meet
    and cancel, or one reaches a ``matmul`` (whose ``transpose_b`` flips) or a flattened ``linear``
    (whose weight columns are permuted). A transpose that only moves axes of length 1 becomes a
    ``reshape``. A transpose with several readers stays where it is. Elementwise ops move in
    front of the reshape of a layer's result, so that they can become part of the layer.

    ::

        %a = transpose(%x) {perm=[0,2,3,1]}
        %b = clip(%a) {min=0.0}                 ->   %y = clip(%x) {min=0.0}
        %y = transpose(%b) {perm=[0,3,1,2]}
    """

    name: ClassVar[str] = "fold-transposes"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Apply the rules to a fixed point."""
        return apply_rules(graph, [rule() for rule in (*TRANSPOSES, *RESHAPES)], self.name)
