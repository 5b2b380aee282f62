"""Interleaving of consecutive steps by bands: which items are computed when, and what is kept.

Depth-first (line-buffered) execution: the items of the last steps of a group are cut into bands,
and before each band the earlier steps compute just the items it needs (Alwani et al. 2016, "Fused-
layer CNN accelerators", section 3). Intermediate values then pass through small windows that stay
in the cache. All is derived from the byte spans that items touch (:class:`Footprint`), without
knowledge of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlcc.lowering.kernel import Spans
from dlcc.program import ALIGNMENT

_FAR = np.iinfo(np.int64).max // 2

Ints = np.ndarray
"""int64, one number for each band or item."""


@dataclass(frozen=True)
class Accesses:
    """What a step touches, by the identity of the memory it lies in."""

    items: int
    reads: Mapping[int, Spans]
    writes: Mapping[int, Spans]


@dataclass(frozen=True)
class WindowPlan:
    """How much of an intermediate value is held at a time.

    ``low``, ``high``: the bytes that must be there in each band; ``start``: the first byte held;
    ``kept``: bytes moved to the window's front before a band; ``size``: bytes of the window.
    """

    low: Ints
    high: Ints
    start: Ints
    kept: Ints
    size: int


@dataclass(frozen=True)
class BandPlan:
    """Items of each step by band: ``first`` and ``until``, each ``[steps, bands]``; windows."""

    first: Ints
    until: Ints
    windows: dict[int, WindowPlan]

    @property
    def bands(self) -> int:
        """Number of bands."""
        return int(self.first.shape[1])

    def repeated(self, step: int) -> int:
        """Items of ``step`` computed twice if every band had a thread of its own."""
        over = self.until[step, :-1] - self.first[step, 1:]
        return int(np.maximum(over, 0).sum())


@dataclass
class _Ends:
    """Monotone bounds of the spans of a step's items; index ``items`` is past the last one.

    ``low[i]``: lowest first byte of the items from ``i`` on; ``high[i]``: highest end of the items
    before ``i``.
    """

    low: Ints
    high: Ints

    @staticmethod
    def of(spans: Spans) -> _Ends:
        used = spans[:, 1] > spans[:, 0]
        low = np.where(used, spans[:, 0], _FAR)
        high = np.where(used, spans[:, 1], 0)
        backwards = np.minimum.accumulate(low[::-1])[::-1]
        return _Ends(
            np.concatenate([backwards, [_FAR]]), np.concatenate([[0], np.maximum.accumulate(high)])
        )


@dataclass
class _Flow:
    """The monotone bounds of all accesses to the intermediate values of a group."""

    steps: Sequence[Accesses]
    sizes: Mapping[int, int]
    reads: dict[int, dict[int, _Ends]] = field(default_factory=dict)
    writes: dict[int, dict[int, _Ends]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.sizes:
            self.reads[key] = self._ends(key, [s.reads for s in self.steps])
            self.writes[key] = self._ends(key, [s.writes for s in self.steps])

    @staticmethod
    def _ends(key: int, accesses: list[Mapping[int, Spans]]) -> dict[int, _Ends]:
        return {i: _Ends.of(spans[key]) for i, spans in enumerate(accesses) if key in spans}

    def is_sink(self, step: int) -> bool:
        """Whether the step makes nothing that stays in the group."""
        return not any(step in writers for writers in self.writes.values())

    def needed(self, step: int, first: Ints, until: Ints) -> tuple[Ints, Ints]:
        """By band: the first item of ``step`` that its consumers need, and the end."""
        items = self.steps[step].items
        begin = np.full(first.shape[1], items, np.int64)
        end = np.zeros(first.shape[1], np.int64)
        for key, writers in self.writes.items():
            if step not in writers:
                continue
            low, high = self.demand(key, first, until)
            ends = writers[step]
            begin = np.minimum(begin, np.searchsorted(ends.high[1:], low, side="right"))
            end = np.maximum(end, np.searchsorted(ends.low[:-1], high, side="left"))
        end = np.maximum.accumulate(end)
        begin = np.minimum(begin, end)
        begin[1:] = np.minimum(begin[1:], end[:-1])  # a thread that goes on starts at the end
        return begin, end

    def demand(self, key: int, first: Ints, until: Ints) -> tuple[Ints, Ints]:
        """By band: the bytes of a value that its readers read; first byte and end."""
        low = np.full(first.shape[1], _FAR, np.int64)
        high = np.zeros(first.shape[1], np.int64)
        for reader, ends in self.reads[key].items():
            low = np.minimum(low, ends.low[first[reader]])
            high = np.maximum(high, ends.high[until[reader]])
        return low, np.minimum(high, self.sizes[key])


def plan_bands(
    steps: Sequence[Accesses], sizes: Mapping[int, int], bands: int, room: float
) -> BandPlan:
    """Interleaves ``steps`` in ``bands`` bands.

    Args:
        steps: what each step touches, in execution order.
        sizes: bytes of the intermediate values: written and read by these steps only.
        bands: at most the number of items of any step that makes no intermediate value.
        room: size of a window, as a multiple of the most that a band needs; more room means
            that what is still needed is moved to the front less often.
    """
    flow = _Flow(steps, sizes)
    first = np.zeros((len(steps), bands), np.int64)
    until = np.zeros((len(steps), bands), np.int64)
    edges = np.arange(bands + 1, dtype=np.int64)
    for step in reversed(range(len(steps))):
        if flow.is_sink(step):
            cut = steps[step].items * edges // bands
            first[step], until[step] = cut[:-1], cut[1:]
        else:
            first[step], until[step] = flow.needed(step, first, until)
    return BandPlan(first, until, {key: _window(flow, key, first, until, room) for key in sizes})


def _window(flow: _Flow, key: int, first: Ints, until: Ints, room: float) -> WindowPlan:
    low, high = flow.demand(key, first, until)
    for writer, ends in flow.writes[key].items():
        low = np.minimum(low, ends.low[first[writer]])
        high = np.maximum(high, ends.high[until[writer]])
    low = np.minimum(np.minimum.accumulate(low[::-1])[::-1], high)
    aligned = low // ALIGNMENT * ALIGNMENT
    most = int((high - aligned).max())
    limit = min(int(room * most), flow.sizes[key])
    start, kept = np.zeros_like(low), np.zeros_like(low)
    at, size = int(aligned[0]), 0
    for band in range(len(low)):
        if high[band] - at > limit:
            kept[band] = max(0, int(high[band - 1]) - int(aligned[band])) if band else 0
            at = int(aligned[band])
        start[band] = at
        size = max(size, int(high[band]) - at)
    return WindowPlan(low, high, start, kept, size)


__all__ = ["Accesses", "BandPlan", "WindowPlan", "plan_bands"]
