"""The bfloat16 pass: what is stored in 16 bits, what is not, and how far results move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import BFLOAT16, F64, I64, Affine, Graph, Value
from dlcc.ir.text import load, save
from passes import PassManager

PASS = "round-to-bfloat16"


def narrow(graph: Graph) -> set[str]:
    """Ops whose results are stored as bfloat16."""
    return {n.op for n in graph.nodes for v in n.outputs if v.type.is_bfloat16}


def refused(result: Any) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == "refused"}


def small(net: Any) -> Graph:
    """Stem, residual, pooling, classifier, softmax."""
    x = net.input(1, 3, 8, 8)
    y = net.conv(x, 8, pads=(1, 1, 1, 1), loc="stem")
    y = net.op("relu", y, loc="relu")
    z = net.conv(y, 8, 1, loc="point")
    y = net.op("add", y, z, loc="sum")
    y = net.op("max_pool2d", y, kernel=(2, 2), strides=(2, 2), loc="pool")
    y = net.op("reshape", y, shape=(1, 128), loc="flat")
    return net.done(net.op("softmax", net.linear(y, 5, loc="fc"), loc="softmax"))


def test_between_layers(net: Any, golden: Any) -> None:
    golden(small(net), PASS)


def test_results_are_near_and_have_the_types(net: Any) -> None:
    graph = small(net)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    before = execute(graph, feed)["y0"]
    result = PassManager(PASS).run(graph)
    after = execute(graph, feed)["y0"]
    assert after.dtype == np.float32
    assert 0 < np.abs(before - after).max() < 0.1
    statistics = result.records[0].statistics
    assert statistics["bfloat16_layers"] == 3
    assert 0 < statistics["max_weight_error"] <= 2**-8
    weights = 8 * 3 * 9 + 8 * 8 + 5 * 128
    assert statistics["saved_bytes"] == 2 * weights


def test_a_layer_rounds_the_operand_that_is_float32(net: Any) -> None:
    """The first layer: its input is the caller's, its products are of bfloat16 numbers."""
    x = net.input(2, 16)
    graph = net.done(net.linear(x, 4, bias=False))
    PassManager(PASS).run(graph)
    real = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    rounded = BFLOAT16.decode(BFLOAT16.encode(real), real.shape)
    assert (rounded != real).any()
    got = execute(graph, {"x": real})["y0"]
    np.testing.assert_array_equal(got, execute(graph, {"x": rounded})["y0"])
    np.testing.assert_allclose(got, rounded @ graph.nodes[0].input(1).decoded().T, rtol=1e-5)


def test_what_lies_behind_the_last_layer_stays(net: Any) -> None:
    x = net.input(1, 4, 6, 6)
    y = net.op("sigmoid", net.op("relu", net.conv(x, 4)))
    graph = net.done(y)
    PassManager(PASS).run(graph)
    assert narrow(graph) == set()
    assert graph.nodes[0].input(1).type.is_bfloat16


def test_exclude(net: Any) -> None:
    x = net.input(1, 4, 8, 8)
    y = net.conv(net.conv(net.conv(x, 4, loc="a"), 4, loc="b"), 4, loc="c")
    graph = net.done(y)
    result = PassManager(f"{PASS}{{exclude=b*}}").run(graph)
    assert refused(result) == {"b": "excluded by option"}
    assert narrow(graph) == set()  # both neighbours of b are read or written by it
    assert [n.input(1).type.is_bfloat16 for n in graph.nodes] == [True, False, True]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda net, x: net.op("div", x, net.random(1, positive=True), loc="n"), "no form"),
        (
            lambda net, x: net.op("linear", x, net.input(4, 4, name="other"), loc="n"),
            "its weight is not constant",
        ),
    ],
)
def test_what_stays_float32_and_why(net: Any, build: Any, reason: str) -> None:
    first = net.linear(net.input(2, 4), 4, loc="a")
    graph = net.done(net.linear(build(net, first), 4, loc="b"))
    result = PassManager(PASS).run(graph)
    assert reason in refused(result)["n"]
    node = graph.nodes[1]
    assert not node.input(0).type.is_bfloat16
    assert not node.output.type.is_bfloat16
    assert graph.nodes[2].input(1).type.is_bfloat16


def test_other_types_are_left_alone(net: Any) -> None:
    net.dtype = F64
    graph = net.done(net.linear(net.input(2, 4), 4))
    result = PassManager(PASS).run(graph)
    assert refused(result) == {"linear": "not on float32 numbers"}
    assert not result.records[0].modified


def test_behind_quantize_only_float_layers_are_rounded(net: Any) -> None:
    x = net.input(1, 4, 8, 8)
    y = net.conv(x, 4, loc="first")
    for name in ("middle.0", "middle.1"):
        y = net.conv(y, 4, 1, loc=name)
    graph = net.done(net.conv(y, 4, loc="last"))
    PassManager(f"quantize{{exclude=middle*}},{PASS}").run(graph)
    verify(graph)
    kinds = {
        n.loc: type(n.input(1).type.encoding).__name__ for n in graph.nodes if n.op == "conv2d"
    }
    assert kinds["middle.0"] == kinds["middle.1"] == "BFloat16"
    assert kinds["first"] == kinds["last"] == Affine.__name__
    assert sum(n.output.type.is_bfloat16 for n in graph.nodes) == 1  # between the two


def test_tables_that_are_only_moved(net: Any) -> None:
    table, index = net.random(50, 16, name="table"), net.input(7, name="i", dtype=I64)
    rows = net.op("gather", table, index, axis=0)
    graph = net.done(net.linear(net.op("relu", rows), 4))
    PassManager(PASS).run(graph)
    assert graph.nodes[0].input(0).type.is_bfloat16
    assert narrow(graph) == {"gather", "relu"}


def test_text_and_sidecar_hold_it(net: Any, tmp_path: Path) -> None:
    graph = small(net)
    PassManager(PASS).run(graph)
    save(graph, tmp_path / "net.dlir")
    again = load(tmp_path / "net.dlir")
    assert "f32[1,8,8,8]!bfloat16<>" in (tmp_path / "net.dlir").read_text()
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(execute(graph, feed)["y0"], execute(again, feed)["y0"])


def test_no_onnx_and_no_mix_with_codes(net: Any) -> None:
    x = net.input(1, 4, 8, 8)
    y = net.conv(net.conv(x, 4), 4)
    graph = net.done(y)
    PassManager(PASS).run(graph)
    with pytest.raises(DlccError, match="bfloat16"):
        to_onnx(graph)
    mixed: Value = graph.nodes[1].output
    mixed.type = mixed.type.with_(encoding=Affine.per_tensor(8, False, 0.1, 3))
    with pytest.raises(DlccError, match="integer codes and bfloat16"):
        verify(graph)
