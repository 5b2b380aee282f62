"""Pruning by calibration data: saliencies and least squares against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Sparse, Value
from passes import PassContext, PassManager, PipelineResult
from passes.compression import refit
from passes.compression.layers import weight_layers
from passes.compression.reconstruct import _rounds
from passes.compression.rows import input_rows, output_rows, row_count, sampled
from passes.compression.saliency import output_changes, output_errors
from passes.quantization.samples import cut
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def feeds(graph: Graph, count: int, seed: int = 0, mix: int = 0) -> list[dict[str, Array]]:
    """Random feeds; with ``mix`` the channels are mixtures of that many."""
    rng = np.random.default_rng(seed)
    shape = graph.inputs[0].type.shape
    axis = 1 if len(shape) == 4 else -1
    mixing = np.random.default_rng(99).standard_normal((mix, shape[axis])).astype(np.float32)
    out = []
    for _ in range(count):
        x = rng.standard_normal(shape).astype(np.float32)
        if mix:
            few = np.moveaxis(x, axis, -1)[..., :mix]
            x = np.ascontiguousarray(
                np.moveaxis(few @ mixing + 0.01 * np.moveaxis(x, axis, -1), -1, axis)
            )
        out.append({graph.inputs[0].name: x})
    return out


def prune(graph: Graph, options: str, data: list[dict[str, Array]]) -> PipelineResult:
    def batches() -> Iterator[dict[str, Array]]:
        return iter(data)

    return PassManager(f"prune{{{options}}}").run(graph, PassContext(calibration=batches))


def results(graph: Graph, data: list[dict[str, Array]]) -> Array:
    return np.stack([execute(graph, f)[graph.output_names[0]].reshape(-1) for f in data])


def distance(a: Graph, b: Graph, data: list[dict[str, Array]]) -> float:
    want = results(a, data).astype(np.float64)
    return float(np.linalg.norm(results(b, data) - want) / np.linalg.norm(want))


def layer(net: Net, kind: str) -> Value:
    if kind == "linear":
        return net.linear(net.input(3, 6), 5, bias=False)
    x = net.input(1, 4, 7, 6)
    if kind == "conv":
        return net.conv(x, 6, bias=False, pads=(1, 0, 2, 1), strides=(2, 1))
    if kind == "grouped":
        return net.conv(x, 6, bias=False, groups=2, dilations=(2, 1))
    if kind == "depthwise":
        return net.conv(x, 8, bias=False, groups=4, pads=(1, 1, 1, 1))
    return net.op("conv_transpose2d", x, net.random(4, 3, 2, 2), strides=(2, 2))


# -- saliency ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped", "depthwise", "transposed"])
def test_saliency_is_the_error_of_losing_one_weight(net: Net, kind: str) -> None:
    graph = net.done(layer(net, kind))
    data = feeds(graph, 5)
    stacked = {"x": np.concatenate([f["x"] for f in data])}
    layers = weight_layers(graph, (), (), lambda loc, why: None)
    [saliency] = output_errors(layers, cut(graph, stacked, 5), lambda _: None)
    weight = layers[0].values
    rng = np.random.default_rng(1)
    for flat in rng.choice(weight.size, 6, replace=False):
        less = weight.copy()
        less.reshape(-1)[flat] = 0
        other = graph.copy()
        other.nodes[0].set_input(1, other.add_constant(less))
        want = distance(graph, other, data) ** 2
        assert saliency.reshape(-1)[flat] == pytest.approx(want, rel=1e-4)


def test_obd_spares_weights_of_strong_inputs(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 8), 4))
    dense = graph.copy()
    strength = np.array([10, 10, 10, 10, 0.1, 0.1, 0.1, 0.1], np.float32)
    data = [{"x": f["x"] * strength} for f in feeds(graph, 32)]
    by_size = graph.copy()
    prune(by_size, "sparsity=0.5", data)
    prune(graph, "sparsity=0.5 saliency=obd", data)
    assert not graph.nodes[0].input(1).decoded()[:, 4:].any()
    assert distance(dense, graph, data) < 0.1 * distance(dense, by_size, data)


def test_wanda_compares_within_each_output(net: Net) -> None:
    w = net.rng.standard_normal((4, 8)) * np.array([[100], [1], [1], [0.01]])
    graph = net.done(net.op("linear", net.input(1, 8), net.const(w)))
    data = feeds(graph, 64)
    prune(graph, "sparsity=0.5 saliency=wanda", data)
    after = graph.nodes[0].input(1).decoded()
    assert np.count_nonzero(after, axis=1).tolist() == [4] * 4
    norms = np.sqrt(np.square([f["x"][0] for f in data]).sum(axis=0))
    score = np.abs(w) * norms
    for row, kept in zip(score, after != 0, strict=True):
        assert row[~kept].max() <= row[kept].min()


def test_global_obd_weighs_errors_against_each_layers_result(net: Net) -> None:
    x = net.input(1, 16)
    w = net.rng.standard_normal((16, 16))
    y = net.op("linear", x, net.const(w), loc="a")
    z = net.op("linear", x, net.const(1000 * w), loc="b")
    graph = net.done(y, z)
    prune(graph, "sparsity=0.6 saliency=obd scope=global", feeds(graph, 32))
    first, second = (n.input(1).decoded() for n in graph.nodes)
    assert abs(np.count_nonzero(first) - np.count_nonzero(second)) <= 1


def test_first_order_is_exact_where_the_network_is_linear(net: Net) -> None:
    x = net.input(1, 3, 6, 6)
    y = net.conv(net.conv(x, 4, bias=False, loc="a"), 4, bias=False, loc="b")
    y = net.op("reshape", net.op("reduce_mean", y, axes=(2, 3)), shape=(1, 4))
    graph = net.done(net.linear(y, 1, bias=False, loc="c"))  # one output: signs do not matter
    data = feeds(graph, 6)
    stacked = {"x": np.concatenate([f["x"] for f in data])}
    layers = weight_layers(graph, (), (), lambda loc, why: None)
    rng = np.random.default_rng(1)
    found = output_changes(layers, cut(graph, stacked, 6), rng, lambda _: None)
    for layer, saliency in zip(layers, found, strict=True):
        for flat in rng.choice(layer.values.size, 3, replace=False):
            less = layer.values.copy()
            less.reshape(-1)[flat] = 0
            other = graph.copy()
            next(n for n in other.nodes if n.loc == layer.loc).set_input(
                1, other.add_constant(less)
            )
            want = distance(graph, other, data) ** 2
            assert saliency.reshape(-1)[flat] == pytest.approx(want, rel=1e-3, abs=1e-12)


def test_first_order_spares_what_the_outputs_need(net: Net) -> None:
    """Half of the hidden channels are multiplied by next to nothing."""
    x = net.input(1, 8)
    hidden = net.op("relu", net.linear(x, 12, loc="first"))
    w = net.rng.standard_normal((5, 12)) * np.repeat([1.0, 1e-4], 6)
    graph = net.done(net.op("linear", hidden, net.const(w), loc="second"))
    dense, data = graph.copy(), feeds(graph, 32)
    blind = graph.copy()
    prune(graph, "sparsity=0.5 saliency=first-order scope=global", data)
    prune(blind, "sparsity=0.5 saliency=obd scope=global", data)
    assert not graph.nodes[0].input(1).decoded()[6:].any()
    assert distance(dense, graph, data) < 0.5 * distance(dense, blind, data)


def test_first_order_needs_gradients(net: Net) -> None:
    y = net.op("cum_sum", net.linear(net.input(1, 8), 4), axis=1)
    with pytest.raises(DlccError, match="no gradient of cum_sum"):
        prune(net.done(y), "sparsity=0.5 saliency=first-order", feeds(net.graph, 4))


# -- least squares -----------------------------------------------------------------------------


def random_sums(
    rng: np.random.Generator, groups: int, rows: int
) -> tuple[Array, Array, refit.Sums]:
    x = rng.standard_normal((groups, rows, 7)) + 0.5
    t = x @ rng.standard_normal((groups, 7, 4)) + 0.1 * rng.standard_normal((groups, rows, 4)) + 1
    sums = refit.Sums.zero(groups, 7, 4)
    sums.add(x[:, : rows // 2], t[:, : rows // 2])
    rest = refit.Sums.zero(groups, 7, 4)
    rest.add(x[:, rows // 2 :], t[:, rows // 2 :])
    return x, t, sums + rest


def test_squared_error_of_sums() -> None:
    rng = np.random.default_rng(0)
    x, t, sums = random_sums(rng, 2, 30)
    weight, bias = rng.standard_normal((2, 4, 7)), rng.standard_normal((2, 4))
    want = np.square(x @ weight.transpose(0, 2, 1) + bias[:, None] - t).sum(axis=1)
    np.testing.assert_allclose(sums.squared_error(weight, bias), want, rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
def test_fit_solves_the_ridge_regression_of_every_output(groups: int) -> None:
    rng = np.random.default_rng(1)
    _, _, sums = random_sums(rng, groups, 60)
    _, _, held = random_sums(np.random.default_rng(2), groups, 40)
    mask = rng.random((groups, 4, 7)) < 0.6
    mask[:, 1] = mask[:, 0]
    start = rng.standard_normal((groups, 4, 7)) * mask
    found = refit.fit(start, mask, sums, held)
    assert found.ridge in refit.RIDGES
    assert not found.weight[~mask].any()
    both = sums + held
    for g in range(groups):
        mean = both.x[g] / both.count
        covariance = both.xx[g] / both.count - np.outer(mean, mean)
        ridge = found.ridge * np.trace(covariance) / 7
        for o in range(4):
            s = np.flatnonzero(mask[g, o])
            cross = both.xt[g][:, o] / both.count - mean * both.t[g, o] / both.count
            left = covariance[np.ix_(s, s)] + ridge * np.eye(len(s))
            want = np.linalg.solve(left, cross[s] + ridge * start[g, o, s])
            np.testing.assert_allclose(found.weight[g, o, s], want, rtol=1e-6, atol=1e-9)
            offset = (both.t[g, o] - found.weight[g, o] @ both.x[g]) / both.count
            assert found.bias[g, o] == pytest.approx(offset)


def test_fit_leaves_weights_that_no_data_improves() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((1, 4, 7))
    fitted, held = refit.Sums.zero(1, 7, 4), refit.Sums.zero(1, 7, 4)
    x, noise = rng.standard_normal((1, 9, 7)), rng.standard_normal((1, 9, 4))
    fitted.add(x, x @ weight.transpose(0, 2, 1) + 5 * noise)  # the noise would be fitted
    x = rng.standard_normal((1, 500, 7))
    held.add(x, x @ weight.transpose(0, 2, 1) + fitted.t.mean() * 0)
    found = refit.fit(weight, weight != 0, fitted, held)
    assert found.ridge >= 1
    assert np.abs(found.weight - weight).max() < 0.5


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped", "depthwise"])
def test_rows_times_weights_are_the_result(net: Net, kind: str) -> None:
    graph = net.done(layer(net, kind))
    node, [feed] = graph.nodes[0], feeds(graph, 1)
    y = execute(graph, feed)["y0"]
    chosen = sampled(row_count(node, y), 7, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == min(7, row_count(node, y))
    x, t = input_rows(node, feed["x"], chosen), output_rows(node, y, chosen)
    weight = node.input(1).decoded().reshape(x.shape[0], -1, x.shape[2])
    np.testing.assert_allclose(x @ weight.transpose(0, 2, 1), t, rtol=1e-4, atol=1e-5)


def small_network(net: Net) -> Graph:
    x = net.input(1, 12, 8, 8)
    y = net.conv(x, 16, pads=(1, 1, 1, 1), loc="a", act_min=0.0)
    z = net.conv(y, 16, pads=(1, 1, 1, 1), groups=16, loc="depthwise", bias=False)
    w = net.random(16, 16, 1, 1)
    y = net.op("conv2d", z, w, None, y, loc="residual", act_min=0.0, act_max=6.0)
    y = net.op("avg_pool2d", y, kernel=(4, 4), strides=(4, 4))
    flat = net.op("reshape", y, shape=(1, 64))
    return net.done(net.linear(flat, 10, loc="head"))


def test_what_remains_takes_over(net: Net) -> None:
    graph = small_network(net)
    dense, plain = graph.copy(), graph.copy()
    data, other = feeds(graph, 48, mix=4), feeds(graph, 16, seed=1, mix=4)
    prune(plain, "sparsity=0.6 depthwise", data)
    result = prune(graph, "sparsity=0.6 reconstruct depthwise", data)
    verify(graph)
    assert distance(dense, graph, other) < 0.5 * distance(dense, plain, other)
    assert result.records[0].statistics["fitted_layers"] == 4
    for before, after in zip(plain.nodes, graph.nodes, strict=True):
        if before.op in ("reshape", "avg_pool2d"):
            continue
        assert isinstance(after.input(1).type.encoding, Sparse)
        zeros = before.input(1).decoded() == 0
        np.testing.assert_array_equal(after.input(1).decoded() == 0, zeros)
    notes = {r.loc: r.message for r in result.remarks if r.kind == "note"}
    assert set(notes) == {"a", "depthwise", "residual", "head"}
    numbers = [m.removeprefix("fitted: error of its result ").split(" -> ") for m in notes.values()]
    assert all(float(after) < float(before) for before, after in numbers)


def test_a_copied_input_is_no_loss(net: Net) -> None:
    """Every second input repeats the one before: either of both is enough."""
    graph = net.done(net.linear(net.input(1, 12), 6))
    dense = graph.copy()
    data = [{"x": np.repeat(f["x"][:, ::2], 2, axis=1)} for f in feeds(graph, 200)]
    prune(graph, "pattern=1:2 reconstruct", data)
    assert distance(dense, graph, data) < 2e-3


@pytest.mark.parametrize("pattern", ["sparsity=0.5 pattern=block4x2", "pattern=2:4"])
def test_patterns_survive_the_fit(net: Net, pattern: str) -> None:
    graph = net.done(net.linear(net.input(1, 16), 8))
    plain = graph.copy()
    data = feeds(graph, 64, mix=5)
    prune(plain, pattern, data)
    prune(graph, f"{pattern} reconstruct", data)
    old, new = (g.nodes[0].input(1) for g in (plain, graph))
    assert old.type == new.type
    np.testing.assert_array_equal(old.decoded() != 0, new.decoded() != 0)
    assert (old.decoded() != new.decoded()).any()


def test_layers_that_are_not_fitted(net: Net) -> None:
    x = net.input(1, 4, 8, 8)
    y = net.op("conv_transpose2d", x, net.random(4, 4, 3, 3), loc="transposed")
    y = net.conv(y, 4, loc="codes")
    w = net.random(4, 4, 1, 1)
    y = net.op("conv2d", net.op("conv2d", y, w, loc="one"), w, loc="two")
    graph = net.done(y)
    from dlcc.ir import Affine

    node = graph.nodes[1]
    codes = Affine.symmetric(8, np.array([0.02]), None)
    node.set_input(1, graph.add_constant(node.input(1).decoded(), encoding=codes))
    result = prune(graph, "sparsity=0.5 reconstruct", feeds(graph, 8))
    notes = {r.loc: r.message for r in result.remarks if r.kind == "note"}
    assert notes == {
        "transposed": "not fitted: conv_transpose2d is not fitted",
        "codes": "not fitted: its weights are affine, which least squares does not give",
        "one": "not fitted: its weight is shared",
    }


def test_few_samples(net: Net) -> None:
    graph = small_network(net)
    result = prune(graph, "sparsity=0.5 reconstruct depthwise", feeds(graph, 2))
    notes = [r.message for r in result.remarks if r.kind == "note"]
    assert all("4 samples at least" in n for n in notes)
    assert len(notes) == 4


def test_worth_is_the_rise_of_the_error_with_the_others_refitted() -> None:
    rng = np.random.default_rng(4)
    _, _, sums = random_sums(rng, 2, 50)
    mask = rng.random((2, 4, 7)) < 0.7
    start = rng.standard_normal((2, 4, 7)) * mask
    pairs = np.array([[0, 3], [1, 6], [5, -1], [2, 4]])
    together = refit.surgeon(start, mask, sums, pairs, 0.05)
    worth = refit.surgeon(start, mask, sums, np.arange(7)[:, None], 0.05)
    assert not worth[~mask].any()
    assert not together[~mask].any()
    for g, o in np.ndindex(2, 4):
        mean = sums.x[g] / sums.count
        covariance = sums.xx[g] / sums.count - np.outer(mean, mean)
        hessian = covariance + 0.05 * np.trace(covariance) / 7 * np.eye(7)
        cross = sums.xt[g][:, o] / sums.count - mean * sums.t[g, o] / sums.count
        linear = cross + 0.05 * np.trace(covariance) / 7 * start[g, o]

        def least(kept: Array, hessian: Array = hessian, linear: Array = linear) -> float:
            """Minimum of v H v - 2 l v over the kept weights."""
            square = hessian[np.ix_(kept, kept)]
            return -float(linear[kept] @ np.linalg.solve(square, linear[kept]))

        kept = np.flatnonzero(mask[g, o])
        for k in kept:
            rise = least(kept[kept != k]) - least(kept)
            assert worth[g, o, k] == pytest.approx(rise, rel=1e-6, abs=1e-12)
        for pair in pairs:
            left = np.setdiff1d(kept, pair)
            rise = least(left) - least(kept)
            assert together[g, o, pair[pair >= 0]].sum() == pytest.approx(rise, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "pattern", ["sparsity=0.7", "pattern=1:4", "sparsity=0.7 pattern=block2x2"]
)
def test_optimal_brain_surgeon_chooses_what_the_others_cannot_take_over(pattern: str) -> None:
    net = Net(3)
    graph = net.done(net.linear(net.input(1, 32), 16))
    dense, plain = graph.copy(), graph.copy()
    noise = np.random.default_rng(8).standard_normal((288, 32)).astype(np.float32)
    rows = noise.copy()
    for k in range(1, 32):  # neighbours are alike
        rows[:, k] = 0.9 * rows[:, k - 1] + 0.44 * noise[:, k]
    data, other = ([{"x": row[None]} for row in part] for part in (rows[:256], rows[256:]))
    prune(plain, f"{pattern} saliency=obd reconstruct", data)
    result = prune(graph, f"{pattern} saliency=obs reconstruct", data)
    assert distance(dense, graph, other) < 0.95 * distance(dense, plain, other)
    new, old = graph.nodes[0].input(1), plain.nodes[0].input(1)
    assert new.type == old.type
    assert np.count_nonzero(new.decoded()) == np.count_nonzero(old.decoded())
    statistics = result.records[0].statistics
    assert statistics["zeros"] == np.count_nonzero(new.decoded() == 0)
    assert new.constant is not None
    assert statistics["bytes_after"] == sum(a.nbytes for a in new.constant.parts.values())


def test_rounds_are_as_many_as_are_affordable() -> None:
    assert _rounds((1, 64, 576), 0.2) == 4
    assert _rounds((1, 1024, 1024), 0.5) == 1
    assert _rounds((256, 1, 9), 0.5) == 4


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["sparsity=0.5 saliency=obd", "sparsity=0.5 reconstruct"])
def test_data_is_needed(net: Net, options: str) -> None:
    graph = net.done(net.linear(net.input(1, 8), 4))
    with pytest.raises(DlccError, match="needs calibration data") as error:
        PassManager(f"prune{{{options}}}").run(graph)
    assert error.value.code == ExitCode.USAGE
    with pytest.raises(DlccError, match="the calibration data is empty"):
        prune(graph, options, [])


def test_thresholds_are_magnitudes(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 8), 4))
    with pytest.raises(DlccError, match="goes with sparsity"):
        prune(graph, "threshold=0.5 saliency=wanda", feeds(graph, 4))


def test_surgery_is_part_of_the_fit(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 8), 4))
    with pytest.raises(DlccError, match="saliency=obs goes with reconstruct"):
        prune(graph, "sparsity=0.5 saliency=obs", feeds(graph, 4))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_activations_that_overflow(net: Net) -> None:
    huge = net.const(np.full((4, 8), 3e38, np.float32))
    graph = net.done(net.linear(net.op("linear", net.input(1, 8), huge), 4))
    with pytest.raises(DlccError, match="an activation is not finite"):
        prune(graph, "sparsity=0.5 saliency=obd", feeds(graph, 4))
