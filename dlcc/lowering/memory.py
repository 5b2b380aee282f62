"""Static memory plan: one arena, buffers whose lifetimes do not meet share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def place(spans: Sequence[Span], slack: int, alignment: int = ALIGNMENT) -> int:
    """Set the offsets and return the arena's size in bytes.

    Greedy by size (Pisarchyk and Lee 2020, "Efficient memory management for deep neural net
    inference", section 4): the largest buffer first, each into the tightest gap between the
    already placed buffers that are live at the same time.

    Args:
        spans: the buffers.
        slack: bytes after each buffer that kernels may read (never write) beyond its end.
        alignment: bytes, of the offsets.
    """
    placed: list[Span] = []
    total = 0
    order = sorted(range(len(spans)), key=lambda i: (-spans[i].size, spans[i].first, i))
    for index in order:
        span = spans[index]
        need = _aligned(span.size + slack, alignment)
        rivals = sorted((p for p in placed if p.meets(span)), key=lambda p: p.offset)
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
