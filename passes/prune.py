"""Pass ``prune``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.ir import Graph, Sparse
from passes.base import Pass, PassContext, PassResult, Stage, option, part
from passes.compression import pruning, saliency, sensitivity
from passes.compression.layers import Refuse, WeightLayer, weight_layers, without_depthwise
from passes.compression.masks import Facts, check_pattern
from passes.compression.pruning import Candidate, Pruned
from passes.compression.reconstruct import Choice, reconstruct
from passes.quantization.samples import Samples, read
from passes.quantization.structure import key


@dataclass(frozen=True)
class Prune(Pass):
    """Set the weights that matter least to zero and store the others alone.

    How many: ``sparsity`` is a share of each layer's weights (scope=layer) or of the network's
    (scope=global, scope=sensitivity); ``threshold`` and ``deviations`` drop what is small. Which:
    those of least ``saliency``. Where: the ``pattern`` says what is kept or dropped as a whole, and
    thereby which kernels can run on it.

    A layer stays as it was, with the reason in a remark, where the pattern does not fit it, where
    no weight would be dropped, or all would, and where it is depthwise and ``depthwise`` is not
    given (Zhu and Gupta 2017, "To prune, or not to prune", leave these out too). What is smaller
    dense is stored dense.

    ::

        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]
        ->
        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]!sparse<pattern="unstructured", ...>
    """

    name: ClassVar[str] = "prune"
    lossy: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.ZEROS

    sparsity: float | None = option(
        None, "share of weights that are zero afterwards", unit="below 1", minimum=0.0, maximum=1.0
    )
    threshold: float | None = option(None, "smallest |weight| to keep", minimum=0.0)
    deviations: float | None = option(
        None,
        "smallest |weight| to keep, over the standard deviation of the layer's weights",
        unit="standard deviations",
        minimum=0.0,
    )
    scope: Literal["layer", "global", "sensitivity"] = option(
        "layer",
        "where the sparsity holds: in every layer; global: in the network, saliencies compared "
        "across layers; sensitivity: in the network, distributed by the outputs' error when each "
        "layer is pruned alone",
    )
    pattern: str = option(
        "unstructured",
        "which weights are kept: unstructured; N:M (2:4); blockRxC (block16x4), or block for what "
        "suits the target; balancedR: equally many in every R rows, or balanced",
    )
    saliency: Literal["magnitude", "obd", "obs", "wanda", "first-order"] = option(
        "magnitude",
        "what tells how much a weight matters: its magnitude; obd: the error of the layer's result "
        "on calibration data (optimal brain damage); obs: that error once the others are fitted, "
        "found in rounds of fits (optimal brain surgeon; with reconstruct); wanda: as obd, but "
        "compared within each output; first-order: the change of the network's outputs, by their "
        "gradients",
    )
    reconstruct: bool = option(
        False, "fit the remaining weights and the biases to the dense network's calibration results"
    )
    depthwise: bool = option(
        False, "prune depthwise layers too, whose few weights carry a channel each"
    )
    samples: int = option(256, "most calibration samples to use", unit="samples", minimum=1)
    only: tuple[str, ...] = option((), "layers to prune, by name; * and ? match; none for all")
    exclude: tuple[str, ...] = option((), "layers to leave alone, by name; * and ? match")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.pattern, f"pass {self.name!r}")
        amounts = [self.sparsity, self.threshold, self.deviations]
        given = sum(a is not None for a in amounts)
        if self._fixed:
            if given or self.scope != "layer":
                raise self.usage(
                    f"pattern={self.pattern} takes no sparsity, threshold or scope",
                    "the pattern says how many weights are kept, everywhere",
                    "leave them out",
                )
        elif given != 1:
            raise self.usage(
                "one of sparsity, threshold and deviations must be given",
                f"{given} of them are",
                "write prune{sparsity=0.8}, for example",
            )
        if self.sparsity == 1.0:
            raise self.usage(
                "option sparsity=1 is not valid", "no weight would be left", "choose less than 1"
            )
        if self.saliency != "magnitude" and self.sparsity is None and not self._fixed:
            raise self.usage(
                f"saliency={self.saliency} goes with sparsity",
                "thresholds are magnitudes of weights",
                "leave saliency out",
            )
        if self.saliency == "obs" and not self.reconstruct:
            raise self.usage(
                "saliency=obs goes with reconstruct",
                "it judges weights by what the others can take over",
                "write prune{sparsity=0.8 saliency=obs reconstruct}, or choose obd",
            )
        if self.scope != "layer" and self.sparsity is None:
            raise self.usage(
                f"scope={self.scope} goes with sparsity",
                "a threshold is one for all layers anyway, deviations are of each layer",
                "leave scope out",
            )

    @property
    def _fixed(self) -> bool:
        """The pattern alone says how many weights are kept."""
        return self.pattern not in ("block", "balanced") and Sparse(self.pattern).nm is not None

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Prune in place.

        Raises:
            DlccError: a name pattern matches no layer, or the calibration data is missing or does
                not fit the network.
        """
        result = PassResult()
        samples = self._samples(graph, context, result)
        advance = part(context, 0.0, 0.3, "measuring saliency")
        found = self.candidates(
            graph, samples, context.target, self._refuse(result), context.rng("saliency"), advance
        )
        keep = self._keep(found, samples, part(context, 0.3, 0.6, "measuring sensitivity"))
        done = self._apply(graph, found, keep, result)
        if self.reconstruct and samples is not None:
            self._reconstruct(graph, done, samples, context, result)
        reports = [pruning.report(d.choice.candidate, d.bytes_before) for d in done]
        for item, report in zip(done, reports, strict=True):
            result.remarks.append(self.remark("applied", item.layer.loc, str(report)))
        result.modified = bool(reports)
        result.statistics.update(_totals(reports))
        return result

    def _refuse(self, result: PassResult) -> Refuse:
        return lambda loc, why: result.remarks.append(self.remark("refused", loc, why))

    # -- which ---------------------------------------------------------------------------------

    def _samples(self, graph: Graph, context: PassContext, result: PassResult) -> Samples | None:
        if self.saliency == "magnitude" and self.scope != "sensitivity" and not self.reconstruct:
            return None
        samples = read(graph, context.batches(self), self.samples)
        result.statistics["samples"] = samples.count
        return samples

    def candidates(
        self,
        graph: Graph,
        samples: Samples | None,
        facts: Facts,
        refuse: Refuse,
        rng: np.random.Generator,
        advance: Callable[[float], None] = lambda _: None,
    ) -> list[Candidate]:
        """The layers that can be pruned, and how salient their weights are.

        Args:
            graph: the network; it stays as it is.
            samples: calibration samples; not needed for magnitudes.
            facts: of the target.
            refuse: told of each layer that cannot be pruned, and why.
            rng: for random projections of the outputs (saliency=first-order).
            advance: told the part done, 0 to 1.

        Raises:
            DlccError: a name pattern matches no layer, an activation is not finite, or an op has no
                gradient.
        """
        layers = weight_layers(graph, self.only, self.exclude, refuse)
        if not self.depthwise:
            layers = without_depthwise(layers, refuse)
        if self.saliency == "magnitude" or samples is None:
            scores = saliency.magnitudes(layers)
        elif self.saliency == "first-order":
            scores = saliency.output_changes(layers, samples, rng, advance)
        else:
            scores = saliency.output_errors(layers, samples, advance)
        per_row = self.saliency == "wanda"
        return pruning.candidates(layers, scores, self.pattern, facts, refuse, per_row=per_row)

    # -- how many ------------------------------------------------------------------------------

    def _keep(
        self,
        found: Sequence[Candidate],
        samples: Samples | None,
        advance: Callable[[float], None],
    ) -> list[int]:
        """Units that each layer keeps."""
        fixed = [c.units.fixed for c in found]
        if self._fixed or not found:
            return [n for n in fixed if n is not None]
        if self.sparsity is not None and self.scope == "sensitivity":
            assert samples is not None
            steps = (*sensitivity.SPARSITIES, 1.0)
            few = sensitivity.affordable(samples, len(found), len(steps))
            curves = sensitivity.analyse(few, found, steps, advance)
            return sensitivity.distribute(curves, found, self.sparsity)
        if self.sparsity is not None and self.scope == "global":
            return pruning.keep_in_all(found, self.sparsity)
        if self.sparsity is not None:
            return [pruning.keep_at(c, self.sparsity) for c in found]
        return [pruning.keep_above(c, self._smallest(c) ** 2) for c in found]

    def _smallest(self, candidate: Candidate) -> float:
        """Smallest |weight| of a layer to keep."""
        if self.threshold is not None:
            return self.threshold
        assert self.deviations is not None
        return self.deviations * float(candidate.layer.values.std(dtype=np.float64))

    def _why_not(self, candidate: Candidate, keep: int, dropped: int) -> str:
        """Why a layer stays as it is, or ""."""
        if keep == 0 and self.sparsity is None and not self._fixed:
            return f"none of its weights reaches {self._smallest(candidate):.3g}"
        sparse = isinstance(candidate.layer.weight.type.encoding, Sparse)
        zeros = candidate.layer.values.size - np.count_nonzero(candidate.layer.values)
        return "" if dropped or (zeros and not sparse) else "no weight would be dropped"

    # -- what is left --------------------------------------------------------------------------

    def _apply(
        self, graph: Graph, found: Sequence[Candidate], keeps: Sequence[int], result: PassResult
    ) -> list[_Done]:
        out = []
        for candidate, keep in zip(found, keeps, strict=True):
            layer, mask = candidate.layer, candidate.mask(keep)
            why = self._why_not(candidate, keep, int(np.count_nonzero(layer.values[~mask])))
            if why:
                self._refuse(result)(layer.loc, why)
                continue
            out.append(_Done(Choice(candidate, keep), layer.stored_bytes))
            pruning.store(graph, candidate, np.where(mask, layer.values, 0))
        return out

    def _reconstruct(
        self,
        graph: Graph,
        done: Sequence[_Done],
        samples: Samples,
        context: PassContext,
        result: PassResult,
    ) -> None:
        names = {key(d.layer.node): d.layer.loc for d in done}
        anew = self.saliency == "obs"
        choices = {key(d.layer.node): d.choice if anew else None for d in done}
        advance = part(context, 0.6, 1.0, "fitting what remains")
        fitted = reconstruct(graph, samples, choices, context.rng("reconstruct"), advance)
        for name, after in fitted.after.items():
            message = f"fitted: error of its result {fitted.before[name]:.3g} -> {after:.3g}"
            result.remarks.append(self.remark("note", names[name], message))
        for name, why in fitted.skipped.items():
            result.remarks.append(self.remark("note", names[name], f"not fitted: {why}"))
        result.statistics["fitted_layers"] = len(fitted.after)


@dataclass(frozen=True)
class _Done:
    """A layer that was pruned: from what, to how many units, and the bytes it took."""

    choice: Choice
    bytes_before: int

    @property
    def layer(self) -> WeightLayer:
        """The layer."""
        return self.choice.candidate.layer


def _totals(reports: Sequence[Pruned]) -> dict[str, int | float]:
    elements = sum(r.elements for r in reports)
    zeros = sum(r.zeros for r in reports)
    return {
        "layers": len(reports),
        "weights": elements,
        "zeros": zeros,
        "sparsity": round(zeros / max(1, elements), 4),
        "bytes_before": sum(r.bytes_before for r in reports),
        "bytes_after": sum(r.bytes_after for r in reports),
    }
