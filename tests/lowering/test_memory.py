"""The memory plan: no two live buffers overlap, and it is not wasteful."""

from hypothesis import given
from hypothesis import strategies as st

from dlcc.lowering.kernel import Overlap
from dlcc.lowering.memory import Sharing, Span, place
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


@st.composite
def chains(draw):
    """Layers that read one or two earlier values; some outputs may overwrite an input."""
    sizes = draw(st.lists(st.integers(1, 3000), min_size=3, max_size=14))
    made = [Span(size) for size in sizes]
    shared = []
    made[0].cover(0)
    for step in range(1, len(made)):
        reads = {step - 1, draw(st.integers(0, step - 1))}
        for index in (*reads, step):
            made[index].cover(step - 1)
        for index in reads:
            if draw(st.booleans()):
                overlap = Overlap(draw(st.integers(-400, 4000)), draw(st.booleans()))
                shared.append(Sharing(made[step], made[index], (overlap,)))
    return made, shared


@given(chains())
def test_buffers_overlap_only_as_their_layer_allows(described):
    spans_, shared = described
    total = place(spans_, 4, 8, shared)
    allowed = {(id(s.written), id(s.read)): s for s in shared if s.counts}
    for i, a in enumerate(spans_):
        assert a.offset % 8 == 0
        assert a.offset + a.size + 4 <= total
        for b in spans_[:i]:
            apart = a.offset + a.size + 4 <= b.offset or b.offset + b.size + 4 <= a.offset
            if a.meets(b) and not apart:
                assert allowed[id(a), id(b)].holds(a.offset, b.offset)


def test_a_chain_that_overwrites_itself_needs_one_buffer():
    chain = [Span(1000)]
    chain[0].cover(0)
    shared = []
    for step in range(10):
        chain.append(Span(1000))
        chain[-2].cover(step)
        chain[-1].cover(step)
        shared.append(Sharing(chain[-1], chain[-2], (Overlap(16),)))
    assert place(chain, 0, 8, shared) == 1000 + 10 * 16
    alone = [Span(s.size, s.first, s.last) for s in chain]
    assert place(alone, 0, 8) == 2000
