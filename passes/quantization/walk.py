"""From wide codes to narrow ones: which width to lower next, from measured sensitivities.

A *choice* gives every knob (the weights of a layer, a tensor that layers read) a width. Errors of
different knobs are taken as independent, so that their squares add up, as in
:mod:`passes.compression.sensitivity`; on the convex hulls of the knobs' curves the greedy order is
then the best one for every cost on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from passes.compression.sensitivity import lower_hull

Choice = tuple[int, ...]
"""A width for each knob."""


@dataclass(frozen=True)
class Knob:
    """Something that has a width.

    Attributes:
        name: in remarks.
        error: by width: squared change of the outputs over their square when this knob alone has
            that width.
        cost: by width: bytes, bits or seconds.
    """

    name: str
    error: Mapping[int, float]
    cost: Mapping[int, float]

    @property
    def widest(self) -> int:
        """The width to start from."""
        return max(self.cost)


def total(knobs: Sequence[Knob], choice: Choice) -> float:
    """Cost of a choice."""
    return sum(k.cost[w] for k, w in zip(knobs, choice, strict=True))


def expected(knobs: Sequence[Knob], choice: Choice) -> float:
    """Squared error that is expected of a choice."""
    return sum(k.error[w] for k, w in zip(knobs, choice, strict=True))


def path(knobs: Sequence[Knob]) -> list[Choice]:
    """Choices from the widest of every knob on, each cheaper than the one before.

    Of all next steps the one comes first that adds the least error for the cost it saves.
    """
    start = tuple(k.widest for k in knobs)
    steps = []
    for index, knob in enumerate(knobs):
        most = knob.cost[knob.widest]
        corners = [(most - c, knob.error[w], float(w)) for w, c in knob.cost.items() if c <= most]
        # of corners that save the same, the first is taken: that of the least error
        for a, b in pairwise(lower_hull(corners)):
            steps.append(((b[1] - a[1]) / (b[0] - a[0]), index, b[0], int(b[2])))
    out = [start]
    for _, index, _, width in sorted(steps):
        out.append((*out[-1][:index], width, *out[-1][index + 1 :]))
    return out


def deepest(choices: Sequence[Choice], meets: Callable[[Choice], bool]) -> int:
    """Index of the last of ``choices`` that meets a condition, found by halving.

    The first must meet it. Where the condition holds, fails and holds again, what is found meets it
    and its successor does not.
    """
    low, high = 0, len(choices)
    while high - low > 1:
        middle = (low + high) // 2
        if meets(choices[middle]):
            low = middle
        else:
            high = middle
    return low


def descend(
    knobs: Sequence[Knob], start: Choice, meets: Callable[[Choice], bool], most: int
) -> Choice:
    """Lower single knobs as long as the condition holds.

    Args:
        knobs: all of them.
        start: meets the condition.
        meets: the condition; each call costs one of ``most``.
        most: calls.
    """
    best, refused = start, set()
    while most > 0:
        moves = []
        for index, (knob, width) in enumerate(zip(knobs, best, strict=True)):
            narrower = [w for w in knob.cost if w < width and knob.cost[w] < knob.cost[width]]
            if narrower and (index, max(narrower)) not in refused:
                to = max(narrower)
                saved = knob.cost[width] - knob.cost[to]
                moves.append(((knob.error[to] - knob.error[width]) / saved, index, to))
        if not moves:
            break
        _, index, to = min(moves)
        found = (*best[:index], to, *best[index + 1 :])
        most -= 1
        if meets(found):
            best = found
        else:
            refused.add((index, to))
    return best


def fill(knobs: Sequence[Knob], start: Choice, budget: float) -> Choice:
    """Widen single knobs as long as the cost stays within a budget, the most helpful first."""
    best = start
    while True:
        spare = budget - total(knobs, best)
        moves = []
        for index, (knob, width) in enumerate(zip(knobs, best, strict=True)):
            for to, cost in knob.cost.items():
                gained, paid = knob.error[width] - knob.error[to], cost - knob.cost[width]
                if to > width and gained > 0 and paid <= spare:
                    moves.append((gained / max(paid, 1e-30), index, to))
        if not moves:
            return best
        _, index, to = max(moves)
        best = (*best[:index], to, *best[index + 1 :])


__all__ = ["Choice", "Knob", "deepest", "descend", "expected", "fill", "path", "total"]
