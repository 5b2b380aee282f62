"""Pass ``quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph
from passes.base import PassResult, option
from passes.quantization.fit import Fitter, Prepared
from passes.quantization.quantiser import Quantiser
from passes.quantization.structure import Structure
from passes.quantization.widths import BitWidths, WidthRules, assign


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
    weights: tuple[str, ...] = option(
        (),
        "widths of the weights of layers by name, as NAME:BITS; * and ? match, the first that "
        "names a layer holds",
        by_layer="bits",
    )
    inputs: tuple[str, ...] = option(
        (),
        "widths of the activations that layers read, in the same way; a tensor that several layers "
        "read gets the widest",
        by_layer="bits",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rules("weights")
        self._rules("inputs")

    def _rules(self, name: str) -> WidthRules:
        return WidthRules.read(getattr(self, name), f"option {name} of pass {self.name!r}")

    def widths(self) -> BitWidths:
        """One width, where no other is given."""
        return BitWidths(self.bits, self.bits)

    def assign(self, widths: BitWidths, graph: Graph, plan: Structure) -> None:
        """Those of layers by name."""
        assign(widths, graph, plan, self._rules("weights"), self._rules("inputs"))

    def fitter(self, prepared: Prepared) -> Fitter:
        """Layer after layer."""
        return Fitter(prepared)

    def describe_layer(
        self, fitter: Fitter, name: str, loc: str, bound: int, error: str, result: PassResult
    ) -> None:
        """The width, the error and how large the accumulator may become."""
        bits = fitter.report.bits.get(name, self.bits)
        message = f"{bits}-bit weights{error}, accumulator below 2^{bound.bit_length()}"
        result.remarks.append(self.remark("applied", loc, message))
