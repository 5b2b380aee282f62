"""Pass ``canonicalize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph
from passes.base import Pass, PassContext, PassResult
from passes.patterns import apply_rules
from passes.rules.arithmetic import ARITHMETIC
from passes.rules.movement import MOVEMENT


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Bring ops into one canonical form and drop those that do nothing.

    Activations become ``clip`` and consecutive clips one; constants stand second; ``sub`` and
    ``div`` by a constant become ``add`` and ``mul``; chains of adds, muls, reshapes, transposes and
    concats shrink; identities vanish; global average pooling becomes ``reduce_mean``; a product
    with a constant matrix becomes ``linear``. Other passes match these forms, but none relies on
    them for correctness.

    ::

        %a = relu(%x)                          %b = clip(%x) {max=6.0, min=0.0}
        %b = minimum(%a, @six)          ->
        %c = div(%b, @two)                     %y = mul(%b, @half)
        %y = reshape(%c) {shape=[1,8]}
    """

    name: ClassVar[str] = "canonicalize"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Apply all rules to a fixed point."""
        return apply_rules(graph, [rule() for rule in (*ARITHMETIC, *MOVEMENT)], self.name)
