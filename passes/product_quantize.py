"""Pass ``product-quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import ProductCodebook
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, WeightOnly, is_pruned_layer


@dataclass(frozen=True)
class ProductQuantize(WeightOnly):
    """Store runs of neighbouring weights as one index into a codebook (product quantisation).

    Runs lie along the input channels of an output or, with ``axis=output``, along the outputs of an
    input. Every block of columns (of outputs) has a codebook of its own, or all share one (Jegou et
    al. 2011; Gong et al. 2014, "Compressing deep convolutional networks using vector
    quantization"). Pruned layers are refused: runs do not keep single zeros.

    ::

        %y = linear(%x, @w, @b)    // @w: f32[1000,512]
        ->
        %y = linear(%x, @w, @b)    // @w: f32[1000,512]!product_codebook<bits=8, length=4>
    """

    name: ClassVar[str] = "product-quantize"

    bits: int = option(8, "width of an index", unit="bits", minimum=1, maximum=12)
    axis: Literal["input", "output"] = option(
        "input", "along what runs lie: the input channels of an output, or the outputs of an input"
    )
    length: int = option(4, "weights in a run", minimum=1, maximum=64)
    shared: bool = option(True, "one codebook for all blocks of columns")

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Cluster the runs."""
        if is_pruned_layer(layer):
            raise ValueError("it is pruned, and runs of weights do not keep single zeros")
        encoding = ProductCodebook(self.bits, self.length, self.shared, self.axis)
        words = f"{self.bits}-bit indices of runs of {self.length} along the {self.axis}s"
        return Form(encoding, encoding.encode(layer.values), words)
