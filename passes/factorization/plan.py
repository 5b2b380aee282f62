"""What becomes of one layer: ranks chosen among priced candidates, and the factors' weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.ir.encodings import Array
from passes.base import LayerCost
from passes.factorization.allocate import Offer
from passes.factorization.forms import Form
from passes.factorization.layer import Layer
from passes.factorization.price import Pricing
from passes.factorization.ranks import Candidate, Energy, ErrorBudget, NoRank, Rule
from passes.factorization.whitened import Metric, whitened

_ATTEMPTS = 6
"""Times that ranks are raised until an error budget holds on the samples that judge."""


@dataclass(frozen=True)
class Plan:
    """The factors of one layer.

    Attributes:
        layer: the layer.
        chosen: its form and ranks.
        seconds: predicted time of the layer itself.
        weights: of the factors.
        composed: the weight [O, I, KH, KW] of one layer that computes the same.
        bias: the new bias [O]; None where the layer's own stays.
        error: relative, of the results on data, or of the weights without.
    """

    layer: Layer
    chosen: Candidate
    seconds: float
    weights: list[Array]
    composed: Array
    bias: Array | None
    error: float


def plan(
    layer: Layer,
    forms: Sequence[type[Form]],
    rule: Rule,
    cost: LayerCost,
    gain: float,
    metric: Metric | None,
) -> Plan:
    """Choose the factors of a layer.

    Args:
        layer: the layer.
        forms: the forms that fit it.
        rule: how ranks are chosen.
        cost: predicts times.
        gain: least part of the layer's time to save.
        metric: what the layer is to compute on data, where there are any.

    Raises:
        NoRank: the layer stays as it is.
    """
    price = Pricing(layer, cost)
    candidates = _candidates(layer, forms, rule, price, metric)
    for _ in range(_ATTEMPTS):
        chosen = rule.pick(candidates, price.seconds)
        if chosen.seconds >= price.seconds or chosen.seconds > (1 - gain) * price.seconds:
            raise NoRank(
                f"{chosen} keeps {chosen.kept:.3f} of the energy, but is predicted to take "
                f"{micros(chosen.seconds)}, the layer itself {micros(price.seconds)}"
            )
        found = _fitted(layer, chosen, price.seconds, metric)
        if metric is None or found.bias is None or not isinstance(rule, ErrorBudget):
            return found
        judged = metric.error(found.composed, found.bias, held=True)
        if judged <= rule.error:
            return found
        rule = rule.raised(chosen.kept, judged)
    raise NoRank("no rank tried keeps the error of its results within the budget")


def offers(
    layer: Layer,
    forms: Sequence[type[Form]],
    cost: LayerCost,
    gain: float,
    metric: Metric | None,
) -> list[Offer]:
    """What a layer may become: first itself, then all that is faster. Arguments as for `plan`."""
    price = Pricing(layer, cost)
    found = [Offer.of(c) for c in _candidates(layer, forms, Energy(0.0), price, metric)]
    limit = (1 - gain) * price.seconds
    return [Offer("", (), 1.0, price.seconds), *(o for o in found if o.seconds <= limit)]


def _candidates(
    layer: Layer,
    forms: Sequence[type[Form]],
    rule: Rule,
    price: Pricing,
    metric: Metric | None,
) -> list[Candidate]:
    made = [f(layer) if metric is None else whitened(f, layer, metric) for f in forms]
    return [
        Candidate(form, ranks, form.kept(ranks), price(form, ranks))
        for form in made
        for ranks in rule.ranks(form)
    ]


def _fitted(layer: Layer, chosen: Candidate, seconds: float, metric: Metric | None) -> Plan:
    weights = chosen.form.weights(chosen.ranks)
    composed = chosen.form.compose(weights)
    if metric is None:
        error = float(np.linalg.norm(composed - layer.weight)) / math.sqrt(layer.energy)
        return Plan(layer, chosen, seconds, weights, composed, None, error)
    bias = metric.bias(composed)
    error = metric.error(composed, bias)
    return Plan(layer, chosen, seconds, weights, composed, bias, error)


def micros(seconds: float) -> str:
    """A time in microseconds."""
    return f"{seconds * 1e6:.1f} us"


__all__ = ["Plan", "micros", "offers", "plan"]
