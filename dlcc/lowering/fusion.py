"""Which consecutive steps to run band by band, because what lies between them exceeds the cache.

A value that is larger than the second-level cache is written to and read from the level behind it.
A group of steps that is interleaved by bands (:mod:`dlcc.lowering.bands`) passes it through a small
window instead. This module predicts the seconds that saves for every run of consecutive steps and
picks the best set of groups by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dlcc.lowering.bands import Accesses, BandPlan, plan_bands

LONGEST = 10
"""Most steps of a group."""

OUTER_BANDWIDTH = 25e9
"""Bytes per second between the second-level cache and what is behind it."""

COPY_BANDWIDTH = 40e9
"""Bytes per second of a copy inside the second-level cache."""

CALL_SECONDS = 5e-8
"""One more call of a kernel: the call, and the ends of its loops."""

LEAST_GAIN = 3e-6
"""Seconds below which the prediction is noise."""

SHARE = 0.5
"""Part of the cache that windows and weights of a group may fill."""

ROOM = 1.5
"""Size of a window over the most that one band needs."""


@dataclass(frozen=True)
class Candidate:
    """A step as the choice of groups sees it.

    Attributes:
        layer: its layer's name.
        touches: memory of every argument that is no constant, by identity.
        accesses: what items touch of it; None: unknown.
        seconds: predicted for the whole step.
        weight_bytes: constants that it reads.
    """

    layer: str
    touches: frozenset[int]
    accesses: Accesses | None
    seconds: float
    weight_bytes: int


@dataclass(frozen=True)
class Group:
    """Steps ``first`` to ``last`` run by bands; ``gain``: the seconds it should save."""

    first: int
    last: int
    plan: BandPlan
    gain: float

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.plan.bands


@dataclass
class _Planner:
    candidates: Sequence[Candidate]
    sizes: Mapping[int, int]
    """Bytes of the values and scratch areas that only these steps touch."""
    cache: int
    threads: int
    users: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, candidate in enumerate(self.candidates):
            for key in candidate.touches:
                self.users.setdefault(key, []).append(index)

    def intermediates(self, first: int, last: int) -> dict[int, int] | None:
        """Values that live in the group only; None if it makes one that is needed later too."""
        steps = [c.accesses for c in self.candidates[first : last + 1]]
        written = {key for s in steps if s is not None for key in s.writes}
        read = {key for s in steps if s is not None for key in s.reads}
        inner: dict[int, int] = {}
        for key in sorted(written, key=lambda k: self.users[k][0]):
            users = self.users[key]
            if key in self.sizes and first <= users[0] and users[-1] <= last:
                inner[key] = self.sizes[key]
            elif key in read:
                return None
        return inner

    def outer_bytes(self, index: int) -> int:
        """Bytes of all values that a step touches."""
        return sum(self.sizes.get(key, 0) for key in self.candidates[index].touches)

    def spilled(self, inner: Mapping[int, int]) -> int:
        """Bytes that the steps, one after the other, move to and from the cache's outside."""
        total = 0
        for key, size in inner.items():
            users = self.users[key]
            between = max(self.outer_bytes(index) for index in users)
            if between > self.cache:
                total += size * len(users)
        return total

    def group(self, first: int, last: int) -> Group | str:
        """The best bands of the steps ``first`` to ``last``, or why they are not fused."""
        members = self.candidates[first : last + 1]
        for member in members:
            if member.accesses is None:
                return f"which bytes the items of {member.layer} touch is not known"
        inner = self.intermediates(first, last)
        if not inner:
            return "nothing that they make is needed by them alone"
        saved = self.spilled(inner) / OUTER_BANDWIDTH
        if saved < LEAST_GAIN:
            return f"{sum(inner.values())} bytes between them stay in the cache"
        weights = sum(c.weight_bytes for c in members)
        if weights > self.cache * SHARE:
            return f"{weights} bytes of weights would be read again for every band"
        return self._best_bands(first, last, inner, saved, weights)

    def _best_bands(
        self, first: int, last: int, inner: Mapping[int, int], saved: float, weights: int
    ) -> Group | str:
        members = self.candidates[first : last + 1]
        steps = [c.accesses for c in members if c.accesses is not None]
        most = min(s.items for s in steps if not any(key in inner for key in s.writes))
        best: Group | None = None
        smallest = sum(inner.values())
        for bands in _band_counts(most):
            plan = plan_bands(steps, inner, bands, ROOM)
            gain = saved - self.overhead(members, plan)
            held = sum(window.size for window in plan.windows.values())
            smallest = min(smallest, held)
            fits = held + weights <= self.cache * SHARE
            if fits and gain >= LEAST_GAIN and (best is None or gain > best.gain):
                best = Group(first, last, plan, gain)
        return best or f"a band needs {smallest} bytes of windows and {weights} of weights"

    def overhead(self, members: Sequence[Candidate], plan: BandPlan) -> float:
        """Seconds that interleaving adds, on one thread or on several."""
        moved = sum(int(window.kept.sum()) for window in plan.windows.values())
        calls = CALL_SECONDS * plan.bands * len(members)
        repeated = 0.0
        for index, member in enumerate(members):
            assert member.accesses is not None
            each = member.seconds / max(1, member.accesses.items)
            repeated += plan.repeated(index) * each
        share = min(self.threads, 2) - 1
        return moved / COPY_BANDWIDTH + calls + repeated * share / max(1, plan.bands - 1)


def _band_counts(most: int) -> list[int]:
    """Numbers of bands to look at: powers of two, and ``most``."""
    powers = [1 << k for k in range(1, most.bit_length())]
    return [*(p for p in powers if p < most), *([most] if most > 1 else [])]


@dataclass(frozen=True)
class Fusion:
    """The groups in execution order, and why neighbours (by their first step) are in none."""

    groups: tuple[Group, ...] = ()
    apart: Mapping[int, str] = field(default_factory=dict)


def choose_groups(
    candidates: Sequence[Candidate],
    sizes: Mapping[int, int],
    *,
    cache: int,
    threads: int,
    borders: Collection[int] = (),
) -> Fusion:
    """The set of groups with the largest predicted gain.

    Args:
        candidates: all steps of the network.
        sizes: bytes of every memory that may be replaced by windows: neither the caller's nor a
            thread's own.
        cache: bytes of a core's second-level cache; 0: no steps are fused.
        threads: upper bound on threads.
        borders: steps that are in no group with the one before: loops begin or end there.
    """
    if not cache:
        return Fusion()
    planner = _Planner(candidates, sizes, cache, threads)
    best: list[tuple[float, tuple[Group, ...]]] = [(0.0, ())]
    for last in range(len(candidates)):
        here = best[last]
        for first in range(last - 1, max(-1, last - LONGEST), -1):
            if candidates[first].accesses is None or first + 1 in borders:
                break
            group = planner.group(first, last)
            if isinstance(group, Group) and best[first][0] + group.gain > here[0]:
                here = (best[first][0] + group.gain, (*best[first][1], group))
        best.append(here)
    groups = best[-1][1]
    return Fusion(groups, _reasons(planner, groups))


def _reasons(planner: _Planner, groups: Sequence[Group]) -> dict[int, str]:
    """Why a step and the next one, which reads what it makes, are not in one group."""
    together = {index for g in groups for index in range(g.first, g.last)}
    apart = {}
    for index in range(len(planner.candidates) - 1):
        shared = planner.candidates[index].touches & planner.candidates[index + 1].touches
        if shared and index not in together:
            found = planner.group(index, index + 1)
            apart[index] = found if isinstance(found, str) else "other groups save more"
    return apart
