from __future__ import annotations

from typing import Any

import pytest

PASS = "fold-pads"
IMAGE = (0, 0, 1, 2, 0, 0, 3, 0)


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def refused(result: Any) -> str:
    return "; ".join(r.message for r in result.remarks if r.kind == "refused")


def test_into_conv(net: Any, golden: Any) -> None:
    x = net.op("pad", net.input(1, 3, 6, 6), pads=IMAGE, loc="pad1")
    golden(net.done(net.conv(x, 4, pads=(1, 1, 1, 1), strides=(2, 2), loc="conv1")), PASS)


def test_into_average_pool(net: Any, run: Any) -> None:
    x = net.input(1, 3, 6, 6)
    y = net.op("avg_pool2d", net.op("pad", x, pads=IMAGE), kernel=(3, 3), strides=(2, 2))
    z = net.op(
        "avg_pool2d",
        net.op("pad", x, pads=IMAGE),
        kernel=(3, 3),
        pads=(1, 1, 1, 1),
        count_include_pad=True,
    )
    graph = net.done(y, z)
    run(graph, PASS)
    assert ops(graph) == ["avg_pool2d", "avg_pool2d"]
    assert all(node.attrs["count_include_pad"] for node in graph.nodes)


def test_average_pool_with_padding_of_its_own_is_refused(net: Any, run: Any) -> None:
    x = net.op("pad", net.input(1, 3, 6, 6), pads=IMAGE)
    result = run(net.done(net.op("avg_pool2d", x, kernel=(3, 3), pads=(1, 1, 1, 1))), PASS)
    assert "out of the count" in refused(result)


def test_into_max_pool_of_what_is_never_negative(net: Any, run: Any) -> None:
    x = net.op("reshape", net.op("relu", net.input(1, 3, 36)), shape=(1, 3, 6, 6))
    y = net.op("pad", x, pads=(0, 0, 1, 1, 0, 0, 1, 1))
    graph = net.done(net.op("max_pool2d", y, kernel=(3, 3), strides=(2, 2)))
    run(graph, PASS)
    assert ops(graph) == ["relu", "reshape", "max_pool2d"]


def test_into_max_pool_of_minus_infinity(net: Any, run: Any) -> None:
    y = net.op("pad", net.input(1, 3, 6, 6), pads=(0, 0, 1, 1, 0, 0, 1, 1), value=-float("inf"))
    graph = net.done(net.op("max_pool2d", y, kernel=(2, 2)))
    run(graph, PASS)
    assert ops(graph) == ["max_pool2d"]


@pytest.mark.parametrize(
    ("pads", "options", "words"),
    [
        ((0, 0, 1, 1, 0, 0, 1, 1), {"kernel": (3, 3)}, "as small as -inf"),
        (IMAGE, {"kernel": (2, 2)}, "in the border alone"),
        ((0, 0, 1, 1, 0, 0, 1, 1), {"kernel": (3, 3), "dilations": (2, 2)}, "dilated"),
    ],
)
def test_max_pool_refusals(net: Any, run: Any, pads: Any, options: Any, words: str) -> None:
    x = net.op("pad", net.input(1, 3, 6, 6), pads=pads)
    result = run(net.done(net.op("max_pool2d", x, **options)), PASS)
    assert words in refused(result)
    assert not result.modified


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pads": IMAGE, "value": 1.0}, "pads with 1"),
        ({"pads": IMAGE, "mode": "reflect"}, "mode reflect"),
        ({"pads": (0, 1, 0, 0, 0, 0, 0, 0)}, "other axes"),
    ],
)
def test_conv_refusals(net: Any, run: Any, options: Any, words: str) -> None:
    x = net.op("pad", net.input(1, 3, 6, 6), **options)
    result = run(net.done(net.conv(x, 4)), PASS)
    assert words in refused(result)
    assert not result.modified


def test_a_pad_with_two_readers_is_refused(net: Any, run: Any) -> None:
    x = net.op("pad", net.input(1, 3, 6, 6), pads=IMAGE)
    result = run(net.done(net.conv(x, 4), x), PASS)
    assert "also used by output 'y1'" in refused(result)
