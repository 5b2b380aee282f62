from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PASS = "fold-transposes"
LAST = {"perm": (0, 2, 3, 1)}
FIRST = {"perm": (0, 3, 1, 2)}


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_a_pair_cancels_through_what_lies_between(net: Any, golden: Any) -> None:
    y = net.op("transpose", net.input(1, 3, 4, 5), **LAST, loc="to_last")
    y = net.op("clip", y, min=0.0, loc="relu")
    y = net.op("mul", y, net.const(np.float32([1, 2, 3])), loc="scale")
    y = net.op("add", net.random(4, 1, 3), y, loc="shift")
    golden(net.done(net.op("transpose", y, **FIRST, loc="to_first")), PASS)


def test_two_transposed_operands_become_one(net: Any, run: Any) -> None:
    x, z = net.input(2, 3, 4, 5), net.input(2, 3, 4, 5, name="z")
    y = net.op("sub", net.op("transpose", x, **LAST), net.op("transpose", z, **LAST))
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == ["sub", "transpose"]


def test_different_transposes_stay(net: Any, run: Any) -> None:
    x = net.input(2, 4, 4, 4)
    y = net.op("sub", net.op("transpose", x, **LAST), net.op("transpose", x, **FIRST))
    assert not run(net.done(y), PASS).modified


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(1, 2), (3,), (0, 3)])
def test_through_reductions(net: Any, run: Any, axes: tuple[int, ...], keepdims: bool) -> None:
    y = net.op("transpose", net.input(2, 3, 4, 5), perm=(3, 0, 2, 1))
    graph = net.done(net.op("reduce_max", y, axes=axes, keepdims=keepdims))
    run(graph, PASS)
    assert ops(graph)[0] == "reduce_max"


def test_channels_last_classifier_needs_no_transpose(net: Any, run: Any) -> None:
    y = net.op("transpose", net.conv(net.input(2, 3, 6, 6), 4), **LAST)
    y = net.op("transpose", net.op("reduce_mean", y, axes=(1, 2), keepdims=False), perm=(0, 1))
    graph = net.done(net.linear(y, 5))
    run(graph, PASS)
    assert ops(graph) == ["conv2d", "reduce_mean", "linear"]


@pytest.mark.parametrize("axis", [-1, 1])
def test_through_softmax(net: Any, run: Any, axis: int) -> None:
    y = net.op("softmax", net.op("transpose", net.input(2, 3, 4, 5), **LAST), axis=axis)
    graph = net.done(net.op("transpose", y, **FIRST))
    run(graph, PASS)
    assert ops(graph) == ["softmax"]


def test_through_pad_and_concat(net: Any, run: Any) -> None:
    x, z = net.input(1, 3, 4, 5), net.input(1, 2, 4, 5, name="z")
    a = net.op("transpose", x, **LAST)
    b = net.op("transpose", z, **LAST)
    y = net.op("concat", a, b, axis=3)
    y = net.op("pad", y, pads=(0, 1, 2, 0, 0, 3, 0, 1))
    graph = net.done(net.op("transpose", y, **FIRST))
    run(graph, PASS)
    assert ops(graph) == ["concat", "pad"]


def test_concat_of_other_operands_stays(net: Any, run: Any) -> None:
    x = net.input(1, 4, 4, 4)
    y = net.op("concat", net.op("transpose", x, **LAST), x, axis=1)
    assert not run(net.done(y), PASS).modified


@pytest.mark.parametrize("flip", [False, True])
def test_into_matmul(net: Any, run: Any, flip: bool) -> None:
    x = net.input(2, 3, 4, 5)
    w = net.input(2, 3, *((6, 5) if not flip else (5, 6)), name="w")
    y = net.op("matmul", x, net.op("transpose", w, perm=(0, 1, 3, 2)), transpose_b=flip)
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == ["matmul"]
    assert graph.nodes[0].attrs.get("transpose_b", False) is not flip


def test_into_a_flattened_linear(net: Any, golden: Any) -> None:
    y = net.op("transpose", net.input(2, 3, 4, 5), **LAST, loc="to_last")
    y = net.op("reshape", y, shape=(2, 60), loc="flatten")
    golden(net.done(net.linear(y, 7, loc="fc")), PASS)


def test_moving_axes_of_length_one_is_a_reshape(net: Any, run: Any) -> None:
    graph = net.done(net.op("transpose", net.input(1, 5, 1, 4), perm=(1, 0, 3, 2)))
    run(graph, PASS)
    assert ops(graph) == ["reshape"]


def test_a_transpose_with_two_readers_stays(net: Any, run: Any) -> None:
    y = net.op("transpose", net.input(2, 3, 4, 5), **LAST)
    graph = net.done(net.op("exp", y), net.op("neg", y))
    assert not run(graph, PASS).modified


def test_a_constant_with_more_axes_stays(net: Any, run: Any) -> None:
    y = net.op("transpose", net.input(3, 4), perm=(1, 0))
    graph = net.done(net.op("add", y, net.random(2, 4, 3)))
    assert not run(graph, PASS).modified


def test_epilogues_move_in_front_of_a_layers_reshape(net: Any, run: Any) -> None:
    y = net.op("reshape", net.conv(net.input(2, 3, 1, 6), 4, pads=(1, 1, 1, 1)), shape=(2, 4, 6))
    y = net.op("clip", net.op("mul", y, net.const(np.float32(3))), min=0.0)
    graph = net.done(net.op("add", net.input(2, 4, 6, name="z"), y))
    run(graph, PASS)
    assert ops(graph) == ["conv2d", "mul", "clip", "reshape", "add", "reshape"]


def test_sums_move_in_front_of_the_moves_of_a_layers_result(net: Any, run: Any) -> None:
    layer = net.op("transpose", net.conv(net.input(2, 3, 4, 4), 5, pads=(1, 1, 1, 1)), **LAST)
    y = net.op("add", net.input(2, 16, 5, name="z"), net.op("reshape", layer, shape=(2, 16, 5)))
    y = net.op("mul", y, net.const(np.float32([1, 2, 3, 4, 5])))
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == ["conv2d", "reshape", "transpose", "add", "mul", "transpose", "reshape"]


def test_a_constant_along_another_axis_stays_behind_the_reshape(net: Any, run: Any) -> None:
    y = net.op("reshape", net.conv(net.input(2, 3, 1, 6), 4, pads=(1, 1, 1, 1)), shape=(2, 4, 6))
    graph = net.done(net.op("mul", y, net.const(np.ones((4, 1), np.float32))))
    assert not run(graph, PASS).modified


def test_a_sum_that_repeats_the_layers_result_stays_behind_the_reshape(net: Any, run: Any) -> None:
    """[18] + [18,18]: the result of the layer has not as many numbers as the sum."""
    row = net.op("reshape", net.linear(net.input(1, 4), 18), shape=(18,))
    graph = net.done(net.op("add", row, net.input(18, 18, name="z")))
    run(graph, PASS)
    assert ops(graph) == ["linear", "reshape", "add"]
