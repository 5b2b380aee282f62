"""Pass ``binarize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import Binary
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, is_pruned_layer
from passes.compression.with_data import RoundedWeights
from passes.quantization.structure import output_axis


@dataclass(frozen=True)
class Binarize(RoundedWeights):
    """Store weights as -s or +s, one bit each.

    s is the mean |weight|, the least-squares optimum (Rastegari et al. 2016, "XNOR-Net", section
    3.1: binary-weight networks). With calibration data codes and scales are chosen by the error of
    the layer's result. Pruned layers are refused: there is no zero among the two.

    ::

        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]
        ->
        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]!binary<scales=[...], axis=0>
    """

    name: ClassVar[str] = "binarize"

    per: Literal["channel", "tensor"] = option("channel", "what shares a scale")

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Signs and scales."""
        if is_pruned_layer(layer):
            raise ValueError("it is pruned, and binary weights have no zero; ternarize has one")
        axis = output_axis(layer.node) if self.per == "channel" else None
        encoding = Binary.fit(layer.values, axis)
        return Form(encoding, encoding.encode(layer.values), f"binary, a scale per {self.per}")
