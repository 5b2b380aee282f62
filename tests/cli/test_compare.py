"""Errors per layer: the measures, the matching of layers, isolated and accumulated errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dlcc.compare import Error, channel_scales, compare, match_layers
from dlcc.executable import ReferenceNetwork
from dlcc.ir import F32, Affine, Graph, TensorType
from dlcc.ops.base import build

RNG = np.random.default_rng(2)
SHAPE = (1, 4, 6, 6)


def weights(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


W1, W2, W3 = weights(4, 4, 1, 1), weights(4, 4, 1, 1), weights(4, 4, 1, 1)


def network(graph: Graph) -> ReferenceNetwork:
    return ReferenceNetwork(Path(graph.name), graph)


def feeds(count=3):
    rng = np.random.default_rng(9)
    return [{"x": rng.standard_normal(SHAPE).astype(np.float32)} for _ in range(count)]


def plain(w1=W1, w2=W2, w3=W3, *, branch_last: bool = False) -> Graph:
    """x -> conv a -> relu; conv b(x) on a branch; conv c + branch -> add -> relu."""
    graph = Graph("plain")
    x = graph.add_input("x", TensorType(SHAPE))

    def conv(value, w, loc):
        constant = graph.add_constant(w, name=f"w_{loc}")
        return build(graph, "conv2d", [value, constant], loc=loc).output

    a = build(graph, "relu", [conv(x, w1, "a")], loc="a_relu").output
    if branch_last:
        c, b = conv(a, w3, "c"), conv(x, w2, "b")
    else:
        b, c = conv(x, w2, "b"), conv(a, w3, "c")
    total = build(graph, "add", [c, b], loc="sum").output
    y = build(graph, "relu", [total], loc="sum_relu").output
    graph.set_outputs([y], ["y"])
    return graph


def fused(w1=W1, w2=W2, w3=W3) -> Graph:
    """The same with the activations and the residual add inside the convolutions."""
    graph = Graph("fused")
    x = graph.add_input("x", TensorType(SHAPE))

    def conv(operands, w, loc, attrs):
        constant = graph.add_constant(w, name=f"w_{loc}")
        xs = [operands[0], constant, None, *operands[1:]]
        return build(graph, "conv2d", xs, attrs, loc=loc).output

    a = conv([x], w1, "a", {"act_min": 0.0})
    b = conv([x], w2, "b", {})
    y = conv([a, b], w3, "c", {"act_min": 0.0})
    graph.set_outputs([y], ["y"])
    return graph


def test_measures():
    error = Error()
    error.add(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
    error.add(np.array([0.0]), np.array([2.0]))
    assert error.sqnr_db == pytest.approx(10 * math.log10(25 / 5))
    assert error.max_abs == 2.0
    assert error.cosine == pytest.approx(21 / math.sqrt(25 * 22))
    same = Error()
    same.add(np.array([np.inf, 1.0, np.nan]), np.array([np.inf, 1.0, np.nan]))
    assert (same.sqnr_db, same.max_abs) == (math.inf, 0.0)
    broken = Error()
    broken.add(np.array([1.0]), np.array([np.nan]))
    assert (broken.sqnr_db, broken.max_abs) == (-math.inf, math.inf)
    silent = Error()
    silent.add(np.zeros(2), np.zeros(2))
    assert (silent.sqnr_db, silent.cosine) == (math.inf, 1.0)


def names(a: Graph, b: Graph) -> list[tuple[str, str, str]]:
    return [(m.start.loc, m.end.loc, m.reference.loc) for m in match_layers(a, b)]


def test_fused_layers_find_the_end_of_their_chain():
    expected = [("a", "a", "a_relu"), ("b", "b", "b"), ("c", "c", "sum_relu")]
    assert names(plain(), fused()) == expected
    assert names(plain(branch_last=True), fused()) == expected


def test_layers_that_were_split_go_to_the_end_of_their_chain():
    expected = [("a", "a_relu", "a"), ("b", "b", "b"), ("c", "sum_relu", "c")]
    assert names(fused(), plain()) == expected
    assert sorted(names(fused(), plain(branch_last=True))) == expected


def test_a_network_matches_itself_node_by_node():
    locs = [node.loc for node in plain().nodes]
    assert names(plain(), plain()) == [(loc, loc, loc) for loc in locs]


@pytest.mark.parametrize("swapped", [False, True])
def test_fused_network_has_no_error(swapped):
    pair = [network(plain()), network(fused())]
    result = compare(*(pair[::-1] if swapped else pair), feeds())
    assert result.unmatched == []
    assert result.samples == 3
    assert result.outputs["y"].max_abs < 1e-6
    assert all(r.isolated.max_abs < 1e-6 and r.accumulated.max_abs < 1e-6 for r in result.layers)


def test_an_error_stays_where_it_was_made():
    """A wrong weight in a: isolated error in a alone, accumulated in all that follows."""
    wrong = W1 + np.float32(0.3)
    result = compare(network(plain()), network(fused(w1=wrong)), feeds())
    rows = {row.layer: row for row in result.layers}
    assert rows["a"].isolated.sqnr_db < 20
    assert rows["a"].accumulated.sqnr_db == pytest.approx(rows["a"].isolated.sqnr_db)
    assert rows["b"].isolated.max_abs == rows["b"].accumulated.max_abs < 1e-6
    assert rows["c"].isolated.max_abs < 1e-6
    assert rows["c"].accumulated.sqnr_db < 30
    assert rows["c"].accumulated.max_abs == pytest.approx(result.outputs["y"].max_abs)


def test_quantised_operands_are_not_the_layers_error():
    """Isolated: the operand is quantised as the network holds it, then the layer runs alone."""
    grid = Affine.per_tensor(8, True, 0.05, 3)
    graph = Graph("q")
    x = graph.add_input("x", TensorType(SHAPE))
    q = build(graph, "quantize", [x], loc="q", types=[TensorType(SHAPE, F32, grid)]).output
    scales = np.abs(W1).reshape(4, -1).max(1) / 127
    w = graph.add_constant(W1, encoding=Affine.symmetric(8, scales, 0), name="w")
    y = build(graph, "conv2d", [q, w], loc="a").output
    graph.set_outputs([y], ["y"])
    float_graph = Graph("f")
    x = float_graph.add_input("x", TensorType(SHAPE))
    y = build(float_graph, "conv2d", [x, float_graph.add_constant(W1, name="w")], loc="a").output
    float_graph.set_outputs([y], ["y"])
    result = compare(network(float_graph), network(graph), feeds())
    (row,) = result.layers
    assert result.unmatched == ["q"]
    assert 20 < row.isolated.sqnr_db < 60
    assert row.isolated.sqnr_db == pytest.approx(row.accumulated.sqnr_db, abs=0.5)


def test_equalised_channels_are_recognised():
    factors = np.array([0.1, 1.0, 4.0, 20.0], np.float32).reshape(4, 1, 1, 1)
    equalised = fused(w1=W1 * factors, w3=W3 / factors.reshape(1, 4, 1, 1))
    result = compare(network(plain()), network(equalised), feeds())
    rows = {row.layer: row for row in result.layers}
    assert rows["a"].rescaled
    assert not rows["b"].rescaled
    assert not rows["c"].rescaled
    assert result.outputs["y"].sqnr_db > 100
    for row in rows.values():
        assert row.isolated.sqnr_db > 90
        assert row.accumulated.sqnr_db > 90


def test_noise_is_not_taken_for_scaling():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((2, 3, 8, 8))
    assert channel_scales(a, a + 0.3 * rng.standard_normal(a.shape)) is None
    assert channel_scales(a, a) is None
    factors = np.array([1.0, 2.0, 8.0]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(channel_scales(a, a * factors), factors)
    few = rng.standard_normal((1, 3, 1, 1))
    assert channel_scales(few, few * factors) is None
    tokens = rng.standard_normal((1, 20, 3))
    scaled = channel_scales(tokens, tokens * factors.ravel())
    np.testing.assert_allclose(scaled.ravel(), factors.ravel())
