"""Residual branches that go as a whole, and channels chosen by predicted times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc import load_graph
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError
from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import op_of
from passes import PassContext, PassManager, PipelineResult
from passes.compression.channel_branches import Branches, branch_errors
from passes.compression.channel_choice import Work, bundles
from passes.compression.channel_rules import analyse
from passes.compression.channel_times import LayerTimes, resized
from passes.pipelines import OPTIMISE
from passes.prune_channels import PruneChannels
from passes.quantization.samples import read
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def prune(graph: Graph, options: str, **context: Any) -> PipelineResult:
    result = PassManager(f"prune-channels{{{options}}}").run(graph, PassContext(**context))
    verify(graph)
    return result


def block(net: Net, x: Value, inner: int, name: str, weight: float = 1.0) -> Value:
    """Two 3x3 layers and x."""
    deep = net.conv(x, inner, pads=(1, 1, 1, 1), act_min=0.0, loc=f"{name}.a")
    c = x.type.shape[1]
    last = net.const(weight * net.rng.standard_normal((c, inner, 3, 3)), "w")
    operands = [deep, last, net.random(c, name="b"), x]
    return net.op("conv2d", *operands, pads=(1, 1, 1, 1), act_min=0.0, loc=f"{name}.b")


def residual(net: Net, **weights: float) -> Graph:
    """A stem, blocks whose last layers have weights of these sizes, and a classifier."""
    x = net.conv(net.input(1, 3, 8, 8), 8, pads=(1, 1, 1, 1), act_min=0.0, loc="stem")
    for name, weight in weights.items():
        x = block(net, x, 16, name, weight)
    return net.done(net.linear(net.op("reduce_mean", x, axes=(2, 3), keepdims=False), 4, loc="fc"))


def layers(graph: Graph) -> list[str]:
    return [n.loc for n in graph.nodes if n.op in ("conv2d", "linear")]


def outputs(graph: Graph) -> Array:
    rng = np.random.default_rng(3)
    feed = {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
    return execute(graph, feed)["y0"]


def test_a_branch_that_adds_nothing_goes(
    net: Net, golden: Callable[[Graph, str], PipelineResult]
) -> None:
    golden(residual(net, one=1.0, two=0.0), "prune-channels{minimum=0 multiple=1}")


def test_the_least_salient_branch_goes(net: Net) -> None:
    graph = residual(net, one=1.0, two=1e-3, three=1.0)
    before = sum(op_of(n).macs(n) for n in graph.nodes)
    calibration = [np.random.default_rng(i).standard_normal((1, 3, 8, 8)) for i in range(24)]
    result = prune(
        graph,
        "macs=0.3 minimum=0 multiple=16 saliency=obd reconstruct",
        calibration=lambda: ({"x": x.astype(np.float32)} for x in calibration),
        channel_moments={n: (np.zeros(8), np.ones(8)) for n in ("stem", "two.b")},
    )
    assert layers(graph) == ["stem", "one.a", "one.b", "three.a", "three.b", "fc"]
    told = {r.loc: r.message for r in result.remarks if r.kind == "applied"}
    assert told["two.a"].startswith("gone: ")
    assert told["two.b"].startswith("gone: ")
    statistics = result.records[-1].statistics
    assert statistics["macs_after"] == sum(op_of(n).macs(n) for n in graph.nodes)
    assert statistics["macs_before"] == before
    assert statistics["bytes_after"] < statistics["bytes_before"]
    # What the branch added on average is left to the fit of the others.
    assert statistics["fitted_layers"] == len(layers(graph))
    assert not [n for n in graph.nodes if n.op == "add"]


def test_what_is_known_of_a_lost_layers_channels_is_forgotten(net: Net) -> None:
    graph = residual(net, one=0.0)
    moments = {name: (np.zeros(8), np.ones(8)) for name in ("stem", "one.b")}
    context = PassContext(channel_moments=moments)
    PassManager("prune-channels{minimum=0 multiple=1}").run(graph, context)
    assert list(context.channel_moments) == ["stem"]


def test_empty_calibration(net: Net) -> None:
    graph = residual(net, one=1.0)
    with pytest.raises(DlccError, match="empty"):
        prune(graph, "macs=0.1 minimum=0 saliency=first-order", calibration=lambda: iter([]))


def test_a_lost_branchs_clamp_stays_where_the_residual_has_none(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 8, 1, loc="stem")
    deep = net.conv(x, 4, 1, act_min=0.0, loc="a")
    zeros = net.const(np.zeros((8, 4, 1, 1)))
    y = net.op("conv2d", deep, zeros, None, x, act_min=0.0, loc="b")
    graph = net.done(net.linear(net.op("reduce_mean", y, axes=(2, 3), keepdims=False), 4, loc="fc"))
    want = outputs(graph)
    prune(graph, "minimum=0 multiple=1")
    (left,) = (n for n in graph.nodes if n.op == "add")
    assert left.attrs == {"act_min": 0.0}
    np.testing.assert_allclose(outputs(graph), want, rtol=1e-5)


@pytest.mark.parametrize("minimum", [1, 3])
def test_branches_stay_by_default(net: Net, minimum: int) -> None:
    graph = residual(net, one=0.0)
    prune(graph, f"minimum={minimum} multiple=1")
    (inner,) = (n for n in graph.nodes if n.loc == "one.a")
    assert inner.output.type.shape[1] == minimum


def test_a_chain_keeps_its_layers(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 8, 1, loc="first")
    x = net.conv(net.op("relu", x), 8, 1, loc="second")
    graph = net.done(net.linear(net.op("reduce_mean", x, axes=(2, 3), keepdims=False), 4, loc="fc"))
    prune(graph, "macs=0.8 minimum=0 multiple=1")
    assert layers(graph) == ["first", "second", "fc"]
    assert all(n.output.type.shape[1] for n in graph.nodes)


def test_a_sum_with_itself_is_no_branch(net: Net) -> None:
    """The residual has the channels that the layer reads: without them nothing is left."""
    x = net.op("relu", net.conv(net.input(1, 3, 8, 8), 8, 1, loc="stem"))
    y = net.op("conv2d", x, net.random(8, 8, 1, 1), net.random(8), x, loc="sum")
    graph = net.done(net.linear(net.op("reduce_mean", y, axes=(2, 3), keepdims=False), 4, loc="fc"))
    prune(graph, "macs=0.8 minimum=0 multiple=1")
    assert layers(graph) == ["stem", "sum", "fc"]


def test_a_branch_behind_a_concatenation_stays(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 8, 1, loc="stem")
    parts = [net.conv(x, 4, 1, loc=f"part{i}") for i in range(2)]
    joined = net.op("concat", *parts, axis=1)
    y = net.op("conv2d", joined, net.random(8, 8, 1, 1), net.random(8), x, loc="sum")
    graph = net.done(net.linear(net.op("reduce_mean", y, axes=(2, 3), keepdims=False), 4, loc="fc"))
    prune(graph, "macs=0.5 minimum=0 multiple=4")
    assert all(n.output.type.shape[1] for n in graph.nodes)


def test_a_bottleneck_goes_with_all_its_layers(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 8, 1, act_min=0.0, loc="stem")
    a = net.conv(x, 4, 1, act_min=0.0, loc="a")
    b = net.conv(a, 4, pads=(1, 1, 1, 1), act_min=0.0, loc="b")
    zeros = net.const(np.zeros((8, 4, 1, 1), np.float32))
    y = net.op("conv2d", b, zeros, None, x, loc="c")
    graph = net.done(net.linear(net.op("reduce_mean", y, axes=(2, 3), keepdims=False), 4, loc="fc"))
    want = outputs(graph)
    prune(graph, "minimum=0 multiple=1")
    assert layers(graph) == ["stem", "fc"]
    np.testing.assert_allclose(outputs(graph), want, rtol=1e-5)


def test_quantize_takes_what_is_left(net: Net) -> None:
    graph = residual(net, one=1.0, two=0.0)
    want = outputs(graph)
    PassManager("prune-channels{minimum=0 multiple=1},quantize{bits=8}").run(graph, PassContext())
    assert layers(graph) == ["stem", "one.a", "one.b", "fc"]
    assert np.abs(outputs(graph) - want).max() < 0.1 * np.abs(want).max()


# -- times ---------------------------------------------------------------------------------------


def test_channels_go_where_time_is_saved(net: Net) -> None:
    """A layer whose kernel takes 16 channels at a time gains nothing by a first step of 8."""

    def cost(node: Node) -> float:
        rows = node.output.type.shape[-1] if node.op == "linear" else node.output.type.shape[1]
        coarse = node.loc == "coarse"
        return 1e-6 * -(-rows // 32) * 32 if coarse else 4e-6 * rows

    def pruned(**context: Any) -> dict[str, int]:
        inner = Net(1)
        x = inner.input(1, 32, 8, 8)
        x = inner.conv(inner.op("relu", x), 32, 1, loc="coarse")
        x = inner.conv(inner.op("relu", x), 32, 1, loc="fine")
        mean = inner.op("reduce_mean", inner.op("relu", x), axes=(2, 3), keepdims=False)
        graph = inner.done(inner.linear(mean, 4, loc="fc"))
        for number, node in enumerate(graph.nodes):  # all filters of a layer matter alike
            if node.op in ("conv2d", "linear"):
                value = node.input(1)
                alike = np.full(value.type.shape, number + 1, np.float32)
                node.set_input(1, graph.add_constant(alike, name=value.name))
        prune(graph, "macs=0.1 multiple=8", **context)
        return {n.loc: n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"}

    assert pruned() == {"coarse": 24, "fine": 32}
    assert pruned(cost=cost) == {"coarse": 32, "fine": 24}


def test_layers_of_other_widths_have_the_types_of_shrunken_ones(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 8, pads=(1, 1, 1, 1), loc="stem")
    deep = net.conv(x, 16, groups=8, pads=(1, 1, 1, 1), loc="depthwise")
    back = net.op("conv2d", deep, net.random(8, 16, 1, 1), None, x, act_min=0.0, loc="back")
    up = net.op("conv_transpose2d", back, net.random(8, 6, 2, 2), net.random(6), loc="up")
    flat = net.op("reshape", up, shape=(1, 6 * 81))
    net.done(net.linear(flat, 4, loc="fc"))
    sides = {s.node.loc: s for s in analyse(net.graph).layers()}

    def shapes(name: str, reads: int, makes: int) -> list[Any]:
        node = resized(sides[name], reads, makes)
        return [None if v is None else v.type.shape for v in (*node.inputs, node.output)]

    assert shapes("stem", 1, 4) == [(1, 3, 8, 8), (4, 3, 3, 3), (4,), (1, 4, 8, 8)]
    deep_shapes = [(1, 4, 8, 8), (8, 1, 3, 3), (8,), (1, 8, 8, 8)]
    assert shapes("depthwise", 1, 8) == deep_shapes
    assert resized(sides["depthwise"], 1, 8).attrs["groups"] == 4
    back_shapes = [(1, 6, 8, 8), (5, 6, 1, 1), None, (1, 5, 8, 8), (1, 5, 8, 8)]
    assert shapes("back", 6, 5) == back_shapes
    assert shapes("up", 5, 3) == [(1, 5, 8, 8), (5, 3, 2, 2), (3,), (1, 3, 9, 9)]
    assert shapes("fc", 81, 4) == [(1, 81), (4, 81), (4,), (1, 4)]
    assert resized(sides["back"], 16, 8).attrs == {"act_min": 0.0}


def test_times_are_asked_for_once(net: Net) -> None:
    graph = residual(net, one=1.0)
    asked: list[str] = []

    def cost(node: Node) -> float:
        asked.append(node.loc)
        return 2.0

    times = LayerTimes(analyse(graph).layers(), cost)
    assert [times(1, 8, 16), times(1, 8, 16), times(1, 0, 16), times(1, 8, 0)] == [2, 2, 0, 0]
    assert asked == ["one.a"]


# -- what a branch is worth ----------------------------------------------------------------------


def test_a_branch_is_worth_what_the_outputs_lose_without_it(net: Net) -> None:
    graph = residual(net, one=0.3, two=0.1)
    calibration = [np.random.default_rng(i).standard_normal((1, 3, 8, 8)) for i in range(6)]
    feeds = [{"x": x.astype(np.float32)} for x in calibration]
    samples = read(graph, iter(feeds), 6)
    ends = [[n for n in graph.nodes if n.loc == name] for name in ("one.b", "two.b")]
    found = branch_errors(samples, ends, lambda _: None)

    want = np.stack([execute(graph, f)["y0"] for f in feeds])
    for (node,), error in zip(ends, found, strict=True):
        kept: list[Array] = []
        plain = graph.copy()
        (twin,) = (n for n in plain.nodes if n.loc == node.loc)
        twin.set_input(3, None)
        del twin.attrs["act_min"]
        for feed in feeds:
            plain.set_outputs([twin.output], ["sum"])
            kept.append(execute(plain, feed)["sum"])
        mean = np.mean(kept, axis=(0, 1, 3, 4))
        without = graph.copy()
        (twin,) = (n for n in without.nodes if n.loc == node.loc)
        twin.set_input(1, without.add_constant(np.zeros(node.input(1).type.shape, np.float32)))
        twin.set_input(2, without.add_constant(mean.astype(np.float32)))
        got = np.stack([execute(without, f)["y0"] for f in feeds])
        assert error == pytest.approx(np.square(got - want).sum() / np.square(want).sum(), rel=1e-3)


def test_channels_of_a_branch_cost_together_what_it_is_worth(net: Net) -> None:
    """The later branch is small to first order but decides alone: its channels agree."""
    x = net.conv(net.input(1, 3, 4, 4), 8, 1, act_min=0.0, loc="stem")

    def branch(x: Value, name: str, weight: Array) -> Value:
        deep = net.conv(x, 16, 1, act_min=0.0, loc=f"{name}.a")
        return net.op("conv2d", deep, net.const(weight), None, x, loc=f"{name}.b")

    mixed = net.rng.standard_normal((8, 16, 1, 1))
    x = branch(x, "mixed", 0.3 * mixed)
    x = branch(x, "alike", np.full((8, 16, 1, 1), 0.2))
    graph = net.done(net.linear(net.op("reduce_mean", x, axes=(2, 3), keepdims=False), 4, loc="fc"))
    calibration = [np.random.default_rng(i).standard_normal((1, 3, 4, 4)) for i in range(32)]
    samples = read(graph, ({"x": c.astype(np.float32)} for c in calibration), 32)
    channels = analyse(graph)
    found = bundles(channels, Work(graph, channels), np.ones(channels.count), 1, 0)
    step, context = PruneChannels(macs=0.1, minimum=0), PassContext()
    scaled = step._measured(channels, found, np.ones(channels.count), samples, context)
    branches = Branches(channels)
    inner = [b.groups for b in found if branches.may_go(b.groups)]
    ends = [branches.readers(groups) for groups in inner]
    want = branch_errors(samples, ends, lambda _: None)
    assert [scaled[groups].sum() for groups in inner] == pytest.approx(want.tolist())
    others = np.setdiff1d(np.arange(channels.count), np.concatenate(inner))
    assert scaled[others] == pytest.approx(np.median(want / 16))


@pytest.mark.parametrize("model", ["cifar10_resnet56", "efficientnet_lite0_224"])
def test_real_networks_lose_thirty_percent_of_their_work(models_dir: Path, model: str) -> None:
    graph = load_graph(models_dir / f"{model}.onnx", shapes={"N": 1})
    PassManager(OPTIMISE).run(graph)
    before = sum(op_of(n).macs(n) for n in graph.nodes)
    prune(graph, "macs=0.3 multiple=16")
    assert 0.3 <= 1 - sum(op_of(n).macs(n) for n in graph.nodes) / before < 0.33
    made = [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"]
    assert all(m % 16 == 0 or m in (24, 40) for m in made)
