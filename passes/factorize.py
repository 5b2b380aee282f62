"""Pass ``factorize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.base import Pass, PassContext, PassResult, option
from passes.compression.layers import weight_layers
from passes.compression.side_by_side import DEEPEST, HELD, GetSums, SideBySide, name_of
from passes.factorization import ranks as rules
from passes.factorization.forms import FORMS, Form
from passes.factorization.layer import Layer, replace_layer
from passes.factorization.plan import Plan, micros, plan
from passes.factorization.ranks import NoRank, Rule
from passes.factorization.whitened import Metric
from passes.quantization.samples import read
from passes.quantization.structure import key

MOST_ZEROS = 0.5
"""A weight with more zeros than this was pruned: its factors would be dense."""


@dataclass(frozen=True)
class Factorize(Pass):
    """Replace layers by two or three of lower rank, where the target computes them faster.

    Linear layers and 1x1 convolutions become two by singular value decomposition; convolutions a
    1x1 layer, a core of fewer channels, and a 1x1 layer (Tucker-2, Kim et al. 2016), or a vertical
    and a horizontal one (Jaderberg et al. 2014), whichever is predicted to be fastest.

    ::

        %y = conv2d(%x, @w, @b) {pads=[1,1,1,1], act_min=0.0}      // @w f32[128,128,3,3]
        ->
        %a = conv2d(%x, @w.reduce)                                 // f32[40,128,1,1]
        %c = conv2d(%a, @w.core) {pads=[1,1,1,1]}                  // f32[48,40,3,3]
        %y = conv2d(%c, @w.expand, @b) {act_min=0.0}               // f32[128,48,1,1]

    Ranks follow from one of ``energy`` (the default, 0.9), ``error``, ``speedup``, ``ratio`` and
    ``rank``. A layer is replaced only if the predicted time of its factors is below its own by
    ``gain``; the prediction is that of the target's kernels at the width to which later passes
    round.

    With calibration data, energies and errors are those of the layer's results on inputs that went
    through the factorised prefix of the network, the factors are fitted to what the dense network
    computes there, and the last one's bias keeps the means.
    """

    name: ClassVar[str] = "factorize"
    lossy: ClassVar[bool] = True

    method: Literal["auto", "svd", "tucker", "spatial"] = option(
        "auto", "the form of the factors; auto: the fastest that meets the rule for ranks"
    )
    energy: float | None = option(
        None, "part of the squared weights to keep", minimum=0.0, maximum=1.0
    )
    error: float | None = option(
        None, "most relative error of a layer, 0 to 1", minimum=0.0, maximum=1.0
    )
    speedup: float | None = option(None, "how many times as fast a layer is to be", minimum=1.0)
    ratio: float | None = option(None, "part of the full rank", minimum=0.0, maximum=1.0)
    rank: str | None = option(
        None, "evb (by variational Bayes), or the number of components, for all layers"
    )
    gain: float = option(
        0.05, "least part of a layer's predicted time to save", minimum=0.0, maximum=1.0
    )
    data_aware: bool = option(
        True, "fit factors to the results on the calibration data, where there are any"
    )
    samples: int = option(200, "most calibration samples to use", unit="samples", minimum=1)
    only: tuple[str, ...] = option((), "layers to factorise, by name; * and ? match")
    exclude: tuple[str, ...] = option((), "layers to leave alone, by name; * and ? match")

    def __post_init__(self) -> None:
        if isinstance(self.rank, int):  # as it is natural in Python
            object.__setattr__(self, "rank", str(self.rank))
        super().__post_init__()
        self.rule()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Replace layers in place.

        Raises:
            DlccError: a pattern of ``only`` matches nothing, or the rank is above every layer's.
        """
        result, rule = PassResult(), self.rule()
        layers = self._layers(graph, result)
        if isinstance(rule, rules.Exactly):
            self._check_rank(rule.rank, layers)
        if self.data_aware and context.calibration is not None and layers:
            plans = self._plans_on_data(graph, layers, rule, context, result)
        else:
            plans = []
            for index, layer in enumerate(layers):
                plans.append(self._plan(layer, rule, context, result, None))
                context.advance((index + 1) / len(layers))
        for found in plans:
            if found is not None:
                self._apply(graph, found, context, result)
        return result

    def rule(self) -> Rule:
        """How ranks are chosen.

        Raises:
            DlccError: USAGE, several rules, or one that asks for nothing.
        """
        given = {k: getattr(self, k) for k in ("energy", "error", "speedup", "ratio", "rank")}
        given = {k: v for k, v in given.items() if v is not None}
        if len(given) > 1:
            raise self._usage(f"{' and '.join(given)} are given together", "give one of them")
        if self.energy == 0 or self.ratio == 0 or self.error == 1:
            raise self._usage("nothing would be left of a layer", "keep a part of it")
        if self.energy == 1 or self.ratio == 1 or self.error == 0 or self.speedup == 1:
            raise self._usage("only full ranks would do", "ask for less than all of a layer")
        if self.error is not None:
            return rules.ErrorBudget.of(self.error)
        if self.speedup is not None:
            return rules.Speedup(self.speedup)
        if self.ratio is not None:
            return rules.Ratio(self.ratio)
        if self.rank is not None:
            return self._rank_rule(self.rank)
        return rules.Energy(0.9 if self.energy is None else self.energy)

    def _rank_rule(self, rank: str) -> Rule:
        if rank == "evb":
            return rules.Evb()
        if not rank.isdecimal() or not int(rank):
            raise self._usage(f"rank={rank} is no rank", "give evb or an integer of at least 1")
        return rules.Exactly(int(rank))

    # -- layers --------------------------------------------------------------------------------

    def _refuse(self, result: PassResult, loc: str, reason: str) -> None:
        result.remarks.append(self.remark("refused", loc, reason))
        result.count("refused_layers")

    def _layers(self, graph: Graph, result: PassResult) -> list[Layer]:
        """The layers that could be factorised, in execution order; why not the others."""

        def refuse(loc: str, reason: str) -> None:
            self._refuse(result, loc, reason)

        found: list[Layer] = []
        for shared in weight_layers(graph, self.only, self.exclude, refuse):
            for node in shared.nodes:
                reason = _reason(node, shared.values)
                if reason:
                    refuse(node.loc or key(node), reason)
                else:
                    found.append(Layer.of(node, shared.values))
        place = {node: index for index, node in enumerate(graph.nodes)}
        return sorted(found, key=lambda layer: place[layer.node])

    def _methods(self, layer: Layer) -> tuple[str, ...]:
        """The forms to compare for a layer."""
        if self.method != "auto":
            return (self.method,)
        return ("svd",) if layer.kernel == (1, 1) else ("tucker", "spatial")

    def _forms(self, layer: Layer) -> list[Form]:
        """Those of them that fit it."""
        return [FORMS[m](layer) for m in self._methods(layer) if not FORMS[m].refusal(layer)]

    def _check_rank(self, rank: int, layers: list[Layer]) -> None:
        """Refuse a rank that no layer has."""
        ranks = [max(form.full) for layer in layers for form in self._forms(layer)]
        if rank > max(ranks, default=rank):
            fix = f"give one of at most {max(ranks)}"
            raise self._usage(f"rank {rank} is above every layer's", fix)

    # -- one layer -----------------------------------------------------------------------------

    def _plan(
        self,
        layer: Layer,
        rule: Rule,
        context: PassContext,
        result: PassResult,
        metric: Metric | None,
    ) -> Plan | None:
        """The factors of a layer, or None where it stays."""
        forms = [FORMS[m] for m in self._methods(layer) if not FORMS[m].refusal(layer)]
        try:
            if not forms:
                raise NoRank(FORMS[self.method].refusal(layer))
            return plan(layer, forms, rule, context.seconds, self.gain, metric)
        except NoRank as reason:
            self._refuse(result, layer.loc, str(reason))
            return None

    def _plans_on_data(
        self,
        graph: Graph,
        layers: list[Layer],
        rule: Rule,
        context: PassContext,
        result: PassResult,
    ) -> list[Plan | None]:
        """The factors of all layers, each fitted to the inputs that the earlier ones leave it."""
        samples = read(graph, context.batches(self), self.samples)
        result.statistics["samples"] = samples.count
        both = SideBySide(samples, context.rng("factorize"))
        known = {key(layer.node): layer for layer in layers}
        plans: list[Plan | None] = []

        def visit(node: Node, sums: GetSums) -> None:
            layer = known[name_of(node)]
            why = _no_metric(layer, both.samples)
            metric = None if why else Metric.of(layer, *sums())
            if metric is not None and not metric.spread:
                why, metric = "its results do not vary", None
            if why:
                message = f"factorised by its weights alone: {why}"
                result.remarks.append(self.remark("note", layer.loc, message))
            found = self._plan(layer, rule, context, result, metric)
            plans.append(found)
            if found is not None:
                _follow(both.new, node, found)

        both.run(known, visit, context.advance)
        return plans

    # -- the graph -----------------------------------------------------------------------------

    def _apply(self, graph: Graph, found: Plan, context: PassContext, result: PassResult) -> None:
        layer, chosen = found.layer, found.chosen
        node = layer.node
        before = node.input(1).type.bytes
        bias = node.optional_input(2)
        if found.bias is not None:
            name = f"{node.input(1).name}.bias" if bias is None else bias.name
            bias = graph.add_constant(found.bias.astype(np.float32), name=name)
        factors = chosen.form.factors(chosen.ranks)
        nodes = replace_layer(graph, node, factors, found.weights, bias)
        after = sum(n.input(1).type.bytes for n in nodes)
        if node.loc in context.channel_moments:
            context.channel_moments[nodes[-1].loc] = context.channel_moments.pop(node.loc)
        what = "weights" if found.bias is None else "results"
        message = (
            f"{chosen}: {micros(found.seconds)} -> {micros(chosen.seconds)} predicted, {before} -> "
            f"{after} bytes of weights, relative error {found.error:.3f} of the {what}"
        )
        result.remarks.append(self.remark("applied", layer.loc, message))
        self._account(result, found, before - after)

    def _account(self, result: PassResult, found: Plan, saved: int) -> None:
        result.modified = True
        result.count("factorised_layers")
        result.count("saved_bytes", saved)
        told = result.statistics
        for name, seconds in (("before", found.seconds), ("after", found.chosen.seconds)):
            total = float(told.get(f"predicted_us_{name}", 0.0)) + seconds * 1e6
            told[f"predicted_us_{name}"] = round(total, 3)
        told["worst_error"] = max(float(told.get("worst_error", 0.0)), found.error)

    def _usage(self, why: str, fix: str) -> DlccError:
        return DlccError(
            ExitCode.USAGE,
            "the ranks cannot be chosen",
            where=f"pass {self.name!r}",
            why=why,
            fix=fix,
        )


def _reason(node: Node, weight: Array) -> str:
    """Why a layer cannot be factorised, or ""."""
    if node.op == "conv_transpose2d":
        return "transposed convolutions are not factorised"
    groups = int(op_of(node).get(node, "groups")) if node.op == "conv2d" else 1
    if groups > 1 and groups == node.input(0).type.shape[1]:
        return "depthwise: an output reads one channel, there is nothing to share"
    if groups > 1:
        return f"its {groups} groups share no channels, each would need factors of its own"
    stored = node.input(1).type
    if not stored.is_dense:
        return f"its weight is stored as {stored.encoding.name}; factorise before other compression"
    values = [v for v in (*node.inputs, node.output) if v is not None]
    if any(v.type.dtype != F32 or not v.type.is_dense for v in values):
        return "not on float32 numbers"
    zeros = 1 - np.count_nonzero(weight) / weight.size
    if zeros > MOST_ZEROS:
        return f"{100 * zeros:.0f} % of its weights are zero, its factors would be dense"
    if min(node.output.type.elements, *weight.shape[:2]) < 2:
        return "it has one channel only"
    return ""


def _no_metric(layer: Layer, samples: int) -> str:
    """Why a layer's results cannot be looked at, or ""."""
    bias = layer.node.optional_input(2)
    if bias is not None and not bias.is_constant:
        return "its bias is not constant"
    depth = layer.weight.size // layer.outputs
    if depth > DEEPEST:
        return f"its sums of {depth} products are longer than {DEEPEST}"
    if samples < HELD or layer.node.output.type.rank < 2:
        return f"it takes a batch axis and {HELD} samples at least"
    return ""


def _follow(network: Graph, node: Node, plan: Plan) -> None:
    """Let a layer of a running network compute what its factors will."""
    old = node.input(1)
    composed = plan.composed.reshape(old.type.shape).astype(np.float32)
    node.set_input(1, network.add_constant(composed, name=old.name))
    if plan.bias is not None:
        node.set_input(2, network.add_constant(plan.bias.astype(np.float32), name=old.name))
