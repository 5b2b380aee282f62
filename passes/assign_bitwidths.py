"""Pass ``assign-bitwidths``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.analysis.accumulators import Overflow
from dlcc.analysis.certificates import Assignment
from dlcc.ir import Graph
from passes.base import PassContext, PassResult, option
from passes.quantization.accumulate import Accumulator
from passes.quantization.assign import Assigner
from passes.quantization.fit import Fitter, Prepared
from passes.quantization.quantiser import Quantiser
from passes.quantization.widths import BitWidths

_HOLDS = {
    "ranges": "for any weights and data of these widths",
    "weights": "for any data",
    "results": "on the calibration data",
}


@dataclass(frozen=True)
class AssignBitwidths(Quantiser):
    """Quantise to the widths for which a narrow accumulator is wide enough.

    For each layer, in execution order, the widths of its weights and of its input are chosen among
    the pairs that use up the accumulator: the one with the least error of the layer's result on the
    codes that the already quantised layers give. ``guarantee`` says for what the accumulator must
    suffice (de Bruin, Zivkovic and Corporaal 2018): any weights and data of the chosen widths,
    these weights and any data, or the calibration data with a margin. Zero points and biases count;
    a residual operand is added behind the accumulator, in 32 bits. With ``tile`` only sums of so
    many products of bare codes must fit: a wider register adds them up, and zero points and biases.

    Everything else is as in quantize.

    ::

        %y = conv2d(%x, @w, @b)
        ->
        %x.codes = quantize(%x)            // u4
        %y = conv2d(%x.codes, @w, @b)      // u4, s5 and s32 codes, sums below 2^15
    """

    name: ClassVar[str] = "assign-bitwidths"
    enlarged_for: ClassVar[str] = "their sums fit the accumulator"

    accumulator: int = option(16, "width of the accumulator", unit="bits", minimum=8, maximum=32)
    overflow: Literal["wrap", "saturate"] = option(
        "wrap",
        "what the accumulator does with sums that it cannot hold; wrap: only whole sums must fit, "
        "saturate: partial sums in any order too",
    )
    guarantee: Literal["ranges", "weights", "results"] = option(
        "weights",
        "for what the accumulator is wide enough: ranges: any weights and data of the chosen "
        "widths; weights: these weights and any data; results: the calibration data",
    )
    margin: float = option(
        0.25,
        "share by which results may be larger than on the calibration data, for guarantee=results",
        minimum=0.0,
        maximum=16.0,
    )
    tile: int = option(
        0,
        "products of neighbouring input channels that the accumulator sums up before it is emptied "
        "into a wider one; 0: all of a result's",
        minimum=0,
    )
    scales: Literal["channel", "layer"] = option(
        "channel",
        "what is done where a channel's sums are too large; channel: its own scale is enlarged, "
        "layer: all channels of the layer get fewer bits",
    )

    @property
    def fits_weights(self) -> bool:
        """No: sums are bounded for the layers' own weights."""
        return False

    def widths(self) -> BitWidths:
        """Eight bits, until a layer gets fewer."""
        return BitWidths(8, 8)

    def fitter(self, prepared: Prepared) -> Fitter:
        """Layer after layer, with a choice of widths before each."""
        register = Accumulator(
            self.accumulator, Overflow(self.overflow), self.guarantee, self.margin, self.tile
        )
        return Assigner(prepared, register, stretch=self.scales == "channel")

    def promises(self, fitter: Fitter) -> dict[str, Assignment]:
        """What the accumulator holds, by the key of a layer."""
        assert isinstance(fitter, Assigner)
        return {
            name: Assignment(
                self.accumulator,
                self.overflow,
                self.guarantee,
                found.bounds.low,
                found.bounds.high,
                self.tile,
            )
            for name, found in fitter.assigned.items()
        }

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Quantise in place.

        Raises:
            DlccError: there is no calibration data, or it does not fit the network; sums of tiles
                are to be guaranteed by results.
        """
        if self.tile and self.guarantee == "results":
            raise self.usage(
                f"sums of {self.tile} products each are not observed",
                "guarantee=results knows whole results only",
                "use guarantee=weights with tile",
            )
        context.batches(self)  # widths are chosen by the error on real activations
        return super().run(graph, context)

    def describe_layer(
        self, fitter: Fitter, name: str, loc: str, bound: int, error: str, result: PassResult
    ) -> None:
        """Widths, accumulator and error, or why the accumulator stays wide."""
        assert isinstance(fitter, Assigner)
        found = fitter.assigned.get(name)
        if found is None:
            why = "fits at no width of at least 2 bits"
            if name not in fitter.unfit:
                why = "is a product of two activations"
            result.remarks.append(
                self.remark(
                    "refused", loc, f"{why}, so it keeps 32-bit accumulators, 8-bit codes{error}"
                )
            )
            result.count("wide_layers")
            return
        pairs = " ".join(f"{w}x{a}" for w, a in found.pairs)
        among = f" (of {pairs})" if len(found.pairs) > 1 else ""
        of = f" of {self.tile} channels each" if self.tile else ""
        sums = f"{found.bounds.low}..{found.bounds.high}{of}"
        message = (
            f"{found.weights}-bit weights, {found.activations}-bit input{among}, sums {sums} take "
            f"{found.bounds.bits} of {self.accumulator} bits {_HOLDS[self.guarantee]}{error}"
        )
        result.remarks.append(self.remark("applied", loc, message))
        result.count("assigned_layers")
