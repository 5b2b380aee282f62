"""Sensitivity analysis against brute force, and the distribution of a sparsity by it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from passes import PassContext, PassManager
from passes.compression.pruning import Candidate
from passes.compression.sensitivity import (
    Curve,
    Labels,
    Point,
    affordable,
    analyse,
    check_sparsities,
    distribute,
)
from passes.prune import Prune
from passes.quantization.samples import Samples, cut
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def network(net: Net) -> Graph:
    x = net.input(1, 4, 6, 6)
    y = net.conv(x, 8, pads=(1, 1, 1, 1), loc="a", act_min=0.0)
    y = net.conv(y, 8, 1, loc="b", act_min=0.0)
    y = net.op("avg_pool2d", y, kernel=(3, 3), strides=(3, 3))
    return net.done(net.linear(net.op("reshape", y, shape=(1, 32)), 5, loc="c"))


def samples_of(graph: Graph, count: int = 12) -> Samples:
    x = np.random.default_rng(7).standard_normal((count, *graph.inputs[0].type.shape[1:]))
    return cut(graph, {graph.inputs[0].name: x.astype(np.float32)}, count)


def refuse(loc: str, why: str) -> None:
    raise AssertionError((loc, why))


def candidates(graph: Graph, **options: Any) -> list[Candidate]:
    return Prune(sparsity=0.5, **options).candidates(
        graph, None, {}, refuse, np.random.default_rng(0)
    )


def outputs(graph: Graph, samples: Samples) -> Array:
    [name] = [v.name for v in graph.inputs]
    array = samples.arrays[name]
    runs = [execute(graph, {name: array[i : i + 1]})["y0"] for i in range(len(array))]
    return np.concatenate(runs).astype(np.float64)


def test_curves_are_what_pruning_one_layer_does(net: Net) -> None:
    graph = network(net)
    samples = samples_of(graph)
    want = outputs(graph, samples)
    classes = np.where(np.arange(12) < 9, want.argmax(axis=1), (want.argmax(axis=1) + 1) % 5)
    before = str(graph)
    curves = analyse(samples, candidates(graph), (0.3, 0.8), labels=Labels(classes, "y0"))
    assert str(graph) == before
    assert [c.layer for c in curves] == ["a", "b", "c"]
    for curve in curves:
        for point, sparsity in zip(curve.points, (0.3, 0.8), strict=True):
            other = graph.copy()
            PassManager(f"prune{{sparsity={sparsity} only={curve.layer}}}").run(other)
            got = outputs(other, samples)
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert point.error == pytest.approx(error, rel=1e-4)
            assert point.accuracy == np.mean(got.argmax(axis=1) == classes)
            weight = next(n for n in other.nodes if n.loc == curve.layer).input(1).decoded()
            assert point.sparsity == pytest.approx(np.mean(weight == 0))
            assert curve.weights == weight.size


def test_chunks_and_shared_weights(net: Net) -> None:
    x, w = net.input(1, 6), net.random(6, 6)
    y = net.op("linear", net.op("relu", net.op("linear", x, w, loc="a")), w, loc="b")
    graph = net.done(y)
    samples = samples_of(graph)
    network = rebatched(graph, 3)
    assert network is not None
    pieces = Samples(samples.arrays, 3, network, 12)
    [whole] = analyse(samples, candidates(graph), (0.5,))
    other = graph.copy()
    PassManager("prune{sparsity=0.5}").run(other)
    want, got = outputs(graph, samples), outputs(other, samples)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert whole.points[0].error == pytest.approx(error, rel=1e-4)
    [cut_up] = analyse(pieces, candidates(graph), (0.5,))
    assert cut_up.points[0].error == pytest.approx(error, rel=1e-4)


def test_affordable_keeps_some_samples(net: Net) -> None:
    graph = network(net)
    samples = samples_of(graph, 40)
    assert affordable(samples, 3, 9).count == 40
    assert affordable(samples, 10**12, 9).count <= 40
    assert affordable(samples, 10**12, 9).count >= 1


# -- distribution ------------------------------------------------------------------------------


def plan(sizes: list[int], errors: list[list[float]], steps: list[float]) -> Any:
    net = Net()
    x = net.input(1, 10)
    ys = [net.linear(x, n, bias=False, loc=f"l{i}") for i, n in enumerate(sizes)]
    found = candidates(net.done(*ys))
    curves = []
    for candidate, row in zip(found, errors, strict=True):
        size = candidate.layer.values.size
        points = tuple(Point(s, size - round(s * size), e) for s, e in zip(steps, row, strict=True))
        curves.append(Curve(candidate.layer.loc, size, points))
    return curves, found


def test_robust_layers_lose_most() -> None:
    steps = [0.2, 0.5, 0.8, 1.0]
    curves, found = plan([10, 10], [[0.01, 0.02, 0.05, 0.1], [0.2, 0.6, 1.0, 2.0]], steps)
    assert distribute(curves, found, 0.4) == [20, 100]  # 80 of 200, all of the first layer
    first, second = distribute(curves, found, 0.6)
    assert first == 1  # none is left: one stays
    assert second == 80
    assert distribute(curves, found, 0.0) == [100, 100]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(0, 2, allow_subnormal=False), min_size=4, max_size=4),
        min_size=2,
        max_size=3,
    ),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_the_distribution_is_no_worse_than_any_on_the_grid(
    rows: list[list[float]], sparsity: float
) -> None:
    """Against brute force over all grid points that reach the total, on the hulls."""
    steps = [0.25, 0.5, 0.75, 1.0]
    errors = [sorted(row) for row in rows]
    curves, found = plan([4] * len(rows), errors, steps)
    keeps = distribute(curves, found, sparsity)
    removed = sum(40 - k for k in keeps)
    assert abs(removed - sparsity * 40 * len(rows)) <= len(rows)

    def hull(row: list[float], share: float) -> float:
        """Lower convex envelope of (0, 0) and the squared errors, by brute force."""
        corners = [(0.0, 0.0), *((s, e**2) for s, e in zip(steps, row, strict=True))]
        best = np.inf
        for (a, ea), (b, eb) in itertools.product(corners, corners):
            if a <= share <= b:
                t = 0.0 if a == b else (share - a) / (b - a)
                best = min(best, ea + t * (eb - ea) if a < b else min(ea, eb))
        return best

    got = sum(hull(e, (40 - k) / 40) for e, k in zip(errors, keeps, strict=True))
    for choice in itertools.product([0.0, *steps], repeat=len(rows)):
        if sum(choice) >= sparsity * len(rows) + 0.03 * len(rows):
            assert got <= sum(hull(e, c) for e, c in zip(errors, choice, strict=True)) + 1e-9


def test_prune_distributes(net: Net) -> None:
    """Half of the weights go where the inputs are weak."""
    x = net.input(1, 16)
    strong = net.op("linear", x, net.const(net.rng.standard_normal((16, 16))), loc="strong")
    weak = net.op("linear", x, net.const(0.01 * net.rng.standard_normal((16, 16))), loc="weak")
    graph = net.done(net.op("add", strong, weak))
    feeds = [
        {"x": np.random.default_rng(i).standard_normal((1, 16)).astype(np.float32)}
        for i in range(16)
    ]

    def batches() -> Iterator[dict[str, Array]]:
        return iter(feeds)

    context = PassContext(calibration=batches)
    result = PassManager("prune{sparsity=0.5 scope=sensitivity}").run(graph, context)
    kept = [np.count_nonzero(n.input(1).decoded()) for n in graph.nodes[:2]]
    assert abs(sum(kept) - 256) <= 1
    assert kept[0] > 200
    assert result.records[0].statistics["sparsity"] == pytest.approx(0.5, abs=0.01)


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), (0.5, 0.4), (0.0, 0.5), (0.5, 1.2), (float("nan"),)])
def test_sparsities_rise(steps: tuple[float, ...]) -> None:
    with pytest.raises(DlccError, match="sparsities are not valid") as error:
        check_sparsities(steps)
    assert error.value.code == ExitCode.USAGE


@pytest.mark.parametrize("classes", [np.arange(3), np.full(12, 5), np.full(12, -1)])
def test_labels_fit(net: Net, classes: Array) -> None:
    graph = network(net)
    with pytest.raises(DlccError, match="labels do not fit"):
        analyse(samples_of(graph), candidates(graph), (0.5,), labels=Labels(classes, "y0"))


def test_data_is_needed(net: Net) -> None:
    with pytest.raises(DlccError, match="needs calibration data"):
        PassManager("prune{sparsity=0.5 scope=sensitivity}").run(network(net))
