"""Weight-only passes: optima by brute force, encodings, bytes, composition, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F64, Binary, Codebook, Graph, Sparse, Ternary
from dlcc.ir.clustering import cluster_scalars
from passes import PassContext, PassManager, PipelineResult
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]

PASSES = [
    "ternarize",
    "binarize",
    "share-weights{values=4}",
    "quantize-weights{bits=2}",
    "quantize-weights{bits=2 group=16}",
    "product-quantize{bits=2 length=2}",
    "residual-quantize{bits=1 length=2 stages=2}",
    "product-quantize{bits=2 length=2 axis=output}",
    "residual-quantize{bits=1 length=2 stages=2 axis=output}",
]


def run(graph: Graph, pipeline: str, context: PassContext | None = None) -> PipelineResult:
    result = PassManager(pipeline).run(graph, context or PassContext())
    verify(graph)
    return result


def layer(values: Any) -> Graph:
    net = Net()
    array = np.asarray(values, np.float32)
    return net.done(net.op("linear", net.input(1, array.shape[1]), net.const(array), loc="a"))


def weight(graph: Graph, index: int = 0) -> Array:
    return graph.nodes[index].input(1).decoded()


def refused(result: PipelineResult) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == "refused"}


def chain(net: Net) -> Graph:
    y = net.conv(net.conv(net.input(1, 8, 6, 6), 16, loc="a"), 24, 1, loc="b")
    flat = net.op("reshape", y, shape=(1, 24 * 16))
    return net.done(net.linear(flat, 10, loc="c"))


# -- what every weight-only pass keeps to --------------------------------------------------------


def test_every_layer_has_its_own_encoding(net: Net, golden: Any) -> None:
    pipeline = "ternarize{scales=asymmetric per=tensor only=a},binarize{per=tensor only=b}"
    golden(chain(net), f"{pipeline},share-weights")


@pytest.mark.parametrize("pipeline", PASSES)
def test_the_network_computes_with_the_decoded_weights(net: Net, pipeline: str) -> None:
    graph = chain(net)
    dense = graph.copy()
    run(graph, pipeline)
    for node, twin in zip(dense.nodes, graph.nodes, strict=True):
        if node.op != "reshape":
            assert not twin.input(1).type.is_dense
            node.set_input(1, dense.add_constant(twin.input(1).decoded()))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(execute(graph, feed)["y0"], execute(dense, feed)["y0"])


@pytest.mark.parametrize("pipeline", PASSES)
def test_bytes_and_error_are_those_of_the_stored_weights(net: Net, pipeline: str) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    before = weight(graph)
    statistics = run(graph, pipeline).records[0].statistics
    value = graph.nodes[0].input(1)
    assert value.constant is not None
    assert statistics["bytes_before"] == 64 * 32 * 4
    assert statistics["bytes_after"] == value.type.encoding.stored_bytes(value.constant.parts)
    scales = 4 * 32 * 64 // 16 + 1 if "group" in pipeline else 400
    assert statistics["bytes_after"] < 64 * 32 / 4 + scales
    error = np.linalg.norm(weight(graph) - before) / np.linalg.norm(before)
    assert statistics["worst_weight_error"] == pytest.approx(error, abs=1e-6)
    assert error > 0.1


@pytest.mark.parametrize("pipeline", PASSES)
def test_a_second_run_finds_nothing_to_gain(net: Net, pipeline: str) -> None:
    graph = chain(net)
    run(graph, pipeline)
    stored = [n.input(1) for n in graph.nodes if n.op != "reshape"]
    result = run(graph, pipeline)
    assert not result.modified
    assert [n.input(1) for n in graph.nodes if n.op != "reshape"] == stored
    assert all("would take" in why for why in refused(result).values())


def test_shared_weights_are_encoded_once(net: Net) -> None:
    w = net.random(8, 8)
    y = net.op("linear", net.op("linear", net.input(1, 8), w, loc="a"), w, loc="b")
    graph = net.done(y)
    result = run(graph, "ternarize{per=tensor}")
    assert graph.nodes[0].input(1) is graph.nodes[1].input(1)
    assert result.records[0].statistics["layers"] == 1


# -- optima ------------------------------------------------------------------------------------

rows = st.lists(st.integers(-9, 9).filter(bool), min_size=2, max_size=6)


def error(values: Array, levels: Any) -> float:
    return float(np.square(values[:, None] - np.asarray(levels)[None, :]).min(axis=1).sum())


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans())
def test_ternary_scales_are_the_least_squares_optimum(numbers: list[int], symmetric: bool) -> None:
    values = np.array(numbers, np.float64)
    found = Ternary.fit(values[None], 0, None, symmetric=symmetric)
    assert not symmetric or found.positive == found.negative
    best = np.inf
    for codes in itertools.product((-1, 0, 1), repeat=len(values)):
        c = np.array(codes)
        high, low = (float(np.mean(abs(values[c == s]))) if (c == s).any() else 0 for s in (1, -1))
        if symmetric:
            high = low = float((values * c).sum() / max(1, abs(c).sum()))
        if high >= 0:
            best = min(best, error(values, [-low, 0, high]))
    (high,), (low,) = found.positive, found.negative
    assert error(values, [-low, 0, high]) == pytest.approx(best, rel=1e-5, abs=1e-5)


def test_ternary_threshold(net: Net) -> None:
    w = np.array([[4.0, 3.0, 0.5, -0.5, -2.0, -2.0]], np.float32)  # mean |w| is 2
    graph = layer(np.repeat(w, 4, axis=0))
    run(graph, "ternarize{threshold=0.7 scales=asymmetric}")
    np.testing.assert_array_equal(weight(graph)[0], [3.5, 3.5, 0, 0, -2, -2])
    graph = layer(np.repeat(w, 4, axis=0))
    run(graph, "ternarize{threshold=1.2}")
    np.testing.assert_array_equal(weight(graph)[0], [3.5, 3.5, 0, 0, -3.5, -3.5])


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_binary_scales_are_mean_magnitudes(per: str) -> None:
    w = np.array([[1.0, -3.0] * 16, [0.5, 0.5] * 16], np.float32)
    graph = layer(w)
    run(graph, f"binarize{{per={per}}}")
    want = np.array([[2, -2], [0.5, 0.5]] if per == "channel" else [[1.25, -1.25], [1.25, 1.25]])
    np.testing.assert_array_equal(weight(graph), np.tile(want, 16))
    assert isinstance(graph.nodes[0].input(1).type.encoding, Binary)


@pytest.mark.parametrize("start", ["linear", "density", "random"])
@pytest.mark.parametrize("count", [2, 5, 16, 256])
def test_shared_values_are_a_fixed_point_of_k_means(net: Net, start: str, count: int) -> None:
    graph = net.done(net.linear(net.input(1, 60), 50))
    before = weight(graph)
    run(graph, f"share-weights{{values={count} start={start}}}")
    after = weight(graph)
    encoding = graph.nodes[0].input(1).type.encoding
    assert isinstance(encoding, Codebook)
    assert encoding.bits == (count - 1).bit_length()
    levels = np.unique(after)
    assert count // 2 < len(levels) <= count
    np.testing.assert_array_equal(after, levels[abs(before[..., None] - levels).argmin(axis=-1)])
    if count <= 16:  # more take longer than the rounds of k-means to settle
        means = [float(before[after == level].mean()) for level in levels]
        np.testing.assert_allclose(means, levels, atol=0.02)


def test_starts_of_k_means_differ_as_they_should() -> None:
    values = np.concatenate([np.linspace(0, 1, 1000), [100.0]]).astype(np.float32)
    found = {s: cluster_scalars(values, 4, s)[0] for s in ("linear", "density")}
    assert found["linear"][-1] == 100  # the outlier keeps a value of its own
    assert np.count_nonzero(found["density"] < 1) >= np.count_nonzero(found["linear"] < 1)
    seeds = [np.random.default_rng(s) for s in (1, 1, 2)]
    a, b, c = (cluster_scalars(values[:-1], 4, "random", rng)[0] for rng in seeds)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_weights_are_within_half_a_step(net: Net, bits: int, per: str) -> None:
    graph = net.done(net.linear(net.input(1, 60), 20))
    before = weight(graph).astype(np.float64)
    run(graph, f"quantize-weights{{bits={bits} per={per}}}")
    encoding = graph.nodes[0].input(1).type.affine
    assert (encoding.bits, len(encoding.scales)) == (bits, 20 if per == "channel" else 1)
    scales = np.array(encoding.scales)[:, None]
    peak = abs(before).max(axis=1, keepdims=True) if per == "channel" else abs(before).max()
    np.testing.assert_allclose(scales * (2 ** (bits - 1) - 1), peak, rtol=1e-6)
    assert np.all(abs(weight(graph) - before) <= 0.5001 * scales)


def test_groups_follow_their_weights(net: Net, golden: Any) -> None:
    graph = net.done(net.op("relu", net.linear(net.input(1, 64), 8, loc="a")))
    before = weight(graph)
    golden(graph, "quantize-weights{bits=4 group=32}")
    steps = abs(before.reshape(8, 2, 32)).max(axis=2) / 7
    change = abs(weight(graph) - before).reshape(8, 2, 32)
    assert np.all(change <= 0.5001 * steps[:, :, None])
    assert np.any(change.max(axis=2) > 0.4 * steps)


def test_a_transposed_convolution_has_no_groups(net: Net) -> None:
    x = net.input(1, 8, 4, 4)
    graph = net.done(net.op("conv_transpose2d", x, net.random(8, 16, 3, 3), loc="a"))
    result = run(graph, "quantize-weights{group=8}")
    assert not result.modified
    assert "groups do not run along" in refused(result)["a"]


def test_product_codes_hold_runs_that_repeat() -> None:
    runs = np.array([[1.0, 2.0, 3.0, 4.0], [-4.0, 0.5, 0.25, 9.0]], np.float32)
    values = runs[np.random.default_rng(0).integers(0, 2, (16, 8))].reshape(16, 32)
    graph = layer(values)
    run(graph, "product-quantize{bits=1 length=4}")
    np.testing.assert_array_equal(weight(graph), values)
    value = graph.nodes[0].input(1)
    assert value.constant is not None
    assert value.type.encoding.stored_bytes(value.constant.parts) == 16 * 8 // 8 + 2 * 4 * 4


def test_either_axis_can_hold_the_runs(net: Net, golden: Any) -> None:
    columns = np.array([[1.0, 2.0, 3.0, 4.0], [-4.0, 0.5, 0.25, 9.0]], np.float32)
    rng = np.random.default_rng(0)
    values = columns[rng.integers(0, 2, (32, 4))].transpose(1, 2, 0).reshape(16, 32)
    graph = layer(values)
    golden(graph, "product-quantize{bits=1 length=4 axis=output}")
    np.testing.assert_array_equal(weight(graph), values)
    other = layer(values)
    result = run(other, "product-quantize{bits=1 length=4}")
    assert "along the inputs" in result.remarks[-1].message
    assert not np.array_equal(weight(other), values)


def test_more_stages_leave_less(net: Net) -> None:
    before = net.done(net.linear(net.input(1, 64), 64))
    errors = []
    for stages in (1, 2, 4):
        graph = before.copy()
        run(graph, f"residual-quantize{{bits=4 length=4 stages={stages}}}")
        errors.append(float(np.linalg.norm(weight(graph) - weight(before))))
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_runs_that_do_not_fit_the_rows() -> None:
    result = run(layer(np.ones((4, 42))), "product-quantize{length=4}")
    assert "42 columns cannot be cut" in refused(result)["a"]
    result = run(layer(np.ones((6, 40))), "product-quantize{length=4 axis=output}")
    assert "6 outputs cannot be cut" in refused(result)["a"]


# -- composition and refusals --------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["ternarize", "share-weights{values=8}"])
def test_pruned_layers_keep_their_zeros(net: Net, pipeline: str) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    run(graph, "prune{sparsity=0.9}")
    zero = weight(graph) == 0
    result = run(graph, pipeline)
    encoding = graph.nodes[0].input(1).type.encoding
    assert isinstance(encoding, Sparse)
    assert isinstance(encoding.inner, Ternary | Codebook)
    assert np.all(weight(graph)[zero] == 0)
    assert np.count_nonzero(weight(graph)) > 0.5 * np.count_nonzero(~zero)
    assert "at the places of unstructured" in result.remarks[-1].message


def test_a_mask_that_does_not_pay_is_not_stored(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    run(graph, "prune{sparsity=0.3},ternarize")
    assert isinstance(graph.nodes[0].input(1).type.encoding, Ternary)


@pytest.mark.parametrize(
    "pipeline",
    ["binarize", "product-quantize", "residual-quantize", "quantize-weights{group=16}"],
)
def test_encodings_without_single_zeros_refuse_pruned_layers(net: Net, pipeline: str) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32, loc="a"))
    result = run(graph, f"prune{{sparsity=0.9}},{pipeline}")
    assert "pruned" in refused(result)["a"]


def poisoned(value: float) -> Callable[[Net], Graph]:
    def make(net: Net) -> Graph:
        w = np.full((4, 8), value, np.float32)
        return net.done(net.op("linear", net.input(1, 8), net.const(w), loc="a"))

    return make


def double(net: Net) -> Graph:
    other = Net(dtype=F64)
    return other.done(other.linear(other.input(1, 40), 40, loc="a"))


def integer(net: Net) -> Graph:
    graph = net.done(net.linear(net.linear(net.input(1, 8), 8, loc="a"), 4, loc="b"))
    run(graph, "quantize")
    return graph


@pytest.mark.parametrize("pipeline", PASSES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (poisoned(float("nan")), "NaN"),
        (poisoned(0.0), "all zero"),
        (double, "not float32"),
        (integer, "integer codes"),
    ],
)
def test_layers_that_are_left_alone(net: Net, make: Any, words: str, pipeline: str) -> None:
    graph = make(net)
    result = run(graph, pipeline)
    assert not result.modified
    assert words in refused(result)["a"]


@pytest.mark.parametrize("pipeline", PASSES[:5])
def test_what_would_not_be_smaller_stays(net: Net, pipeline: str) -> None:
    graph = net.done(net.op("linear", net.input(1, 1), net.random(3, 1), loc="a"))
    result = run(graph, pipeline)
    assert not result.modified
    assert "would take" in refused(result)["a"]


def test_nothing_beyond_the_threshold() -> None:
    result = run(layer(np.ones((4, 40))), "ternarize{threshold=2}")
    assert "beyond 2.0 times" in refused(result)["a"]


@pytest.mark.parametrize(
    "text",
    [
        "share-weights{values=1}",
        "share-weights{values=257}",
        "share-weights{start=best}",
        "ternarize{threshold=-1}",
        "binarize{per=row}",
        "binarize{only=nothing}",
        "quantize-weights{group=1}",
        "product-quantize{axis=both}",
        "quantize-weights{group=32 per=tensor}",
    ],
)
def test_options_that_make_no_sense(net: Net, text: str) -> None:
    with pytest.raises(DlccError) as caught:
        run(chain(net), text)
    assert caught.value.code is ExitCode.USAGE
