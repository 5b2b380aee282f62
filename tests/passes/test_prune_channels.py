"""Channels removed with shapes shrinking, against networks whose channels are masked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, Node, Sparse, Value, print_graph
from dlcc.ops.base import op_of
from passes import PassContext, PassManager, PipelineResult
from passes.compression.channel_branches import without_branches
from passes.compression.channel_choice import Work, bundles
from passes.compression.channel_removal import shrink
from passes.compression.channel_rules import analyse
from passes.compression.channels import Channels
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def prune(graph: Graph, options: str, **context: Any) -> PipelineResult:
    result = PassManager(f"prune-channels{{{options}}}").run(graph, PassContext(**context))
    verify(graph)
    return result


def feed(graph: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}


def outputs(graph: Graph, seed: int = 0) -> Array:
    found = execute(graph, feed(graph, seed))
    return np.concatenate([found[n].reshape(-1) for n in graph.output_names])


def layer(graph: Graph, loc: str) -> Node:
    (node,) = (n for n in graph.nodes if n.loc == loc)
    return node


def macs(graph: Graph) -> int:
    return sum(op_of(n).macs(n) for n in graph.nodes)


def remarks(result: PipelineResult, kind: str) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == kind}


def masked(graph: Graph, channels: Channels, kept: Array) -> Graph:
    """The network of full shapes in which each layer that reads channels gets zeros for some."""
    copy = graph.copy()
    nodes = {n.outputs[0].name: n for n in copy.nodes}
    for side in channels.layers():
        if side.reads is not None:
            node = nodes[side.node.outputs[0].name]
            x = node.input(0)
            axis = x.type.rank - 1 if node.op == "linear" else 1
            shape = [1] * x.type.rank
            shape[axis] = -1
            mask = kept[channels.groups(side.reads)].astype(np.float32).reshape(shape)
            made = copy.add_constant(mask, name="mask")
            product = copy.add_node("mul", [x, made], [x.type], before=node)
            node.set_input(0, product.output)
    return copy


# -- random networks -----------------------------------------------------------------------------


class Draw:
    """Grows a random network whose values lie in a pool."""

    def __init__(self, seed: int) -> None:
        self.net = Net(seed)
        self.rng = np.random.default_rng(seed)
        self.pool = [self.conv(self.net.input(1, 2, 6, 6))]
        self.count = 0

    def some(self, *shape: int | None) -> Value | None:
        """A value of the pool whose shape fits."""
        fits = [
            v
            for v in self.pool
            if len(v.type.shape) == len(shape)
            and all(s in (None, d) for s, d in zip(shape, v.type.shape, strict=True))
        ]
        return fits[self.rng.integers(len(fits))] if fits else None

    def conv(self, x: Value, outputs: int = 0, **attrs: Any) -> Value:
        pads = (1, 1, 1, 1) if self.rng.random() < 0.7 or x.type.shape[2] < 3 else (0, 0, 0, 0)
        made = outputs or int(self.rng.integers(2, 7))
        bias = bool(self.rng.random() < 0.7)
        return self.net.conv(x, made, bias=bias, pads=pads, **attrs)

    def grow(self, kind: str) -> None:
        x = self.some(1, None, None, None)
        assert x is not None
        _, c, h, w = x.type.shape
        net = self.net
        if kind == "conv":
            y = self.conv(x)
        elif kind == "residual":
            inner = net.op("relu", x)
            other = net.conv(inner, c, pads=(1, 1, 1, 1))
            y = net.op("add", x, other) if self.rng.random() < 0.5 else self.fused(inner, x)
        elif kind == "branch":
            y = self.branch(x, int(self.rng.integers(1, 4)))
        elif kind == "depthwise":
            y = self.conv(x, c * int(self.rng.integers(1, 3)), groups=c)
        elif kind == "grouped":
            y = self.conv(x, 4, groups=2) if c % 2 == 0 else net.op("relu", x)
        elif kind == "transposed":
            weight = net.random(c, 3, 2, 2)
            y = net.op("conv_transpose2d", x, weight, net.random(3), strides=(1, 1))
        elif kind == "concat":
            other = self.some(1, None, h, w) or x
            y = net.op("concat", x, other, axis=1)
        elif kind == "norm":
            y = net.norm(x)
        elif kind == "scale":
            y = net.op("mul", x, net.random(c, 1, 1))
        elif kind == "gate":
            mean = net.op("reduce_mean", x, axes=(2, 3), keepdims=True)
            y = net.op("mul", x, net.op("sigmoid", net.conv(mean, c, 1)))
        elif kind == "pool":
            y = net.op("max_pool2d", x, kernel=(2, 2), pads=(0, 0, 1, 1))
        elif kind == "slice":
            start = int(self.rng.integers(c))
            spans = {"starts": (start, 0), "ends": (c, h), "axes": (1, 2), "steps": (1, 1)}
            y = net.op("slice", x, **spans)
        elif kind == "pad":
            y = net.op("pad", x, pads=(0, 1, 0, 0, 0, 2, 0, 0))
        else:
            turned = net.op("transpose", x, perm=(0, 2, 3, 1))
            y = net.op("transpose", net.op("sigmoid", turned), perm=(0, 3, 1, 2))
        self.pool.append(y)

    def fused(self, inner: Value, x: Value) -> Value:
        """A convolution with the residual as its operand."""
        c = x.type.shape[1]
        weight = self.net.random(c, c, 3, 3)
        operands = [inner, weight, self.net.random(c), x]
        return self.net.op("conv2d", *operands, pads=(1, 1, 1, 1), act_min=0.0)

    def branch(self, x: Value, depth: int) -> Value:
        """Some layers, and a 1x1 one that adds x."""
        inner, c = x, x.type.shape[1]
        for _ in range(depth):
            inner = self.net.conv(inner, int(self.rng.integers(2, 7)), 3, pads=(1, 1, 1, 1))
            if self.rng.random() < 0.5:
                width = inner.type.shape[1]
                inner = self.net.conv(inner, width, 3, pads=(1, 1, 1, 1), groups=width)
            inner = self.net.op("relu", inner)
        weight = self.net.random(c, inner.type.shape[1], 1, 1)
        bias = self.net.random(c) if self.rng.random() < 0.7 else None
        clamp = {"act_min": 0.0} if self.rng.random() < 0.5 else {}
        return self.net.op("conv2d", inner, weight, bias, x, **clamp)

    def done(self) -> Graph:
        """Ends in a classifier over all that was made last."""
        flat = []
        for value in self.pool[-2:]:
            size = int(np.prod(value.type.shape))
            flat.append(self.net.op("reshape", value, shape=(1, size)))
        joined = self.net.op("concat", *flat, axis=1)
        return self.net.done(self.net.linear(joined, 3))


KINDS = (
    *("conv", "residual", "depthwise", "grouped", "transposed", "concat", "norm"),
    *("scale", "gate", "pool", "slice", "pad", "turn", "branch", "branch"),
)


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=7), seed=st.integers(0, 1 << 30))
def test_removing_channels_equals_masking_them(kinds: list[str], seed: int) -> None:
    grown = Draw(seed)
    for kind in kinds:
        grown.grow(kind)
    graph = grown.done()
    PassManager("eliminate-dead-code").run(graph)  # losing a branch does so too
    channels = analyse(graph)
    rng = np.random.default_rng(seed)
    kept = rng.random(channels.count) < 0.6
    kept[list(channels.frozen)] = True
    for value, track in channels.tracks.items():  # no axis may vanish
        if not kept[channels.group_of[track.atoms]].any():
            assert value.type.rank
            kept[channels.group_of[track.atoms[0]]] = True
    work = Work(graph, channels)
    for bundle in bundles(channels, work, np.zeros(channels.count), 1, 0):
        if not bundle.least and rng.random() < 0.5:
            kept[bundle.groups] = False
    want = outputs(masked(graph, channels, kept), seed)
    channels, kept, _ = without_branches(graph, channels, kept)
    expected = work.of(kept)
    shrink(graph, channels, kept)
    verify(graph)
    got = outputs(graph, seed)
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got / scale, want / scale, atol=1e-5)
    assert macs(graph) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), seed=st.integers(0, 1 << 30))
@example(kinds=["conv", "transposed", "conv", "conv", "conv"], seed=49797)
def test_channels_of_zeros_go_without_a_trace(kinds: list[str], seed: int) -> None:
    """Zero filters and biases: brute force, by the weights alone."""
    grown = Draw(seed)
    for kind in kinds:
        grown.grow(kind)
    graph = grown.done()
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        if node.op == "conv2d" and rng.random() < 0.7:
            rows = rng.random(node.output.type.shape[1]) < 0.5
            for operand in (1, 2):
                if node.optional_input(operand) is not None:
                    values = node.input(operand).decoded().copy()
                    values[rows] = 0
                    node.set_input(operand, graph.add_constant(values))
    want, before = outputs(graph, seed), macs(graph)
    prune(graph, "multiple=1")
    got = outputs(graph, seed)
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got / scale, want / scale, atol=1e-5)
    assert macs(graph) <= before


# -- what is coupled -----------------------------------------------------------------------------


def free_groups(graph: Graph) -> int:
    channels = analyse(graph)
    return channels.count - len(channels.frozen)


def test_a_residual_couples_its_terms(net: Net) -> None:
    stem = net.conv(net.input(1, 3, 8, 8), 6)
    inner = net.conv(stem, 5, pads=(1, 1, 1, 1))
    total = net.op("add", stem, net.conv(inner, 6, pads=(1, 1, 1, 1)))
    graph = net.done(net.conv(total, 2))
    assert free_groups(graph) == 6 + 5


def test_depthwise_couples_its_sides_and_groups_their_members(net: Net) -> None:
    x = net.conv(net.input(1, 3, 12, 12), 6)
    deep = net.conv(x, 12, groups=6)
    graph = net.done(net.conv(net.conv(deep, 9, groups=3), 2))
    assert free_groups(graph) == 3  # twelve channels in three groups tie the six, two and two
    assert analyse(graph).count == 3 + 2


def test_concat_and_flatten_keep_channels_apart(net: Net) -> None:
    x = net.input(1, 3, 4, 4)
    joined = net.op("concat", net.conv(x, 4), net.conv(x, 5), axis=1)
    flat = net.op("reshape", joined, shape=(1, 9 * 4))
    graph = net.done(net.linear(flat, 2))
    assert free_groups(graph) == 9
    prune(graph, "ratio=0.5 multiple=1")
    assert graph.nodes[-1].input(1).type.shape == (2, (2 + 3) * 4)


def test_channels_padded_with_zeros_go_too(net: Net) -> None:
    """The shortcut of a residual network without weights: every other pixel, zeros as channels."""
    x = net.conv(net.input(1, 3, 8, 8), 4, pads=(1, 1, 1, 1))
    half = net.op("slice", x, starts=(0, 0), ends=(8, 8), axes=(2, 3), steps=(2, 2))
    wide = net.op("pad", half, pads=(0, 2, 0, 0, 0, 2, 0, 0))
    inner = net.conv(x, 8, pads=(1, 1, 1, 1), strides=(2, 2))
    graph = net.done(net.conv(net.op("add", inner, wide), 2, loc="last"))
    assert free_groups(graph) == 8
    channels = analyse(graph)
    kept = np.ones(channels.count, np.bool_)
    kept[channels.group_of[channels.tracks[wide].atoms[[0, 1, 3]]]] = False
    want = outputs(masked(graph, channels, kept))
    shrink(graph, channels, kept)
    assert graph.nodes[2].attrs["pads"] == (0, 0, 0, 0, 0, 2, 0, 0)
    np.testing.assert_allclose(outputs(graph), want, atol=1e-4)


def test_an_op_that_looks_across_channels_keeps_them(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 4, loc="first")
    graph = net.done(net.conv(net.op("softmax", x, axis=1, loc="soft"), 2))
    result = prune(graph, "ratio=0.5 multiple=1")
    assert remarks(result, "refused")["first"] == (
        "it keeps its channels: softmax 'soft' needs all channels"
    )
    assert not result.modified


def test_a_shared_weight_stays_shared(net: Net) -> None:
    x = net.conv(net.input(1, 3, 8, 8), 4)
    weight, last = net.random(4, 4, 3, 3), net.random(2, 4, 3, 3)
    once = net.op("conv2d", x, weight, pads=(1, 1, 1, 1))
    twice = net.op("conv2d", once, weight, pads=(1, 1, 1, 1))
    graph = net.done(net.op("conv2d", twice, last))
    assert free_groups(graph) == 4
    prune(graph, "ratio=0.5 multiple=1")
    a, b = graph.nodes[1].input(1), graph.nodes[2].input(1)
    assert a is b
    assert a.type.shape == (2, 2, 3, 3)


# -- how many ------------------------------------------------------------------------------------


def chain(net: Net, *widths: int, kernel: int = 3) -> Graph:
    x = net.input(1, 3, 8, 8)
    pads = (kernel // 2,) * 4
    for index, width in enumerate(widths):
        x = net.conv(x, width, kernel, pads=pads, loc=f"conv{index}")
        x = net.op("relu", x)
    return net.done(net.linear(net.op("reduce_mean", x, axes=(2, 3), keepdims=False), 4, loc="fc"))


def test_residual_network_loses_channels(net: Net, golden: Any) -> None:
    x = net.op("relu", net.norm(net.conv(net.input(1, 3, 8, 8), 8, pads=(1, 1, 1, 1))))
    deep = net.conv(x, 8, groups=8, pads=(1, 1, 1, 1), loc="depthwise")
    inner = net.conv(net.op("concat", deep, net.conv(x, 4, 1), axis=1), 8, 1)
    pooled = net.op("max_pool2d", net.op("add", x, inner), kernel=(4, 4), strides=(4, 4))
    graph = net.done(net.linear(net.op("reshape", pooled, shape=(1, 32)), 3))
    for node in graph.nodes:  # what goes is zero, so that the outputs stay
        if node.op == "conv2d":
            for operand in (1, 2):
                values = node.input(operand).decoded().copy()
                values[len(values) // 2 :] = 0
                node.set_input(operand, graph.add_constant(values))
        if node.op == "batch_norm":
            for operand in (1, 2, 3):
                values = node.input(operand).decoded().copy()
                values[len(values) // 2 :] = 0
                node.set_input(operand, graph.add_constant(values))
    golden(graph, "prune-channels{multiple=2}")


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8])
def test_macs_are_saved(net: Net, wanted: float) -> None:
    graph = chain(net, 24, 32, 16)
    before = macs(graph)
    result = prune(graph, f"macs={wanted} multiple=1")
    assert 1 - macs(graph) / before == pytest.approx(wanted, abs=0.03)
    assert 1 - macs(graph) / before >= wanted
    statistics = result.records[-1].statistics
    assert statistics["macs_before"] == before
    assert statistics["macs_after"] == macs(graph)


def test_channels_are_a_multiple(net: Net) -> None:
    graph = chain(net, 24, 32, 20)
    prune(graph, "macs=0.5 multiple=8")
    made = [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"]
    assert all(m % 8 == 0 or m == 20 for m in made)
    assert made != [24, 32, 20]


def test_the_multiple_is_the_targets(net: Net) -> None:
    graph = chain(net, 24, 32)
    prune(graph, "ratio=0.3", target={"channel_multiple": 4})
    assert [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"] == [20, 24]


def test_some_are_always_left(net: Net) -> None:
    graph = chain(net, 8, 8)
    prune(graph, "threshold=1000 multiple=1 minimum=3")
    assert [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"] == [3, 3]


def test_threshold_is_of_the_root_mean_square(net: Net) -> None:
    graph = chain(net, 6, 5)
    weight = layer(graph, "conv0").input(1).decoded()
    sizes = np.sqrt(np.square(weight, dtype=np.float64).mean(axis=(1, 2, 3)))
    limit = float(np.sort(sizes)[1:3].mean())
    prune(graph, f"threshold={limit!r} multiple=1 only=conv0")
    np.testing.assert_array_equal(layer(graph, "conv0").input(1).decoded(), weight[sizes >= limit])
    assert layer(graph, "conv1").input(1).type.shape == (5, 4, 3, 3)


def test_layers_by_name(net: Net) -> None:
    graph = chain(net, 8, 8, 8)
    result = prune(graph, "ratio=0.5 multiple=1 exclude=conv1")
    assert [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"] == [4, 8, 4]
    why = remarks(result, "applied")["conv1"]
    assert why.startswith("reads 4 of 8 channels, makes 8 of 8 channels: 2304 -> 1152 bytes")
    assert remarks(result, "refused")["fc"] == (
        "it keeps its channels: it is output 'y0' of the network"
    )


# -- what never changes, and what nobody reads ---------------------------------------------------


def test_dead_inputs_go_all_the_way_up(net: Net) -> None:
    graph = chain(net, 6, 6, 6)
    want_before = outputs(graph)
    last = layer(graph, "fc")
    weight = last.input(1).decoded().copy()
    weight[:, :4] = 0
    last.set_input(1, graph.add_constant(weight))
    middle = layer(graph, "conv2")
    weight = middle.input(1).decoded().copy()
    weight[4:, :3] = 0  # these inputs are read by dead outputs alone
    middle.set_input(1, graph.add_constant(weight))
    want = outputs(graph)
    assert not np.allclose(want, want_before)
    prune(graph, "multiple=1")
    assert [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"] == [6, 3, 2]
    np.testing.assert_allclose(outputs(graph), want, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_biases_take_constants_over(net: Net, kernel: int) -> None:
    """Only where no output misses a weight at the border."""
    graph = chain(net, 6, 5, kernel=kernel)
    first = layer(graph, "conv0")
    weight = first.input(1).decoded().copy()
    weight[1:3] = 0
    first.set_input(1, graph.add_constant(weight))
    first.set_input(2, graph.add_constant(np.array([1, 2, -3, 4, 5, 6], np.float32)))
    want = outputs(graph)
    prune(graph, "multiple=1")
    gone = 2 if kernel == 1 else 1  # the rectified -3 is 0, which the border does not change
    assert layer(graph, "conv1").input(1).type.shape[1] == 6 - gone
    np.testing.assert_allclose(outputs(graph), want, atol=1e-4)


def test_a_layer_without_bias_gets_one(net: Net) -> None:
    """Of the outputs that are left."""
    x = net.conv(net.input(1, 3, 8, 8), 4, loc="first")
    middle = net.conv(x, 5, bias=False, loc="middle")
    graph = net.done(net.conv(middle, 2, loc="last"))
    for loc, index in (("first", (2,)), ("last", (slice(None), 1))):
        weight = layer(graph, loc).input(1).decoded().copy()
        weight[index] = 0
        layer(graph, loc).set_input(1, graph.add_constant(weight))
    want = outputs(graph)
    prune(graph, "multiple=1")
    assert layer(graph, "middle").input(1).type.shape == (4, 3, 3, 3)
    assert layer(graph, "middle").input(2).type.shape == (4,)
    np.testing.assert_allclose(outputs(graph), want, atol=1e-4)


# -- calibration data ----------------------------------------------------------------------------


def calibration(graph: Graph, count: int = 40) -> Any:
    def batches() -> Iterator[dict[str, Array]]:
        return (feed(graph, 1000 + i) for i in range(count))

    return batches


@pytest.mark.parametrize("saliency", ["obd", "first-order"])
def test_what_the_readers_do_not_need_goes(net: Net, saliency: str) -> None:
    """A large filter of no consequence goes, a small one that is amplified stays."""
    x = net.input(1, 3, 6, 6)
    weight = net.rng.standard_normal((4, 3, 1, 1))
    weight[1] *= 10
    reader = net.rng.standard_normal((3, 4, 1, 1))
    reader[:, 1] *= 1e-4
    hidden = net.op("conv2d", x, net.const(weight), loc="first")
    graph = net.done(net.op("conv2d", hidden, net.const(reader), loc="last"))
    prune(graph, f"ratio=0.25 multiple=1 saliency={saliency}", calibration=calibration(graph))
    left = layer(graph, "first").input(1).decoded()
    np.testing.assert_array_equal(left, weight[[0, 2, 3]].astype(np.float32))


def test_first_order_looks_at_the_networks_outputs(net: Net) -> None:
    """Of two equal layers the one that the output hardly depends on loses channels."""
    x = net.input(1, 3, 6, 6)
    weight, reader = net.rng.standard_normal((8, 3, 1, 1)), net.rng.standard_normal((3, 8, 1, 1))
    ends = []
    for name, gain in (("loud", 1.0), ("soft", 0.01)):
        hidden = net.op("conv2d", x, net.const(weight + (name == "soft")), loc=name)
        end = net.op("conv2d", hidden, net.const(reader + (name == "soft")))
        ends.append(net.op("mul", end, net.const(np.float32(gain))))
    graph = net.done(net.op("add", *ends))
    options = "macs=0.25 multiple=1 saliency=first-order"
    prune(graph, options, calibration=calibration(graph))
    assert layer(graph, "loud").output.type.shape[1] == 8
    assert layer(graph, "soft").output.type.shape[1] == 4


def test_biases_take_the_means_of_what_is_removed(net: Net) -> None:
    graph = chain(net, 8, 8, kernel=1)
    samples = calibration(graph, 24)
    before = graph.copy()
    prune(graph, "ratio=0.5 multiple=1 saliency=obd only=conv0", calibration=samples)
    # of a layer whose sums are linear in what it reads the mean over the samples stays
    for graph_ in (before, graph):
        node = layer(graph_, "conv1")
        graph_.set_outputs([node.output], ["y0"])
    means = [
        np.mean([execute(g, f)["y0"] for f in samples()], axis=(0, 1, 3, 4))
        for g in (before, graph)
    ]
    np.testing.assert_allclose(means[1], means[0], atol=1e-4)


def test_reconstruction_takes_over_what_was_lost(net: Net) -> None:
    graph = chain(net, 16, 16, 16)
    want = outputs(graph, 5)
    plain, fitted = graph.copy(), graph.copy()
    prune(plain, "macs=0.5 multiple=1")
    options = "macs=0.5 multiple=1 reconstruct"
    result = prune(fitted, options, calibration=calibration(graph, 64))
    assert macs(fitted) == macs(plain)
    assert np.linalg.norm(outputs(fitted, 5) - want) < 0.5 * np.linalg.norm(
        outputs(plain, 5) - want
    )
    assert "fitted: error of its result" in remarks(result, "note")["conv1"]
    assert result.records[-1].statistics["fitted_layers"] == 4


def test_what_is_known_of_channels_shrinks(net: Net) -> None:
    graph = chain(net, 8, 8)
    moments = {"conv0": (np.arange(8.0), np.ones(8)), "fc": (np.zeros(4), np.ones(4))}
    scale = np.array([1, 9, 9, 1, 9, 1, 9, 1])
    first = layer(graph, "conv0")
    values = np.sign(first.input(1).decoded()) * scale[:, None, None, None]
    first.set_input(1, graph.add_constant(values.astype(np.float32)))
    prune(graph, "ratio=0.5 multiple=1 only=conv0", channel_moments=moments)
    np.testing.assert_array_equal(moments["conv0"][0], [1, 2, 4, 6])
    assert len(moments["fc"][0]) == 4


# -- encodings and mistakes ----------------------------------------------------------------------


def test_sparse_weights_stay_sparse(net: Net) -> None:
    graph = chain(net, 16, 16)
    manager = PassManager("prune{sparsity=0.8},prune-channels{ratio=0.5 multiple=1}")
    manager.run(graph)
    verify(graph)
    weight = layer(graph, "conv1").input(1)
    assert weight.type.shape == (8, 8, 3, 3)
    assert isinstance(weight.type.encoding, Sparse)


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        (Affine(8, True, (0.1,) * 8, (0,) * 8, 0), "is stored as affine"),
        (Sparse("block4x4"), "is sparse by block4x4"),
    ],
)
def test_weights_that_stay_as_they_are(net: Net, encoding: Any, why: str) -> None:
    graph = chain(net, 8, 8, 8)
    node = layer(graph, "conv1")
    node.set_input(1, graph.add_constant(node.input(1).decoded(), encoding=encoding))
    result = prune(graph, "ratio=0.5 multiple=1")
    assert [n.output.type.shape[1] for n in graph.nodes if n.op == "conv2d"] == [8, 8, 4]
    assert remarks(result, "refused")["conv1"] == f"the weight of conv2d 'conv1' {why}"


def test_nan_weights_are_left_alone(net: Net) -> None:
    graph = chain(net, 8, 8)
    node = layer(graph, "conv1")
    values = node.input(1).decoded().copy()
    values[0, 0, 0, 0] = np.nan
    node.set_input(1, graph.add_constant(values))
    result = prune(graph, "ratio=0.5 multiple=1")
    assert not result.modified
    assert "holds NaN" in remarks(result, "refused")["conv1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("macs=0.3 ratio=0.5", "macs and ratio do not go together"),
        ("macs=1", "option macs=1 is not valid"),
        ("ratio=1.0", "option ratio=1 is not valid"),
        ("macs=1.5", "macs"),
        ("threshold=0.1 saliency=obd", "saliency=obd does not go with threshold"),
        ("ratio=0.5 only=nothing", "no layer matches 'nothing'"),
        ("macs=0.9 multiple=16", "macs=0.9 cannot be saved"),
        ("macs=0.3 reconstruct", "needs calibration data"),
        ("macs=0.3 saliency=first-order", "needs calibration data"),
        ("macs=0.3 multiple=0", "multiple"),
    ],
)
def test_mistakes(net: Net, options: str, words: str) -> None:
    graph = chain(net, 24, 24)
    before = print_graph(graph)
    with pytest.raises(DlccError) as caught:
        prune(graph, options)
    assert words in str(caught.value)
    assert caught.value.code == ExitCode.USAGE
    assert print_graph(graph) == before
