"""Factorisation fitted to calibration data: optimality, error budgets, the prefix, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.ir import Graph
from dlcc.ops.base import op_of
from passes import PassContext, PassManager, PipelineResult
from passes.compression.refit import Sums
from passes.factorization.layer import Layer
from passes.factorization.whitened import Metric, whitened
from passes.factorize import FORMS
from tests.passes.conftest import Net


def correlated(rng: np.random.Generator, rows: int, depth: int) -> Any:
    """Rows of falling variance in mixed directions, with a mean."""
    mixing = rng.standard_normal((depth, depth)) * 0.8 ** np.arange(depth)[:, None]
    return rng.standard_normal((rows, depth)) @ mixing + rng.standard_normal(depth)


def metric_of(layer: Layer, seed: int = 0, rows: int = 4000) -> tuple[Metric, Any]:
    """A metric of inputs whose results are the layer's own, and the inputs."""
    rng = np.random.default_rng(seed)
    depth = layer.weight.size // layer.outputs
    parts = []
    x = correlated(rng, rows, depth)
    for chosen in (x[: rows * 3 // 4], x[rows * 3 // 4 :]):
        sums = Sums.zero(1, depth, layer.outputs)
        sums.add(chosen[None], (chosen @ layer.weight.reshape(layer.outputs, -1).T)[None])
        parts.append(sums)
    return Metric.of(layer, *parts), x


def conv_layer(o: int = 12, i: int = 10, kernel: int = 3) -> Layer:
    net = Net()
    node = net.conv(net.input(1, i, 6, 6), o, kernel).producer
    assert node is not None
    return Layer.of(node, node.input(1).decoded())


def loss(layer: Layer, x: Any, weight: Any) -> float:
    """Energy of the error of centred results over that of the results."""
    centred = x - x.mean(axis=0)
    want = centred @ layer.weight.reshape(layer.outputs, -1).T
    got = centred @ weight.reshape(layer.outputs, -1).T
    return float(np.square(got - want).sum() / np.square(want).sum())


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_projection_of_one_matrix_is_the_best_one(kernel: int) -> None:
    layer = conv_layer(kernel=kernel)
    metric, x = metric_of(layer)
    form = whitened(FORMS["svd"], layer, metric)
    singular = np.linalg.svd(
        (x - x.mean(axis=0)) @ layer.weight.reshape(12, -1).T, compute_uv=False
    )
    for rank in (1, 3, 7):
        found = loss(layer, x, form.compose(form.weights((rank,))))
        best = np.square(singular[rank:]).sum() / np.square(singular).sum()
        assert found == pytest.approx(best, rel=1e-3, abs=1e-6)
        assert form.kept((rank,)) == pytest.approx(1 - best, abs=1e-4)


@pytest.mark.parametrize("method", ["svd", "tucker", "spatial"])
def test_what_is_kept_is_kept_of_the_results(method: str) -> None:
    layer = conv_layer()
    metric, x = metric_of(layer)
    form = whitened(FORMS[method], layer, metric)
    plain = FORMS[method](layer)
    ratios = []
    for ranks in form.candidates()[:: max(1, len(form.candidates()) // 12)]:
        weights = form.weights(ranks)
        assert [w.shape for w in weights] == [f.shape for f in form.factors(ranks)]
        found = loss(layer, x, form.compose(weights))
        assert found <= 1 - form.kept(ranks) + 1e-3
        ratios.append(found / loss(layer, x, plain.compose(plain.weights(ranks))))
    assert max(ratios) < 1.01
    assert min(ratios) < 0.5, "data tell what weights do not"
    assert form.kept(form.full) == pytest.approx(1.0)
    assert form.evb() == plain.evb()


def test_the_bias_keeps_the_means() -> None:
    layer = conv_layer()
    metric, x = metric_of(layer)
    weight = layer.weight * 0.5
    bias = metric.bias(weight)
    want = x @ layer.weight.reshape(12, -1).T
    got = x @ weight.reshape(12, -1).T + bias
    np.testing.assert_allclose(got.mean(axis=0), want.mean(axis=0), atol=1e-6)
    assert metric.error(weight, bias) == pytest.approx(0.5, rel=1e-6)


# -- the pass ----------------------------------------------------------------------------------


def feeds(graph: Graph, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Smooth images: neighbouring pixels and channels are correlated."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        feed = {}
        for value in graph.inputs:
            shape = value.type.shape
            coarse = rng.standard_normal((*shape[:2], *(-(-s // 3) for s in shape[2:])))
            for axis in range(2, len(shape)):
                coarse = np.repeat(coarse, 3, axis=axis)
            coarse = coarse[tuple(slice(0, s) for s in shape)]
            feed[value.name] = (np.cumsum(coarse, axis=1) / 3 + 0.5).astype(np.float32)
        out.append(feed)
    return out


def factorise(graph: Graph, options: str, data: list[dict[str, Any]]) -> PipelineResult:
    def cost(node: Any) -> float:
        return float(op_of(node).macs(node))

    context = PassContext(calibration=lambda: iter(data), cost=cost)
    return PassManager(f"factorize{{{options}}}").run(graph, context)


def network(net: Net) -> Graph:
    x = net.input(1, 12, 9, 9)
    pads = (1, 1, 1, 1)
    a = net.op("conv2d", x, net.random(24, 12, 3, 3), net.random(24), loc="a", pads=pads)
    a = net.op("clip", a, min=0.0)
    PassManager("fuse-epilogues").run(net.graph)
    a = net.graph.nodes[-1].output
    b = net.op("conv2d", a, net.random(24, 24, 3, 3), None, a, loc="b", pads=pads, act_min=0.0)
    m = net.op("reduce_mean", b, axes=(2, 3), keepdims=False)
    return net.done(net.linear(m, 16, loc="fc"))


def outputs(graph: Graph, data: list[dict[str, Any]]) -> Any:
    return np.concatenate([execute(graph, feed)["y0"] for feed in data])


def error_of(before: Graph, after: Graph, data: list[dict[str, Any]]) -> float:
    want, got = outputs(before, data), outputs(after, data)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(axis=0)))


def test_data_lower_the_error_of_the_network(net: Any) -> None:
    data = feeds(graph := network(net), 40)
    fitted, plain = graph.copy(), graph.copy()
    result = factorise(fitted, "speedup=1.6 only=[a,b]", data)
    factorise(plain, "speedup=1.6 only=[a,b] data-aware=false", data)
    assert result.records[0].statistics["samples"] == 40
    unseen = feeds(graph, 20, seed=1)
    assert error_of(graph, fitted, unseen) < 0.5 * error_of(graph, plain, unseen)
    mean = outputs(fitted, data).mean(axis=0) - outputs(graph, data).mean(axis=0)
    assert np.abs(mean).max() < 0.05 * np.abs(outputs(graph, data)).mean()


def test_an_error_budget_holds_on_samples_that_judge(net: Any) -> None:
    graph = network(net)
    before, data = graph.copy(), feeds(graph, 40)
    result = factorise(graph, "error=0.2 only=[a]", data)
    [remark] = [r for r in result.remarks if r.kind == "applied"]
    assert "of the results" in remark.message
    clamped = [g.copy() for g in (before, graph)]
    for g in clamped:
        last = max(i for i, n in enumerate(g.nodes) if n.loc.startswith("a"))
        g.set_outputs([g.nodes[last].output], ["y0"])
    want, got = (outputs(g, feeds(before, 20, seed=2)) for g in clamped)
    spread = np.linalg.norm(want - want.mean(axis=(0, 2, 3), keepdims=True))
    assert np.linalg.norm(got - want) / spread < 0.25


def test_a_layer_sees_the_factorised_prefix(net: Any) -> None:
    """The bias of the second layer makes up for what the first one lost."""
    graph = network(net)
    before, data = graph.copy(), feeds(graph, 60)
    factorise(graph, "speedup=3 only=[a,b]", data)
    last = [n for n in graph.nodes if n.loc.startswith("b.")][-1]
    assert last.optional_input(2) is not None, "b had no bias of its own"
    assert last.optional_input(3) is not None
    unclamped = []
    for g in (before, graph):
        twin = g.copy()
        for node in twin.nodes:
            if node.loc.startswith("b"):
                node.attrs.pop("act_min", None)
        node = [n for n in twin.nodes if n.loc.startswith("b")][-1]
        twin.set_outputs([node.output], ["y0"])
        unclamped.append(outputs(twin, data).mean(axis=(0, 2, 3)))
    assert np.abs(unclamped[1] - unclamped[0]).max() < 0.05 * np.abs(unclamped[0]).max()


def test_layers_without_a_metric_are_factorised_by_their_weights(net: Any) -> None:
    x = net.input(1, 32)
    bias = net.input(32, name="bias")
    low = net.rng.standard_normal((32, 3)) @ net.rng.standard_normal((3, 32))
    graph = net.done(net.op("linear", x, net.const(low, "w"), bias, loc="fc"))
    data = [
        {"x": net.rng.standard_normal((1, 32)).astype(np.float32), "bias": np.zeros(32, np.float32)}
        for _ in range(8)
    ]
    result = factorise(graph, "energy=0.999", data)
    notes = [r.message for r in result.remarks if r.kind == "note"]
    assert notes == ["factorised by its weights alone: its bias is not constant"]
    assert result.modified


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: np.zeros_like(x), "its results do not vary"),
        (None, "it takes a batch axis and 4 samples at least"),
    ],
)
def test_data_that_tell_nothing(net: Any, change: Any, why: str) -> None:
    low = net.rng.standard_normal((32, 3)) @ net.rng.standard_normal((3, 32))
    graph = net.done(net.op("linear", net.input(1, 32), net.const(low, "w"), loc="fc"))
    data = feeds(graph, 12)
    data = data[:2] if change is None else [{"x": change(f["x"])} for f in data]
    result = factorise(graph, "energy=0.999", data)
    notes = [r.message for r in result.remarks if r.kind == "note"]
    assert notes == [f"factorised by its weights alone: {why}"]


def test_an_impossible_budget_is_refused(net: Any) -> None:
    graph = network(net)
    result = factorise(graph, "error=0.0001 only=[a]", feeds(graph, 20))
    [reason] = [r.message for r in result.remarks if r.kind == "refused" and r.loc == "a"]
    assert "no rank" in reason or "predicted to take" in reason


def test_bad_data_are_an_error(net: Any) -> None:
    graph = network(net)
    with pytest.raises(DlccError, match="calibration data is empty"):
        factorise(graph, "", [])
    with pytest.raises(DlccError, match="NaN"):
        factorise(graph, "", [{"x": np.full((1, 12, 9, 9), np.nan, np.float32)}])
