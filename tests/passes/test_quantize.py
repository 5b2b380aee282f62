"""The quantise pass: structure of the result, borders, remarks, mistakes, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import fidelity
from dlcc.ir import BOOL, F32, Affine, Graph, Node, Sparse, TensorType, Value, print_graph
from dlcc.ir.encodings import Array
from passes import PassContext, PassManager, PipelineResult
from passes.quantization.samples import affordable
from tests.passes.conftest import Net

FUSED = "canonicalize,fold-batch-norm,fuse-epilogues,eliminate-dead-code"


def samples(graph: Graph, count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [
        {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
        for _ in range(count)
    ]


def quantise(
    graph: Graph, options: str = "bits=8", data: list[dict[str, Array]] | None = None
) -> PipelineResult:
    feeds = samples(graph, 32) if data is None else data

    def batches() -> Iterator[dict[str, Array]]:
        return iter(feeds)

    return PassManager(f"quantize{{{options}}}").run(graph, PassContext(calibration=batches))


def outputs(graph: Graph, feeds: list[dict[str, Array]]) -> Array:
    runs = [next(iter(execute(graph, f).values())) for f in feeds]
    return np.stack([r.reshape(-1) for r in runs])


def sqnr(before: Graph, after: Graph, count: int = 16) -> float:
    feeds = samples(before, count, seed=1)
    return fidelity(outputs(before, feeds), outputs(after, feeds)).sqnr_db


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def node(graph: Graph, op: str, index: int = 0) -> Node:
    return [n for n in graph.nodes if n.op == op][index]


def remarks(result: PipelineResult, kind: str) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == kind}


def small_cnn(net: Net) -> Graph:
    x = net.input(1, 3, 12, 12)
    a = net.op("clip", net.conv(x, 8, pads=(1, 1, 1, 1)), min=0.0, max=6.0)
    d = net.op("relu", net.norm(net.conv(a, 8, groups=8, pads=(1, 1, 1, 1))))
    s = net.op("relu", net.op("add", net.conv(d, 8, 1), a))
    p = net.op("max_pool2d", s, kernel=(2, 2), strides=(2, 2))
    m = net.op("reduce_mean", p, axes=(2, 3), keepdims=False)
    graph = net.done(net.linear(m, 10, loc="head"))
    PassManager(FUSED).run(graph)
    return graph


def test_whole_network_is_integer_between_the_borders(net: Net) -> None:
    graph = small_cnn(net)
    before = graph.copy()
    quantise(graph)
    verify(graph)
    assert ops(graph)[0] == "quantize"
    assert "dequantize" not in ops(graph), "the head has a float result of its own"
    for n in graph.nodes[:-1]:
        assert isinstance(n.output.type.encoding, Affine), n
        assert (n.output.type.affine.bits, n.output.type.affine.signed) == (8, False)
    assert graph.outputs[0].type.is_dense
    assert sqnr(before, graph) > 25


def test_encodings_follow_the_numbers_contract(net: Net) -> None:
    graph = small_cnn(net)
    quantise(graph)
    for n in graph.nodes:
        if n.op not in ("conv2d", "linear"):
            continue
        weight, bias, source = n.input(1), n.input(2), n.input(0).type.affine
        encoding = weight.type.affine
        assert (encoding.bits, encoding.signed, encoding.axis) == (8, True, 0)
        assert len(encoding.scales) == weight.type.shape[0]
        assert not any(encoding.zero_points)
        assert weight.stored().dtype == np.int8
        assert weight.stored().min() >= -127
        assert bias.stored().dtype == np.int32
        np.testing.assert_allclose(
            bias.type.affine.scales, source.scale * np.array(encoding.scales), rtol=1e-6
        )


def test_relu_has_zero_point_zero_and_clamps_limit_the_range(net: Net) -> None:
    graph = small_cnn(net)
    quantise(graph)
    clamped = node(graph, "conv2d", 0)
    assert clamped.attrs["act_max"] == 6.0
    encoding = clamped.output.type.affine
    assert encoding.zero_point == 0
    assert encoding.real_range[1] <= 6.0 * 1.001


def test_movement_shares_the_encoding_of_its_operand(net: Net) -> None:
    graph = small_cnn(net)
    quantise(graph)
    pool = node(graph, "max_pool2d")
    assert pool.output.type.encoding == pool.input(0).type.encoding


def test_concat_unifies_its_operands(net: Net) -> None:
    x = net.input(1, 3, 8, 8)
    parts = [net.conv(x, 4, 1), net.op("relu", net.conv(x, 4, 1))]
    graph = net.done(net.conv(net.op("concat", *parts, axis=1), 4, 1))
    PassManager(FUSED).run(graph)
    before = graph.copy()
    quantise(graph)
    joined = node(graph, "concat")
    assert {v.type.encoding for v in joined.inputs if v} == {joined.output.type.encoding}
    assert sqnr(before, graph) > 25


def test_transformer_block_is_integer(net: Net) -> None:
    x = net.input(1, 6, 16)
    q, k, v = (net.linear(x, 16, bias=False) for _ in range(3))
    scale = net.const(0.05, "scale")
    scores = net.op("matmul", net.op("mul", q, scale), k, transpose_b=True)
    attended = net.op("matmul", net.op("softmax", scores), v)
    mixed = net.op("layer_norm", net.op("add", attended, x), net.random(16), net.random(16))
    graph = net.done(net.linear(net.op("gelu", net.linear(mixed, 32)), 4))
    before = graph.copy()
    result = quantise(graph)
    verify(graph)
    assert remarks(result, "refused") == {}
    assert all(isinstance(n.output.type.encoding, Affine) for n in graph.nodes[:-1])
    assert sqnr(before, graph) > 15


def test_ops_without_integer_form_stay_float_and_are_named(net: Net) -> None:
    x = net.input(1, 3, 8, 8)
    a = net.op("relu", net.conv(x, 4))
    b = net.op("lrn", a, size=3, loc="odd one")
    graph = net.done(net.conv(b, 4, 1))
    PassManager(FUSED).run(graph)
    before = graph.copy()
    result = quantise(graph)
    verify(graph)
    assert "no integer form" in remarks(result, "refused")["odd one"]
    assert ops(graph) == ["quantize", "conv2d", "lrn", "quantize", "conv2d"]
    assert node(graph, "conv2d").output.type.is_dense, "its only reader is float"
    assert sqnr(before, graph) > 25


def test_a_value_read_by_both_worlds_is_dequantised_once(net: Net) -> None:
    x = net.input(1, 3, 8, 8)
    a = net.op("relu", net.conv(x, 4, 1))
    odd = [net.op("lrn", a, size=s) for s in (3, 5)]
    graph = net.done(net.conv(a, 4, 1), net.conv(odd[0], 4, 1), net.conv(odd[1], 4, 1))
    PassManager(FUSED).run(graph)
    quantise(graph)
    assert ops(graph).count("dequantize") == 1


def test_output_of_a_pool_is_dequantised(net: Net) -> None:
    x = net.input(1, 3, 8, 8)
    graph = net.done(net.op("max_pool2d", net.op("relu", net.conv(x, 4)), kernel=(2, 2)))
    PassManager(FUSED).run(graph)
    quantise(graph)
    assert ops(graph) == ["quantize", "conv2d", "max_pool2d"] or ops(graph)[-1] == "dequantize"
    assert graph.outputs[0].type.is_dense


def test_a_layer_that_adds_codes_gives_codes(net: Net) -> None:
    """No kernel adds them to the float results that the network's outputs have otherwise."""
    a = net.linear(net.input(1, 16), 8)
    graph = net.done(net.op("add", net.linear(a, 8), a))
    PassManager(FUSED).run(graph)
    quantise(graph)
    assert ops(graph) == ["quantize", "linear", "linear", "dequantize"]
    assert isinstance(node(graph, "linear", 1).output.type.encoding, Affine)


def test_softmax_behind_the_head_stays_float(net: Net) -> None:
    graph = net.done(net.op("softmax", net.linear(net.input(1, 16), 5), loc="probabilities"))
    result = quantise(graph)
    assert ops(graph) == ["quantize", "linear", "softmax"]
    assert "stays float" in remarks(result, "refused")["probabilities"]


def test_excluded_layers_stay_float(net: Net) -> None:
    x = net.input(1, 3, 8, 8)
    a = net.op("relu", net.conv(x, 4, loc="body.conv1"))
    graph = net.done(net.conv(a, 4, loc="body.conv2"))
    PassManager(FUSED).run(graph)
    result = quantise(graph, 'exclude=["*.conv1"]')
    assert remarks(result, "refused")["body.conv1"] == "excluded by option"
    assert node(graph, "conv2d", 0).input(1).type.is_dense
    assert node(graph, "conv2d", 1).input(1).type.affine.bits == 8


def test_nothing_to_quantise_changes_nothing(net: Net) -> None:
    graph = net.done(net.op("exp", net.input(1, 4)))
    text = print_graph(graph)
    result = quantise(graph)
    assert print_graph(graph) == text
    assert not result.modified


def test_constant_operands_of_elementwise_ops_are_encoded(net: Net) -> None:
    x = net.input(1, 4, 8, 8)
    a = net.conv(x, 4, 1)
    shifted = net.op("add", a, net.random(1, 4, 1, 1), act_min=0.0)
    graph = net.done(net.conv(shifted, 4, 1))
    before = graph.copy()
    quantise(graph)
    assert isinstance(node(graph, "add").input(1).type.encoding, Affine)
    assert sqnr(before, graph) > 20


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(net: Net, groups: int) -> None:
    x = net.input(1, 4, 6, 6)
    a = net.op("relu", net.conv(x, 4, 1))
    weight, bias = net.random(4, 6 // groups, 3, 3), net.random(6)
    up = net.op("conv_transpose2d", a, weight, bias, strides=(2, 2), groups=groups)
    graph = net.done(net.conv(up, 3, 1))
    PassManager(FUSED).run(graph)
    before = graph.copy()
    quantise(graph)
    axis = node(graph, "conv_transpose2d").input(1).type.affine.axis
    assert axis == (1 if groups == 1 else None)
    assert sqnr(before, graph) > 22


# -- data --------------------------------------------------------------------------------------


def test_integer_inputs_keep_their_lattice(net: Net) -> None:
    graph = net.done(net.conv(net.input(1, 1, 8, 8), 4))
    rng = np.random.default_rng(0)
    data = [
        {"x": (rng.integers(-80, 90, (1, 1, 8, 8)) * 0.375).astype(np.float32)} for _ in range(8)
    ]
    result = quantise(graph, data=data)
    encoding = node(graph, "quantize").output.type.affine
    assert encoding.scale == 0.375
    np.testing.assert_array_equal(
        encoding.dequantise(encoding.quantise(data[0]["x"])), data[0]["x"]
    )
    assert "kept exactly" in remarks(result, "note")["x"]


def test_few_samples_of_networks_that_make_many_numbers(net: Net) -> None:
    wide = net.op("exp", net.op("expand", net.input(1, 1), shape=(1, 1 << 26)))
    assert affordable(net.done(wide), 32) == 8


def test_batched_and_single_samples_give_the_same_network(net: Net) -> None:
    graph = small_cnn(net)
    single = graph.copy()
    data = samples(graph, 12)
    quantise(single, data=data)
    many = rebatched(graph, 4)
    assert many is not None
    stacked = [{"x": np.concatenate([d["x"] for d in data[i : i + 4]])} for i in range(0, 12, 4)]
    quantise(many, data=stacked)
    for a, b in zip(single.nodes, many.nodes, strict=True):
        if a.op in ("conv2d", "linear"):
            np.testing.assert_array_equal(a.input(1).stored(), b.input(1).stored())
            np.testing.assert_array_equal(a.input(2).stored(), b.input(2).stored())


def test_without_data_it_says_so_and_still_works(net: Net) -> None:
    graph = small_cnn(net)
    before = graph.copy()
    result = PassManager("quantize").run(graph, PassContext())
    note = remarks(result, "note")[""]
    assert "no calibration data" in note
    assert "synthetic" in note
    assert sqnr(before, graph) > 20


def test_synthetic_inputs_find_the_scale_of_the_first_batch_norm(net: Net) -> None:
    x = net.input(1, 3, 16, 16)
    weight = net.const(net.rng.standard_normal((8, 3, 3, 3)) * 0.05)
    seen = net.op("conv2d", x, weight, pads=(1, 1, 1, 1))
    # statistics as training on pixels 0..255 would leave them
    pixels = net.rng.uniform(0, 255, (64, 3, 16, 16)).astype(np.float32)
    many = rebatched(_prefix(net.graph, seen), 64)
    assert many is not None
    y = execute(many, {"x": pixels})["y"]
    moments = y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))
    ones, zeros = np.ones(8), np.zeros(8)
    normed = net.op("batch_norm", seen, *(net.const(v) for v in (ones, zeros, *moments)))
    graph = net.done(net.conv(net.op("relu", normed), 4, 1))
    result = PassManager(f"{FUSED},quantize").run(graph, PassContext())
    _, high = node(graph, "quantize").output.type.affine.real_range
    assert 150 < high < 1000
    assert any("fitted to batch norms: x" in r.message for r in result.remarks)


def _prefix(graph: Graph, value: Value) -> Graph:
    copy = graph.copy()
    twin = next(v for v in copy.values() if v.name == value.name)
    copy.set_outputs([twin], ["y"])
    return copy


Damage = Callable[[Array], Any]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda x: x[:, :, :4], "must be float32[1, 3, 12, 12]"),
        (lambda x: x.astype(np.float64), "float64"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN"),
        (lambda x: np.where(x > 1, np.float32(np.inf), x), "infinite"),
    ],
)
def test_data_that_does_not_fit(net: Net, damage: Damage, words: str) -> None:
    graph = small_cnn(net)
    data = [{"x": damage(d["x"])} for d in samples(graph, 3)]
    with pytest.raises(DlccError) as caught:
        quantise(graph, data=data)
    assert caught.value.code is ExitCode.DATA
    assert words in str(caught.value)
    assert "batch 0" in caught.value.where


def test_data_under_another_name(net: Net) -> None:
    with pytest.raises(DlccError) as caught:
        quantise(small_cnn(net), data=[{"y": np.zeros((1, 3, 12, 12), np.float32)}])
    assert caught.value.code is ExitCode.DATA
    assert "'y'" in caught.value.why


def test_empty_data(net: Net) -> None:
    with pytest.raises(DlccError) as caught:
        PassManager("quantize").run(small_cnn(net), PassContext(calibration=lambda: iter(())))
    assert caught.value.code is ExitCode.DATA
    assert "empty" in caught.value.what


def test_infinite_activations_are_refused(net: Net) -> None:
    x = net.input(1, 4)
    graph = net.done(net.linear(net.op("exp", net.linear(x, 4)), 4))
    with pytest.raises(DlccError) as caught:
        quantise(graph, data=[{"x": np.full((1, 4), 3e3, np.float32)}])
    assert caught.value.code is ExitCode.DATA


@pytest.mark.parametrize("given", [True, False])
def test_masks_of_attention_stay_float(net: Net, given: bool) -> None:
    """-inf has no code: scores behind a mask stay float, and so does what reads them."""
    x, allowed = net.input(2, 4, 8), net.graph.add_input("allowed", TensorType((4, 4), BOOL))
    keys = net.op("transpose", net.linear(x, 8), perm=(0, 2, 1))
    scores = net.op("matmul", net.linear(x, 8), keys)
    hidden = net.graph.add_constant(np.float32([-np.inf]))
    seen = net.op("where", allowed, scores, hidden, loc="mask")
    rows = net.op("softmax", seen, axis=2, loc="attend")
    graph = net.done(net.linear(net.op("matmul", rows, net.linear(x, 8)), 4, loc="head"))
    before = graph.copy()
    feeds = [f | {"allowed": np.tri(4, dtype=np.bool_)} for f in _real_feeds(graph, 8)]
    context = PassContext(calibration=(lambda: iter(feeds)) if given else None)
    result = PassManager("quantize").run(graph, context)
    told = remarks(result, "refused")
    assert "infinite" in told["mask"]
    assert told["attend"] == "all of its operands are float"
    assert result.records[0].statistics["float_layers"] == 0
    assert fidelity(outputs(before, feeds), outputs(graph, feeds)).sqnr_db > 25


def _real_feeds(graph: Graph, count: int) -> list[dict[str, Array]]:
    return [{"x": f["x"]} for f in samples(graph, count)]


@pytest.mark.parametrize("method", ["min-max", "moving-average", "percentile", "entropy", "mse"])
def test_every_range_method_works(net: Net, method: str) -> None:
    graph = small_cnn(net)
    before = graph.copy()
    quantise(graph, f"ranges={method}")
    assert sqnr(before, graph) > 12


def test_same_data_same_network(net: Net) -> None:
    graph = small_cnn(net)
    other = graph.copy()
    quantise(graph)
    quantise(other)
    assert print_graph(graph) == print_graph(other)


def test_fewer_bits_are_worse(net: Net) -> None:
    graph = small_cnn(net)
    data = samples(graph, 64)
    reference, found = outputs(graph, data), []
    for bits in (8, 6, 4):
        copy = graph.copy()
        quantise(copy, f"bits={bits} ranges=min-max", data=data)
        verify(copy)
        found.append(fidelity(reference, outputs(copy, data)).sqnr_db)
    assert found[0] > found[1] + 8 > found[2] + 16  # a bit is worth 6 dB


# -- bias correction ---------------------------------------------------------------------------


def test_bias_correction_restores_the_means(net: Net) -> None:
    graph = small_cnn(net)
    data = samples(graph, 32)
    reference = outputs(graph, data).mean(axis=0)
    errors = {}
    for on in ("true", "false"):
        copy = graph.copy()
        quantise(copy, f"bits=5 bias-correction={on}", data=data)
        errors[on] = float(np.abs(outputs(copy, data).mean(axis=0) - reference).max())
    assert errors["true"] < 0.25 * errors["false"]


def test_mixed_types_of_inputs(net: Net) -> None:
    x = net.input(1, 4, 8, 8)
    other = net.graph.add_input("other", TensorType((1, 4, 8, 8), F32))
    graph = net.done(net.conv(net.op("mul", x, other), 4, 1))
    quantise(graph)
    verify(graph)
    assert ops(graph).count("quantize") == 2


# -- pruned weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["sparsity=0.6", "pattern=2:4", "sparsity=0.5 pattern=block4x2"]
)
def test_pruned_weights_keep_their_zeros(net: Net, pattern: str) -> None:
    x = net.input(1, 8, 8, 8)
    y = net.op("relu", net.conv(x, 16, pads=(1, 1, 1, 1), loc="a"))
    y = net.op("relu", net.conv(y, 16, pads=(1, 1, 1, 1), groups=2, loc="b"))
    flat = net.op("reshape", net.conv(y, 8, 1, loc="c"), shape=(1, 512))
    graph = net.done(net.linear(flat, 8, loc="d"))
    PassManager(f"{FUSED},prune{{{pattern}}}").run(graph)
    float_graph = graph.copy()
    result = quantise(graph, "bits=4")
    assert result.records[0].statistics["layers"] == 4
    assert result.records[0].statistics["equalised_pairs"] > 0
    for before, after in zip(float_graph.nodes, ops_with_weights(graph), strict=False):
        if before.op not in ("conv2d", "linear"):
            continue
        old, new = before.input(1), after.input(1)
        assert isinstance(new.type.encoding, Sparse)
        assert isinstance(old.type.encoding, Sparse)
        assert isinstance(new.type.encoding.inner, Affine)
        assert new.type.encoding.pattern == old.type.encoding.pattern
        assert not new.decoded()[old.decoded() == 0].any()
        assert np.count_nonzero(new.decoded()) > 0.7 * np.count_nonzero(old.decoded())
    assert sqnr(float_graph, graph) > 8


def ops_with_weights(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op in ("conv2d", "linear", "reshape")]


def test_data_moves_pruned_weights_but_not_their_zeros(net: Net) -> None:
    from passes.quantization.grids import uniform
    from passes.quantization.rounding import Metric, round_weights

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 12)) * (rng.random((6, 12)) < 0.5)
    x = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 12))
    second, scales = (x.T @ x / 200)[None], np.full(6, 0.4)
    grid, metric = uniform(scales[None, :, None], 4, 12), Metric.of(second)

    def rounded(keep_zeros: bool) -> Array:
        found = round_weights(
            weight[None], grid, metric, "gptq", keep_zeros=keep_zeros, refit=False
        )
        return found.numbers[0] / 0.4

    held = rounded(True)
    assert not held[weight == 0].any()
    assert rounded(False)[weight == 0].any()
    nearest = np.clip(np.rint(weight / 0.4), -7, 7)

    def error(codes: Array) -> float:
        return float(np.square(x @ (codes * 0.4 - weight).T).sum())

    assert error(held) < 0.7 * error(nearest)
