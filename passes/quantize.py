"""Pass ``quantize``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph
from dlcc.ops.base import Quantised, op_of
from passes.base import Pass, PassContext, PassResult, option, part
from passes.quantization import fit, ranges, structure, weights
from passes.quantization.equalise import equalise, pairs
from passes.quantization.observe import Observation, observe
from passes.quantization.rewrite import Rewriter
from passes.quantization.samples import Samples, affordable, cut, read
from passes.quantization.structure import LAYERS, Structure, key
from passes.quantization.synthetic import COUNT, fitted_inputs, synthetic_inputs

_EQUALISING = 32
"""Samples from which the ranges of channels are taken."""


@dataclass(frozen=True)
class Quantize(Pass):
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
    lossy: ClassVar[bool] = True

    bits: int = option(8, "width of weights and activations", unit="bits", minimum=2, maximum=8)
    ranges: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = option(
        "mse", "how the range of an activation is chosen from its histogram"
    )
    norm: float = option(
        2.4,
        "power of the error that ranges=mse minimises; 2 is the mean squared error, more spares "
        "outliers",
        minimum=1.0,
        maximum=16.0,
    )
    percentile: float = option(
        99.99,
        "share of the elements inside the range, for ranges=percentile",
        unit="%",
        minimum=50.0,
        maximum=100.0,
    )
    samples: int = option(200, "most calibration samples to use", unit="samples", minimum=1)
    equalise: bool = option(True, "bring the channels between two layers to one range")
    bias_correction: bool = option(True, "match each layer's mean on the quantised prefix")
    adaptive_rounding: bool = option(True, "round weights against the layer's input statistics")
    exclude: tuple[str, ...] = option((), "layers that stay float, by name; * and ? match")

    @property
    def layer_bits(self) -> int:
        """Codes of up to 8 bits are multiplied as bytes."""
        return 8

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Quantise in place.

        Raises:
            DlccError: the calibration data does not fit the network, or an accumulator could
                overflow.
        """
        result = PassResult()
        plan = structure.analyse(graph, self.exclude, self.bits, self.bits)
        self._explain(graph, plan, result)
        if not any(n.op in structure.ACCUMULATING and key(n) in plan.integer for n in graph.nodes):
            result.remarks.append(self.remark("note", "", "nothing to quantise"))
            return result
        result.modified = True
        samples = self._samples(graph, context, result)
        if self.equalise:
            self._equalise(graph, plan, samples, context, result)
        seen = observe(samples, set(plan.group), part(context, 0.15, 0.4, "observing"))
        encodings = self._encodings(graph, plan, seen, samples, result)
        twin = samples.network
        borders = Rewriter(graph, plan, encodings).run()
        Rewriter(twin, plan, encodings).run()
        options = fit.FitOptions(
            self.bits, self.bias_correction, self.adaptive_rounding, context.seed
        )
        fitter = fit.Fitter(graph, twin, plan, options, samples, seen)
        report = fitter.run(part(context, 0.4, 1.0, "fitting weights"))
        self._account(graph, report, result)
        result.statistics.update(quantize_nodes=borders[0], dequantize_nodes=borders[1])
        return result

    # -- samples -------------------------------------------------------------------------------

    def _samples(self, graph: Graph, context: PassContext, result: PassResult) -> Samples:
        if context.calibration is not None:
            samples = read(graph, context.calibration(), self.samples)
            if samples.count < samples.given:
                message = f"uses {samples.count} of {samples.given} samples, as many as are cheap"
                result.remarks.append(self.remark("note", "", message))
        else:
            norms = context.channel_moments
            rng = context.rng("synthetic inputs")
            arrays = synthetic_inputs(graph, norms, rng, affordable(graph, COUNT))
            samples = cut(graph, arrays, 0)
            fitted = ", ".join(fitted_inputs(graph, norms))
            basis = f"fitted to batch norms: {fitted}" if fitted else "of mean 0 and deviation 1"
            result.remarks.append(
                self.remark(
                    "note",
                    "",
                    f"no calibration data: calibrated on {samples.count} synthetic inputs "
                    f"({basis}); real samples (--calib) are more accurate",
                )
            )
        result.statistics["samples"] = samples.count
        return samples

    def _equalise(
        self,
        graph: Graph,
        plan: Structure,
        samples: Samples,
        context: PassContext,
        result: PassResult,
    ) -> None:
        if context.calibration is None or not pairs(graph, plan):
            return
        advance = part(context, 0.0, 0.15, "equalising channels")
        seen = observe(samples.first(_EQUALISING), set(), advance)
        equalise(samples.network, plan, seen)
        result.statistics["equalised_pairs"] = equalise(graph, plan, seen)

    # -- encodings -----------------------------------------------------------------------------

    def _encodings(
        self,
        graph: Graph,
        plan: Structure,
        seen: Observation,
        samples: Samples,
        result: PassResult,
    ) -> dict[str, Affine]:
        """Encoding of every group of values."""
        synthetic = not samples.given
        method = "min-max" if synthetic else self.ranges
        limits = structure.clamp_limits(graph) if synthetic else {}
        exact = self._exact_inputs(graph, plan, samples, result)
        out: dict[str, Affine] = {}
        for root, names in plan.members().items():
            if root in exact:
                out[root] = exact[root]
                continue
            found = [
                ranges.pick_range(seen.statistics[n], method, self.percentile, self.norm, self.bits)
                for n in names
                if n in seen.statistics
            ]
            found += [limits[n] for n in names if n in limits]
            low = min((r[0] for r in found), default=0.0)
            high = max((r[1] for r in found), default=0.0)
            out[root] = ranges.asymmetric(low, high, self.bits)
        return out

    def _exact_inputs(
        self, graph: Graph, plan: Structure, samples: Samples, result: PassResult
    ) -> dict[str, Affine]:
        """Groups that hold one input, moved but not mixed, whose values lie on a lattice."""
        out: dict[str, Affine] = {}
        moved = {
            v.name
            for n in graph.nodes
            if key(n) in plan.integer and op_of(n).quantised is Quantised.SAME
            for v in n.outputs
        }
        inputs = {v.name for v in graph.inputs}
        for root, names in plan.members().items():
            sources = [n for n in names if n not in moved]
            if len(sources) != 1 or sources[0] not in inputs:
                continue
            encoding = ranges.input_lattice(samples.arrays[sources[0]], self.bits)
            if encoding is not None:
                out[root] = encoding
                message = f"its values are multiples of {encoding.scale:.6g}, kept exactly"
                result.remarks.append(self.remark("note", sources[0], message))
        return out

    # -- report --------------------------------------------------------------------------------

    def _explain(self, graph: Graph, plan: Structure, result: PassResult) -> None:
        """Name every node that stays float, and why."""
        for node in graph.nodes:
            reason = plan.refused.get(key(node))
            if reason:
                result.remarks.append(self.remark("refused", node.loc or key(node), reason))
                result.count("float_nodes")
            elif key(node) in plan.dense_result:
                result.remarks.append(
                    self.remark("note", node.loc, f"{node.op} on codes with a float result")
                )
        refused = Counter(n.op for n in graph.nodes if n.op in LAYERS and key(n) in plan.refused)
        result.statistics["float_layers"] = sum(refused.values())

    def _account(self, graph: Graph, report: fit.FitReport, result: PassResult) -> None:
        names = {key(n): n.loc or key(n) for n in graph.nodes}
        for name, bound in report.accumulator.items():
            if bound >= weights.ACCUMULATOR:
                raise DlccError(
                    ExitCode.PASS,
                    "an accumulator could overflow",
                    where=names[name],
                    why=f"it can reach {bound}, int32 holds less than {weights.ACCUMULATOR}",
                    fix=f"leave the layer in float: quantize{{exclude=[{names[name]}]}}",
                )
            sqnr = report.sqnr.get(name)
            error = "" if sqnr is None else f", {sqnr:.1f} dB over noise on real activations"
            message = f"{self.bits}-bit weights{error}, accumulator below 2^{bound.bit_length()}"
            result.remarks.append(self.remark("applied", names[name], message))
        for name, channels in report.enlarged.items():
            message = f"scale of {channels} channels enlarged so that their bias fits 32 bits"
            result.remarks.append(self.remark("note", names[name], message))
        result.statistics["layers"] = report.layers
        result.statistics["exact_layers"] = report.exact
        if report.sqnr:
            result.statistics["worst_layer_sqnr_db"] = round(float(min(report.sqnr.values())), 2)
