"""Pass ``ternarize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import Ternary
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form
from passes.compression.with_data import RoundedWeights
from passes.quantization.structure import output_axis


@dataclass(frozen=True)
class Ternarize(RoundedWeights):
    """Store weights as one of -n, 0, +p, two bits each; n = p unless they may differ.

    ``quantize`` reads symmetric scales alone, as signed integers.

    ``threshold`` times the mean |weight| separates what counts for p and n, which are means of the
    weights beyond it (Li et al. 2016, "Ternary weight networks", eq. 5 and 6: 0.7). Without one
    the scales are the least-squares optimum. Every weight then becomes the nearest of the three;
    with calibration data codes and scales are chosen by the error of the layer's result.

    ::

        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]
        ->
        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]!ternary<positive=[...], ...>
    """

    name: ClassVar[str] = "ternarize"

    threshold: float | None = option(
        None,
        "|weight| that separates 0 from the others, over the mean; none for the least squares",
        minimum=0.0,
    )
    scales: Literal["asymmetric", "symmetric"] = option(
        "symmetric", "whether positive and negative weights have scales of their own"
    )
    per: Literal["channel", "tensor"] = option("channel", "what shares its scales")

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Fit the scales, then take the nearest."""
        axis = output_axis(layer.node) if self.per == "channel" else None
        symmetric = self.scales == "symmetric"
        encoding = Ternary.fit(layer.values, axis, self.threshold, symmetric=symmetric)
        if not any((*encoding.positive, *encoding.negative)):
            raise ValueError(f"no weight is beyond {self.threshold} times the mean")
        words = f"ternary, {self.scales} per {self.per}"
        return Form(encoding, encoding.encode(layer.values), words)
