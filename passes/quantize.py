"""Pass ``quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import Graph
from passes.base import PassResult, option
from passes.quantization.fit import Fitter, Prepared
from passes.quantization.fixed_point import REACH, FixedFitter, FixedPoint, network_scale
from passes.quantization.observe import Observation
from passes.quantization.quantiser import Quantiser
from passes.quantization.rewrite import layer_constants
from passes.quantization.structure import LAYERS, Structure, key
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

    ``fixed_point`` makes all scales powers of two, one for each tensor or one for all of them
    (Courbariaux et al. 2015; Gysel et al. 2016), so that integer additions and shifts are enough.

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

    fixed_point: Literal["channel", "tensor", "network"] | None = option(
        None,
        "scales are powers of two, and requantisation shifts: one for each output channel of a "
        "weight, for each tensor (dynamic fixed point), or for the whole network (fixed point)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rules("weights")
        self._rules("inputs")

    def _rules(self, name: str) -> WidthRules:
        return WidthRules.read(getattr(self, name), f"option {name} of pass {self.name!r}")

    @property
    def codes_recurrent(self) -> bool:
        """Unless scales are powers of two: the scale of states is none."""
        return self.fixed_point is None

    def widths(self) -> BitWidths:
        """One width, where no other is given."""
        return BitWidths(self.bits, self.bits)

    def assign(self, widths: BitWidths, graph: Graph, plan: Structure) -> None:
        """Those of layers by name."""
        assign(widths, graph, plan, self._rules("weights"), self._rules("inputs"))

    def fitter(self, prepared: Prepared) -> Fitter:
        """Layer after layer."""
        return Fitter(prepared)

    def fixed(
        self, graph: Graph, plan: Structure, seen: Observation, widths: BitWidths
    ) -> FixedPoint | None:
        """Powers of two, on request."""
        if self.fixed_point != "network":
            return None if self.fixed_point is None else FixedPoint(self.fixed_point)
        groups = [
            ([seen.statistics[n] for n in names if n in seen.statistics], widths.activation(root))
            for root, names in plan.members().items()
        ]
        layers = [
            (*layer_constants(n), widths.weight(key(n)))
            for n in graph.nodes
            if n.op in LAYERS and key(n) in plan.integer
        ]
        return FixedPoint("network", network_scale(groups, layers, self.norm))

    def describe_layer(
        self, fitter: Fitter, name: str, loc: str, bound: int, error: str, result: PassResult
    ) -> None:
        """The width, the error and how large the accumulator may become."""
        bits = fitter.report.bits.get(name, self.bits)
        message = f"{bits}-bit weights{error}, accumulator below 2^{bound.bit_length()}"
        if isinstance(fitter, FixedFitter):
            message += self._describe_shift(fitter, name, bound)
        result.remarks.append(self.remark("applied", loc, message))

    def _describe_shift(self, fitter: FixedFitter, name: str, bound: int) -> str:
        found = fitter.exponents.get(name)
        text = "" if found is None else f", {found}"
        if bound > REACH:
            text += f"; beyond 2^24 it is rounded to 24 bits before the shift ({bound})"
        return text
