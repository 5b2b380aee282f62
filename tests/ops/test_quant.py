"""Changes of encoding and the QOperator importers, against ONNX Runtime; TIR against references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Affine, Graph
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, op_of
from tests.frontends.models import model, ops, runtime, tensor
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import Operand, affine, case, check, f32, reference, u8

F = np.float32


def scalar(value: Any, kind: Any = np.float32) -> np.ndarray:
    return np.asarray(value, kind)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantize_and_dequantize_agree_with_onnx_runtime(kind):
    x = floats(3, 4, 5) * 50
    x[0, 0, :3] = [0.125, 0.375, -0.125]  # ties
    zero = scalar(3, kind)
    agrees("QuantizeLinear", x, [scalar(0.25), zero], opset=21, result=kind, rtol=0)
    codes = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(kind)
    agrees("DequantizeLinear", codes, [scalar(0.25), zero], opset=21, rtol=1e-7)


@pytest.mark.parametrize("axis", [1, -1])
def test_scales_along_an_axis(axis):
    x, extent = floats(3, 4, 5), (3, 4, 5)[axis]
    scales = np.linspace(0.01, 0.03, extent).astype(F)
    zeros = np.arange(extent).astype(np.uint8)
    agrees("QuantizeLinear", x, [scales, zeros], opset=13, result=np.uint8, rtol=0, axis=axis)
    codes = np.random.default_rng(0).integers(0, 255, x.shape).astype(np.uint8)
    agrees("DequantizeLinear", codes, [scales, zeros], opset=13, rtol=1e-7, axis=axis)


def test_not_a_number_becomes_the_lowest_code():
    made = case("quantize", [f32(4)], out=affine(0.1, 5))
    values = np.asarray([np.nan, np.inf, -np.inf, 0.0], F)
    (codes,) = op_of(made.node).reference(made.node, [values])
    np.testing.assert_array_equal(codes, [0, 255, 0, 5])


def test_requantize_follows_the_rounding_rule():
    made = case("requantize", [u8(1000)], out=affine(0.033, 70))
    (got,) = reference(made)
    factor = np.float32(np.float64(F(0.05)) / np.float64(F(0.033)))
    scaled = np.rint((made.arrays[0].astype(np.int32) - 117).astype(F) * factor) + F(70)
    np.testing.assert_array_equal(got, np.clip(scaled, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("block", "shape"), [(0, ()), (0, (3,)), (2, (2, 3))])
def test_scales_of_the_run_time(block: int, shape: tuple[int, ...]) -> None:
    """One, one per column, or one per block of two rows (the last of one)."""
    attrs = {"block_size": 2, "axis": 0} if block else {"axis": 1}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attrs),
    ]
    zero = tensor("z", shape, TensorProto.INT8)
    inputs = [tensor("x", (3, 3)), tensor("s", shape), zero]
    outputs = [tensor("q", None, TensorProto.INT8), tensor("y", None)]
    graph = import_onnx(model(nodes, inputs, outputs, opset=21))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3)).astype(np.float32)
    s = rng.uniform(0.004, 0.02, shape).astype(np.float32)
    z = rng.integers(-9, 9, shape).astype(np.int8)
    q, y = execute(graph, {"x": x, "s": s, "z": z}).values()
    scale, zero_point = (np.repeat(v, 2, 0)[:3] if block else v for v in (s, z))
    want = np.clip(np.rint(x / scale) + zero_point, -128, 127)
    np.testing.assert_array_equal(q, want.astype(np.int8))
    np.testing.assert_array_equal(y, (want.astype(np.float32) - zero_point) * scale)


def test_scales_of_another_shape_are_refused():
    nodes = [helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="q")]
    outputs = [tensor("y", None, TensorProto.UINT8)]
    with pytest.raises(DlccError, match=r"scales of shape \[2\] along axis 1"):
        import_onnx(model(nodes, [tensor("x", (2, 3)), tensor("s", (2,))], outputs))
    nodes[0].attribute.append(helper.make_attribute("block_size", 2))
    with pytest.raises(DlccError, match=r"for blocks of 2 along axis 1"):
        import_onnx(model(nodes, [tensor("x", (2, 3)), tensor("s", (2,))], outputs))


def test_scales_that_no_encoding_has_are_refused():
    for bad in (0.0, -1.0, np.inf):
        with pytest.raises(DlccError, match="QuantizeLinear"):
            import_node("QuantizeLinear", floats(2), [scalar(bad)], result=np.uint8)


def test_dynamic_quantization_agrees_with_onnx_runtime():
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="d")
    outs = [tensor("y", None, TensorProto.UINT8), "s", tensor("z", None, TensorProto.UINT8)]
    source = model([node], [tensor("x", (5, 7))], outs)
    for x in (floats(5, 7), np.abs(floats(5, 7)) + 1, -np.abs(floats(5, 7))):
        got = list(execute(import_onnx(source), {"x": x.astype(F)}).values())
        for ours, theirs in zip(got, runtime(source, {"x": x.astype(F)}), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


def test_blockwise_weights_are_decoded():
    codes = np.random.default_rng(0).integers(-8, 8, (6, 4)).astype(np.int8)
    scales = np.linspace(0.1, 0.2, 12).reshape(3, 4).astype(F)
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "s"], ["w"], axis=0, block_size=2, name="d"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m"),
    ]
    source = model(nodes, [tensor("x", (2, 6))], ["y"], {"c": codes, "s": scales}, opset=21)
    x = floats(2, 6)
    (got,) = execute(import_onnx(source), {"x": x}).values()
    np.testing.assert_allclose(got, x @ (codes * scales.repeat(2, axis=0)), rtol=1e-4, atol=1e-5)


# -- QOperator models --------------------------------------------------------------------------


def q_model(
    op_type: str,
    x: np.ndarray,
    constants: Sequence[np.ndarray | None],
    *,
    domain: str = "com.microsoft",
    result: type = np.uint8,
    order: Sequence[str] | None = None,
    **attrs: Any,
) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Import a QOperator node; returns the graph, its result, and ONNX Runtime's."""
    names = [f"c{i}" if a is not None else "" for i, a in enumerate(constants)]
    operands = list(order) if order else ["x", *names]
    node = helper.make_node(op_type, operands, ["y"], name="node", domain=domain, **attrs)
    known = {n: a for n, a in zip(names, constants, strict=True) if a is not None}
    source = model(
        [node], [tensor("x", x.shape, helper.np_dtype_to_tensor_dtype(x.dtype))],
        [tensor("y", None, helper.np_dtype_to_tensor_dtype(np.dtype(result)))], known,
        imports=[helper.make_opsetid("com.microsoft", 1)],
    )  # fmt: skip
    graph = import_onnx(source)
    (got,) = execute(graph, {"x": x}).values()
    (want,) = runtime(source, {"x": x})
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    return graph, got, want


def close(got: np.ndarray, want: np.ndarray, exact: float = 0.97) -> None:
    """Within one code everywhere, equal nearly everywhere."""
    difference = np.abs(got.astype(np.int64) - want.astype(np.int64))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= exact


def codes(*shape: int, seed: int = 0, kind: Any = np.uint8) -> np.ndarray:
    limits = np.iinfo(kind)
    rng = np.random.default_rng(seed)
    return rng.integers(limits.min, limits.max + 1, shape).astype(kind)


U8 = np.uint8
SX, ZX = scalar(0.03), scalar(121, U8)
SY, ZY = scalar(0.05), scalar(99, U8)


def test_qlinear_conv():
    scales = np.linspace(0.001, 0.003, 4).astype(F)
    constants = [SX, ZX, codes(4, 3, 3, 3, kind=np.int8), scales, np.zeros(4, np.int8), SY, ZY,
                 np.arange(-200, 200, 100).astype(np.int32)]  # fmt: skip
    graph, got, want = q_model(
        "QLinearConv", codes(2, 3, 8, 8), constants, domain="", pads=(1, 1, 0, 0), strides=(2, 1)
    )
    assert "conv2d" in ops(graph)
    assert not any(n.op == "dequantize" for n in graph.nodes)
    close(got, want)


def test_qlinear_conv_of_one_dimension():
    constants = [SX, ZX, codes(4, 3, 3, kind=np.int8), scalar(0.002), scalar(0, np.int8), SY, ZY]
    _, got, want = q_model("QLinearConv", codes(2, 3, 11), constants, domain="", pads=(1, 1))
    close(got, want)


def test_qlinear_conv_with_zero_points_of_weights():
    near = (codes(4, 3, 3, 3, seed=1) // 4 + 96).astype(U8)  # codes - 128 fit int8
    for weight, zero, integer in ((near, 128, True), (codes(4, 3, 3, 3), 3, False)):
        constants = [SX, ZX, weight, scalar(0.002), scalar(zero, U8), SY, ZY]
        graph, got, want = q_model("QLinearConv", codes(1, 3, 6, 6), constants, domain="")
        assert ("dequantize" not in ops(graph)) == integer
        close(got, want)


@pytest.mark.parametrize("signed", [False, True])
def test_qlinear_matmul(signed):
    kind = np.int8 if signed else U8
    constants = [SX, scalar(-7 if signed else 121, kind), codes(6, 5, kind=np.int8), scalar(0.01),
                 scalar(0, np.int8), SY, scalar(-29 if signed else 99, kind)]  # fmt: skip
    graph, got, want = q_model(
        "QLinearMatMul", codes(4, 6, kind=kind), constants, domain="", result=kind
    )
    assert "linear" in ops(graph)
    close(got, want)


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_qlinear_elementwise(op_type):
    scale = SY if op_type == "QLinearAdd" else scalar(0.09)
    constants = [SX, ZX, codes(2, 3, 4, seed=1), scalar(0.04), scalar(140, U8), scale, ZY]
    graph, got, want = q_model(op_type, codes(2, 3, 4), constants)
    assert [n.op for n in graph.nodes if n.op in ("add", "mul")]
    close(got, want)


def test_qlinear_activations():
    _, got, want = q_model("QLinearSigmoid", codes(5, 7), [SX, ZX, scalar(1 / 256), scalar(0, U8)])
    close(got, want)
    _, got, want = q_model("QLinearLeakyRelu", codes(5, 7), [SX, ZX, SY, ZY], alpha=0.3)
    close(got, want)


@pytest.mark.parametrize(("axis", "opset"), [(-1, 13), (1, 13), (1, 12)])
def test_qlinear_softmax(axis, opset):
    _, got, want = q_model(
        "QLinearSoftmax", codes(2, 4, 5), [SX, ZX, scalar(1 / 256), scalar(0, U8)], axis=axis,
        opset=opset,
    )  # fmt: skip
    close(got, want, exact=0.9)


@pytest.mark.parametrize("last", [0, 1])
def test_qlinear_pools(last):
    constants = [SX, ZX, scalar(0.02), scalar(128, U8)]
    x = codes(2, 6, 6, 4) if last else codes(2, 4, 6, 6)
    _, got, want = q_model("QLinearGlobalAveragePool", x, constants, channels_last=last)
    close(got, want)
    _, got, want = q_model(
        "QLinearAveragePool", x, constants, channels_last=last, kernel_shape=(3, 2),
        strides=(2, 2), pads=(1, 0, 1, 0),
    )  # fmt: skip
    close(got, want)


def test_qlinear_concat_requantises():
    constants = [SY, ZY, SX, ZX, codes(2, 4, seed=1), SY, ZY]
    order = ["c0", "c1", "x", "c2", "c3", "c4", "c5", "c6"]
    graph, got, want = q_model("QLinearConcat", codes(2, 3), constants, order=order, axis=1)
    assert "requantize" in ops(graph)
    close(got, want)


@pytest.mark.parametrize("dense", [False, True])
def test_qgemm(dense):
    scales = np.linspace(0.01, 0.02, 5).astype(F)
    constants = [SX, ZX, codes(5, 6, kind=np.int8), scales, np.zeros(5, np.int8),
                 np.arange(-500, 500, 200).astype(np.int32)]  # fmt: skip
    result = F if dense else U8
    constants += [] if dense else [SY, ZY]
    _, got, want = q_model("QGemm", codes(3, 6), constants, transB=1, result=result)
    if dense:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    else:
        close(got, want)


@pytest.mark.parametrize("zero", [0, 77])
def test_integer_ops_are_exact(zero):
    weight = codes(4, 3, 3, 3, kind=np.int8)
    constants = [weight, scalar(zero, U8)]
    _, got, want = q_model(
        "ConvInteger", codes(2, 3, 6, 6), constants, domain="", result=np.int32, pads=(1, 0, 1, 0)
    )
    np.testing.assert_array_equal(got, want)
    matrix = codes(6, 5, kind=np.int8)
    _, got, want = q_model(
        "MatMulInteger", codes(4, 6), [matrix, scalar(zero, U8)], domain="", result=np.int32
    )
    np.testing.assert_array_equal(got, want)


def test_dynamically_quantised_layer():
    """What onnxruntime.quantization.quantize_dynamic writes."""
    weight, scale = codes(6, 5, kind=np.int8), scalar(0.01)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="d"),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["a"], name="m"),
        helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT, name="c"),
        helper.make_node("Mul", ["s", "ws"], ["m2"], name="scales"),
        helper.make_node("Mul", ["f", "m2"], ["y"], name="scale"),
    ]
    known = {"w": weight, "ws": scale, "wz": scalar(0, np.int8)}
    source = model(nodes, [tensor("x", (4, 6))], ["y"], known)
    x = floats(4, 6)
    (got,) = execute(import_onnx(source), {"x": x}).values()
    np.testing.assert_allclose(got, runtime(source, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_intervals_are_cut_to_the_encoding():
    made = case("quantize", [f32(3)], out=affine(0.1, 100))
    (found,) = op_of(made.node).interval(made.node, [Interval(-50.0, 2.0)])
    assert found.low == pytest.approx(-10.0)
    assert found.high == 2.0


def test_wrong_sides_are_refused():
    twice = case("quantize", [u8(3)], out=affine(0.1, 100))
    with pytest.raises(DlccError, match="requantize takes codes"):
        reference(twice)
    kept = case("dequantize", [u8(3)], out=affine(0.1, 100))
    with pytest.raises(DlccError, match="requantize gives codes"):
        reference(kept)


def tir_cases():
    axis = Affine(8, False, (0.01, 0.02, 0.04), (3, 100, 250), 1)
    signed = Affine(8, True, (0.05,), (-4,))
    raw = codes(2, 3, 5, 4)
    odd = Operand(np.asarray([[np.nan, np.inf, -np.inf, 1e30, -0.0, 0.05, 0.15]], F))
    wide = Operand(codes(3, 5, kind=np.int32), Affine.per_tensor(32, True, 0.001, 0))
    cases = [
        case("quantize", [odd], out=affine(0.1, 100)),
        case("dequantize", [wide], out=DENSE, tolerance=0.0),
        case("quantize", [f32(4, 100)], out=Affine.per_tensor(16, True, 0.001, 5)),
        case("reinterpret", [Operand(raw)], out=affine(0.1, 100)),
    ]
    for layout in ("", "nhwc"):
        x, q = f32(2, 3, 5, 4, layout=layout), u8(2, 3, 5, 4, layout=layout)
        cases += [
            case("quantize", [x], out=affine(0.033, 99), layout=layout),
            case("quantize", [x], out=signed, layout=layout),
            case("quantize", [x], out=axis, layout=layout),
            case("dequantize", [q], out=DENSE, layout=layout, tolerance=0.0),
            case("dequantize", [Operand(raw, axis, layout=layout)], out=DENSE, layout=layout,
                 tolerance=0.0),
            case("requantize", [q], out=affine(0.07, 30), layout=layout),
            case("requantize", [Operand(raw.view(np.int8), signed, layout=layout)],
                 out=affine(0.05, 124), layout=layout),
            case("relayout", [q], layout=layout),
            case("relayout", [x], layout="" if layout else "nhwc", tolerance=0.0),
        ]  # fmt: skip
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
