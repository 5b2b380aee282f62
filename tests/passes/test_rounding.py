"""Rounding against data: grids, descent and least squares by brute force, passes end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Codebook, Graph, Sparse, Ternary, print_graph
from passes import PassContext, PassManager, PipelineResult
from passes.quantization.grids import Grid, Shared, Three, Two, uniform
from passes.quantization.rounding import (
    Metric,
    Rounding,
    fitted,
    round_weights,
    searched_scales,
)
from passes.quantize import Quantize
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]

GRIDS = ("uniform", "runs", "tied", "three", "two", "shared")


def problem(seed: int, groups: int, outputs: int, depth: int) -> tuple[Array, Metric]:
    """Weights, and the metric of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 50, depth)) @ rng.standard_normal((groups, depth, depth))
    second = x.transpose(0, 2, 1) @ x / 50
    return rng.standard_normal((groups, outputs, depth)), Metric.of(second)


def grid_of(kind: str, w: Array) -> Grid:
    depth = w.shape[2]
    peak = np.abs(w).max(axis=2, keepdims=True)
    if kind == "uniform":
        return uniform(peak / 3, 3, depth)
    if kind == "runs":
        run = np.arange(depth) // 2
        return uniform(np.repeat(peak / 3, run[-1] + 1, axis=2), 3, depth, run=run)
    if kind == "tied":
        return uniform(peak.max().reshape(1, 1, 1) / 3, 3, depth)
    if kind == "three":
        return Three(np.concatenate([0.7 * peak, 0.8 * peak], axis=2))
    if kind == "two":
        return Two(0.5 * peak)
    return Shared(np.array([-1.0, -0.2, 0.4, 1.3])[None, None])


def codes_of(grid: Grid, weight: Array) -> list[Array]:
    """All codes, each in the shape of a weight."""
    last = {"Uniform": range(-3, 4), "Three": (-1, 0, 1), "Two": (-1, 1), "Shared": range(4)}
    return [np.full(weight.shape, c) for c in last[type(grid).__name__]]


def columns(depth: int) -> Array:
    return np.arange(depth)[None]


# -- what is provable --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(2, 9),
    st.sampled_from(GRIDS),
    st.booleans(),
)
def test_each_method_costs_no_more_than_the_one_before(
    seed: int, groups: int, outputs: int, depth: int, kind: str, refit: bool
) -> None:
    w, metric = problem(seed, groups, outputs, depth)
    grid = grid_of(kind, w)
    methods: tuple[Rounding, ...] = ("nearest", "gptq", "adaround")
    costs = [
        metric.error(round_weights(w, grid, metric, how, refit=refit).numbers - w)
        for how in methods
    ]
    if grid.tied:  # outputs that share their parameters are judged together
        costs = [c.sum() for c in costs]
    for more, less in itertools.pairwise(costs):
        assert np.all(less <= more * (1 + 1e-9) + 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 70), st.sampled_from(GRIDS))
def test_no_single_weight_can_lower_the_error_of_adaround(seed: int, depth: int, kind: str) -> None:
    w, metric = problem(seed, 1, 2, depth)
    found = round_weights(w, grid_of(kind, w), metric, "adaround", refit=False)
    best = metric.error(found.numbers - w)
    for codes in codes_of(found.grid, w):
        others = found.grid.numbers(codes, columns(depth))
        for k in range(depth):
            changed = found.numbers.copy()
            changed[:, :, k] = others[:, :, k]
            assert np.all(metric.error(changed - w) >= best * (1 - 1e-6) - 1e-12)


@pytest.mark.parametrize(("kind", "levels"), [("three", 3), ("two", 2), ("shared", 4)])
def test_adaround_mostly_finds_the_best_of_all_codes(kind: str, levels: int) -> None:
    hits = 0
    for seed in range(40):
        w, metric = problem(seed, 1, 1, 5)
        grid = grid_of(kind, w)
        found = metric.error(round_weights(w, grid, metric, "adaround", refit=False).numbers - w)
        choices = [c.reshape(-1)[0] for c in codes_of(grid, w)]
        every = np.array(list(itertools.product(choices, repeat=5)))
        assert len(every) == levels**5
        numbers = grid.numbers(every[None], columns(5))
        least = metric.error(numbers - w).min()
        assert found.item() >= least * (1 - 1e-9)
        hits += int(found.item() <= least * (1 + 1e-9))
    assert hits >= 25


def test_gptq_beats_nearest_by_far_where_inputs_depend_on_each_other() -> None:
    w, metric = problem(1, 1, 8, 60)
    grid = grid_of("uniform", w)
    near, gptq, adaround = (
        float(metric.error(round_weights(w, grid, metric, how, refit=False).numbers - w).sum())
        for how in ("nearest", "gptq", "adaround")  # type: ignore[arg-type]
    )
    assert gptq < 0.3 * near
    assert adaround < 0.95 * gptq


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRIDS)
def test_parameters_are_the_least_squares_solution_for_their_codes(kind: str) -> None:
    w, metric = problem(3, 2, 3, 12)
    grid = grid_of(kind, w)
    start = round_weights(w, grid, metric, "gptq", refit=False)
    found = fitted(start, w, metric)
    slot, factor = grid.terms(start.codes, columns(12))
    factor = np.broadcast_to(factor, w.shape)
    count, (groups, outputs, depth) = grid.parameters.shape[2], w.shape
    roots = np.linalg.cholesky(metric.damped).transpose(0, 2, 1)
    terms = np.zeros((groups, outputs, depth, count))
    for s in range(count):
        terms[..., s] = factor * (slot == s)
    a = np.einsum("gik,grks->gris", roots, terms)
    b = np.einsum("gik,grk->gri", roots, w)
    if grid.tied:
        want = np.linalg.lstsq(a.reshape(-1, count), b.reshape(-1), rcond=None)[0][None, None]
    else:
        want = np.array(
            [
                [np.linalg.lstsq(a[g, r], b[g, r], rcond=None)[0] for r in range(outputs)]
                for g in range(groups)
            ]
        )
    used = np.einsum("grks,grks->grs", terms, terms) > 0
    used = used.any(axis=(0, 1), keepdims=True) if grid.tied else used
    good = ((want > 0) | ~used).all(axis=2, keepdims=True) | (kind == "shared")
    expected = np.where(used & good, want, grid.parameters)
    np.testing.assert_allclose(found.grid.parameters, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.codes, start.codes)


def test_scales_do_not_fall_below_their_floor() -> None:
    w, metric = problem(4, 1, 4, 10)
    peak = np.abs(w).max(axis=2, keepdims=True)
    grid = uniform(peak, 2, 10, floor=peak[..., 0] * 0.9)
    searched = searched_scales(w, grid, np.einsum("gkk->gk", metric.damped))
    found = round_weights(w, searched, metric, "adaround")
    assert (found.grid.parameters >= 0.9 * peak * (1 - 1e-6)).all()
    free = round_weights(w, uniform(peak, 2, 10), metric, "adaround")
    assert (free.grid.parameters < 0.9 * peak).any()


@pytest.mark.parametrize("kind", ["uniform", "runs", "tied"])
def test_searched_scales_cost_no_more_and_clamp_outliers(kind: str) -> None:
    w, _ = problem(5, 2, 3, 40)
    w[:, :, 7] = 9.0  # an outlier of every output
    grid, importance = grid_of(kind, w), np.ones((2, 40))

    def cost(g: Grid) -> Array:
        noise = g.numbers(g.nearest(w, columns(40)), columns(40)) - w
        return np.asarray(np.square(noise).sum(axis=2))

    found = searched_scales(w, grid, importance)  # type: ignore[arg-type]
    total = (lambda c: c.sum()) if grid.tied else (lambda c: c)
    assert np.all(total(cost(found)) <= total(cost(grid)))
    assert (found.parameters < grid.parameters).any()


@pytest.mark.parametrize("kind", ["uniform", "three", "shared"])
def test_held_zeros_stay_and_the_others_make_up_for_nothing_twice(kind: str) -> None:
    w, metric = problem(6, 1, 4, 20)
    w *= np.random.default_rng(0).random(w.shape) < 0.5
    grid = Shared(np.array([[[-1.0, 0.0, 0.7, 1.3]]]), 1) if kind == "shared" else grid_of(kind, w)
    for how in ("gptq", "adaround"):
        found = round_weights(w, grid, metric, how, keep_zeros=True)  # type: ignore[arg-type]
        assert not found.numbers[w == 0].any()
        plain = found.grid.numbers(found.codes, columns(20))
        np.testing.assert_array_equal(found.numbers[w != 0], plain[w != 0])
    if kind == "shared":
        assert found.grid.parameters[0, 0, 1] == 0


# -- the passes --------------------------------------------------------------------------------

PASSES = [
    "quantize-weights{bits=3}",
    "quantize-weights{bits=2 per=tensor}",
    "quantize-weights{bits=3 group=16}",
    "ternarize{scales=asymmetric}",
    "ternarize{per=tensor}",
    "binarize",
    "share-weights{values=4}",
]


def samples(graph: Graph, count: int = 24, seed: int = 0) -> list[dict[str, Array]]:
    """Inputs whose channels are mixtures of a few."""
    rng = np.random.default_rng(seed)
    shape = graph.inputs[0].type.shape
    mixing = np.random.default_rng(99).standard_normal((3, shape[1])).astype(np.float32)
    out = []
    for _ in range(count):
        few = rng.standard_normal((shape[0], *shape[2:], 3)).astype(np.float32)
        x = np.moveaxis(few @ mixing, -1, 1) + 0.1 * rng.standard_normal(shape)
        out.append({graph.inputs[0].name: np.ascontiguousarray(x, np.float32)})
    return out


def network(net: Net) -> Graph:
    """Plain, grouped and depthwise convolutions, a residual and a linear layer."""
    x = net.input(1, 8, 8, 8)
    a = net.op("relu", net.conv(x, 16, pads=(1, 1, 1, 1), loc="a"))
    b = net.op("relu", net.conv(a, 16, pads=(1, 1, 1, 1), groups=2, bias=False, loc="b"))
    c = net.op("add", net.conv(b, 16, pads=(1, 1, 1, 1), groups=16, loc="c"), a)
    flat = net.op("reshape", net.conv(c, 8, 1, strides=(2, 2), loc="d"), shape=(1, 128))
    return net.done(net.linear(flat, 8, loc="e"))


def compress(graph: Graph, pipeline: str, data: list[dict[str, Array]]) -> PipelineResult:
    def batches() -> Iterator[dict[str, Array]]:
        return iter(data)

    result = PassManager(pipeline).run(graph, PassContext(calibration=batches))
    verify(graph)
    return result


def outputs(graph: Graph, data: list[dict[str, Array]]) -> Array:
    return np.stack([execute(graph, f)["y0"].reshape(-1) for f in data]).astype(np.float64)


def with_option(pipeline: str, option: str) -> str:
    name, _, options = pipeline.partition("{")
    return f"{name}{{{options.removesuffix('}')} {option}}}"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("pipeline", PASSES)
def test_data_lowers_the_error_of_the_network(net: Net, pipeline: str, fused: bool) -> None:
    dense = network(net)
    if fused:
        PassManager("fuse-epilogues").run(dense)
    data, fresh = samples(dense), samples(dense, 8, seed=1)
    want = outputs(dense, fresh)
    errors = {}
    for how in ("nearest", "gptq", "adaround"):
        graph = dense.copy()
        result = compress(graph, with_option(pipeline, f"rounding={how}"), data)
        errors[how] = float(np.linalg.norm(outputs(graph, fresh) - want))
        notes = [r for r in result.remarks if r.kind == "note" and how in r.message]
        assert len(notes) == (0 if how == "nearest" else 5)
        for node in graph.nodes:  # what is stored is what the pass without data stores
            if node.op in ("conv2d", "linear"):
                assert not node.input(1).type.is_dense
    limit = 0.97 if pipeline.startswith("binarize") else 0.9
    assert errors["gptq"] < limit * errors["nearest"]
    assert errors["adaround"] < limit * errors["nearest"]


@pytest.mark.parametrize("pipeline", PASSES)
def test_data_is_used_where_it_is_given(net: Net, pipeline: str) -> None:
    graph, explicit = network(net), network(Net())
    data = samples(graph)
    result = compress(graph, pipeline, data)
    compress(explicit, with_option(pipeline, "rounding=adaround"), data)
    assert print_graph(graph) == print_graph(explicit)  # twice the same, to the last bit
    statistics = result.records[0].statistics
    assert statistics["rounded_layers"] == statistics["layers"] == 5
    assert statistics["samples"] == 24


def test_each_mean_is_that_of_the_dense_network(net: Net) -> None:
    dense = net.done(net.conv(net.input(1, 4, 6, 6), 6, bias=False))
    graph, data = dense.copy(), samples(dense)
    compress(graph, "quantize-weights{bits=2}", data)
    both = (outputs(graph, data), outputs(dense, data))
    got, want = (a.reshape(len(data), 6, -1).mean(axis=(0, 2)) for a in both)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert graph.nodes[0].optional_input(2) is not None


@pytest.mark.parametrize("pipeline", ["ternarize", "share-weights{values=8}"])
def test_pruned_layers_keep_their_zeros(net: Net, pipeline: str) -> None:
    graph = network(net)
    data = samples(graph)
    compress(graph, "prune{sparsity=0.9 exclude=c}", data)
    zeros = [n.input(1).decoded() == 0 for n in graph.nodes if n.op in ("conv2d", "linear")]
    compress(graph, pipeline, data)
    layers = [n for n in graph.nodes if n.op in ("conv2d", "linear")]
    for node, zero in zip(layers, zeros, strict=True):
        if node.loc != "c":
            assert not node.input(1).decoded()[zero].any()
    encoding = layers[0].input(1).type.encoding
    assert isinstance(encoding, Sparse)
    assert isinstance(encoding.inner, Ternary | Codebook)


def test_layers_that_are_not_looked_at_say_why(net: Net) -> None:
    shared = net.random(4, 4, 1, 1)
    x = net.op("conv2d", net.input(1, 4, 6, 6), shared, loc="a")
    x = net.op("conv2d", x, shared, loc="b")
    x = net.op("conv_transpose2d", x, net.random(4, 6, 3, 3), loc="c")
    graph = net.done(net.conv(x, 8, loc="d"))
    result = compress(graph, "quantize-weights", samples(graph))
    notes = {r.loc: r.message for r in result.remarks if r.kind == "note"}
    assert "its weight is shared" in notes["a"]
    assert "conv_transpose2d" in notes["c"]
    assert "adaround: error of its result" in notes["d"]
    assert graph.nodes[0].input(1) is graph.nodes[1].input(1)
    few = network(Net())
    result = compress(few, "binarize", samples(few, 2))
    assert "4 samples at least" in next(r.message for r in result.remarks if r.loc == "d")


@pytest.mark.parametrize("how", ["nearest", "gptq", "adaround"])
def test_quantize_rounds_by_the_same_code(net: Net, how: str) -> None:
    dense = network(net)
    PassManager("fuse-epilogues").run(dense)
    data, fresh = samples(dense), samples(dense, 8, seed=1)
    want = outputs(dense, fresh)
    errors = {}
    for rounding in ("nearest", how):
        graph = dense.copy()
        compress(graph, f"quantize{{bits=4 rounding={rounding}}}", data)
        errors[rounding] = float(np.linalg.norm(outputs(graph, fresh) - want))
    if how != "nearest":
        assert errors[how] < 0.9 * errors["nearest"]


def test_quantize_fits_narrow_weights_to_the_float_network(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = network(net)
    PassManager("fuse-epilogues").run(dense)
    data, fresh = samples(dense, 48), samples(dense, 8, seed=1)
    want = outputs(dense, fresh)
    errors = []
    for fits in (True, False):
        monkeypatch.setattr(Quantize, "fits_weights", fits)
        graph = dense.copy()
        compress(graph, "quantize{weights=[*:3]}", data)
        errors.append(float(np.linalg.norm(outputs(graph, fresh) - want)))
    assert errors[0] < 0.95 * errors[1]


def test_wide_weights_are_those_of_the_network(net: Net) -> None:
    graph = network(net)
    before = {n.loc: n.input(1).decoded() for n in graph.nodes if n.op in ("conv2d", "linear")}
    compress(graph, "quantize{bits=8 equalise=false}", samples(graph))
    for node in graph.nodes:
        if node.op in ("conv2d", "linear"):
            change = np.abs(node.input(1).decoded() - before[node.loc])
            assert change.max() < 0.05 * np.abs(before[node.loc]).max()


@pytest.mark.parametrize(
    ("pipeline", "data", "code"),
    [
        ("ternarize{rounding=gptq}", None, ExitCode.USAGE),
        ("quantize-weights{rounding=adaround}", [], ExitCode.DATA),
        ("share-weights", [{"x": np.full((1, 8, 8, 8), np.nan, np.float32)}], ExitCode.DATA),
        ("binarize{rounding=up}", [], ExitCode.USAGE),
        ("ternarize{samples=0}", [], ExitCode.USAGE),
        ("quantize{rounding=up}", [], ExitCode.USAGE),
    ],
)
def test_errors(net: Net, pipeline: str, data: Any, code: ExitCode) -> None:
    context = PassContext(calibration=None if data is None else lambda: iter(data))
    with pytest.raises(DlccError) as caught:
        PassManager(pipeline).run(network(net), context)
    assert caught.value.code is code


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_poisoned_layers_are_left_alone_and_the_others_fitted(net: Net, value: float) -> None:
    x = net.conv(net.input(1, 4, 6, 6), 8, loc="a")
    bad = net.const(np.full((8, 8, 1, 1), value, np.float32))
    y = net.op("conv2d", x, bad, loc="bad")
    graph = net.done(x, y)
    result = compress(graph, "ternarize", samples(graph))
    kinds = {(r.loc, r.kind) for r in result.remarks}
    assert ("bad", "refused") in kinds
    assert ("a", "applied") in kinds
