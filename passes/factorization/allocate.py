"""Ranks of all layers at once, so that the network reaches a speed-up with the least loss.

Each layer offers pairs of predicted time and energy kept, itself included. Minimised is the sum of
-log(energy kept), the product of energies of Zhang et al. 2016 (section 3.3), under a bound on the
sum of times: with a price on time (a Lagrange multiplier) every layer chooses alone, and the least
price at which the bound holds is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.factorization.layer import Ranks
from passes.factorization.ranks import Candidate

_STEPS = 60
"""Bisections of the logarithm of the price."""

_LEAST = 1e-12
"""Energy below which nothing is told apart any more."""


@dataclass(frozen=True)
class Offer:
    """What a layer may become.

    Attributes:
        method: name of the form; "" for the layer itself.
        ranks: of the form.
        kept: part of the energy kept.
        seconds: predicted time.
    """

    method: str
    ranks: Ranks
    kept: float
    seconds: float

    @staticmethod
    def of(candidate: Candidate) -> Offer:
        """The offer of a candidate, without what its form knows of the layer."""
        return Offer(candidate.form.name, candidate.ranks, candidate.kept, candidate.seconds)

    @property
    def loss(self) -> float:
        """What it adds to the sum to minimise."""
        return -math.log(max(self.kept, _LEAST))


def allocate(offers: Mapping[str, Sequence[Offer]], budget: float) -> dict[str, Offer] | None:
    """One offer for each layer.

    Args:
        offers: of each layer, itself included.
        budget: seconds of all layers together.

    Returns:
        The choice, or None where even the fastest offers take longer.
    """
    chosen = supported(offers, budget)
    if chosen is None:
        return None
    left = budget - total(chosen)
    while upgrades := [
        ((o.loss - chosen[name].loss) / max(o.seconds - chosen[name].seconds, 1e-30), name, o)
        for name, given in offers.items()
        for o in given
        if o.loss < chosen[name].loss and o.seconds - chosen[name].seconds <= left
    ]:
        _, name, offer = min(upgrades, key=lambda u: u[:2])
        left -= offer.seconds - chosen[name].seconds
        chosen[name] = offer
    return chosen


def supported(offers: Mapping[str, Sequence[Offer]], budget: float) -> dict[str, Offer] | None:
    """The choice by a price alone; what it leaves of the budget no single price can spend."""

    def choose(price: float) -> dict[str, Offer]:
        return {
            name: min(given, key=lambda o: (o.loss + price * o.seconds, o.seconds))
            for name, given in offers.items()
        }

    best = {n: min(given, key=lambda o: (o.seconds, -o.kept)) for n, given in offers.items()}
    if total(best) > budget:
        return None
    low, high = -30.0, 60.0  # price from e^-30 to e^60 per second
    for _ in range(_STEPS):
        middle = (low + high) / 2
        chosen = choose(math.exp(middle))
        if total(chosen) <= budget:
            best, high = chosen, middle
        else:
            low = middle
    return best


def total(chosen: Mapping[str, Offer]) -> float:
    """Seconds of a choice."""
    return sum(o.seconds for o in chosen.values())


__all__ = ["Offer", "allocate", "supported", "total"]
