"""Pass ``residual-quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import ResidualCodebook
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, WeightOnly, is_pruned_layer


@dataclass(frozen=True)
class ResidualQuantize(WeightOnly):
    """Store runs of neighbouring weights as sums of entries of several codebooks.

    The second codebook holds what the first leaves over, and so on (Chen et al. 2010; Gong et al.
    2014, section 3.4). Runs lie along the input channels of an output or, with ``axis=output``,
    along the outputs of an input. Pruned layers are refused: runs do not keep single zeros.

    ::

        %y = linear(%x, @w, @b)    // @w: f32[1000,512]
        ->
        %y = linear(%x, @w, @b)    // @w: f32[1000,512]!residual_codebook<bits=8, length=8, ...>
    """

    name: ClassVar[str] = "residual-quantize"

    bits: int = option(8, "width of an index", unit="bits", minimum=1, maximum=12)
    axis: Literal["input", "output"] = option(
        "input", "along what runs lie: the input channels of an output, or the outputs of an input"
    )
    length: int = option(8, "weights in a run", minimum=1, maximum=64)
    stages: int = option(2, "codebooks", minimum=1, maximum=8)

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Cluster the runs, then what is left of them."""
        if is_pruned_layer(layer):
            raise ValueError("it is pruned, and runs of weights do not keep single zeros")
        encoding = ResidualCodebook(self.bits, self.length, self.stages, self.axis)
        words = (
            f"{self.stages} {self.bits}-bit indices of runs of {self.length} along the {self.axis}s"
        )
        return Form(encoding, encoding.encode(layer.values), words)
