"""linear and matmul: importers against ONNX Runtime, integer forms against exact integers."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import F32, Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from tests.ops.onnx_nodes import agrees, floats
from tests.ops.tir_harness import Operand, affine, case, check, constant, f32, u8

GEMMS = [
    ((5, 7), (7, 4), (4,), {}),
    ((5, 7), (4, 7), (4,), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ((7, 5), (4, 7), (1,), {"transA": 1, "transB": 1, "alpha": 1.5}),
    ((5, 7), (7, 4), (5, 4), {"beta": 0.25}),
    ((5, 7), (7, 4), (), {}),
    ((5, 7), (7, 4), (1, 4), {}),
    ((5, 7), (7, 4), (5, 1), {}),
]


@pytest.mark.parametrize(("a", "b", "c", "attrs"), GEMMS)
def test_gemm_agrees_with_onnx_runtime(a, b, c, attrs):
    bias = np.asarray(floats(*c, seed=2), np.float32)
    graph = agrees("Gemm", floats(*a), [floats(*b, seed=1), bias], **attrs)
    assert "linear" in [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    ("a", "b", "op"),
    [
        ((5, 7), (7, 4), "linear"),
        ((2, 3, 5, 7), (7, 4), "linear"),
        ((7,), (7, 4), "linear"),
        ((2, 3, 5, 7), (3, 7, 4), "matmul"),
        ((2, 1, 5, 7), (1, 3, 7, 4), "matmul"),
        ((5, 7), (7,), "matmul"),
        ((7,), (2, 7, 4), "matmul"),
        ((7,), (7,), "matmul"),
    ],
)
def test_matmul_agrees_with_onnx_runtime(a, b, op):
    graph = agrees("MatMul", floats(*a), [floats(*b, seed=1)])
    assert op in [n.op for n in graph.nodes]


def inputs(graph: Graph, types: list[TensorType]) -> list[Value]:
    return [graph.add_input(f"x{i}", t) for i, t in enumerate(types)]


def codes(shape, seed, low=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def integer_matmul(a, b, out=None, residual=None, **attrs) -> tuple[Node, list[np.ndarray]]:
    graph = Graph("g")
    encodings = [Affine.per_tensor(8, False, s, z) for s, z in ((0.02, 120), (0.03, 140))]
    arrays = [a, b]
    if residual is not None:
        encodings.append(Affine.per_tensor(8, False, 0.5, 128))
        arrays.append(residual)
    pairs = zip(arrays, encodings, strict=True)
    types = [TensorType(x.shape, F32, e) for x, e in pairs]
    values = inputs(graph, types)
    node = build(graph, "matmul", values, attrs)
    node.output.type = node.output.type.with_(encoding=out or DENSE)
    return node, arrays


@pytest.mark.parametrize("transpose_b", [False, True])
def test_integer_matmul_is_exact(transpose_b):
    a, b = codes((2, 1, 5, 700), 0), codes((3, 700, 4), 1)
    stored = np.ascontiguousarray(b.swapaxes(-1, -2)) if transpose_b else b
    residual = codes((2, 3, 5, 4), 2)
    out = Affine.per_tensor(8, False, 0.7, 99)
    node, arrays = integer_matmul(a, stored, out, residual, transpose_b=transpose_b)
    (got,) = op_of(node).reference(node, arrays)
    acc = np.matmul(a.astype(np.int64) - 120, b.astype(np.int64) - 140)
    scale = np.float64(np.float32(0.02)) * np.float64(np.float32(0.03))
    ratio = np.float32(np.float64(np.float32(0.5)) / scale)
    term = np.rint((residual.astype(np.int32) - 128).astype(np.float32) * ratio)
    acc = (acc + term.astype(np.int64)).astype(np.int32)
    factor = np.float32(scale / np.float64(np.float32(0.7)))
    want = np.clip(np.rint(acc.astype(np.float32) * factor) + np.float32(99), 0, 255)
    np.testing.assert_array_equal(got, want.astype(np.uint8))


@pytest.mark.parametrize("depth", [16, 3000])
def test_integer_linear_is_exact(depth):
    graph, x = Graph("g"), codes((3, depth), 0)
    weight = codes((5, depth), 1, -127, 128, np.int8)
    source = Affine.per_tensor(8, False, 0.02, 7)
    scales = np.linspace(0.001, 0.002, 5).astype(np.float32)
    out = Affine.per_tensor(8, False, 1.5, 128)
    operands = [
        graph.add_input("x", TensorType(x.shape, F32, source)),
        graph.add_stored(
            {"values": weight}, TensorType(weight.shape, F32, Affine.symmetric(8, scales, 0))
        ),
    ]
    node = build(graph, "linear", operands)
    node.output.type = node.output.type.with_(encoding=out)
    (got,) = op_of(node).reference(node, [x, weight])
    acc = ((x.astype(np.int64) - 7) @ weight.astype(np.int64).T).astype(np.int32)
    factor = np.float64(np.float32(0.02)) * scales.astype(np.float64) / np.float64(1.5)
    want = np.rint(acc.astype(np.float32) * factor.astype(np.float32)) + np.float32(128)
    np.testing.assert_array_equal(got, np.clip(want, 0, 255).astype(np.uint8))


def test_linear_over_leading_axes_with_residual_and_clamp():
    graph = Graph("g")
    x, w, b, r = floats(2, 3, 8), floats(4, 8, seed=1), floats(4, seed=2), floats(2, 3, 4, seed=3)
    values = inputs(graph, [TensorType(a.shape) for a in (x, w, b, r)])
    node = build(graph, "linear", values, {"act_min": 0.0, "act_max": 1.0})
    (got,) = op_of(node).evaluate(node, [x, w, b, r])
    np.testing.assert_allclose(got, np.clip(x @ w.T + b + r, 0, 1), rtol=1e-5, atol=1e-6)


def test_matmul_interval_holds_the_result():
    a, b = floats(4, 6), floats(6, 5, seed=1)
    graph = Graph("g")
    node = build(graph, "matmul", inputs(graph, [TensorType(x.shape) for x in (a, b)]))
    ranges = [Interval.of(a), Interval.of(b)]
    (found,) = op_of(node).interval(node, ranges)
    (y,) = op_of(node).evaluate(node, [a, b])
    assert found.low <= y.min()
    assert y.max() <= found.high
    assert op_of(node).macs(node) == 4 * 5 * 6


@pytest.mark.parametrize(
    ("op", "a", "b"),
    [("linear", (2, 3), (4, 5)), ("matmul", (2, 3), (4, 5)), ("matmul", (3,), (3, 4))],
)
def test_operands_that_do_not_fit_are_refused(op, a, b):
    graph = Graph("g")
    values = inputs(graph, [TensorType(s) for s in (a, b)])
    with pytest.raises(DlccError, match="not valid"):
        build(graph, op, values)


def tir_cases():
    """Broadcast and constant operands, which the kernel generators do not serve."""
    cases = []
    for a, b, attrs in (
        ((2, 3, 5, 40), (3, 40, 7), {}),
        ((2, 1, 5, 40), (1, 3, 7, 40), {"transpose_b": True}),
        ((5, 40), (40, 7), {"act_min": -0.5, "act_max": 2.0}),
    ):
        cases.append(case("matmul", [f32(*a), constant(floats(*b, seed=1))], attrs))
        known = Operand(codes(b, 1), affine(0.02, 131), constant=True)
        outs = np.broadcast_shapes(a[:-2], b[:-2])
        width = b[-2] if attrs.get("transpose_b") else b[-1]
        residual = u8(*outs, a[-2], width, seed=7)
        for out in (affine(0.4, 100), DENSE):
            cases.append(case("matmul", [u8(*a), known], attrs, out=out, tolerance=0.0))
            extra = [u8(*a), known, residual]
            cases.append(case("matmul", extra, attrs, out=out, tolerance=0.0))
        rest = f32(*outs, a[-2], width, seed=9)
        cases.append(case("matmul", [f32(*a), f32(*b, seed=1), rest], attrs))
    return cases


def test_default_tir_of_matmul_agrees_with_the_reference(tmp_path):
    check(tir_cases(), tmp_path)
