"""Importers of ONNX's QOperator form: QLinear ops, their ``com.microsoft`` family, integer ops.

Each becomes the ordinary op on affine types. Weights with a zero point are shifted to zero point 0
where the result fits int8; otherwise the layer is imported as dequantize, float op, quantize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc import numerics
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, I32, Affine, AttrValue, TensorType, Value
from dlcc.ir.encodings import DENSE, Array, Encoding
from dlcc.ops import late_weights, volumes
from dlcc.ops.base import build
from dlcc.ops.conv_onnx import conv_attrs, conv_geometry, spatial_rank
from dlcc.ops.pool_onnx import average_operands, geometry, pooled
from dlcc.ops.quant import as_codes, code_dtype, encoding_of, known_array, optional_array
from dlcc.ops.weights import reshape_value
from dlcc.ops.windows import Window

_MS = "com.microsoft"


def typed(
    node: OnnxNode,
    op: str,
    operands: Sequence[Value | None],
    attrs: Mapping[str, AttrValue] | None,
    encoding: Encoding,
    suffix: str = "",
) -> Value:
    """A node whose result has ``encoding``."""
    loc = node.name + suffix
    value = build(node.graph, op, operands, attrs, loc=loc, names=[loc]).output
    value.type = value.type.with_(encoding=encoding)
    return value


def operand(node: OnnxNode, index: int) -> Value:
    """Operands ``index``, ``index + 1``, ``index + 2`` (codes, scale, zero point) as one value."""
    value = node.input(index)
    scale = known_array(node, index + 1, "the scale")
    zero = optional_array(node, index + 2, "the zero point")
    if scale.size != 1:
        raise Unsupported("an activation with several scales")
    encoding = encoding_of(scale, zero, code_dtype(value), 0)
    return as_codes(node, value, encoding, f".codes{index}")


def result(node: OnnxNode, index: int, codes: np.dtype[Any]) -> Affine:
    """Encoding of the result from operands ``index`` (scale) and ``index + 1`` (zero point)."""
    scale = known_array(node, index, "the output scale")
    zero = optional_array(node, index + 1, "the output zero point")
    return encoding_of(scale, zero, codes if zero is None else zero.dtype, 0)


# -- weights -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """Codes of a weight with its zero points taken off (int32), and one scale per output."""

    codes: Array
    scales: Array
    axis: int

    @property
    def fits(self) -> bool:
        """True where the codes fit int8."""
        return bool(self.codes.min(initial=0) >= -128 and self.codes.max(initial=0) <= 127)

    def real(self) -> Array:
        """float32 values."""
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return np.asarray(
            self.codes.astype(np.float32) * self.scales.astype(np.float32).reshape(shape)
        )

    def moved(self, order: tuple[int, ...]) -> Weight:
        """With the axes in ``order``."""
        codes = np.ascontiguousarray(self.codes.transpose(order))
        return Weight(codes, self.scales, order.index(self.axis))

    def value(self, node: OnnxNode, name: str) -> Value:
        """An int8 constant with zero point 0."""
        zeros = (0,) * self.scales.size
        encoding = Affine(8, True, tuple(self.scales.tolist()), zeros, self.axis)
        type_ = TensorType(self.codes.shape, F32, encoding)
        return node.graph.add_stored({"values": self.codes.astype(np.int8)}, type_, name=name)


def centred_weight(codes: Array, scale: Array, zero: Array | None, axis: int) -> Weight:
    """A weight from ONNX codes, scales and zero points (one, or one per index of ``axis``)."""
    extent = codes.shape[axis]
    if scale.size not in (1, extent) or (zero is not None and zero.size not in (1, extent)):
        raise Unsupported(f"{scale.size} scales for {extent} output channels")
    shape = [1] * codes.ndim
    shape[axis] = -1
    centred = codes.astype(np.int32)
    if zero is not None:
        centred = centred - zero.astype(np.int32).reshape(shape if zero.size > 1 else ())
    scales = np.broadcast_to(scale.astype(np.float32).reshape(-1), (extent,))
    if not (scales > 0).all():
        raise Unsupported("weight scales must be positive")
    return Weight(np.asarray(centred), np.ascontiguousarray(scales), axis)


def _weight(node: OnnxNode, index: int, axis: int) -> Weight:
    scale = known_array(node, index + 1, "the weight's scale")
    zero = optional_array(node, index + 2, "the weight's zero point")
    return centred_weight(known_array(node, index, "the weight"), scale, zero, axis)


def bias_codes(node: OnnxNode, index: int, x: Affine, weight: Weight) -> Value | None:
    """An int32 bias of scale x * weight."""
    codes = optional_array(node, index, "the bias")
    if codes is None:
        return None
    scales = np.float64(x.scale) * weight.scales.astype(np.float64)
    encoding = Affine(32, True, tuple(scales.tolist()), (0,) * scales.size, 0)
    type_ = TensorType((scales.size,), F32, encoding)
    flat = np.broadcast_to(codes.reshape(-1).astype(np.int32), (scales.size,))
    return node.graph.add_stored({"values": np.ascontiguousarray(flat)}, type_, name="bias")


def _layer(
    node: OnnxNode,
    op: str,
    x: Value,
    weight: Weight,
    bias: Value | None,
    attrs: Mapping[str, AttrValue],
    out: Encoding,
    suffix: str = "",
) -> Value:
    """An integer layer, or its float equivalent where the weight's codes do not fit int8."""
    if weight.fits:
        constant = weight.value(node, node.name + ".weight")
        return typed(node, op, [x, constant, bias], attrs, out, suffix)
    graph = node.graph
    real = build(graph, "dequantize", [x], loc=node.name + ".dequantize").output
    kernel = graph.add_constant(weight.real(), name=node.name + ".weight")
    offset = None if bias is None else graph.add_constant(bias.decoded(), name="bias")
    made = build(graph, op, [real, kernel, offset], attrs, loc=node.name + suffix).output
    if not isinstance(out, Affine):
        return made
    return typed(node, "quantize", [made], None, out, ".quantize")


# -- layers ------------------------------------------------------------------------------------


def convolution(
    node: OnnxNode, x: Value, weight: Weight, bias: Value | None, out: Encoding
) -> Value:
    """A convolution of codes in one to three dimensions."""
    rank, groups = spatial_rank(node, x.type.rank), int(node.attrs.get("group", 1))
    size, kernel = x.type.shape[2:], weight.codes.shape[2:]
    if rank == 3:
        line, plane = (conv_geometry(node, size, kernel, axes) for axes in ((0,), (1, 2)))
        images = volumes.depth_windows(node, x, line, groups)
        weight = replace(weight, codes=volumes.depth_kernel(weight.codes))
        attrs = conv_attrs(plane, groups)
        made = _layer(node, "conv2d", images, weight, bias, attrs, out, ".planes")
        return volumes.volume_of(node, made, x.type.shape[0])
    attrs = conv_attrs(conv_geometry(node, size, kernel), groups)
    if rank == 2:
        return _layer(node, "conv2d", x, weight, bias, attrs, out)
    n, c, length = x.type.shape
    flat = reshape_value(node, x, (n, c, 1, length), ".rows")
    weight = replace(weight, codes=np.expand_dims(weight.codes, 2))
    wide = _layer(node, "conv2d", flat, weight, bias, attrs, out, ".2d")
    shape = wide.type.shape
    return reshape_value(node, wide, (shape[0], shape[1], shape[3]), ".flat")


@onnx_op("QLinearConv", since=10)
def import_qlinear_conv(node: OnnxNode) -> Sequence[Value]:
    """QLinearConv."""
    if not node.input(3).is_constant:
        return _late_qlinear(node)
    x, weight = operand(node, 0), _weight(node, 3, 0)
    out = result(node, 6, code_dtype(x))
    return [convolution(node, x, weight, bias_codes(node, 8, x.type.affine, weight), out)]


@onnx_op("QLinearMatMul", since=10)
def import_qlinear_matmul(node: OnnxNode) -> Sequence[Value]:
    """QLinearMatMul: a linear layer where the second operand is a known matrix."""
    a = operand(node, 0)
    out = result(node, 6, code_dtype(a))
    if node.input(3).is_constant and node.input(3).type.rank == 2:
        weight = _weight(node, 3, 1).moved((1, 0))
        return [_layer(node, "linear", a, weight, None, {}, out)]
    b = operand(node, 3)
    if min(a.type.rank, b.type.rank) < 2:
        raise Unsupported("a vector operand")
    return [typed(node, "matmul", [a, b], None, out)]


@onnx_op("QGemm", domain=_MS)
def import_qgemm(node: OnnxNode) -> Sequence[Value]:
    """QGemm with a known B; the result is float where no output scale is given."""
    a = operand(node, 0)
    if node.attrs.get("transA", 0):
        a = typed(node, "transpose", [a], {"perm": (1, 0)}, a.type.encoding, ".a")
    trans_b, alpha = bool(node.attrs.get("transB", 0)), float(node.attrs.get("alpha", 1.0))
    weight = _weight(node, 3, 0 if trans_b else 1)
    weight = weight if trans_b else weight.moved((1, 0))
    bias = node.optional(6)
    if bias is not None and bias.type.elements not in (1, weight.scales.size):
        raise Unsupported("a bias that depends on the row")
    vector = bias_codes(node, 6, a.type.affine, weight)  # C has the scale of a * b, without alpha
    if alpha != 1.0:
        weight = replace(weight, scales=weight.scales * np.float32(alpha))
        vector = _rescaled(node, vector, a.type.affine, weight)
    out: Encoding = DENSE if node.optional(7) is None else result(node, 7, code_dtype(a))
    return [_layer(node, "linear", a, weight, vector, {}, out)]


def _rescaled(node: OnnxNode, bias: Value | None, x: Affine, weight: Weight) -> Value | None:
    """The bias' codes under the scales of a rescaled weight (QGemm scales C by alpha too)."""
    if bias is None:
        return None
    scales = np.float64(x.scale) * weight.scales.astype(np.float64)
    encoding = replace(bias.type.affine, scales=tuple(scales.tolist()))
    type_ = bias.type.with_(encoding=encoding)
    return node.graph.add_stored({"values": bias.stored()}, type_, name="bias")


# -- elementwise and pooling --------------------------------------------------------------------


def _binary(op: str) -> Any:
    def importer(node: OnnxNode) -> Sequence[Value]:
        a, b = operand(node, 0), operand(node, 3)
        return [typed(node, op, [a, b], None, result(node, 6, code_dtype(a)))]

    return importer


onnx_op("QLinearAdd", domain=_MS)(_binary("add"))
onnx_op("QLinearMul", domain=_MS)(_binary("mul"))


@onnx_op("QLinearSigmoid", domain=_MS)
def import_qlinear_sigmoid(node: OnnxNode) -> Sequence[Value]:
    """QLinearSigmoid."""
    x = operand(node, 0)
    return [typed(node, "sigmoid", [x], None, result(node, 3, code_dtype(x)))]


@onnx_op("QLinearLeakyRelu", domain=_MS)
def import_qlinear_leaky_relu(node: OnnxNode) -> Sequence[Value]:
    """QLinearLeakyRelu."""
    x, alpha = operand(node, 0), float(node.attrs.get("alpha", 0.01))
    return [typed(node, "leaky_relu", [x], {"alpha": alpha}, result(node, 3, code_dtype(x)))]


@onnx_op("QLinearSoftmax", domain=_MS)
def import_qlinear_softmax(node: OnnxNode) -> Sequence[Value]:
    """QLinearSoftmax; ``opset`` below 13 means softmax over all axes from ``axis`` on."""
    x, out = operand(node, 0), result(node, 3, code_dtype(node.input(0)))
    rank, axis = x.type.rank, int(node.attrs.get("axis", -1))
    first = axis + rank if axis < 0 else axis
    if int(node.attrs.get("opset", 13)) >= 13 or first == rank - 1:
        return [typed(node, "softmax", [x], {"axis": first}, out)]
    shape = x.type.shape
    flat = reshape_value(node, x, (*shape[:first], int(np.prod(shape[first:]))), ".flat")
    made = typed(node, "softmax", [flat], {"axis": first}, out)
    return [reshape_value(node, made, shape, ".shape")]


def _channels_first(node: OnnxNode, x: Value) -> tuple[Value, bool]:
    if not node.attrs.get("channels_last", 0):
        return x, False
    rank = x.type.rank
    order = (0, rank - 1, *range(1, rank - 1))
    return typed(node, "transpose", [x], {"perm": order}, x.type.encoding, ".first"), True


def _channels_last(node: OnnxNode, y: Value, was_last: bool) -> Value:
    if not was_last:
        return y
    order = (0, *range(2, y.type.rank), 1)
    return typed(node, "transpose", [y], {"perm": order}, y.type.encoding, ".last")


@onnx_op("QLinearGlobalAveragePool", domain=_MS)
def import_qlinear_global_pool(node: OnnxNode) -> Sequence[Value]:
    """QLinearGlobalAveragePool."""
    x, last = _channels_first(node, operand(node, 0))
    out = result(node, 3, code_dtype(x))
    attrs = {"axes": tuple(range(2, x.type.rank))}
    return [_channels_last(node, typed(node, "reduce_mean", [x], attrs, out), last)]


@onnx_op("QLinearAveragePool", domain=_MS)
def import_qlinear_pool(node: OnnxNode) -> Sequence[Value]:
    """QLinearAveragePool, 1-D and 2-D."""
    x, last = _channels_first(node, operand(node, 0))
    out = result(node, 3, code_dtype(x))
    shape = geometry(node, x)
    if shape.depth is not None:
        raise Unsupported("3-D: the mean over the planes would be rounded to codes")

    def pool(images: Value, window: Window, suffix: str) -> Value:
        images, attrs = average_operands(node, images, window, shape.ceil)
        return typed(node, "avg_pool2d", [images], attrs, out, suffix)

    return [_channels_last(node, pooled(node, x, shape, pool), last)]


@onnx_op("QLinearConcat", domain=_MS)
def import_qlinear_concat(node: OnnxNode) -> Sequence[Value]:
    """QLinearConcat: operands of another encoding are requantised first."""
    parts = [operand(node, i) for i in range(2, len(node.inputs), 3)]
    out = result(node, 0, code_dtype(parts[0]))
    same = [
        p
        if p.type.encoding == out
        else typed(node, "requantize", [p], None, out, f".requantize{i}")
        for i, p in enumerate(parts)
    ]
    axis = int(node.attrs["axis"]) % parts[0].type.rank
    return [typed(node, "concat", same, {"axis": axis}, out)]


# -- weights of the run time --------------------------------------------------------------------


def centred_integers(node: OnnxNode, index: int, zero: int, axis: int | None) -> Value:
    """Operand ``index`` minus operand ``zero`` (a scalar, or one per index of ``axis``), int32."""
    (value,) = node.build("cast", [node.input(index)], {"to": str(I32)}, suffix=f".codes{index}")
    if node.optional(zero) is None:
        return value
    (offset,) = node.build("cast", [node.input(zero)], {"to": str(I32)}, suffix=f".zero{index}")
    shape = [1] * value.type.rank
    if axis is not None and offset.type.elements > 1:
        shape[axis] = offset.type.elements
    offset = reshape_value(node, offset, tuple(shape), f".offset{index}")
    return node.build("sub", [value, offset], suffix=f".centred{index}")[0]


def late_convolution(
    node: OnnxNode, x: int, weight: int, zeros: tuple[int, int], bias: Value | None
) -> Value:
    """int32 sums of a convolution whose weight is only known at run time, by operand numbers."""
    image = centred_integers(node, x, zeros[0], None)
    kernel = centred_integers(node, weight, zeros[1], 0)
    groups, rank = int(node.attrs.get("group", 1)), spatial_rank(node, image.type.rank)
    size, taps = image.type.shape[2:], kernel.type.shape[2:]
    lines = [conv_geometry(node, size, taps, (axis,)) for axis in range(rank)]
    return late_weights.convolution(node, image, kernel, bias, lines, groups)


def _late_qlinear(node: OnnxNode) -> Sequence[Value]:
    """QLinearConv with a weight of run time: int32 sums, requantised by float32 operations."""
    bias = node.optional(8)
    acc = late_convolution(replace(node, name=node.name + ".sums"), 0, 3, (2, 5), bias)
    x_scale, w_scale = known_array(node, 1, "the scale"), known_array(node, 4, "the weight's scale")
    out = result(node, 6, code_dtype(node.input(0)))
    factors = x_scale.astype(np.float64).reshape(-1) * w_scale.astype(np.float64).reshape(-1)
    shape = (-1, *(1,) * (acc.type.rank - 2)) if factors.size > 1 else ()
    constant = node.graph.add_constant
    multiplier = constant(numerics.multiplier(factors, out.scale).reshape(shape), name="multiplier")
    (real,) = node.build("cast", [acc], {"to": str(F32)}, suffix=".real")
    (scaled,) = node.build("mul", [real, multiplier], suffix=".scaled")
    (rounded,) = node.build("round", [scaled], suffix=".rounded")
    zero = constant(np.asarray(out.zero_point, np.float32), name="zero_point")
    (shifted,) = node.build("add", [rounded, zero], suffix=".shifted")
    low, high = out.code_range
    limits = {"min": float(low), "max": float(high)}
    (clipped,) = node.build("clip", [shifted], limits, suffix=".clipped")
    (codes,) = node.build("cast", [clipped], {"to": str(out.storage(F32))}, suffix=".codes")
    return [as_codes(node, codes, out, "")]
