from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.ir import I64, U8, Affine

PASS = "canonicalize"


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_activations_become_one_clip(net: Any, golden: Any) -> None:
    y = net.op("minimum", net.op("relu", net.input(2, 8), loc="relu1"), net.const(6.0), loc="six")
    golden(net.done(net.op("reshape", net.op("div", y, net.const(2.0)), shape=(16,))), PASS)


@pytest.mark.parametrize(
    "bounds",
    [((0, 6), (1, 2)), ((1, 2), (0, 6)), ((0, 1), (2, 3)), ((2, 3), (0, 1)), ((-1, 2), (0, 5))],
)
def test_clips_merge(net: Any, run: Any, bounds: Any) -> None:
    y = net.op("mul", net.input(1, 100), net.const(4.0))
    for low, high in bounds:
        y = net.op("clip", y, min=float(low), max=float(high))
    graph = net.done(y)
    run(graph, PASS)
    assert ops(graph) == ["mul", "clip"]


def test_clip_between_infinities_vanishes(net: Any, run: Any) -> None:
    graph = net.done(net.op("exp", net.op("clip", net.input(3))))
    run(graph, PASS)
    assert ops(graph) == ["exp"]


def test_shared_inner_clip_stays_for_its_other_reader(net: Any, run: Any) -> None:
    inner = net.op("clip", net.input(9), min=0.0)
    graph = net.done(net.op("clip", inner, max=1.0), net.op("exp", inner))
    run(graph, PASS)
    assert ops(graph) == ["clip", "clip", "exp"]
    assert graph.nodes[1].input(0) is graph.inputs[0]


def test_constants_stand_second_and_combine(net: Any, golden: Any) -> None:
    y = net.op("add", net.const([1.0, 2.0]), net.input(3, 2), loc="add1")
    y = net.op("sub", y, net.const([0.5, 0.25]), loc="sub1")
    y = net.op("mul", net.const(3.0), y, loc="mul1")
    golden(net.done(net.op("div", y, net.const([2.0, 4.0]), loc="div1")), PASS)


def test_add_behind_a_clamp_is_not_combined(net: Any, run: Any) -> None:
    y = net.op("add", net.input(3, 2), net.const([1.0, 2.0]), act_min=0.0)
    graph = net.done(net.op("add", y, net.const(1.0), act_max=3.0))
    assert not run(graph, PASS).modified


def test_outer_clamp_of_a_chain_is_kept(net: Any, run: Any) -> None:
    y = net.op("add", net.input(3, 2), net.const([1.0, 2.0]))
    graph = net.done(net.op("add", y, net.const(1.0), act_max=0.5))
    run(graph, PASS)
    assert ops(graph) == ["add"]
    assert graph.nodes[0].attrs == {"act_max": 0.5}


def test_division_by_zero_is_refused(net: Any) -> None:
    from passes import PassManager

    graph = net.done(net.op("div", net.input(2), net.const([1.0, 0.0])))
    result = PassManager(PASS).run(graph)
    assert not result.modified
    assert [r.message for r in result.remarks] == ["a divisor's reciprocal is not finite"]


def test_integer_division_is_left_alone(net: Any, run: Any) -> None:
    graph = net.done(net.op("div", net.input(2, dtype=I64), net.const(np.int64([2, 3]))))
    assert not run(graph, PASS).modified


@pytest.mark.parametrize(
    ("op", "neutral"), [("add", 0.0), ("sub", 0.0), ("mul", 1.0), ("div", 1.0), ("pow", 1.0)]
)
def test_neutral_elements_vanish(net: Any, run: Any, op: str, neutral: float) -> None:
    graph = net.done(net.op("exp", net.op(op, net.input(4, 2), net.const([neutral, neutral]))))
    run(graph, PASS)
    assert ops(graph) == ["exp"]


def test_neutral_element_that_broadcasts_stays(net: Any, run: Any) -> None:
    graph = net.done(net.op("add", net.input(1, 2), net.const(np.zeros((3, 2)))))
    run(graph, PASS)
    assert ops(graph) == ["add"]


def test_powers(net: Any, run: Any) -> None:
    x = net.op("abs", net.input(4))
    graph = net.done(net.op("pow", x, net.const(2.0)), net.op("pow", x, net.const(0.5)))
    run(graph, PASS)
    assert ops(graph) == ["abs", "mul", "sqrt"]


def test_moves_that_change_nothing_vanish(net: Any, run: Any) -> None:
    x = net.input(1, 4, 3)
    y = net.op("reshape", x, shape=(1, 4, 3))
    y = net.op("transpose", y, perm=(0, 1, 2))
    y = net.op("concat", y, axis=1)
    y = net.op("slice", y, starts=(0,), ends=(4,), axes=(1,), steps=(1,))
    y = net.op("pad", y, pads=(0,) * 6)
    y = net.op("expand", y, shape=(1, 4, 3))
    y = net.op("tile", y, repeats=(1, 1, 1))
    graph = net.done(net.op("exp", y))
    run(graph, PASS)
    assert ops(graph) == ["exp"]


def test_moves_of_the_same_shape_that_do_something_stay(net: Any, run: Any) -> None:
    x = net.input(4, 4)
    graph = net.done(
        net.op("transpose", x, perm=(1, 0)),
        net.op("slice", x, starts=(3,), ends=(-1,), axes=(0,), steps=(-1,)),
    )
    assert not run(graph, PASS).modified


def test_chains_of_moves(net: Any, golden: Any) -> None:
    x = net.input(2, 3, 4)
    a = net.op("transpose", net.op("transpose", x, perm=(1, 2, 0)), perm=(2, 1, 0))
    b = net.op("reshape", net.op("reshape", x, shape=(6, 4)), shape=(2, 12))
    c = net.op("concat", net.op("concat", x, x, axis=1), x, axis=1)
    golden(net.done(a, b, c), PASS)


def test_a_tree_of_concats_is_one_rewrite(net: Any, run: Any) -> None:
    x = net.input(2, 3)
    y = net.op("concat", x, net.op("concat", net.op("abs", x), x, axis=1), axis=1)
    for _ in range(40):
        y = net.op("concat", y, x, axis=1)
    other = net.op("concat", y, y, axis=0)
    graph = net.done(net.op("concat", other, net.op("exp", other), axis=0))
    first, _ = run(graph, f"{PASS},eliminate-dead-code").records
    assert first.statistics["rewrites"] == 1  # other axes stay, and what is read twice
    assert [len(node.inputs) for node in graph.nodes if node.op == "concat"] == [43, 2, 2]


def test_inverse_transposes_cancel(net: Any, run: Any) -> None:
    y = net.op("transpose", net.input(2, 3, 4), perm=(1, 2, 0))
    graph = net.done(net.op("exp", net.op("transpose", y, perm=(2, 0, 1))))
    run(graph, PASS)
    assert ops(graph) == ["exp"]


def test_global_pooling_is_a_mean(net: Any, run: Any) -> None:
    x = net.input(2, 3, 5, 4)
    graph = net.done(net.op("avg_pool2d", x, kernel=(5, 4)), net.op("avg_pool2d", x, kernel=(4, 4)))
    run(graph, PASS)
    assert ops(graph) == ["reduce_mean", "avg_pool2d"]


def test_reduction_of_one_element_is_a_reshape(net: Any, run: Any) -> None:
    x = net.input(2, 1, 5)
    graph = net.done(net.op("reduce_mean", x, axes=(1,), keepdims=False))
    run(graph, PASS)
    assert ops(graph) == ["reshape"]


@pytest.mark.parametrize("flip", [False, True])
def test_matmul_with_a_constant_is_linear(net: Any, run: Any, flip: bool) -> None:
    w = net.random(*((6, 5) if flip else (5, 6)))
    graph = net.done(net.op("matmul", net.input(2, 3, 5), w, transpose_b=flip, act_min=0.0))
    run(graph, PASS)
    assert ops(graph) == ["linear"]
    assert graph.nodes[0].attrs == {"act_min": 0.0}


def test_quantize_of_dequantize_cancels(net: Any, run: Any) -> None:
    from dlcc.ops import build

    q = net.input(2, 3)
    q.type = q.type.with_(encoding=Affine.per_tensor(8, False, 0.1, 100))
    real = build(net.graph, "dequantize", [q], types=[q.type.with_(encoding=net_dense())]).output
    again = build(net.graph, "quantize", [real], types=[q.type]).output
    graph = net.done(
        build(
            net.graph, "reshape", [again], {"shape": (6,)}, types=[q.type.with_(shape=(6,))]
        ).output
    )
    run(graph, [PASS, "eliminate-dead-code"])
    assert ops(graph) == ["reshape"]
    assert q.type.storage is not None
    assert q.type.storage == U8


def net_dense() -> Any:
    from dlcc.ir import DENSE

    return DENSE


def test_a_copy_that_was_asked_for_stays(net: Any, run: Any) -> None:
    graph = net.done(net.op("relayout", net.input(2, 3), copy=True))
    assert not run(graph, PASS).modified
