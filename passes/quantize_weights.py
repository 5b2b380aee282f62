"""Pass ``quantize-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.ir import Affine, Grouped
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, is_pruned_layer
from passes.compression.with_data import RoundedWeights
from passes.quantization.ranges import SMALLEST
from passes.quantization.structure import output_axis


@dataclass(frozen=True)
class QuantizeWeights(RoundedWeights):
    """Store weights as signed integers of few bits; activations stay in float.

    Codes are symmetric, with one scale per output channel or layer: that at which the largest
    weight is the largest code; with calibration data the one with the least error of the layer's
    result. With ``group`` every run of so many weights of a channel has its own. Pruned layers have
    no groups. quantize makes activations integers too.

    ::

        %y = linear(%x, @w, @b)    // @w: f32[1000,512]
        ->
        %y = linear(%x, @w, @b)    // @w: f32[1000,512]!affine<bits=4, signed=true, ...>
    """

    name: ClassVar[str] = "quantize-weights"

    bits: int = option(4, "width of the weights", unit="bits", minimum=2, maximum=8)
    per: Literal["channel", "tensor"] = option("channel", "what shares a scale")
    group: int | None = option(
        None,
        "weights of an output channel that share a scale, side by side along the input channels; "
        "none: the whole channel",
        minimum=2,
        maximum=65536,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and self.per == "tensor":
            raise self.usage(
                "group and per=tensor exclude each other",
                "groups are parts of an output channel",
                "leave one of them out",
            )

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Scales by the largest weight, then the nearest codes."""
        if self.group is not None:
            return self._grouped(layer, self.group)
        axis = output_axis(layer.node) if self.per == "channel" else None
        sizes = np.abs(layer.values.astype(np.float64))
        others = tuple(a for a in range(sizes.ndim) if a != axis)
        last = (1 << (self.bits - 1)) - 1
        encoding = Affine.symmetric(
            self.bits, np.maximum(sizes.max(axis=others) / last, SMALLEST), axis
        )
        words = f"{self.bits}-bit integers, a scale per {self.per}"
        return Form(encoding, encoding.encode(layer.values), words)

    def _grouped(self, layer: WeightLayer, group: int) -> Form:
        if is_pruned_layer(layer):
            raise ValueError("it is pruned, and groups of weights do not keep single zeros' places")
        if layer.node.op == "conv_transpose2d":
            raise ValueError("the rows of its weight are inputs, which groups do not run along")
        encoding = Grouped(self.bits, group)
        words = f"{self.bits}-bit integers, a scale per {group} weights"
        return Form(encoding, encoding.encode(layer.values), words)
