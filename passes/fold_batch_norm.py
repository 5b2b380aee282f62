"""Pass ``fold-batch-norm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph
from passes.base import Pass, PassContext, PassResult, merge
from passes.patterns import Rule, apply_rules
from passes.quantization.synthetic import normalised_layers
from passes.rules.attention_scale import ScaleThroughMoves
from passes.rules.channel_affine import (
    BackwardConstant,
    BackwardNorm,
    BackwardThroughSum,
    BackwardThroughSumSecond,
    ForwardConstant,
    ForwardNorm,
    NormToAffine,
)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch normalisation, and per-channel mul and add, into the weights of a layer.

    With a = scale / sqrt(var + epsilon) and b = shift - a * mean, batch normalisation is the
    per-channel map y = a x + b. In this order:

    1. backward into the conv2d, conv_transpose2d or linear that makes x: w' = a w, bias' = a bias
       + b (Jacob et al. 2018, section 3.2); a shift also passes a residual add in between, and
       a scalar factor passes reshapes, transposes and products (the scale of attention scores);
    2. forward into the layer that reads y: w' = w a over input channels, bias' = bias + w b. With
       padding only if b = 0, because the zeros of the border do not pass through the map;
    3. else it becomes ``mul`` and ``add`` with constants.

    All in float64, rounded once. A weight that other layers share is copied, never changed.

    ::

        %a = conv2d(%x, @w)                             %y = conv2d(%x, @w', @bias)
        %y = batch_norm(%a, @scale, @shift, @m, @v) ->
    """

    name: ClassVar[str] = "fold-batch-norm"
    bodies: ClassVar[bool] = True

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Backward to a fixed point, then forward, then the rest."""
        context.channel_moments.update(normalised_layers(graph))
        phases: tuple[tuple[Rule, ...], ...] = (
            (BackwardNorm(), BackwardConstant(), BackwardThroughSum(), BackwardThroughSumSecond()),
            (ScaleThroughMoves(),),
            (ForwardNorm(), ForwardConstant()),
            (NormToAffine(),),
        )
        return merge(apply_rules(graph, rules, self.name) for rules in phases)
