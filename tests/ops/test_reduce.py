"""Reductions: importers against ONNX Runtime, integer means, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import Operand, affine, case, check, f32, reference, rng, u8

KINDS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")


@pytest.mark.parametrize("kind", KINDS)
def test_reductions_agree_with_onnx_runtime(kind):
    x = np.abs(floats(3, 4, 5)) + np.float32(0.1)
    for axes, keep in (((1,), 1), ((0, -1), 0), (None, 1)):
        given = {} if axes is None else {"axes": axes}
        agrees(f"Reduce{kind}", x, opset=12, keepdims=keep, **given)
        constants = [] if axes is None else [np.asarray(axes, np.int64)]
        agrees(f"Reduce{kind}", x, constants, opset=18, keepdims=keep)


@pytest.mark.parametrize("kind", KINDS[:5])
def test_no_axes_can_mean_no_reduction(kind):
    x = floats(2, 3)
    agrees(f"Reduce{kind}", x, [np.zeros(0, np.int64)], opset=18, noop_with_empty_axes=1)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_reductions_agree_with_onnx_runtime(op_type):
    x = np.random.default_rng(0).integers(0, 4, (3, 5, 4)).astype(np.float32)
    for axis, keep, last in ((1, 1, 0), (-1, 0, 1), (0, 0, 0)):
        attrs = {"axis": axis, "keepdims": keep, "select_last_index": last}
        agrees(op_type, x, opset=13, result=np.int64, **attrs)


def test_axes_beyond_the_rank_are_refused():
    with pytest.raises(DlccError):
        import_node("ReduceSum", floats(2, 3), [np.asarray([5], np.int64)], opset=13)
    graph = Graph("g")
    x = graph.add_input("x", TensorType((2, 3)))
    with pytest.raises(DlccError, match="do not fit rank 2"):
        build(graph, "reduce_sum", [x], {"axes": (2,)})
    with pytest.raises(DlccError, match="does not fit rank 2"):
        build(graph, "argmax", [x], {"axis": 2})
    empty = graph.add_input("empty", TensorType((0, 3)))
    with pytest.raises(DlccError, match="has no elements"):
        build(graph, "argmax", [empty], {"axis": 0})


def test_integer_mean_is_the_requantised_exact_sum():
    made = case("reduce_mean", [u8(2, 3, 5, 7)], {"axes": (2, 3)}, out=affine(0.01, 120))
    (got,) = reference(made)
    acc = (made.arrays[0].astype(np.int64) - 117).sum(axis=(2, 3), keepdims=True)
    factor = np.float32(np.float64(np.float32(0.05)) / (np.float64(np.float32(0.01)) * 35))
    want = np.rint(acc.astype(np.float32) * factor) + np.float32(120)
    np.testing.assert_array_equal(got, np.clip(want, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["mean", "sum", "l1", "l2", "sum_square", "log_sum_exp", "max"])
def test_intervals_hold_the_results(kind):
    made = case(f"reduce_{kind}", [f32(4, 6)], {"axes": (1,)})
    x = made.arrays[0]
    (found,) = op_of(made.node).interval(made.node, [Interval.of(x)])
    (y,) = op_of(made.node).evaluate(made.node, [x])
    assert found.low <= y.min() + 1e-6
    assert y.max() <= found.high + 1e-6


def tir_cases():
    cases = []
    for layout in ("", "nhwc"):
        for x in (u8(2, 5, 9, 7, layout=layout), f32(2, 5, 9, 7, layout=layout)):
            out = affine(0.04, 100) if isinstance(x.encoding, Affine) else None
            cases += [
                case("reduce_mean", [x], {"axes": (2, 3)}, out=out, layout=layout),
                case("reduce_mean", [x], {"axes": (2, 3)}, out=DENSE, layout=layout),
                case("reduce_mean", [x], {"axes": (1,)}, out=out, layout=layout),
                case("reduce_mean", [x], {"axes": (2, 3), "keepdims": False}, out=out),
                case("reduce_max", [x], {"axes": (2, 3)}, layout=layout),
                case("reduce_min", [x], {"axes": (3,)}, layout=layout),
            ]
    for kind in ("sum", "prod", "l1", "l2", "sum_square", "log_sum_exp"):
        attrs = {"axes": (1,), "keepdims": False}
        cases.append(case(f"reduce_{kind}", [f32(3, 4, 11)], attrs))
        everything = {"axes": (0, 1, 2), "keepdims": False}
        cases.append(case(f"reduce_{kind}", [f32(3, 2, 3)], everything))
    whole = Operand(rng(5).integers(-50, 50, (4, 6)).astype(np.int32))
    cases += [case(f"reduce_{k}", [whole], {"axes": (1,)}) for k in ("sum", "mean", "min", "prod")]
    few = Operand(rng(3).integers(0, 5, (4, 9)).astype(np.uint8), affine(0.1, 3))
    for op in ("argmax", "argmin"):
        for last in (False, True):
            attrs = {"select_last_index": last}
            cases.append(case(op, [few], {**attrs, "axis": 1, "keepdims": False}, out=DENSE))
            cases.append(case(op, [f32(4, 9, 3)], {**attrs, "axis": 0}))
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
