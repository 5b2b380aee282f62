"""The memory plan: no two live buffers overlap, and it is not wasteful."""

from hypothesis import given
from hypothesis import strategies as st

from dlcc.lowering.memory import Span, place
from dlcc.program import ALIGNMENT

SLACK = 64

spans = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=40
)


@given(spans)
def test_live_buffers_never_overlap(described):
    placed = [Span(size, first, first + length) for size, first, length in described]
    total = place(placed, SLACK)
    for i, a in enumerate(placed):
        assert a.offset % ALIGNMENT == 0
        assert a.offset + a.size + SLACK <= total
        for b in placed[:i]:
            if a.meets(b):
                assert (
                    a.offset + a.size + SLACK <= b.offset or b.offset + b.size + SLACK <= a.offset
                )


@given(spans)
def test_arena_is_at_least_the_peak_and_at_most_the_sum(described):
    placed = [Span(size, first, first + length) for size, first, length in described]
    total = place(placed, 0)
    peak = max(
        sum(s.size for s in placed if s.first <= step <= s.last)
        for step in range(max(s.last for s in placed) + 1)
    )
    assert peak <= total <= sum(s.size + ALIGNMENT for s in placed)


def test_a_chain_needs_two_buffers_only():
    chain = [Span(1024, i, i + 1) for i in range(50)]
    assert place(chain, 0) == 2048


def test_the_tightest_gap_is_taken():
    spans_ = [Span(4096, 0, 9), Span(1024, 0, 1), Span(2048, 0, 9), Span(512, 2, 3)]
    assert place(spans_, 0) == 4096 + 2048 + 1024
    assert spans_[3].offset == spans_[1].offset
