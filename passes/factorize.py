"""Pass ``factorize``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.errors import DlccError
from dlcc.ir import F32, Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.base import Pass, PassContext, PassResult, Stage, option, part
from passes.compression.layers import weight_layers
from passes.compression.side_by_side import GetSums, SideBySide, name_of, why_not_fitted
from passes.factorization import ranks as rules
from passes.factorization.allocate import Offer, allocate
from passes.factorization.canonical import Cp
from passes.factorization.forms import Form, Spatial, Svd, Tucker
from passes.factorization.layer import Layer, replace_layer
from passes.factorization.plan import Plan, micros, offers, plan
from passes.factorization.ranks import NoRank, Rule
from passes.factorization.whitened import Metric
from passes.quantization.samples import Samples, read
from passes.quantization.structure import key

FORMS: dict[str, type[Form]] = {form.name: form for form in (Svd, Tucker, Spatial, Cp)}

MOST_ZEROS = 0.5
"""A weight with more zeros than this was pruned: its factors would be dense."""


@dataclass(frozen=True)
class Factorize(Pass):
    """Replace layers by two or three of lower rank, where the target computes them faster.

    Linear layers and 1x1 convolutions become two by singular value decomposition; convolutions a
    1x1 layer, a core of fewer channels, and a 1x1 layer (Tucker-2, Kim et al. 2016), or a vertical
    and a horizontal one (Jaderberg et al. 2014), whichever is predicted to be fastest. On request
    they become four, two of them depthwise (``method=cp``, Lebedev et al. 2015).

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
    stage: ClassVar[Stage] = Stage.FACTORS

    method: Literal["auto", "svd", "tucker", "spatial", "cp"] = option(
        "auto", "the form of the factors; auto: the fastest that meets the rule for ranks"
    )
    energy: float | None = option(
        None, "part of the squared weights to keep", minimum=0.0, maximum=1.0
    )
    error: float | None = option(
        None, "most relative error of a layer, 0 to 1", minimum=0.0, maximum=1.0
    )
    speedup: float | None = option(None, "how many times as fast a layer is to be", minimum=1.0)
    scope: Literal["layer", "network"] = option(
        "layer", "whether speedup is that of every layer, or of all layers of the network together"
    )
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
        samples = None
        if self.data_aware and context.calibration is not None and layers:
            samples = read(graph, context.batches(self), self.samples)
            result.statistics["samples"] = samples.count
        walk = _Walk(layers, samples, context, result, self)
        allotted: Mapping[str, Rule] = {}
        if self.scope == "network" and layers:
            allotted = self._allotted(graph, layers, walk, context)
        plans: list[Plan] = []

        def decide(layer: Layer, metric: Metric | None) -> Plan | None:
            try:
                forms = self._forms(layer)
                if not forms:
                    raise NoRank(FORMS[self.method].refusal(layer))
                own = allotted.get(key(layer.node), rule)
                plans.append(plan(layer, forms, own, context.seconds, self.gain, metric))
            except NoRank as reason:
                self._refuse(result, layer.loc, str(reason))
                return None
            return plans[-1]

        walk.run(decide)
        for found in plans:
            self._apply(graph, found, context, result)
        return result

    def _allotted(
        self, graph: Graph, layers: list[Layer], walk: _Walk, context: PassContext
    ) -> dict[str, Rule]:
        """The ranks of every layer with which the network reaches the speed-up.

        Raises:
            DlccError: USAGE, it cannot.
        """
        assert self.speedup is not None
        given: dict[str, list[Offer]] = {}

        def collect(layer: Layer, metric: Metric | None) -> None:
            forms = self._forms(layer)
            given[key(layer.node)] = offers(layer, forms, context.seconds, self.gain, metric)

        walk.run(collect, dense_prefix=True)
        others = [n for n in graph.nodes if op_of(n).multiplied and key(n) not in given]
        fixed = sum(map(context.seconds, others))
        own = sum(g[0].seconds for g in given.values())
        chosen = allocate(given, (fixed + own) / self.speedup - fixed)
        if chosen is None:
            least = fixed + sum(min(o.seconds for o in g) for g in given.values())
            most = f"its layers take {micros(fixed + own)}, at the lowest ranks {micros(least)}"
            raise self._usage(
                f"the network cannot become {self.speedup:g} times as fast: {most}", "ask for less"
            )
        return {name: rules.Allotted(o.method, o.ranks) for name, o in chosen.items()}

    def rule(self) -> Rule:
        """How ranks are chosen.

        Raises:
            DlccError: USAGE, several rules, or one that asks for nothing.
        """
        given = {k: getattr(self, k) for k in ("energy", "error", "speedup", "ratio", "rank")}
        given = {k: v for k, v in given.items() if v is not None}
        if len(given) > 1:
            raise self._usage(f"{' and '.join(given)} are given together", "give one of them")
        if self.scope == "network" and self.speedup is None:
            raise self._usage("scope=network distributes a speedup", "give speedup=2, say")
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

    def _forms(self, layer: Layer) -> list[type[Form]]:
        """Those of them that fit it."""
        return [FORMS[m] for m in self._methods(layer) if not FORMS[m].refusal(layer)]

    def _check_rank(self, rank: int, layers: list[Layer]) -> None:
        """Refuse a rank that no layer has."""
        ranks = [max(f(layer).full) for layer in layers for f in self._forms(layer)]
        if rank > max(ranks, default=rank):
            fix = f"give one of at most {max(ranks)}"
            raise self._usage(f"rank {rank} is above every layer's", fix)

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
        return self.usage("the ranks cannot be chosen", why, fix)


@dataclass(frozen=True)
class _Walk:
    """Visits the layers in execution order, with what is known of their inputs.

    Attributes:
        layers: in execution order.
        samples: calibration data, or None.
        context: of the pipeline.
        result: gets a note for each layer whose inputs are not looked at.
        owner: the pass.
    """

    layers: list[Layer]
    samples: Samples | None
    context: PassContext
    result: PassResult
    owner: Factorize

    def run(
        self, act: Callable[[Layer, Metric | None], Plan | None], *, dense_prefix: bool = False
    ) -> None:
        """Call ``act`` with every layer; later layers see the factors that it returns.

        Args:
            act: gets a layer and its metric, None without data.
            dense_prefix: metrics are those of the dense network, and nothing is reported.
        """
        if self.samples is None:
            for index, layer in enumerate(self.layers):
                act(layer, None)
                self.context.advance((index + 1) / len(self.layers))
            return
        both = SideBySide(self.samples, self.context.rng("factorize"))
        known = {key(layer.node): layer for layer in self.layers}

        def visit(node: Node, sums: GetSums) -> None:
            layer = known[name_of(node)]
            metric, why = self._metric(layer, sums, dense_prefix)
            if why and not dense_prefix:
                message = f"factorised by its weights alone: {why}"
                self.result.remarks.append(self.owner.remark("note", layer.loc, message))
            found = act(layer, metric)
            if found is not None:
                _follow(both.new, node, found)

        start, stop = (0.0, 0.3) if dense_prefix else (0.3, 1.0)
        both.run(known, visit, part(self.context, start, stop, "fitting factors"))

    def _metric(self, layer: Layer, sums: GetSums, dense_prefix: bool) -> tuple[Metric | None, str]:
        """The metric of a layer, or None and the reason."""
        assert self.samples is not None
        why = why_not_fitted(layer.node, self.samples.count)
        if why:
            return None, why
        metric = Metric.of(layer, *sums(), dense_prefix=dense_prefix)
        return (metric, "") if metric.spread else (None, "its results do not vary")


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


def _follow(network: Graph, node: Node, plan: Plan) -> None:
    """Let a layer of a running network compute what its factors will."""
    old = node.input(1)
    composed = plan.composed.reshape(old.type.shape).astype(np.float32)
    node.set_input(1, network.add_constant(composed, name=old.name))
    if plan.bias is not None:
        node.set_input(2, network.add_constant(plan.bias.astype(np.float32), name=old.name))
