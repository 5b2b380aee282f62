"""What passes that quantise have in common: options, samples, ranges of activations, remarks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from dlcc.analysis.certificates import Assignment
from dlcc.analysis.rebatch import batch_size
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph
from dlcc.ops.base import Quantised, op_of
from passes.base import Pass, PassContext, PassResult, Stage, option, part
from passes.compression.side_by_side import Ahead
from passes.quantization import fit, ranges, structure, weights
from passes.quantization.equalise import equalise, pairs
from passes.quantization.fallback import FEEDS, spoiled
from passes.quantization.fixed_point import FixedFitter, FixedPoint
from passes.quantization.indices import integer_range
from passes.quantization.observe import Observation, observe
from passes.quantization.rewrite import Rewriter
from passes.quantization.rounding import ROUNDING_HELP
from passes.quantization.samples import Samples, affordable, cut, read
from passes.quantization.structure import LAYERS, Structure, key
from passes.quantization.synthetic import COUNT, fitted_inputs, is_integer, synthetic_inputs
from passes.quantization.widths import BitWidths

_ROUNDS = 4
"""How often operations are looked for that rounding would spoil."""

_EQUALISING = 32
"""Samples from which the ranges of channels are taken."""


@dataclass(frozen=True)
class Quantiser(Pass):
    """Base of the passes that quantise weights and activations after training."""

    lossy: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.CODES
    enlarged_for: ClassVar[str] = "their bias fits 32 bits"
    """Why scales of channels are enlarged, in remarks."""

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
    rounding: Literal["nearest", "gptq", "adaround"] = option("gptq", ROUNDING_HELP)
    fall_back: bool = option(
        True,
        "operations whose results rounding to 8 bits would spoil (logarithms and roots of spectra, "
        "differences) stay float, with what leads to them from the layers before",
    )
    exclude: tuple[str, ...] = option((), "layers that stay float, by name; * and ? match")
    outputs: bool = option(
        False, "the network's results become codes too, for integer-outputs to hand out"
    )

    @property
    def layer_bits(self) -> int:
        """Codes of up to 8 bits are multiplied as bytes."""
        return 8

    @property
    def fits_weights(self) -> bool:
        """Whether narrow weights are fitted to the float network before they are rounded."""
        return self.rounding != "nearest"

    @property
    def codes_recurrent(self) -> bool:
        """Whether the weights of recurrent layers' states become codes."""
        return False

    @abstractmethod
    def widths(self) -> BitWidths:
        """Widths of the codes, as far as they are known before the layers are fitted."""

    def assign(self, widths: BitWidths, graph: Graph, plan: Structure) -> None:
        """Enter the widths that are known by layer."""

    def fixed(
        self, graph: Graph, plan: Structure, seen: Observation, widths: BitWidths
    ) -> FixedPoint | None:
        """How scales are chosen where they are powers of two."""
        return None

    @abstractmethod
    def fitter(self, prepared: fit.Prepared) -> fit.Fitter:
        """What fits the layers."""

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Quantise in place.

        Raises:
            DlccError: the calibration data does not fit the network, or an accumulator could
                overflow.
        """
        result = PassResult()
        widths = self.widths()
        plan = self._structure(graph, widths)
        self._explain(graph, plan, result)
        self.assign(widths, graph, plan)
        if not structure.fitted(graph, plan):
            result.remarks.append(self.remark("note", "", "nothing to quantise"))
            return result
        result.modified = True
        samples = self._samples(graph, context, result)
        if self.equalise:
            self._equalise(graph, plan, samples, context, result)
        seen = observe(samples, set(plan.group), part(context, 0.15, 0.4, "observing"))
        if seen.unbounded:
            plan = self._without(graph, plan, seen, widths, result)
        fixed = self.fixed(graph, plan, seen, widths)
        if fixed is None:
            plan = self._without_spoiled(graph, plan, seen, samples, widths, result)
        encoding_at = self._encoding_at(graph, plan, seen, samples)
        if fixed is not None:
            encoding_at = self._fixed_at(fixed, graph, plan, seen, samples)
        encodings = {r: encoding_at(r, widths.activation(r)) for r in plan.members()}
        twin = samples.network
        holding = ranges.asymmetric if fixed is None else fixed.holding
        dense = Ahead(samples) if self.fits_weights and samples.given else None
        borders = Rewriter(graph, plan, encodings, holding).run()
        Rewriter(twin, plan, encodings, holding).run()
        options = fit.FitOptions(self.bias_correction, self.rounding, context.seed)
        prepared = fit.Prepared(
            graph, twin, plan, widths, options, samples, seen, encoding_at, dense
        )
        fitter = self.fitter(prepared) if fixed is None else FixedFitter(prepared, fixed)
        report = fitter.run(part(context, 0.4, 1.0, "fitting weights"))
        if fixed is None:
            self._explain_inputs(graph, plan, samples, widths, result)
        self._account(graph, fitter, report, result)
        context.assigned.update(self.promises(fitter))
        result.statistics.update(quantize_nodes=borders[0], dequantize_nodes=borders[1])
        return result

    def _structure(
        self,
        graph: Graph,
        widths: BitWidths,
        unbounded: Collection[str] = (),
        spoiled: Mapping[str, str] | None = None,
    ) -> Structure:
        return structure.analyse(
            graph,
            self.exclude,
            widths.weights,
            widths.activations,
            outputs=self.outputs,
            unbounded=unbounded,
            recurrent=self.codes_recurrent,
            spoiled=spoiled,
        )

    def _without_spoiled(
        self,
        graph: Graph,
        plan: Structure,
        seen: Observation,
        samples: Samples,
        widths: BitWidths,
        result: PassResult,
    ) -> Structure:
        """The plan with what rounding would spoil left float.

        What stays float moves errors to others, so that they are looked at again.
        """
        feeds = samples.single(graph, FEEDS)
        found: dict[str, str] = {}
        for _ in range(_ROUNDS if self.fall_back else 0):
            encoding_at = self._encoding_at(graph, plan, seen, samples)
            more = spoiled(graph, plan, cache(encoding_at), feeds)
            if not more:
                break
            found = more | found
            plan = self._without(graph, plan, seen, widths, result, found)
        return plan

    def _without(
        self,
        graph: Graph,
        plan: Structure,
        seen: Observation,
        widths: BitWidths,
        result: PassResult,
        spoiled: Mapping[str, str] | None = None,
    ) -> Structure:
        """The plan with what has no range, or would be spoiled, left float."""
        rest = self._structure(graph, widths, seen.unbounded, spoiled)
        for node in graph.nodes:
            reason = rest.refused.get(key(node))
            if reason and key(node) not in plan.refused:
                result.remarks.append(self.remark("refused", node.loc or key(node), reason))
                result.count("float_nodes")
        result.statistics["float_layers"] = _float_layers(graph, rest)
        self.assign(widths, graph, rest)
        return rest

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
            own = batch_size(graph) or 1
            batches = max(1, affordable(graph, COUNT * own) // own)
            arrays = synthetic_inputs(graph, norms, rng, batches)
            samples = cut(graph, arrays, 0)
            fitted = ", ".join(fitted_inputs(graph, norms))
            for value in filter(is_integer, graph.inputs):
                drawn = integer_range(value)
                message = f"synthetic integers from {drawn.low} to {drawn.high}: {drawn.why}"
                result.remarks.append(self.remark("note", value.name, message))
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

    def _encoding_at(
        self, graph: Graph, plan: Structure, seen: Observation, samples: Samples
    ) -> fit.EncodingAt:
        """Encodings of every group of values."""
        synthetic = not samples.given
        method = "min-max" if synthetic else self.ranges
        limits = structure.clamp_limits(graph) if synthetic else {}
        members, inputs = plan.members(), _input_groups(graph, plan)
        through = structure.only_functions(graph, plan)

        def at(root: str, bits: int) -> Affine:
            exact = None
            if root in inputs:
                exact = ranges.input_lattice(samples.arrays[inputs[root]], bits)
            if exact is not None:
                return exact
            names = members[root]
            found = [
                ranges.pick_range(
                    seen.statistics[n],
                    method,
                    self.percentile,
                    self.norm,
                    bits,
                    through.get(root),
                )
                for n in names
                if n in seen.statistics
            ]
            found += [limits[n] for n in names if n in limits]
            low = min((r[0] for r in found), default=0.0)
            high = max((r[1] for r in found), default=0.0)
            return ranges.asymmetric(low, high, bits)

        return at

    def _fixed_at(
        self,
        fixed: FixedPoint,
        graph: Graph,
        plan: Structure,
        seen: Observation,
        samples: Samples,
    ) -> fit.EncodingAt:
        """Encodings of every group of values at scales that are powers of two."""
        members = plan.members()
        exact = "min-max" if not samples.given else self.ranges
        limits = {} if samples.given else structure.clamp_limits(graph)

        def at(root: str, bits: int) -> Affine:
            found = [seen.statistics[n] for n in members[root] if n in seen.statistics]
            if exact == "mse":
                return fixed.activation(found, bits, self.norm)
            ends = [ranges.pick_range(s, exact, self.percentile, self.norm, bits) for s in found]
            ends += [limits[n] for n in members[root] if n in limits]
            low = min((e[0] for e in ends), default=0.0)
            return fixed.holding(low, max((e[1] for e in ends), default=0.0), bits)

        return at

    def _explain_inputs(
        self, graph: Graph, plan: Structure, samples: Samples, widths: BitWidths, result: PassResult
    ) -> None:
        """Name the inputs whose codes lose nothing."""
        for root, name in _input_groups(graph, plan).items():
            encoding = ranges.input_lattice(samples.arrays[name], widths.activation(root))
            if encoding is not None:
                message = f"its values are multiples of {encoding.scale:.6g}, kept exactly"
                result.remarks.append(self.remark("note", name, message))

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
        result.statistics["float_layers"] = _float_layers(graph, plan)

    def _account(
        self, graph: Graph, fitter: fit.Fitter, report: fit.FitReport, result: PassResult
    ) -> None:
        names = {key(n): n.loc or key(n) for n in graph.nodes}
        for name, bound in report.accumulator.items():
            if bound >= weights.ACCUMULATOR:
                raise DlccError(
                    ExitCode.PASS,
                    "an accumulator could overflow",
                    where=names[name],
                    why=f"it can reach {bound}, int32 holds less than {weights.ACCUMULATOR}",
                    fix=f"leave the layer in float: {self.name}{{exclude=[{names[name]}]}}",
                )
            sqnr = report.sqnr.get(name)
            error = "" if sqnr is None else f", {sqnr:.1f} dB over noise on real activations"
            self.describe_layer(fitter, name, names[name], bound, error, result)
        for name, channels in report.enlarged.items():
            message = f"scale of {channels} channels enlarged so that {self.enlarged_for}"
            result.remarks.append(self.remark("note", names[name], message))
        result.statistics["layers"] = report.layers
        result.statistics["exact_layers"] = report.exact
        if report.sqnr:
            result.statistics["worst_layer_sqnr_db"] = round(float(min(report.sqnr.values())), 2)

    def promises(self, fitter: fit.Fitter) -> dict[str, Assignment]:
        """For which accumulators layers were given their widths, by the key of the layer."""
        return {}

    @abstractmethod
    def describe_layer(
        self, fitter: fit.Fitter, name: str, loc: str, bound: int, error: str, result: PassResult
    ) -> None:
        """Remark on a layer: its widths, its accumulator below ``bound``, its ``error``."""


def _float_layers(graph: Graph, plan: Structure) -> int:
    return sum(n.op in LAYERS and key(n) in plan.refused for n in graph.nodes)


def _input_groups(graph: Graph, plan: Structure) -> dict[str, str]:
    """Groups that hold one input, moved but not mixed: representative -> name of the input."""
    moved = {
        v.name
        for n in graph.nodes
        if key(n) in plan.integer and op_of(n).quantised is Quantised.SAME
        for v in n.outputs
    }
    inputs = {v.name for v in graph.inputs}
    out = {}
    for root, names in plan.members().items():
        sources = [n for n in names if n not in moved]
        if len(sources) == 1 and sources[0] in inputs:
            out[root] = sources[0]
    return out


__all__ = ["Quantiser"]
