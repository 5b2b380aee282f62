from __future__ import annotations

from typing import Any

import numpy as np
import pytest

PASS = "fold-batch-norm"


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_backward_into_conv(net: Any, golden: Any) -> None:
    x = net.input(1, 3, 6, 6)
    y = net.norm(net.conv(x, 4, bias=False, pads=(1, 1, 1, 1), loc="conv1"), loc="bn1")
    golden(net.done(net.op("relu", y)), PASS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_backward_keeps_results(net: Any, run: Any, op: str, groups: int, bias: bool) -> None:
    x = net.input(2, 4, 5, 5)
    shape = (8, 4 // groups, 3, 3) if op == "conv2d" else (4, 8 // groups, 3, 3)
    y = net.op(op, x, net.random(*shape), net.random(8) if bias else None, groups=groups)
    graph = net.done(net.norm(y))
    run(graph, PASS)
    assert ops(graph) == [op]


def test_backward_into_linear(net: Any, run: Any) -> None:
    graph = net.done(net.norm(net.linear(net.input(3, 7), 5, bias=False)))
    run(graph, PASS)
    assert ops(graph) == ["linear"]
    assert graph.nodes[0].optional_input(2) is not None


def test_another_axis_than_the_features_becomes_mul_and_add(net: Any, run: Any) -> None:
    graph = net.done(net.norm(net.linear(net.input(2, 4, 6), 5)))
    result = run(graph, PASS)
    assert ops(graph) == ["linear", "mul", "add"]
    assert any("another axis" in r.message for r in result.remarks if r.kind == "refused")


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (1,), ()])
def test_constants_per_channel(net: Any, run: Any, shape: tuple[int, ...]) -> None:
    y = net.conv(net.input(1, 3, 5, 5), 4)
    y = net.op("mul", y, net.const(net.rng.standard_normal(shape)))
    y = net.op("add", net.const(net.rng.standard_normal(shape)), y, act_min=0.0)
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == ["conv2d"]
    assert graph.nodes[0].attrs["act_min"] == 0.0


def test_constants_over_other_axes_stay(net: Any, run: Any) -> None:
    y = net.conv(net.input(1, 3, 5, 5), 4)
    graph = net.done(net.op("mul", y, net.random(1, 1, 3, 1)))
    assert not run(graph, PASS).modified


def test_forward_where_no_layer_comes_before(net: Any, golden: Any) -> None:
    x = net.input(1, 4, 5, 5)
    golden(net.done(net.conv(net.norm(x, loc="bn"), 6, groups=2, loc="conv")), PASS)


def test_forward_into_linear(net: Any, run: Any) -> None:
    graph = net.done(net.linear(net.norm(net.input(3, 7)), 5, bias=False))
    run(graph, PASS)
    assert ops(graph) == ["linear"]


def test_forward_through_padding_is_refused(net: Any, golden: Any) -> None:
    x = net.input(1, 3, 5, 5)
    result = golden(net.done(net.conv(net.norm(x), 4, pads=(1, 1, 1, 1))), PASS)
    assert any("pads with zeros" in r.message for r in result.remarks)


def test_forward_scale_passes_padding(net: Any, run: Any) -> None:
    x = net.op("mul", net.input(1, 3, 5, 5), net.random(1, 3, 1, 1))
    graph = net.done(net.conv(x, 4, pads=(1, 1, 1, 1)))
    run(graph, PASS)
    assert ops(graph) == ["conv2d"]


def test_forward_into_conv_transpose(net: Any, run: Any) -> None:
    w = net.random(4, 3, 3, 3)
    x = net.input(1, 4, 5, 5)
    scaled = net.op("conv_transpose2d", net.op("mul", x, net.random(1, 4, 1, 1)), w, groups=2)
    shifted = net.op("conv_transpose2d", net.op("add", x, net.random(1, 4, 1, 1)), w, groups=2)
    graph = net.done(scaled, shifted)
    result = run(graph, PASS)
    assert ops(graph) == ["conv_transpose2d", "add", "conv_transpose2d"]
    assert any("at its borders" in r.message for r in result.remarks)


def test_norm_with_two_readers_is_not_moved_forward(net: Any, run: Any) -> None:
    y = net.norm(net.input(1, 3, 5, 5))
    graph = net.done(net.conv(y, 4), y)
    result = run(graph, PASS)
    assert ops(graph) == ["mul", "add", "conv2d"]
    assert any("also used by" in r.message for r in result.remarks)


def test_layer_with_two_readers_is_refused(net: Any, golden: Any) -> None:
    a = net.conv(net.input(1, 3, 5, 5), 4, loc="conv1")
    golden(net.done(net.norm(a, loc="bn1"), net.op("exp", a, loc="exp1")), PASS)


def test_shared_weight_is_copied(net: Any, run: Any) -> None:
    x, w = net.input(1, 3, 5, 5), net.random(4, 3, 3, 3)
    graph = net.done(
        net.norm(net.op("conv2d", x, w, loc="first")), net.op("conv2d", x, w, loc="second")
    )
    before = w.decoded().copy()
    result = run(graph, PASS)
    assert ops(graph) == ["conv2d", "conv2d"]
    assert any("shared with second, was copied" in r.message for r in result.remarks)
    np.testing.assert_array_equal(graph.nodes[-1].input(1).decoded(), before)


def test_fused_activation_and_residual_are_refused(net: Any, run: Any) -> None:
    x = net.input(1, 3, 5, 5)
    clamped = net.norm(net.conv(x, 4, act_min=0.0))
    summed = net.norm(net.op("conv2d", x, net.random(3, 3, 1, 1), None, x))
    graph = net.done(clamped, summed)
    result = run(graph, PASS)
    refused = [r.message for r in result.remarks if r.kind == "refused"]
    assert any("fused activation" in r for r in refused)
    assert any("residual" in r for r in refused)


def test_variance_that_is_not_positive_is_refused(net: Any) -> None:
    from passes import PassManager

    graph = net.done(net.norm(net.conv(net.input(1, 3, 5, 5), 3), var=[1.0, -0.5, 2.0]))
    result = PassManager(PASS).run(graph)
    assert not result.modified
    assert any("-0.49999 in channel 1" in r.message for r in result.remarks)


def test_overflow_is_refused(net: Any) -> None:
    from passes import PassManager

    x = net.input(1, 1, 3, 3)
    y = net.op("conv2d", x, net.const(np.full((1, 1, 1, 1), 1e30)))
    graph = net.done(net.op("mul", y, net.const(np.float32([1e30]))))
    result = PassManager(PASS).run(graph)
    assert not result.modified
    assert any("overflow" in r.message for r in result.remarks)


def test_encoded_weight_is_refused(net: Any) -> None:
    from dlcc.ir import Affine
    from passes import PassManager

    x, encoding = net.input(1, 1, 3, 3), Affine.symmetric(8, np.float32([0.1]), None)
    w = net.graph.add_constant(np.ones((1, 1, 1, 1), np.float32), encoding=encoding)
    q = Affine.per_tensor(8, False, 0.1, 3)
    x.type = x.type.with_(encoding=q)
    graph = net.done(net.op("mul", net.op("conv2d", x, w), net.const([2.0])))
    result = PassManager(PASS).run(graph)
    assert not result.modified
    assert any("stored as affine" in r.message for r in result.remarks)


def test_parameters_that_are_not_constant_are_refused(net: Any, run: Any) -> None:
    x, scale = net.input(1, 3, 4, 4), net.input(3, name="scale")
    y = net.op("batch_norm", x, scale, *[net.random(3, positive=True) for _ in range(3)])
    graph = net.done(y)
    result = run(graph, PASS)
    assert not result.modified
    assert any("%scale is not constant" in r.message for r in result.remarks)


def test_a_shift_passes_a_residual_add(net: Any, run: Any) -> None:
    x = net.input(1, 3, 5, 5)
    y = net.op("add", x, net.conv(x, 3, pads=(1, 1, 1, 1)))
    graph = net.done(net.op("add", y, net.random(3, 1, 1), act_max=1.0))
    run(graph, PASS)
    assert ops(graph) == ["conv2d", "add"]
    assert graph.nodes[1].attrs == {"act_max": 1.0}


def test_a_shift_does_not_pass_a_clamp_or_a_broadcast(net: Any, run: Any) -> None:
    x = net.input(1, 3, 5, 5)
    clamped = net.op("add", x, net.conv(x, 3, pads=(1, 1, 1, 1)), act_min=0.0)
    wide = net.op("add", net.input(2, 3, 5, 5, name="z"), net.conv(x, 3, pads=(1, 1, 1, 1)))
    c = net.random(3, 1, 1)
    graph = net.done(net.op("add", clamped, c), net.op("add", wide, c))
    assert not run(graph, PASS).modified


def heads(net: Any, x: Any) -> Any:
    return net.op("transpose", net.op("reshape", x, shape=(2, 5, 3, 4)), perm=(0, 2, 1, 3))


@pytest.mark.parametrize("early", [False, True])
def test_the_scale_of_attention_is_folded(net: Any, run: Any, early: bool) -> None:
    x, c = net.input(2, 5, 12), net.const(0.5)
    q, k = heads(net, net.linear(x, 12)), heads(net, net.linear(x, 12, bias=False))
    if early:
        scores = net.op("matmul", net.op("mul", q, c), k, transpose_b=True)
    else:
        scores = net.op("mul", c, net.op("matmul", q, k, transpose_b=True))
    graph = net.done(net.op("softmax", scores))
    result = run(graph, PASS)
    assert "mul" not in ops(graph)
    assert any("folded a scalar mul" in r.message for r in result.remarks)


def test_a_scale_takes_the_operand_that_can_take_it(net: Any, run: Any) -> None:
    x = net.input(2, 5, 12)
    k = heads(net, net.linear(x, 12))
    scores = net.op("matmul", heads(net, x), k, transpose_b=True)
    graph = net.done(net.op("mul", scores, net.const([0.25])))
    run(graph, PASS)
    assert "mul" not in ops(graph)


def test_a_scale_does_not_pass_a_clamp_or_another_reader(net: Any, run: Any) -> None:
    x, c = net.input(2, 5, 12), net.const(0.5)
    clamped = net.op("mul", heads(net, net.linear(x, 12, act_min=0.0)), c)
    shared = heads(net, net.linear(x, 12))
    graph = net.done(clamped, net.op("mul", shared, c), shared)
    assert not run(graph, PASS).modified
