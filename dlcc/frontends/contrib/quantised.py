"""Quantised operators of ``com.microsoft`` that are more than a layer on codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dlcc.frontends.contrib.attention import self_attention
from dlcc.frontends.contrib.body import DOMAIN, Body, refuse_if, whole
from dlcc.frontends.contrib.layers import embedded
from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import F32, I32, Value
from dlcc.ir.encodings import Array
from dlcc.ops.cast import cast_to
from dlcc.ops.qlinear import operand, result, typed
from dlcc.ops.quant import code_dtype, import_dequantize, import_quantize, known_array

onnx_op("QuantizeLinear", domain=DOMAIN)(import_quantize)
onnx_op("DequantizeLinear", domain=DOMAIN)(import_dequantize)


# -- integer products with scales of the run time ----------------------------------------------


def _scaled_product(
    body: Body,
    codes: tuple[Value, Value],
    zeros: tuple[Value | None, Value | None],
    scales: tuple[Value, Value],
    bias: Value | None,
) -> Value:
    """(a - za) @ (b - zb) in integers, times both scales, plus a bias; the node's result."""
    node, (a_scale, b_scale) = body.node, scales
    (sums,) = body.onnx("MatMulInteger", [*codes, *zeros], ".integer")
    real = cast_to(node, sums, F32, ".sums")
    if a_scale.type.elements > 1 and a_scale.type.rank == 1:  # one for every row
        a_scale = body.reshape(a_scale, (a_scale.type.elements, 1), ".rows")
    factor = body("mul", [a_scale, b_scale], ".scale")
    if factor.type.elements == 1:
        factor = body.reshape(factor, (), ".factor")
    product = body("mul", [real, factor], ".scaled" if bias is not None else "")
    return body.sum([product, bias])


@onnx_op("MatMulIntegerToFloat", domain=DOMAIN)
def _matmul_integer_to_float(node: OnnxNode) -> Sequence[Value]:
    codes, scales = (node.input(0), node.input(1)), (node.input(2), node.input(3))
    zeros = node.optional(4), node.optional(5)
    return [_scaled_product(Body(node), codes, zeros, scales, node.optional(6))]


@onnx_op("DynamicQuantizeMatMul", domain=DOMAIN)
def _dynamic_quantize_matmul(node: OnnxNode) -> Sequence[Value]:
    """A is quantised by its own range, B is quantised already."""
    body = Body(node)
    codes, scale, zero = body.onnx("DynamicQuantizeLinear", [node.input(0)], ".a", None, 3)
    zeros, scales = (zero, node.optional(3)), (scale, node.input(2))
    return [_scaled_product(body, (codes, node.input(1)), zeros, scales, node.optional(4))]


@onnx_op("QAttention", domain=DOMAIN)
def _qattention(node: OnnxNode) -> Sequence[Value]:
    """Self-attention whose projection multiplies codes."""
    body = Body(node)
    codes, scales = (node.input(0), node.input(1)), (node.input(3), node.input(4))
    zeros = node.optional(6), node.optional(7)
    view = Body(replace(node, name=node.name + ".projection"))
    projected = _scaled_product(view, codes, zeros, scales, node.input(2))
    return self_attention(body.node, projected, node.optional(5), node.optional(8))


@onnx_op("MatMulInteger16", domain=DOMAIN)
def _matmul_integer16(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    wide = [cast_to(node, node.input(k), I32, f".{side}") for k, side in enumerate("ab")]
    return body.onnx("MatMul", wide)


@onnx_op("MulInteger", domain=DOMAIN)
def _mul_integer(node: OnnxNode) -> Sequence[Value]:
    """(A - a_zero_point) * (B - b_zero_point) in int32."""
    body, factors = Body(node), []
    for k, side in ((0, "a"), (2, "b")):
        wide = cast_to(node, node.input(k), I32, f".{side}")
        zero = node.optional(k + 1)
        if zero is not None:
            wide = body(
                "sub", [wide, cast_to(node, zero, I32, f".{side}.zero")], f".{side}.centred"
            )
        factors.append(wide)
    return [body("mul", factors)]


@onnx_op("ReduceSumInteger", domain=DOMAIN)
def _reduce_sum_integer(node: OnnxNode) -> Sequence[Value]:
    x = cast_to(node, node.input(0), I32, ".wide")
    axes = tuple(int(a) % x.type.rank for a in node.attrs["axes"])
    kept = bool(whole(node, "keepdims", 1))
    return [Body(node)("reduce_sum", [x], axes=axes, keepdims=kept)]


# -- layers on codes ---------------------------------------------------------------------------


@onnx_op("QLinearConv", domain=DOMAIN)
def _qlinear_conv(node: OnnxNode) -> Sequence[Value]:
    """QLinearConv, of images [N,...,C] too."""
    body, last = Body(node), bool(whole(node, "channels_last"))
    x = body.channels_first(node.input(0), ".first") if last else node.input(0)
    (made,) = body.onnx("QLinearConv", [x, *node.inputs[1:]], ".conv" if last else "", node.attrs)
    return [body.channels_last(made) if last else made]


@onnx_op("QLinearReduceMean", domain=DOMAIN)
def _qlinear_reduce_mean(node: OnnxNode) -> Sequence[Value]:
    x = operand(node, 0)
    axes = tuple(int(a) % x.type.rank for a in node.attrs.get("axes") or range(x.type.rank))
    kept = bool(whole(node, "keepdims", 1))
    out = result(node, 3, code_dtype(x))
    return [typed(node, "reduce_mean", [x], {"axes": axes, "keepdims": kept}, out)]


@onnx_op("QLinearWhere", domain=DOMAIN)
def _qlinear_where(node: OnnxNode) -> Sequence[Value]:
    """Either operand, brought to the result's encoding first."""
    chosen = [operand(node, 1), operand(node, 4)]
    out = result(node, 7, code_dtype(chosen[0]))
    same = [
        x
        if x.type.encoding == out
        else typed(node, "requantize", [x], None, out, f".requantize{k}")
        for k, x in enumerate(chosen)
    ]
    return [typed(node, "where", [node.input(0), *same], None, out)]


# -- quantised parameters ----------------------------------------------------------------------


@onnx_op("QEmbedLayerNormalization", domain=DOMAIN)
def _qembed_layer_norm(node: OnnxNode) -> Sequence[Value]:
    """Tables stay 8 bits: rows are looked up first, and dequantised then."""
    body = Body(node)

    def scaled(codes: Value, index: int, part: str) -> Value:
        operands = [codes, node.input(index + 6), node.optional(index + 11)]
        return body.onnx("DequantizeLinear", operands, part)[0]

    def rows(table: int, indices: Value, part: str) -> Value:
        operands = [node.input(table), indices]
        (codes,) = body.onnx("Gather", operands, f"{part}.codes", {"axis": 0})
        return scaled(codes, table, part)

    segment = 4 if node.optional(4) is not None else None
    parameters = [scaled(node.input(k), k, part) for k, part in ((5, ".gamma"), (6, ".beta"))]
    return embedded(node, rows, segment, parameters, 7)


@onnx_op("DynamicQuantizeLSTM", domain=DOMAIN)
def _dynamic_quantize_lstm(node: OnnxNode) -> Sequence[Value]:
    """An LSTM with the numbers that its 8-bit weights stand for.

    ONNX Runtime quantises the activations of every step as well, by the range that they happen to
    have; these roundings are left out, so that results are those of the float network or nearer.
    """
    body = Body(node)
    weights = [
        node.graph.add_constant(_gate_weights(node, k, 6 + 2 * k), name=name)
        for k, name in ((1, "W"), (2, "R"))
    ]
    operands = [node.input(0), *weights, *(node.optional(k) for k in range(3, 8))]
    return body.onnx("LSTM", operands, "", node.attrs, node.output_count)


def _gate_weights(node: OnnxNode, index: int, scale: int) -> Array:
    """The weights at operand ``index``, [D,I,4H] codes, as float32[D,4H,I]."""
    codes = known_array(node, index, "the weight").astype(np.float32)
    steps, zeros = (
        known_array(node, k, "the weight's scale").astype(np.float32) for k in (scale, scale + 1)
    )
    directions, columns = codes.shape[0], codes.shape[2]
    refuse_if(steps.size not in (directions, directions * columns), f"{steps.size} scales")
    steps, zeros = (v.reshape(directions, 1, -1) for v in (steps, zeros))
    return np.ascontiguousarray(((codes - zeros) * steps).transpose(0, 2, 1))
