"""Pass ``quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.base import PassResult, option
from passes.quantization.fit import Fitter, Prepared
from passes.quantization.quantiser import Quantiser
from passes.quantization.widths import BitWidths


@dataclass(frozen=True)
class Quantize(Quantiser):
    """Quantise weights and activations to integers after training.

    Weights become signed codes with one scale per output channel, activations unsigned codes with
    one scale and zero point per tensor, biases int32. Everything between the network's borders
    works on codes; layers whose result is the network's own keep a float result, and what must
    stay float is named with the reason.

    In this order: channels are equalised between layers; ranges are chosen from a histogram of
    every activation; then, layer after layer, weights are rounded against the statistics of the
    codes that reach the layer, and its bias is set so that the layer's mean is that of the float
    network. Without calibration data all of this runs on synthetic inputs.

    ::

        %y = conv2d(%x, @w, @b) {act_min=0.0}
        ->
        %x.codes = quantize(%x)
        %y = conv2d(%x.codes, @w, @b) {act_min=0.0}    // u8, s8 and s32 codes
        %y.real = dequantize(%y)
    """

    name: ClassVar[str] = "quantize"

    bits: int = option(8, "width of weights and activations", unit="bits", minimum=2, maximum=8)

    def widths(self) -> BitWidths:
        """One width everywhere."""
        return BitWidths(self.bits, self.bits)

    def fitter(self, prepared: Prepared) -> Fitter:
        """Layer after layer."""
        return Fitter(prepared)

    def describe_layer(
        self, fitter: Fitter, name: str, loc: str, bound: int, error: str, result: PassResult
    ) -> None:
        """The width, the error and how large the accumulator may become."""
        message = f"{self.bits}-bit weights{error}, accumulator below 2^{bound.bit_length()}"
        result.remarks.append(self.remark("applied", loc, message))
