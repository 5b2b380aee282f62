"""Pass ``factorize``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.base import Pass, PassContext, PassResult, option
from passes.compression.layers import weight_layers
from passes.factorization import ranks as rules
from passes.factorization.forms import FORMS, Form
from passes.factorization.layer import Layer, replace_layer
from passes.factorization.price import Pricing
from passes.factorization.ranks import Candidate, NoRank, Rule
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
        for index, layer in enumerate(layers):
            try:
                chosen = self._choose(layer, rule, context)
            except NoRank as reason:
                self._refuse(result, layer.loc, str(reason))
            else:
                self._apply(graph, layer, chosen, context, result)
            context.advance((index + 1) / len(layers))
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
            return rules.Energy(1 - self.error**2)
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

    def _choose(self, layer: Layer, rule: Rule, context: PassContext) -> Candidate:
        """The factors to put in the layer's place.

        Raises:
            NoRank: the layer stays as it is.
        """
        forms = self._forms(layer)
        if not forms:
            raise NoRank(FORMS[self.method].refusal(layer))
        price = Pricing(layer, context.seconds)
        candidates = [
            Candidate(form, ranks, form.kept(ranks), price(form, ranks))
            for form in forms
            for ranks in rule.ranks(form)
        ]
        chosen = rule.pick(candidates, price.seconds)
        if chosen.seconds >= price.seconds or chosen.seconds > (1 - self.gain) * price.seconds:
            raise NoRank(
                f"{chosen} keeps {chosen.kept:.3f} of the energy, but is predicted to take "
                f"{_us(chosen.seconds)}, the layer itself {_us(price.seconds)}"
            )
        return replace(chosen, before=price.seconds)

    def _apply(
        self,
        graph: Graph,
        layer: Layer,
        chosen: Candidate,
        context: PassContext,
        result: PassResult,
    ) -> None:
        arrays = chosen.form.weights(chosen.ranks)
        error = float(np.linalg.norm(chosen.form.compose(arrays) - layer.weight))
        error /= math.sqrt(layer.energy)
        before = layer.node.input(1).type.bytes
        factors = chosen.form.factors(chosen.ranks)
        bias = layer.node.optional_input(2)
        nodes = replace_layer(graph, layer.node, factors, arrays, bias)
        after = sum(n.input(1).type.bytes for n in nodes)
        if layer.node.loc in context.channel_moments:
            context.channel_moments[nodes[-1].loc] = context.channel_moments.pop(layer.node.loc)
        message = (
            f"{chosen}: {_us(chosen.before)} -> {_us(chosen.seconds)} predicted, {before} -> "
            f"{after} bytes of weights, relative error {error:.3f} of the weights"
        )
        result.remarks.append(self.remark("applied", layer.loc, message))
        self._account(result, chosen, before, after, error)

    def _account(
        self, result: PassResult, chosen: Candidate, before: int, after: int, error: float
    ) -> None:
        result.modified = True
        result.count("factorised_layers")
        result.count("saved_bytes", before - after)
        told = result.statistics
        for name, seconds in (("before", chosen.before), ("after", chosen.seconds)):
            total = float(told.get(f"predicted_us_{name}", 0.0)) + seconds * 1e6
            told[f"predicted_us_{name}"] = round(total, 3)
        told["worst_weight_error"] = max(float(told.get("worst_weight_error", 0.0)), error)

    def _usage(self, why: str, fix: str) -> DlccError:
        return DlccError(
            ExitCode.USAGE,
            "the ranks cannot be chosen",
            where=f"pass {self.name!r}",
            why=why,
            fix=fix,
        )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


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
