"""Which ranks a layer gets: the rules a user may give, and the choice among priced candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from passes.factorization.forms import Form
from passes.factorization.layer import Ranks

CHANNEL_MULTIPLES = (1, 4, 8, 16, 32, 64)
"""A rank not given exactly is rounded up to one of these, as is predicted to be fastest."""

EQUAL_COST = 1.01
"""Among candidates as fast as this the one that keeps the most energy is taken."""


@dataclass(frozen=True)
class Candidate:
    """Ranks of a form, with what they keep and cost.

    Attributes:
        form: the form.
        ranks: its ranks.
        kept: part of the energy kept, 0 to 1.
        seconds: predicted time of the factors.
    """

    form: Form
    ranks: Ranks
    kept: float
    seconds: float

    def __str__(self) -> str:
        pairs = zip(self.form.axes, self.ranks, self.form.full, strict=True)
        return f"{self.form.name} of " + ", ".join(f"{a} {r} of {f}" for a, r, f in pairs)


Price = Callable[[Form, Ranks], float]
"""Predicted seconds of a form's factors."""


class NoRank(Exception):
    """A rule finds no rank for a layer; the message is the reason."""


class Rule(ABC):
    """How ranks are chosen."""

    @abstractmethod
    def ranks(self, form: Form) -> list[Ranks]:
        """The ranks to look at.

        Raises:
            NoRank: there are none.
        """

    @abstractmethod
    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        """The candidate to take, of a layer that takes ``seconds`` itself.

        Raises:
            NoRank: none will do.
        """


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest candidate; of those about as fast the most exact one."""
    limit = EQUAL_COST * min(c.seconds for c in candidates)
    return max((c for c in candidates if c.seconds <= limit), key=lambda c: (c.kept, -c.seconds))


@dataclass(frozen=True)
class Energy(Rule):
    """The fastest candidate that keeps a part of the energy.

    Attributes:
        least: part of the sum of squared weights to keep, 0 to 1.
    """

    least: float

    def ranks(self, form: Form) -> list[Ranks]:
        return form.candidates()

    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        fitting = [c for c in candidates if c.kept >= self.least]
        if not fitting:
            raise NoRank(f"no rank below the full one keeps {self.least:.4g} of the energy")
        return cheapest(fitting)


@dataclass(frozen=True)
class ErrorBudget(Energy):
    """The fastest candidate whose relative error stays below a budget.

    Attributes:
        error: norm of the error over the norm of what is approximated.
    """

    error: float

    @staticmethod
    def of(error: float) -> ErrorBudget:
        """The rule for an error of weights; truncated energy is the error's square."""
        return ErrorBudget(1 - error**2, error)

    def raised(self, kept: float, measured: float) -> ErrorBudget:
        """The rule to try next, where a candidate that keeps ``kept`` had a larger error."""
        lost = (1 - max(kept, self.least)) * min(0.8, (self.error / measured) ** 2)
        return ErrorBudget(1 - lost, self.error)


@dataclass(frozen=True)
class Speedup(Rule):
    """The most exact candidate that is so many times as fast as the layer.

    Attributes:
        factor: how many times.
    """

    factor: float

    def ranks(self, form: Form) -> list[Ranks]:
        return form.candidates()

    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        fitting = [c for c in candidates if c.seconds <= seconds / self.factor]
        if not fitting:
            raise NoRank(f"no rank is predicted {self.factor:g} times as fast")
        return max(fitting, key=lambda c: (c.kept, -c.seconds))


class _Wanted(Rule):
    """A rank for each axis, rounded up as the kernels like it."""

    @abstractmethod
    def wanted(self, form: Form) -> Ranks:
        """The least rank of each axis."""

    def ranks(self, form: Form) -> list[Ranks]:
        pairs = zip(self.wanted(form), form.full, strict=True)
        axes = [
            sorted({min(full, ceil(r / m) * m) for m in CHANNEL_MULTIPLES}) for r, full in pairs
        ]
        return [ranks for ranks in product(*axes) if ranks != form.full]

    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        if not candidates:
            raise NoRank("its ranks are the full ones")
        return cheapest(candidates)


@dataclass(frozen=True)
class Ratio(_Wanted):
    """A part of the full rank.

    Attributes:
        ratio: the part, above 0 and below 1.
    """

    ratio: float

    def wanted(self, form: Form) -> Ranks:
        return tuple(max(1, round(self.ratio * full)) for full in form.full)


@dataclass(frozen=True)
class Evb(_Wanted):
    """The rank that stands out from noise, by variational Bayesian matrix factorisation."""

    def wanted(self, form: Form) -> Ranks:
        ranks = form.evb()
        if not all(ranks):
            raise NoRank("variational Bayes finds no component above the noise of its weights")
        return ranks


@dataclass(frozen=True)
class Exactly(Rule):
    """One rank for all axes, as given.

    Attributes:
        rank: the rank; an axis that has fewer keeps all of them.
    """

    rank: int

    def ranks(self, form: Form) -> list[Ranks]:
        if self.rank > max(form.full):
            raise NoRank(f"rank {self.rank} is above its full rank {max(form.full)}")
        ranks = tuple(min(self.rank, full) for full in form.full)
        return [] if ranks == form.full else [ranks]

    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        if not candidates:
            raise NoRank(f"rank {self.rank} is its full rank")
        return cheapest(candidates)


@dataclass(frozen=True)
class Allotted(Rule):
    """The form and the ranks that a layer was given among all layers.

    Attributes:
        method: name of the form; "" where the layer stays.
        given: ranks of the form.
    """

    method: str
    given: Ranks

    def ranks(self, form: Form) -> list[Ranks]:
        return [self.given] if form.name == self.method else []

    def pick(self, candidates: Sequence[Candidate], seconds: float) -> Candidate:
        if not candidates:
            raise NoRank("other layers lose less for the same time")
        return candidates[0]


__all__ = [
    "Allotted",
    "Candidate",
    "Energy",
    "ErrorBudget",
    "Evb",
    "Exactly",
    "NoRank",
    "Price",
    "Ratio",
    "Rule",
    "Speedup",
    "cheapest",
]
