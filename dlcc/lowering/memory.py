"""Static memory plan: one arena, buffers whose lifetimes do not meet share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcc.lowering.kernel import Overlap
from dlcc.program import ALIGNMENT


@dataclass
class Span:
    """A buffer to place: live in steps ``first`` to ``last`` (inclusive), ``size`` bytes.

    As made with no steps, it is live in none.
    """

    size: int
    first: int = 1
    last: int = 0
    offset: int = -1

    def cover(self, step: int) -> None:
        """Make it live in ``step`` too."""
        live = self.first <= self.last
        self.first = min(self.first, step) if live else step
        self.last = max(self.last, step) if live else step

    def meets(self, other: Span) -> bool:
        """True if both are live in some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Sharing:
    """Two buffers of one layer that may overlap: its output, and an input that it reads last."""

    written: Span
    read: Span
    overlaps: tuple[Overlap, ...]

    @property
    def counts(self) -> bool:
        """Whether the layer is the only step in which both are live."""
        return self.written.first == self.read.last

    def holds(self, written: int, read: int) -> bool:
        """Whether the buffers may stand at these offsets."""
        return all(written == read if o.exact else written + o.lead <= read for o in self.overlaps)


def place(
    spans: Sequence[Span],
    slack: int,
    alignment: int = ALIGNMENT,
    shared: Sequence[Sharing] = (),
) -> int:
    """Set the offsets and return the arena's size in bytes.

    Greedy by size (Pisarchyk and Lee 2020, "Efficient memory management for deep neural net
    inference", section 4): the largest buffer first, each into the tightest gap between the
    already placed buffers that are live at the same time.

    Args:
        spans: the buffers.
        slack: bytes after each buffer that kernels may read (never write) beyond its end.
        alignment: bytes, of the offsets.
        shared: buffers that may overlap though both are live.
    """
    known = {id(span) for span in spans}
    counting = [s for s in shared if s.counts and {id(s.written), id(s.read)} <= known]
    if counting:
        return place_shared(spans, slack, alignment, counting)
    placed: list[Span] = []
    total = 0
    order = sorted(range(len(spans)), key=lambda i: (-spans[i].size, spans[i].first, i))
    for index in order:
        span = spans[index]
        need = _aligned(span.size + slack, alignment)
        first, last = span.first, span.last
        # Written out, not meets(): a call for each of millions of pairs takes long.
        rivals = [p for p in placed if p.first <= last and first <= p.last]
        rivals.sort(key=lambda p: p.offset)
        span.offset = _tightest_gap(rivals, need, slack, alignment)
        placed.append(span)
        total = max(total, span.offset + need)
    return total


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _tightest_gap(rivals: list[Span], need: int, slack: int, alignment: int) -> int:
    end, best, best_room = 0, -1, -1
    for rival in rivals:
        room = rival.offset - end
        if room >= need and (best < 0 or room < best_room):
            best, best_room = end, room
        end = max(end, _aligned(rival.offset + rival.size + slack, alignment))
    return best if best >= 0 else end


_ATTEMPTS = 40
"""Orders that are tried from each start, at most."""

_PAIRS = 40_000_000
"""Pairs of buffers that all orders from one start look at, together, if they are more than one."""


def place_shared(
    spans: Sequence[Span], slack: int, alignment: int, shared: Sequence[Sharing]
) -> int:
    """As :func:`place`, where some buffers may overlap.

    Each buffer goes to the lowest place that suits those before it. Which order is best depends on
    the network: it begins by size and both ways through time, and then, again and again, what
    stands at the arena's very end goes first. The best of all holds.
    """
    partners: dict[tuple[int, int], Sharing] = {}
    for sharing in shared:
        a, b = id(sharing.written), id(sharing.read)
        partners[a, b] = partners[b, a] = sharing
    orders = (
        sorted(spans, key=lambda s: (-s.size, s.first)),
        sorted(spans, key=lambda s: (-s.last, -s.first, -s.size)),
        sorted(spans, key=lambda s: (s.first, s.last, -s.size)),
    )
    best, chosen = -1, dict[int, int]()
    attempts = max(1, min(_ATTEMPTS, _PAIRS // len(spans) ** 2))
    for order in orders:
        for _ in range(attempts):
            offsets: dict[int, int] = {}
            for index, span in enumerate(order):
                rivals = [p for p in order[:index] if p.meets(span)]
                offsets[id(span)] = _lowest(span, rivals, offsets, partners, slack, alignment)
            ends = [_aligned(offsets[id(s)] + s.size + slack, alignment) for s in order]
            if best < 0 or max(ends) < best:
                best, chosen = max(ends), offsets
            last = ends.index(max(ends))
            order = [order[last], *order[:last], *order[last + 1 :]]
    for span in spans:
        span.offset = chosen[id(span)]
    return best


def _lowest(
    span: Span,
    rivals: list[Span],
    offsets: dict[int, int],
    partners: dict[tuple[int, int], Sharing],
    slack: int,
    alignment: int,
) -> int:
    """The lowest offset at which ``span`` gets along with its placed rivals."""
    need = _aligned(span.size + slack, alignment)
    candidates = {0}
    for rival in rivals:
        at = offsets[id(rival)]
        candidates.add(at + _aligned(rival.size + slack, alignment))
        sharing = partners.get((id(span), id(rival)))
        if sharing is None:
            continue
        candidates.add(at)
        for overlap in sharing.overlaps:
            if sharing.written is span:
                candidates.add((at - overlap.lead) // alignment * alignment)
            else:
                candidates.add(_aligned(at + overlap.lead, alignment))

    def fits(offset: int) -> bool:
        for rival in rivals:
            at = offsets[id(rival)]
            apart = offset + need <= at or at + _aligned(rival.size + slack, alignment) <= offset
            sharing = partners.get((id(span), id(rival)))
            if apart:
                continue
            if sharing is None:
                return False
            written, read = (offset, at) if sharing.written is span else (at, offset)
            if not sharing.holds(written, read):
                return False
        return True

    return min(offset for offset in candidates if offset >= 0 and fits(offset))
