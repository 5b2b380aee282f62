"""The assign-bitwidths pass: accumulators that never overflow, widths, structure, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import fidelity
from dlcc.ir import Affine, Graph, Node, Value, graphs_equal
from passes import PassContext, PassManager, PipelineResult
from passes.compression.rows import groups_of, input_rows
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def feeds(graph: Graph, count: int = 24, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [
        {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
        for _ in range(count)
    ]


def run(graph: Graph, pipeline: str, data: list[dict[str, Array]] | None = None) -> PipelineResult:
    samples = feeds(graph) if data is None else data

    def batches() -> Iterator[dict[str, Array]]:
        return iter(samples)

    result = PassManager(pipeline).run(graph, PassContext(calibration=batches))
    verify(graph)
    return result


def cnn(net: Net) -> Graph:
    """Residual, depthwise, pooled, with a tensor that three layers read."""
    x = net.input(1, 3, 10, 10)
    a = net.op("relu", net.conv(x, 8, pads=(1, 1, 1, 1), loc="stem"))
    d = net.op("relu", net.conv(a, 8, groups=8, pads=(1, 1, 1, 1), loc="depthwise"))
    s = net.op("relu", net.op("add", net.conv(d, 8, 1, loc="point"), net.conv(a, 8, 1, loc="skip")))
    p = net.op("max_pool2d", net.op("concat", s, a, axis=1), kernel=(2, 2), strides=(2, 2))
    m = net.op("reduce_mean", net.conv(p, 12, loc="last"), axes=(2, 3), keepdims=False)
    graph = net.done(net.linear(m, 5, loc="head"))
    PassManager("canonicalize,fuse-epilogues,eliminate-dead-code").run(graph)
    return graph


def layers(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op in ("conv2d", "linear")]


def centred(graph: Graph, data: list[dict[str, Array]]) -> dict[Value, list[Array]]:
    """Codes less zero point of every value, per feed."""
    out: dict[Value, list[Array]] = {}

    def see(value: Value, array: Array) -> None:
        encoding = value.type.encoding
        if isinstance(encoding, Affine):
            out.setdefault(value, []).append(array.astype(np.int64) - encoding.zero_point)

    for feed in data:
        execute(graph, feed, see)
    return out


def terms(node: Node, x: Array) -> Array:
    """Every product of every sum: int64 [groups, rows, O / groups, K]."""
    codes = node.input(1).stored().astype(np.int64)
    groups = groups_of(node)
    rows = codes.reshape(groups, codes.shape[0] // groups, -1)
    count = node.output.type.elements // codes.shape[0]
    inputs = input_rows(node, x, np.arange(count))
    return np.asarray(inputs[:, :, None, :] * rows[:, None])


def biases(node: Node) -> Array:
    groups = groups_of(node)
    return node.input(2).stored().astype(np.int64).reshape(groups, 1, -1)


def worst_inputs(node: Node) -> list[Array]:
    """Inputs for a 1-row sum of every output channel that make it largest and smallest: [O, K]."""
    codes = node.input(1).stored().astype(np.int64)
    w = codes.reshape(codes.shape[0], -1)
    source = node.input(0).type.affine
    low, high = (c - source.zero_point for c in source.code_range)
    return [np.where(w > 0, high, low), np.where(w > 0, low, high)]


def holds(total: Array, bits: int) -> bool:
    return bool(total.min() >= -(1 << (bits - 1)) and total.max() < 1 << (bits - 1))


# -- accumulators ------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", ["channel", "layer"])
@pytest.mark.parametrize("guarantee", ["ranges", "weights"])
@pytest.mark.parametrize("bits", [12, 16])
def test_no_data_overflows(net: Net, bits: int, guarantee: str, scales: str) -> None:
    graph = cnn(net)
    result = run(
        graph, f"assign-bitwidths{{accumulator={bits} guarantee={guarantee} scales={scales}}}"
    )
    assert result.records[0].statistics["assigned_layers"] == 6
    fullest = 0
    for node in layers(graph):
        codes = node.input(1).stored().astype(np.int64).reshape(node.input(1).type.shape[0], -1)
        bias = node.input(2).stored().astype(np.int64)
        for x in worst_inputs(node):
            sums = (codes * x).sum(axis=1) + bias
            assert holds(sums, bits), node
            fullest = max(fullest, int(np.abs(sums).max()))
        if guarantee == "ranges":
            width, source = node.input(1).type.affine, node.input(0).type.affine
            reach = max(c - source.zero_point for c in source.code_range)
            largest = codes.shape[1] * reach * width.code_range[1]
            assert largest + int(np.abs(bias).max()) < 1 << (bits - 1)
    if guarantee == "weights" and scales == "channel":
        assert fullest > 0.9 * (1 << (bits - 1))


def test_saturating_registers_hold_partial_sums_in_any_order(net: Net) -> None:
    graph = cnn(net)
    run(graph, "assign-bitwidths{accumulator=14 overflow=saturate}")
    rng = np.random.default_rng(5)
    for node in layers(graph):
        codes = node.input(1).stored().astype(np.int64).reshape(node.input(1).type.shape[0], -1)
        start = node.input(2).stored().astype(np.int64)[:, None]
        for x in worst_inputs(node):
            products = codes * x
            for order in (np.argsort(products, axis=1), rng.permuted(products.argsort(), axis=1)):
                ordered = np.take_along_axis(products, order, axis=1)
                for way in (ordered, ordered[:, ::-1]):
                    assert holds(start + np.cumsum(way, axis=1), 14)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_results_on_the_calibration_data_fit(net: Net, overflow: str, margin: float) -> None:
    graph = cnn(net)
    data = feeds(graph)
    text = f"accumulator=12 guarantee=results overflow={overflow} margin={margin}"
    result = run(graph, f"assign-bitwidths{{{text}}}", data)
    assert result.records[0].statistics["assigned_layers"] == 6
    seen = centred(graph, data)
    for node in layers(graph):
        for x in seen[node.input(0)]:
            products = terms(node, x)
            sums = products.sum(axis=3) + biases(node)
            assert holds((1 + margin) * sums, 12)
            if overflow == "saturate":
                assert holds(np.maximum(products, 0).sum(axis=3) + biases(node), 12)
                assert holds(np.minimum(products, 0).sum(axis=3) + biases(node), 12)


def test_weaker_guarantees_lose_less(net: Net) -> None:
    before = cnn(net)
    data = feeds(before)
    want = np.concatenate([execute(before, f)["y0"] for f in data])
    found = []
    for text in ("ranges", "weights", "results margin=0"):
        graph = before.copy()
        run(graph, f"assign-bitwidths{{accumulator=14 guarantee={text}}}", data)
        got = np.concatenate([execute(graph, f)["y0"] for f in data])
        found.append(fidelity(want, got).sqnr_db)
    assert found[0] < found[1] < found[2]


def test_wide_accumulators_change_nothing(net: Net) -> None:
    graph = cnn(net)
    plain = graph.copy()
    run(graph, "assign-bitwidths{accumulator=32 scales=layer}")
    run(plain, "quantize{bits=8}")
    assert graphs_equal(graph, plain)


@pytest.mark.parametrize("guarantee", ["ranges", "weights"])
@pytest.mark.parametrize("tile", [1, 2, 3, 8])
def test_sums_of_tiles_fit(net: Net, tile: int, guarantee: str) -> None:
    """Any sum of ``tile`` neighbouring channels of a tap, of bare codes at either end."""
    graph = cnn(net)
    text = f"assign-bitwidths{{accumulator=14 tile={tile} guarantee={guarantee}}}"
    result = run(graph, text)
    assert result.records[0].statistics["assigned_layers"] == 6
    assert any(f"of {tile} channels each take" in str(r) for r in result.remarks)
    fullest = 0
    for node in layers(graph):
        codes = node.input(1).stored().astype(np.int64)
        codes = codes.reshape(*codes.shape[:2], -1)
        high = node.input(0).type.affine.code_range[1]
        for at in range(0, codes.shape[1], tile):
            part = codes[:, at : at + tile]
            for sums in (high * np.maximum(part, 0).sum(1), high * np.minimum(part, 0).sum(1)):
                assert holds(sums, 14), node
                fullest = max(fullest, int(np.abs(sums).max()))
    assert tile == 1 or guarantee == "ranges" or fullest > 0.9 * 2**13


def test_tiles_lose_less_than_whole_results(net: Net) -> None:
    graph = cnn(net)
    data = feeds(graph, 8, seed=5)
    name = graph.output_names[0]
    wanted = np.stack([execute(graph, feed)[name] for feed in data])

    def error(text: str) -> float:
        copy = graph.copy()
        run(copy, text)
        got = np.stack([execute(copy, feed)[name] for feed in data])
        return float(np.square(got - wanted).mean())

    whole, tiles = (error(f"assign-bitwidths{{accumulator=13 tile={n}}}") for n in (0, 4))
    assert tiles < whole


def test_observed_results_say_nothing_of_tiles(net: Net) -> None:
    with pytest.raises(DlccError, match="sums of 4 products each are not observed") as caught:
        run(cnn(net), "assign-bitwidths{tile=4 guarantee=results}")
    assert caught.value.code == ExitCode.USAGE


# -- widths ------------------------------------------------------------------------------------


def test_widths_are_those_of_the_codes(net: Net) -> None:
    graph = cnn(net)
    data = feeds(graph)
    result = run(graph, "assign-bitwidths{accumulator=13}", data)
    remarks = {r.loc: r.message for r in result.remarks if r.kind == "applied"}
    seen = centred(graph, data)
    for node in layers(graph):
        weight, source = node.input(1).type.affine, node.input(0).type.affine
        assert f"{weight.bits}-bit weights, {source.bits}-bit input" in remarks[node.loc]
        assert "of 13 bits for any data" in remarks[node.loc]
        assert np.abs(node.input(1).stored().astype(int)).max() <= weight.code_range[1]
        low, high = (c - source.zero_point for c in source.code_range)
        for x in seen[node.input(0)]:
            assert low <= x.min()
            assert x.max() <= high
    narrow = [n.input(0).type.affine.bits for n in layers(graph)]
    assert min(narrow) < 8


def test_a_layer_takes_the_best_of_the_maximal_pairs(net: Net) -> None:
    """Brute force over all pairs of widths, without anything but rounding to nearest."""
    x = net.input(16, 30)
    graph = net.done(net.linear(net.op("relu", net.linear(x, 40, loc="a")), 20, loc="b"))
    PassManager("fuse-epilogues,eliminate-dead-code").run(graph)
    options = "accumulator=14 scales=layer equalise=false rounding=nearest"
    data = feeds(graph, 8)
    result = run(graph, f"assign-bitwidths{{{options}}}", data)
    [message] = [r.message for r in result.remarks if r.loc == "b" and r.kind == "applied"]
    pairs = [p.split("x") for p in message[message.index("(of ") + 4 : message.index(")")].split()]
    widths = [(int(w), int(a)) for w, a in pairs]
    assert len(widths) > 1
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(widths))
    b = layers(graph)[1]
    assert (b.input(1).type.affine.bits, b.input(0).type.affine.bits) in widths


def test_pruned_weights_keep_their_zeros(net: Net) -> None:
    graph = cnn(net)
    run(graph, "prune{sparsity=0.8 exclude=[head,depthwise]}")
    zeros = {n.loc: n.input(1).decoded() == 0 for n in layers(graph)}
    run(graph, "assign-bitwidths{accumulator=12}")
    for node in layers(graph):
        assert np.all(node.input(1).decoded()[zeros[node.loc]] == 0)


# -- what is left alone ------------------------------------------------------------------------


def test_layers_that_fit_at_no_width_stay_wide(net: Net) -> None:
    x = net.input(4, 300)
    graph = net.done(net.linear(net.linear(x, 8, loc="deep"), 3, loc="b"))
    result = run(graph, "assign-bitwidths{accumulator=8 guarantee=ranges}")
    refused = {r.loc: r.message for r in result.remarks if r.kind == "refused"}
    assert "fits at no width" in refused["deep"]
    assert layers(graph)[0].input(1).type.affine.bits == 8
    assert result.records[0].statistics["wide_layers"] >= 1


def test_products_of_activations_stay_wide(net: Net) -> None:
    a, b = net.input(1, 4, 8, name="a"), net.input(1, 8, 4, name="b")
    product = net.op("matmul", a, b, loc="product")
    graph = net.done(net.linear(product, 3, loc="head"))
    result = run(graph, "assign-bitwidths")
    refused = {r.loc: r.message for r in result.remarks if r.kind == "refused"}
    assert "product of two activations" in refused["product"]


@pytest.mark.parametrize("guarantee", ["weights", "results"])
def test_transposed_convolutions(net: Net, guarantee: str) -> None:
    x = net.conv(net.input(1, 3, 6, 6), 4, loc="a")
    y = net.op("conv_transpose2d", x, net.random(4, 3, 2, 2), strides=(2, 2), loc="up")
    graph = net.done(net.conv(y, 2, loc="b"))
    result = run(graph, f"assign-bitwidths{{accumulator=14 guarantee={guarantee}}}")
    kinds = {r.loc: r.kind for r in result.remarks if r.kind != "note"}
    assert kinds["up"] == ("applied" if guarantee == "weights" else "refused")


def test_without_data_it_refuses(net: Net) -> None:
    with pytest.raises(DlccError) as caught:
        PassManager("assign-bitwidths").run(cnn(net), PassContext())
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    "text", ["accumulator=7", "accumulator=33", "margin=-1", "guarantee=none", "overflow=trap"]
)
def test_options_that_make_no_sense(net: Net, text: str) -> None:
    with pytest.raises(DlccError) as caught:
        run(cnn(net), f"assign-bitwidths{{{text}}}")
    assert caught.value.code is ExitCode.USAGE
