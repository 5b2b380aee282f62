"""Integer inputs of networks without calibration data; ranges of what only a function reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dlcc.analysis.statistics import TensorStatistic
from dlcc.evaluate import fidelity
from dlcc.ir import I32, DType, Value
from passes import PassContext, PassManager
from passes.quantization.indices import IntegerRange, integer_range
from passes.quantization.synthetic import synthetic_inputs
from tests.passes.conftest import Net
from tests.passes.test_quantize import node, outputs, quantise, remarks

U8, U16 = DType.of(np.dtype(np.uint8)), DType.of(np.dtype(np.uint16))


def _table(net: Net, ids: Value) -> None:
    moved = net.op("reshape", ids, shape=(10,))
    net.op("gather", net.random(37, 6), net.op("cast", moved, to="i64"), axis=0)
    net.op("gather", net.random(90, 6), ids, axis=0)  # the smaller table counts


def _compared(net: Net, ids: Value) -> None:
    net.op("equal", ids, net.const(np.arange(-2, 3, dtype=np.int32)))
    net.op("equal", ids, net.const(np.int32(7)))  # of padding, which says nothing


@pytest.mark.parametrize(
    ("read", "dtype", "wanted"),
    [
        (_table, I32, (0, 36, False)),
        (_compared, I32, (-2, 2, False)),
        (lambda net, ids: net.op("one_hot", ids, net.const(np.arange(2)), axis=2, depth=11), I32,
         (0, 10, False)),
        (lambda net, ids: net.op("cast", ids, to="f32"), I32, (0, 1, True)),
        (lambda net, ids: net.op("cast", ids, to="f32"), U8, (0, 255, False)),
        (lambda net, ids: net.op("neg", ids), I32, (0, 0, False)),
    ],
)  # fmt: skip
def test_ranges_of_integers(
    net: Net, read: Callable[[Net, Value], object], dtype: DType, wanted: tuple[int, int, bool]
) -> None:
    ids = net.input(2, 5, name="ids", dtype=dtype)
    read(net, ids)
    found = integer_range(ids)
    assert (found.low, found.high, found.mask) == wanted
    drawn = synthetic_inputs(net.graph, {}, np.random.default_rng(0), 40)["ids"]
    assert drawn.dtype == dtype.numpy
    assert (drawn.min(), drawn.max()) == wanted[:2]


def test_masks_are_ones_and_then_zeros() -> None:
    drawn = IntegerRange(0, 1, "", mask=True).draw((50, 6), np.random.default_rng(0))
    assert (drawn[:, 0] == 1).all()
    assert (np.diff(drawn, axis=1) <= 0).all()
    assert drawn.min() == 0


def test_a_network_of_tokens_without_data(net: Net) -> None:
    """With zeros for tokens it would know the range of one row of the table."""
    ids = net.input(1, 8, name="ids", dtype=I32)
    table = net.const(np.exp(net.rng.normal(0, 1.5, (50, 12))) - 1)
    rows = net.op("gather", table, ids, axis=0)
    graph = net.done(net.linear(net.op("relu", net.linear(rows, 16)), 4))
    before = graph.copy()
    result = PassManager("quantize").run(graph, PassContext())
    assert remarks(result, "note")["ids"] == "synthetic integers from 0 to 49: it indexes 50 rows"
    rng = np.random.default_rng(5)
    feeds = [{"ids": rng.integers(0, 50, (1, 8)).astype(np.int32)} for _ in range(8)]
    assert fidelity(outputs(before, feeds), outputs(graph, feeds)).sqnr_db > 25


def test_codes_do_not_go_where_the_only_reader_is_flat(net: Net) -> None:
    x = net.input(1, 4, 8, 8)
    wide = net.conv(x, 8)
    graph = net.done(net.conv(net.op("hard_swish", wide), 4, 1))
    quantise(graph)
    low, high = node(graph, "conv2d").output.type.affine.real_range
    assert -5 < low < -2
    assert high > 8


def test_the_error_is_that_of_the_function() -> None:
    seen = TensorStatistic("x")
    seen.update(np.random.default_rng(0).normal(0, 10, 100000).astype(np.float32))
    low, high = seen.error_range(256, through=lambda x: np.clip(x, -1.0, 2.0))
    assert -2.5 < low <= -0.9
    assert 1.9 <= high < 4
