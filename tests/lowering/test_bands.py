"""Plans of interleaved steps, executed item by item on stamped memory."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.lowering.bands import Accesses, plan_bands
from dlcc.program import ALIGNMENT


def window_rows(rows, kernel, stride, pad):
    """Input rows ``[items, 2]`` of each output row of a convolution."""
    out = (rows + 2 * pad - kernel) // stride + 1
    top = np.arange(out) * stride - pad
    return np.stack([np.clip(top, 0, rows - 1), np.clip(top + kernel, 1, rows)], 1)


def chain(rows, layers, widths):
    """Steps over values 0, 1, ...: step i reads value i and writes value i + 1, row by row."""
    steps, sizes = [], {}
    for index, (kernel, stride, split) in enumerate(layers):
        reads = window_rows(rows, kernel, stride, kernel // 2)
        rows = len(reads)
        made = np.stack([np.arange(rows), np.arange(rows) + 1], 1)
        # an item is one of `split` parts of a row; its spans cover the row
        reads, made = (np.repeat(spans, split, axis=0) for spans in (reads, made))
        steps.append(
            Accesses(
                len(made), {index: reads * widths[index]}, {index + 1: made * widths[index + 1]}
            )
        )
        sizes[index + 1] = rows * widths[index + 1]
    result = sizes.pop(len(layers))
    return steps, sizes, result


class Machine:
    """One thread that runs bands ``[begin, end)``; every byte of a window knows whose it is."""

    def __init__(self, steps, sizes, plan):
        self.steps, self.sizes, self.plan = steps, sizes, plan
        self.windows = {key: np.full(w.size, -1) for key, w in plan.windows.items()}
        self.done = {key: np.zeros(size, bool) for key, size in sizes.items()}
        self.sunk = []

    def run(self, begin, end):
        plan = self.plan
        for band in range(begin, end):
            for key, window in plan.windows.items():
                if band > begin and window.kept[band]:
                    moved = window.start[band] - window.start[band - 1]
                    kept = self.windows[key][moved : moved + window.kept[band]].copy()
                    assert len(kept) == window.kept[band]
                    self.windows[key][: len(kept)] = kept
            for index, step in enumerate(self.steps):
                first = plan.first[index, band] if band == begin else plan.until[index, band - 1]
                for item in range(first, plan.until[index, band]):
                    self.item(index, step, item, band)

    def item(self, index, step, item, band):
        for key, spans in step.reads.items():
            if key in self.windows:
                low, high = spans[item]
                at = self.plan.windows[key].start[band]
                held = self.windows[key][low - at : high - at]
                assert np.array_equal(held, np.arange(low, high)), "a byte that is not there"
        for key, spans in step.writes.items():
            low, high = spans[item]
            if key in self.windows:
                at = self.plan.windows[key].start[band]
                assert low >= at
                assert high - at <= len(self.windows[key])
                self.windows[key][low - at : high - at] = np.arange(low, high)
            else:
                self.sunk.append((index, item))


def check(steps, sizes, bands, room, threads):
    plan = plan_bands(steps, sizes, bands, room)
    sunk = []
    for thread in range(threads):
        machine = Machine(steps, sizes, plan)
        machine.run(bands * thread // threads, bands * (thread + 1) // threads)
        sunk += machine.sunk
    last = len(steps) - 1
    assert sorted(sunk) == [(last, item) for item in range(steps[last].items)]
    for window in plan.windows.values():
        assert not (window.start % ALIGNMENT).any()
        assert (np.diff(window.start) >= 0).all()
    return plan


LAYER = st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3), st.integers(1, 3))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_item_finds_what_it_reads(data):
    layers = data.draw(st.lists(LAYER, min_size=1, max_size=4))
    rows = data.draw(st.integers(1, 40))
    widths = data.draw(
        st.lists(st.integers(1, 200), min_size=len(layers) + 1, max_size=len(layers) + 1)
    )
    steps, sizes, _ = chain(rows, layers, widths)
    bands = data.draw(st.integers(1, steps[-1].items))
    room = data.draw(st.sampled_from([1.0, 1.5, 3.0]))
    check(steps, sizes, bands, room, data.draw(st.integers(1, bands)))


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_a_value_with_two_readers_is_kept_for_both(rows, kernel, threads, data):
    """expand -> 5x5 -> project + skip of the expanded value, as a residual adds it."""
    width = 96
    row = np.stack([np.arange(rows), np.arange(rows) + 1], 1) * width
    tall = window_rows(rows, 2 * kernel + 1, 1, kernel) * width
    steps = [
        Accesses(rows, {0: row}, {1: row}),
        Accesses(rows, {1: tall}, {2: row}),
        Accesses(rows, {2: row, 1: row}, {3: row}),
    ]
    bands = data.draw(st.integers(1, rows))
    check(steps, {1: rows * width, 2: rows * width}, bands, 1.0, min(threads, bands))


def test_windows_hold_a_band_and_its_halo():
    steps, sizes, _ = chain(32, [(1, 1, 1), (3, 1, 1)], [64, 64, 64])
    plan = check(steps, sizes, 8, 1.0, 2)
    assert plan.windows[1].size == 6 * 64
    assert plan.until[0].tolist() == [5, 9, 13, 17, 21, 25, 29, 32]
    assert plan.first[0].tolist() == [0, 3, 7, 11, 15, 19, 23, 27]
    assert plan.windows[1].start.tolist() == [0, *(64 * row for row in (3, 7, 11, 15, 19, 23, 27))]
    assert plan.windows[1].kept.tolist() == [0, *[2 * 64] * 7]
    assert plan.repeated(0) == 7 * 2


def test_more_room_moves_less():
    steps, sizes, _ = chain(64, [(1, 1, 1), (3, 1, 1)], [64, 64, 64])
    kept = [
        int(plan_bands(steps, sizes, 16, room).windows[1].kept.sum()) for room in (1.0, 2.0, 4.0)
    ]
    assert kept[0] > kept[1] > kept[2] > 0


def test_rows_that_a_stride_skips_are_not_computed():
    steps, sizes, _ = chain(12, [(1, 1, 1), (1, 3, 1)], [8, 8, 8])
    plan = check(steps, sizes, 2, 1.0, 1)
    assert plan.until[0, -1] == 10


def test_an_order_of_items_that_needs_everything_keeps_everything():
    """Items by channel, not by row: the first one already needs the whole value."""
    whole = np.tile(np.array([[0, 640]]), (4, 1))
    spans = np.stack([np.arange(10), np.arange(10) + 1], 1) * 64
    steps = [Accesses(10, {0: spans}, {1: spans}), Accesses(4, {1: whole}, {2: whole})]
    plan = plan_bands(steps, {1: 640}, 4, 1.0)
    assert plan.windows[1].size == 640
    assert plan.first[0].tolist() == [0, 0, 0, 0]


def test_one_band_is_the_plain_order():
    steps, sizes, _ = chain(9, [(3, 1, 1), (3, 2, 2)], [10, 10, 10])
    plan = check(steps, sizes, 1, 1.0, 1)
    assert plan.first.tolist() == [[0], [0]]
    assert plan.until.tolist() == [[9], [10]]
    assert plan.windows[1].size == 90
