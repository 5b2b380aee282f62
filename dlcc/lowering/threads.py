"""How many threads each step pays for.

Two things speak against a thread more: the fork and join, and the data that then lies in another
core's cache than the one that reads it next. The second makes a step's threads depend on those of
its neighbours, so the whole sequence is decided at once, by dynamic programming (Viterbi) over
"one thread" and "as many as it has work for" at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORK_SECONDS = 1.5e-6
"""A fork and join, and what goes with it: uneven parts, borders computed by the neighbour, code
and weights that a second core has to have in its caches."""

TRAVEL_BANDWIDTH = 5e9
"""Bytes per second that a core reads from another core's cache."""

PART_SECONDS = 1e-6
"""Least work of a thread; bounds the threads of a step where there are many."""


@dataclass(frozen=True)
class Work:
    """A step: predicted ``seconds`` on one thread, and ``bytes`` of activations that it reads."""

    seconds: float
    bytes: int


def worthwhile_threads(steps: Sequence[Work], most: int) -> list[int]:
    """Threads that each step should be split over at most, for the least time of all together.

    Args:
        steps: in execution order. The first one's input lies in the caller's cache.
        most: upper bound on the threads of an instance.

    Returns:
        For each step 1 to ``most - 1``, or 0 where it has work for all (``Step.max_threads``).
    """
    wide = [min(most, max(2, int(step.seconds / PART_SECONDS))) for step in steps]
    alone, split = 0.0, float("inf")
    came_alone: list[tuple[bool, bool]] = []  # was the one before alone, if this one is, is not
    for step, threads in zip(steps, wide, strict=True):
        travel = step.bytes / TRAVEL_BANDWIDTH
        to_alone = (alone, split + travel * (threads - 1) / threads)
        to_split = (alone + travel / threads, split)
        came_alone.append((to_alone[0] <= to_alone[1], to_split[0] <= to_split[1]))
        alone = min(to_alone) + step.seconds
        split = min(to_split) + step.seconds / threads + FORK_SECONDS
    is_alone = alone <= split
    chosen: list[int] = []
    for threads, before in zip(reversed(wide), reversed(came_alone), strict=True):
        chosen.append(1 if is_alone else threads)
        is_alone = before[0] if is_alone else before[1]
    return [0 if threads >= most else threads for threads in reversed(chosen)]
