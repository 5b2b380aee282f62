"""Pass ``binarize-activations``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.ir import Graph
from passes.base import Pass, PassContext, PassResult, Stage, option
from passes.compression.layers import weight_layers
from passes.compression.sign_activations import Signs, real_inputs
from passes.compression.thresholds import fold_thresholds


@dataclass(frozen=True)
class BinarizeActivations(Pass):
    """Let layers with binary weights read signs, one bit each (XNOR networks).

    Rastegari et al. 2016, "XNOR-Net", section 3.2. An input that holds signs already, as in
    networks trained so (``sign``, ``where`` by a comparison with 0, Larq's ``sign(sign(x) + 0.1)``,
    QONNX's BipolarQuant), is packed as it is; 0 counts as positive. Any other input loses all but
    its signs: they stand for s, the mean |x| on calibration data (``scale=tensor``, the
    least-squares optimum), for 1 (``one``), or for the mean |x| over the channels, averaged over
    the kernel's window of each pixel (``pixel``, the matrix K of the paper). An input that is never
    negative is refused: all its signs would be equal.

    Padding adds nothing, as in any convolution; a border of ones is a ``pad`` before the layer.

    Where between two such layers there are only batch norms, clamps and the like, the first gives
    signs itself, by comparing its integer sums with thresholds; that is exact.

    ::

        %a = conv2d(%x, @w)              // @w: !binary     %s = quantize(%x)     // !binary
        %n = batch_norm(%a, @g, @b, @m, @v)              -> %t = conv2d(%s, @w', @t) // !binary
        %s = sign(%n)                                       %y = conv2d(%t, @v)
        %y = conv2d(%s, @v)              // @v: !binary
    """

    name: ClassVar[str] = "binarize-activations"
    lossy: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.SIGNS

    only: tuple[str, ...] = option((), "layers to change, by name; * and ? match; none for all")
    exclude: tuple[str, ...] = option((), "layers to leave alone, by name; * and ? match")
    scale: Literal["tensor", "one", "pixel"] = option(
        "tensor", "what a sign stands for, where the input holds other numbers"
    )
    samples: int = option(32, "calibration samples to use", minimum=1)

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Signs first, then thresholds.

        Raises:
            DlccError: a name pattern matches no layer, or calibration data is needed and absent.
        """
        result = PassResult(statistics={"layers": 0, "thresholds": 0})

        def tell(kind: Literal["applied", "refused"], loc: str, message: str) -> None:
            result.remarks.append(self.remark(kind, loc, message))

        layers = weight_layers(
            graph, self.only, self.exclude, lambda loc, why: tell("refused", loc, why)
        )
        nodes = [node for layer in layers for node in layer.nodes]
        needed = real_inputs(nodes)
        seen = None
        if needed and (self.scale == "tensor" or context.calibration is not None):
            seen = needed.observed(graph, context.batches(self), self.samples)
        signs = Signs(graph, self.scale, seen)
        for number, node in enumerate(nodes):
            try:
                tell("applied", node.loc, signs.apply(node))
                result.count("layers")
            except ValueError as error:
                tell("refused", node.loc, str(error))
            context.advance((number + 1) / (len(nodes) + 1))
        result.modified = bool(result.statistics["layers"])
        if result.modified:
            result.count("thresholds", fold_thresholds(graph, tell))
        if signs.errors:
            result.statistics["worst_activation_error"] = round(max(signs.errors), 6)
        return result
