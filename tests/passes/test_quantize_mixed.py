"""Quantise with widths by layer, and behind passes that gave weights codes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import fidelity
from dlcc.ir import Affine, Binary, Graph, Node, Sparse, Ternary
from passes import PassContext, PassManager, PipelineResult
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def run(graph: Graph, pipeline: str) -> PipelineResult:
    rng = np.random.default_rng(0)
    feeds = [
        {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
        for _ in range(24)
    ]

    def batches() -> Iterator[dict[str, Array]]:
        return iter(feeds)

    result = PassManager(pipeline).run(graph, PassContext(calibration=batches))
    verify(graph)
    return result


@pytest.fixture
def graph(net: Net) -> Graph:
    a = net.op("relu", net.conv(net.input(1, 3, 6, 6), 16, loc="a"))
    b = net.op("relu", net.conv(a, 16, loc="b", pads=(1, 1, 1, 1)))
    c = net.op("relu", net.conv(b, 24, 1, loc="c"))
    d = net.op("conv_transpose2d", c, net.random(24, 4, 2, 2), strides=(2, 2), loc="d")
    out = net.done(net.linear(net.op("reshape", d, shape=(1, 4 * 64)), 6, loc="e"))
    PassManager("canonicalize,fuse-epilogues,eliminate-dead-code").run(out)
    return out


def layers(graph: Graph) -> dict[str, Node]:
    return {n.loc: n for n in graph.nodes if n.op in ("conv2d", "conv_transpose2d", "linear")}


def refused(result: PipelineResult) -> dict[str, str]:
    return {r.loc: r.message for r in result.records[-1].remarks if r.kind == "refused"}


# -- codes of an earlier pass ------------------------------------------------------------------

ENCODED = [
    ("ternarize{scales=symmetric}", Ternary, 2),
    ("ternarize{scales=symmetric per=tensor}", Ternary, 2),
    ("binarize", Binary, 2),
    ("binarize{per=tensor}", Binary, 2),
    ("quantize-weights{bits=4}", Affine, 4),
    ("quantize-weights{bits=3 per=tensor}", Affine, 3),
]


@pytest.mark.parametrize(("pipeline", "kind", "bits"), ENCODED)
def test_integer_layers_keep_the_codes(graph: Graph, pipeline: str, kind: type, bits: int) -> None:
    run(graph, pipeline)
    before = {loc: n.input(1) for loc, n in layers(graph).items()}
    result = run(graph, "quantize")
    assert not refused(result)
    for loc, node in layers(graph).items():
        weight = node.input(1)
        assert isinstance(weight.type.encoding, kind)
        assert weight.type == before[loc].type
        np.testing.assert_array_equal(weight.decoded(), before[loc].decoded())
        codes = weight.type.encoding.uniform
        assert codes is not None
        assert codes.bits == bits
        assert isinstance(node.input(0).type.encoding, Affine)
        if node.optional_input(2) is None:
            continue
        scale = node.input(0).type.affine.scale
        want = np.float32(scale * np.broadcast_to(codes.scales, node.input(2).type.shape))
        np.testing.assert_allclose(node.input(2).type.affine.scales, want, rtol=1e-6)


@pytest.mark.parametrize(("pipeline", "kind", "bits"), ENCODED)
def test_the_result_is_that_of_the_encoded_network(
    graph: Graph, pipeline: str, kind: type, bits: int
) -> None:
    run(graph, pipeline)
    encoded = graph.copy()
    run(graph, "quantize{bias-correction=false}")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(8)]
    pairs = [(execute(encoded, f)["y0"], execute(graph, f)["y0"]) for f in feeds]
    want, got = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
    assert fidelity(want, got).sqnr_db > 20


def test_pruned_and_ternary_weights_stay_sparse(graph: Graph) -> None:
    run(graph, "prune{sparsity=0.9 only=[b,e]},ternarize{scales=symmetric only=[b,e]}")
    before = {loc: layers(graph)[loc].input(1).decoded() for loc in "be"}
    assert not refused(run(graph, "quantize"))
    for loc in "be":
        weight = layers(graph)[loc].input(1)
        assert isinstance(weight.type.encoding, Sparse)
        assert isinstance(weight.type.encoding.inner, Ternary)
        np.testing.assert_array_equal(weight.decoded(), before[loc])


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("ternarize{scales=asymmetric only=b}", "two scales; ternarize{scales=symmetric}"),
        ("prune{sparsity=0.9 only=b},ternarize{scales=asymmetric only=b}", "two scales"),
        ("share-weights{only=b}", "stored as codebook"),
        ("product-quantize{only=b}", "stored as product_codebook"),
    ],
)
def test_weights_without_a_common_scale_stay_float(graph: Graph, pipeline: str, words: str) -> None:
    run(graph, pipeline)
    before = layers(graph)["b"].input(1).type
    assert words in refused(run(graph, "quantize"))["b"]
    node = layers(graph)["b"]
    assert node.input(1).type == before
    assert node.input(0).type.is_dense
    assert isinstance(layers(graph)["c"].input(1).type.encoding, Affine)


@pytest.mark.parametrize("name", ["ternarize", "binarize", "quantize-weights"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_channel_with_a_large_bias_gives_up_its_codes(net: Net, name: str, per: str) -> None:
    weight = net.rng.standard_normal((8, 40)).astype(np.float32)
    weight[3] *= 1e-9  # its scale would push the bias beyond 32 bits
    x = net.linear(net.input(1, 40), 40, loc="first")
    bias = net.const(np.ones(8, np.float32))
    graph = net.done(net.linear(net.op("linear", x, net.const(weight), bias, loc="a"), 4, loc="b"))
    symmetric = "scales=symmetric" if name == "ternarize" else ""
    run(graph, f"{name}{{per={per} only=a {symmetric}}},quantize")
    node = layers(graph)["a"]
    assert np.abs(node.input(2).constant.parts["values"].astype(np.int64)).max() < 1 << 30  # type: ignore[union-attr]
    if per == "channel":
        assert not node.input(1).decoded()[3].any()
        assert node.input(1).decoded()[:3].any()
        assert isinstance(node.input(1).type.encoding, Ternary | Affine)
    feed = {"x": np.ones((1, 40), np.float32)}
    assert np.isfinite(execute(graph, feed)["y0"]).all()


def test_assigned_widths_keep_the_codes_too(graph: Graph) -> None:
    run(graph, "ternarize{scales=symmetric only=b},quantize-weights{bits=3 only=c}")
    before = {loc: layers(graph)[loc].input(1).decoded() for loc in "bc"}
    result = run(graph, "assign-bitwidths{accumulator=16}")
    for loc in "bc":
        np.testing.assert_array_equal(layers(graph)[loc].input(1).decoded(), before[loc])
    assert "2-bit weights" in {r.loc: r.message for r in result.remarks if r.kind == "applied"}["b"]


# -- widths by layer ---------------------------------------------------------------------------


def test_widths_by_name(graph: Graph) -> None:
    run(graph, "quantize{bits=7 weights=[b:3,a:8,?:5] inputs=[c:4,e:6]}")
    found = {loc: n.input(1).type.affine.bits for loc, n in layers(graph).items()}
    assert found == {"a": 8, "b": 3, "c": 5, "d": 5, "e": 5}
    read = {loc: n.input(0).type.affine.bits for loc, n in layers(graph).items()}
    assert read == {"a": 7, "b": 7, "c": 4, "d": 7, "e": 6}


def test_a_tensor_with_two_readers_has_the_widest(net: Net) -> None:
    x = net.op("relu", net.linear(net.input(1, 8), 8, loc="a"))
    y = net.op("add", net.linear(x, 8, loc="b"), net.linear(x, 8, loc="c"))
    graph = net.done(net.linear(y, 4, loc="d"))
    run(graph, "quantize{inputs=[b:3,c:5]}")
    assert layers(graph)["b"].input(0).type.affine.bits == 5


def test_fewer_bits_lose_more(graph: Graph) -> None:
    feeds = [{"x": np.random.default_rng(3).standard_normal((1, 3, 6, 6)).astype(np.float32)}]
    want = execute(graph, feeds[0])["y0"]
    errors = []
    for bits in (8, 4, 2):
        copy = graph.copy()
        run(copy, f"quantize{{weights=[b:{bits},c:{bits}]}}")
        errors.append(float(np.linalg.norm(execute(copy, feeds[0])["y0"] - want)))
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("weights=[b]", "'b' is no width of a layer"),
        ("weights=[b:9]", "2 to 8 bits"),
        ("weights=[b:1]", "2 to 8 bits"),
        ("inputs=[:4]", "NAME:BITS"),
        ("inputs=[b:x]", "NAME:BITS"),
        ("weights=[bb:4]", "did you mean 'b'"),
        ("inputs=[zzzz:4]", "no layer matches 'zzzz'"),
    ],
)
def test_mistakes(graph: Graph, options: str, words: str) -> None:
    with pytest.raises(DlccError) as caught:
        run(graph, f"quantize{{{options}}}")
    assert caught.value.code is ExitCode.USAGE
    assert words in str(caught.value)
    assert "pass 'quantize'" in str(caught.value)
