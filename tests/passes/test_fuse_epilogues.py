from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.ir import F32, Affine

PASS = "fuse-epilogues"


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def refused(result: Any) -> str:
    return "; ".join(r.message for r in result.remarks if r.kind == "refused")


def test_residual_and_clamp(net: Any, golden: Any) -> None:
    x = net.input(1, 4, 5, 5)
    y = net.op("add", net.conv(x, 4, pads=(1, 1, 1, 1), loc="conv1"), x, loc="add1")
    golden(net.done(net.op("clip", y, min=0.0, loc="relu1")), PASS)


def test_the_later_of_two_layers_takes_the_residual(net: Any, golden: Any) -> None:
    x = net.input(1, 4, 5, 5)
    first, second = net.conv(x, 4, loc="shortcut"), net.conv(x, 4, loc="main")
    golden(net.done(net.op("add", second, first, loc="add1")), PASS)


@pytest.mark.parametrize("layer", ["conv2d", "conv_transpose2d", "linear", "matmul", "add"])
def test_clamps_of_every_layer(net: Any, run: Any, layer: str) -> None:
    if layer in ("linear", "matmul", "add"):
        x = net.input(3, 4, 4)
        y = net.linear(x, 4) if layer == "linear" else net.op(layer, x, x)
    else:
        y = net.op(layer, net.input(1, 4, 6, 6), net.random(4, 4, 3, 3))
    y = net.op("clip", net.op("clip", y, min=-1.0, max=2.0), min=0.0, max=6.0)
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == [layer]
    assert graph.nodes[0].attrs == {"act_min": 0.0, "act_max": 2.0}


@pytest.mark.parametrize("layer", ["linear", "matmul"])
def test_residuals_of_products(net: Any, run: Any, layer: str) -> None:
    x = net.input(3, 4, 4)
    y = net.linear(x, 4, bias=False) if layer == "linear" else net.op("matmul", x, x)
    graph = net.done(net.op("relu", net.op("add", x, y)))
    run(graph, PASS)
    assert ops(graph) == [layer]


def test_a_residual_that_is_computed_after_the_layer(net: Any, run: Any) -> None:
    x = net.input(1, 4, 5, 5)
    y = net.conv(x, 4, pads=(1, 1, 1, 1))
    graph = net.done(net.op("add", y, net.op("exp", x)))
    run(graph, PASS)
    assert ops(graph) == ["exp", "conv2d"]


def test_two_adds_in_a_row(net: Any, run: Any) -> None:
    x = net.input(1, 4, 5, 5)
    y = net.op("add", net.conv(x, 4, pads=(1, 1, 1, 1)), x)
    graph = net.done(net.op("add", y, net.op("exp", x)))
    result = run(graph, PASS)
    assert ops(graph) == ["exp", "conv2d", "add"] or ops(graph) == ["conv2d", "exp", "add"]
    assert "has a residual already" in refused(result)


def test_refusals_of_residuals(net: Any, run: Any) -> None:
    x = net.input(1, 4, 5, 5)
    graph = net.done(
        net.op("add", net.conv(x, 4, act_min=0.0, loc="a"), net.input(1, 4, 3, 3, name="r")),
        net.op("add", net.conv(x, 4, loc="b"), net.random(1, 4, 3, 3)),
        net.op("add", net.conv(x, 4, loc="c"), net.input(1, 1, 3, 3, name="s")),
    )
    result = run(graph, PASS)
    assert not result.modified
    for words in ("comes before the add", "is constant", "shapes of the operands differ"):
        assert words in refused(result)


def test_a_layer_added_to_itself_is_refused(net: Any, run: Any) -> None:
    y = net.conv(net.input(1, 4, 5, 5), 4)
    result = run(net.done(net.op("add", y, y)), PASS)
    assert not result.modified
    assert "the other operand" in refused(result)


def test_a_layer_with_another_reader_is_refused(net: Any, run: Any) -> None:
    y = net.conv(net.input(1, 4, 5, 5), 4, loc="c")
    result = run(net.done(net.op("relu", y, loc="r"), net.op("exp", y, loc="e")), PASS)
    assert not result.modified
    assert "also used by e" in refused(result)


def test_an_empty_clip_is_refused(net: Any, run: Any) -> None:
    y = net.conv(net.input(1, 4, 5, 5), 4)
    result = run(net.done(net.op("clip", y, min=1.0, max=0.0)), PASS)
    assert "min 1 is above its max 0" in refused(result)


def test_quantised_layers_are_left_alone(net: Any) -> None:
    from passes import PassManager

    x, encoding = net.input(1, 4), Affine.per_tensor(8, False, 0.1, 7)
    x.type = x.type.with_(encoding=encoding)
    y = net.op("add", x, x)
    y.type = y.type.with_(encoding=encoding)
    z = net.op("relu", y)
    z.type = z.type.with_(encoding=encoding)
    graph = net.done(z)
    result = PassManager(PASS).run(graph)
    assert not result.modified
    assert "stored as affine" in refused(result)
    assert x.type.dtype == F32
    assert np.float32(0.1) == np.float32(encoding.scale)
