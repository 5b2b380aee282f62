"""Pass ``quantize``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.ir import Affine, Graph
from dlcc.ir.encodings import Array
from passes.base import Pass, PassContext, PassResult, option
from passes.quantization import fit, ranges, structure, weights
from passes.quantization.observe import Observation, observe
from passes.quantization.rewrite import Rewriter
from passes.quantization.samples import Samples, cut, read
from passes.quantization.synthetic import synthetic_inputs


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantise weights and activations to integers after training.

    ::

        %y = conv2d(%x, @w, @b) {act_min=0.0}
        ->
        %q: u8 = quantize(%x)
        %y: u8 = conv2d(%q, @w: s8, @b: s32) {act_min=0.0}
        %r = dequantize(%y)
    """

    name: ClassVar[str] = "quantize"
    lossy: ClassVar[bool] = True

    bits: int = option(8, "width of weights and activations", unit="bits", minimum=2, maximum=8)
    ranges: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = option(
        "min-max", "how the range of each activation is chosen"
    )
    percentile: float = option(
        99.99, "part of an activation inside its range (ranges=percentile)", unit="%",
        minimum=50.0, maximum=100.0,
    )  # fmt: skip
    samples: int = option(200, "most calibration samples to use", unit="samples", minimum=1)
    bias_correction: bool = option(True, "match each layer's mean on the quantised prefix")
    adaptive_rounding: bool = option(True, "round weights against the layer's input statistics")
    exclude: tuple[str, ...] = option((), "names of layers that stay float; * and ? match")

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Quantise in place.

        Raises:
            DlccError: the calibration data does not fit the network.
        """
        result = PassResult()
        plan = structure.analyse(graph, self.exclude, self.bits, self.bits)
        if not plan.integer:
            return result
        samples = self._samples(graph, context, result)
        wanted = set(plan.group)
        seen = observe(samples, wanted, _part(context, 0.0, 0.4, "observing activations"))
        encodings = self._encodings(graph, plan, seen, samples)
        twin = samples.network
        Rewriter(graph, plan, encodings).run()
        Rewriter(twin, plan, encodings).run()
        options = fit.FitOptions(
            self.bits, self.bias_correction, self.adaptive_rounding, context.seed
        )
        fitter = fit.Fitter(graph, twin, plan, options, samples, seen)
        report = fitter.run(_part(context, 0.4, 1.0, "fitting weights"))
        result.modified = True
        result.statistics["layers"] = report.layers
        for name, bound in report.accumulator.items():
            assert bound < weights.ACCUMULATOR, name
        return result

    def _samples(self, graph: Graph, context: PassContext, result: PassResult) -> Samples:
        if context.calibration is not None:
            return read(graph, context.calibration(), self.samples)
        arrays = synthetic_inputs(graph, context.channel_moments, context.rng("synthetic inputs"))
        return cut(graph, arrays, 0)

    def _encodings(
        self, graph: Graph, plan: structure.Structure, seen: Observation, samples: Samples
    ) -> dict[str, Affine]:
        inputs = {v.name for v in graph.inputs}
        out: dict[str, Affine] = {}
        for root, names in plan.members().items():
            exact = None
            if len(names) == 1 and names[0] in inputs:
                exact = _input_lattice(samples.arrays[names[0]], self.bits)
            if exact is not None:
                out[root] = exact
                continue
            found = [
                ranges.pick_range(seen.statistics[n], self.ranges, self.percentile, self.bits)
                for n in names
                if n in seen.statistics
            ]
            low = min((r[0] for r in found), default=0.0)
            high = max((r[1] for r in found), default=0.0)
            out[root] = ranges.asymmetric(low, high, self.bits)
        return out


def _input_lattice(array: Array, bits: int) -> Affine | None:
    step = ranges.lattice(array, 1 << bits)
    if step is None:
        return None
    return ranges.on_lattice(step, float(np.min(array)), float(np.max(array)), bits)


def _part(context: PassContext, start: float, stop: float, message: str) -> Callable[[float], None]:
    return lambda fraction: context.advance(start + (stop - start) * fraction, message)
