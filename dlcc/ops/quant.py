"""Changes of encoding: quantize, dequantize, requantize, reinterpret, relayout.

The encodings are in the types; none of these ops has an attribute. ONNX's QuantizeLinear,
DequantizeLinear and DynamicQuantizeLinear are imported here, the QLinear family in
:mod:`dlcc.ops.qlinear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc import numerics
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, I32, U8, Affine, Binary, DType, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops import late_scales
from dlcc.ops.base import OPS, Interval, Op, Quantised, build, type_error
from dlcc.ops.cast import own_dtype
from dlcc.ops.integer import check_binary, quantise_real, signs_of

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


def _same_shape(node: Node) -> list[TensorType]:
    return [TensorType(node.input(0).type.shape, node.input(0).type.dtype)]


class _Recoding(Op):
    """An op that keeps the real values (up to rounding) and changes how they are stored."""

    quantised = Quantised.INTEGER

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        if not node.input(0).type.dtype.is_float:
            raise type_error(node, f"{self.name} changes how real numbers are stored")
        return _same_shape(node)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The identity on real values."""
        assert xs[0] is not None
        return [xs[0]]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range, cut to what the encodings can hold."""
        assert xs[0] is not None
        low, high = xs[0].low, xs[0].high
        for value in (node.input(0), node.output):
            encoding = value.type.encoding
            if isinstance(encoding, Binary):
                low, high = -encoding.scales[0], encoding.scales[0]
            if isinstance(encoding, Affine) and encoding.axis is None:
                least, most = encoding.real_range
                low, high = min(max(low, least), most), max(min(high, most), least)
        return [Interval(low, high)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """One elementwise expression (see :mod:`dlcc.tir.recode`)."""
        from dlcc.tir.recode import emit

        emit(node, ctx)


class Quantize(_Recoding):
    """Dense f32 -> affine codes: clamp(rint(x / scale) + zero_point), IEEE float32 division.

    To a binary type: -scale where x < 0, else scale.
    """

    name = "quantize"

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """As ONNX QuantizeLinear."""
        assert xs[0] is not None
        if not node.input(0).type.is_dense:
            raise type_error(node, "quantize takes a dense operand; requantize takes codes")
        out = node.output.type.encoding
        if isinstance(out, Binary):
            check_binary(node)
            return [signs_of(xs[0], out)]
        return [quantise_real(xs[0], node.output.type.affine)]


class Dequantize(_Recoding):
    """Affine codes -> dense f32: f32(q - zero_point) * f32(scale)."""

    name = "dequantize"

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """As ONNX DequantizeLinear."""
        assert xs[0] is not None
        if not node.output.type.is_dense:
            raise type_error(node, "dequantize gives a dense result; requantize gives codes")
        if node.input(0).type.is_binary:
            check_binary(node)
            return [xs[0]]
        return [node.input(0).type.affine.dequantise(xs[0])]


class Requantize(_Recoding):
    """Affine codes -> other affine codes: clamp(rint(f32(q - zx) * f32(sx / sy)) + zy)."""

    name = "requantize"

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """By :func:`dlcc.numerics.requantise`."""
        assert xs[0] is not None
        source, out = node.input(0).type.affine, node.output.type.affine
        if source.axis is not None or out.axis is not None:
            raise type_error(node, "requantize needs one scale for the whole tensor")
        centred = xs[0].astype(np.int32) - np.int32(source.zero_point)
        return [numerics.requantise(centred, numerics.multiplier([source.scale], out.scale), out)]


class Reinterpret(_Recoding):
    """The same codes under another type: raw integers <-> affine codes, or another scale.

    ONNX's integer tensors become affine ones (and back) by it; memory is not changed.
    """

    name = "reinterpret"

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape; the dtype is what the output says."""
        return [TensorType(node.input(0).type.shape, node.output.type.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The identity on codes."""
        assert xs[0] is not None
        if node.input(0).type.storage != node.output.type.storage:
            raise type_error(node, "both types must be stored alike")
        return [xs[0]]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """What the output's type can hold."""
        encoding = node.output.type.encoding
        if isinstance(encoding, Affine) and encoding.axis is None:
            return [Interval(*encoding.real_range)]
        return [Interval(-np.inf, np.inf)]


class Relayout(Op):
    """The identity; changes how the tensor lies in memory (``TensorType.layout``).

    ``copy``: the result needs bytes of its own even where none would move.
    """

    name = "relayout"
    attributes: ClassVar[Mapping[str, Any]] = {"copy": False}
    quantised = Quantised.SAME

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        return _same_shape(node)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The identity: layouts do not show in logical order."""
        assert xs[0] is not None
        return [xs[0]]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range."""
        assert xs[0] is not None
        return [xs[0]]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A copy in the output's order."""
        x = ctx.read(0)
        ctx.output(0, lambda *place: x(*place))


# -- ONNX --------------------------------------------------------------------------------------


def known_array(node: OnnxNode, index: int, what: str) -> Array:
    """Contents of operand ``index``; raw codes where it was made by QuantizeLinear."""
    value = node.input(index)
    if not value.is_constant:
        raise Unsupported(f"{what} (input {index}) must be known at compile time")
    return value.stored()


def optional_array(node: OnnxNode, index: int, what: str) -> Array | None:
    """As :func:`known_array`, None where the operand is omitted."""
    return None if node.optional(index) is None else known_array(node, index, what)


def encoding_of(
    scale: Array, zero: Array | None, codes: np.dtype[Any], axis: int, bits: int = 0
) -> Affine:
    """Encoding of ONNX codes of dtype ``codes``.

    Args:
        scale: one number, or one per index of ``axis``.
        zero: zero points, None for 0.
        codes: integer dtype of the codes.
        axis: the quantised axis, not negative; unused with one scale.
        bits: width of the codes where it is less than that of ``codes``.

    Raises:
        Unsupported: not an integer type, or scales that no encoding can have.
    """
    if codes.kind not in "iu" or codes.itemsize > 4:
        raise Unsupported(f"codes of type {codes}")
    scales = np.asarray(scale, np.float32).reshape(-1)
    zeros = np.zeros(scales.size, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    zeros = np.broadcast_to(zeros, scales.shape)
    try:
        return Affine(
            bits or codes.itemsize * 8,
            codes.kind == "i",
            tuple(scales.tolist()),
            tuple(zeros.tolist()),
            None if scales.size == 1 else axis,
        )
    except ValueError as error:
        raise Unsupported(str(error)) from None


def as_codes(node: OnnxNode, value: Value, encoding: Affine, suffix: str) -> Value:
    """An ONNX integer tensor as a value of ``encoding``."""
    if value.type.encoding == encoding:
        return value
    type_ = TensorType(value.type.shape, F32, encoding)
    if type_.storage != value.type.storage:
        raise Unsupported(f"codes are {value.type.storage}, their zero point {type_.storage}")
    if value.is_constant:
        return node.graph.add_stored({"values": value.stored()}, type_, name=value.name)
    made = build(node.graph, "reinterpret", [value], loc=node.name + suffix, types=[type_])
    return made.output


def raw_operands(node: OnnxNode, op: str, operands: Sequence[Value | None]) -> list[Value | None]:
    """``operands`` of an ordinary ONNX op, with affine codes as plain integers.

    Ops that only move numbers (``Quantised.SAME``) take the codes as they are, if all are of one
    encoding, which is the same along all axes: neither codes of another one nor plain integers
    come among them.
    """
    if op in OPS and OPS[op].quantised is Quantised.SAME:
        given = [v.type for v in operands if v is not None]
        coded = [t for t in given if isinstance(t.encoding, Affine)]
        kinds = {t.encoding for t in given if any(t.storage == c.storage for c in coded)}
        uniform = all(t.affine.axis is None for t in coded)
        if uniform and len(kinds) <= 1 and len({t.storage for t in coded}) <= 1:
            return list(operands)
    return [
        v if v is None or not isinstance(v.type.encoding, Affine) else _as_integers(node, v)
        for v in operands
    ]


def _as_integers(node: OnnxNode, value: Value) -> Value:
    type_ = TensorType(value.type.shape, value.type.storage)
    if value.is_constant:
        return node.graph.add_stored({"values": value.stored()}, type_, name=value.name)
    loc = node.name + ".integers"
    return build(node.graph, "reinterpret", [value], loc=loc, types=[type_]).output


def code_dtype(value: Value) -> np.dtype[Any]:
    """Integer dtype of the codes of an ONNX integer tensor."""
    return value.type.storage.numpy


def _axis(node: OnnxNode, scale: Array, shape: Sequence[int]) -> int:
    axis, rank = int(node.attrs.get("axis", 1)), len(shape)
    if scale.size > 1 and not (-rank <= axis < rank and scale.shape == (shape[axis],)):
        raise Unsupported(
            f"scales of shape {list(scale.shape)} along axis {axis} of a tensor of {list(shape)}"
        )
    return axis % max(rank, 1)


def _safe_scale(scale: Array, codes: Array) -> tuple[Array, Array]:
    """Scale 0 (an all-zero channel) as scale 1 with codes at the zero of a symmetric weight."""
    if (scale > 0).all():
        return scale, codes
    if scale.size == 1:
        return np.ones_like(scale), np.zeros_like(codes)
    raise Unsupported("scales must be positive")


@onnx_op("QuantizeLinear", since=10)
def import_quantize(node: OnnxNode) -> Sequence[Value]:
    """QuantizeLinear: the codes' type is the zero point's, or ``output_dtype``, or u8."""
    codes = _output_codes(node)
    if codes.is_float or not _is_known(node):
        return late_scales.quantize(node, codes)
    x, scale = node.input(0), known_array(node, 1, "the scale")
    if isinstance(x.type.encoding, Affine):
        raise Unsupported(f"input 0 is {x.type.storage}, which ONNX does not allow there")
    zero = optional_array(node, 2, "the zero point")
    axis = _axis(node, scale, x.type.shape)
    encoding = encoding_of(scale, zero, codes.computed.numpy, axis, codes.bits)
    type_ = TensorType(x.type.shape, F32, encoding)
    if x.is_constant and x.type.is_dense:
        stored = quantise_real(x.decoded(), encoding)
        return [node.graph.add_stored({"values": stored}, type_, name=x.name)]
    if x.type.dtype.is_integer:
        (x,) = node.build("cast", [x], {"to": "f32"}, suffix=".real")
    made = build(node.graph, "quantize", [x], loc=node.name, types=[type_], names=[node.name])
    return made.outputs


def _output_codes(node: OnnxNode) -> DType:
    if node.optional(2) is not None:
        return node.element(2)
    declared = int(node.attrs.get("output_dtype", 0))
    return own_dtype(declared) if declared else U8


def _is_known(node: OnnxNode) -> bool:
    """Whether an encoding says it: one scale or one per index, known, and so is the zero point."""
    scale, zero = node.input(1), node.optional(2)
    blocks = bool(node.attrs.get("block_size", 0)) and scale.type.elements > 1
    return scale.is_constant and (zero is None or zero.is_constant) and not blocks


@onnx_op("DequantizeLinear", since=10)
def import_dequantize(node: OnnxNode) -> Sequence[Value]:
    """DequantizeLinear; a block-wise quantised constant becomes a float constant."""
    x, known = node.input(0), node.input(0).is_constant and node.input(1).is_constant
    blocks = known and bool(node.attrs.get("block_size"))
    if node.element(0).is_float or not (blocks or _is_known(node)):
        return late_scales.dequantize(node)
    scale = known_array(node, 1, "the scale")
    zero = optional_array(node, 2, "the zero point")
    if blocks:
        return [node.graph.add_constant(_blockwise(node, x.stored(), scale, zero), name=x.name)]
    if x.is_constant and not (scale > 0).all():
        scale, codes = _safe_scale(scale, x.stored())
        zero = None if zero is None else np.zeros_like(zero)
        x = node.graph.add_constant(codes, name=x.name)
    own = x.type.encoding
    bits = own.bits if isinstance(own, Affine) and own.bits < 8 else 0
    encoding = encoding_of(scale, zero, code_dtype(x), _axis(node, scale, x.type.shape), bits)
    codes_value = as_codes(node, x, encoding, ".codes")
    made = build(node.graph, "dequantize", [codes_value], loc=node.name, names=[node.name])
    return made.outputs


def _blockwise(node: OnnxNode, codes: Array, scale: Array, zero: Array | None) -> Array:
    axis = int(node.attrs.get("axis", 1)) % codes.ndim
    size = int(node.attrs["block_size"])
    index: list[Any] = [slice(None)] * codes.ndim
    index[axis] = slice(0, codes.shape[axis])

    def spread(values: Array) -> Array:
        return np.asarray(np.repeat(values, size, axis=axis)[tuple(index)])

    centred = codes.astype(np.float32)
    if zero is not None:
        centred = centred - spread(zero).astype(np.float32)
    return np.asarray(centred * spread(scale).astype(np.float32), np.float32)


@onnx_op("DynamicQuantizeLinear", since=11)
def import_dynamic_quantize(node: OnnxNode) -> Sequence[Value]:
    """DynamicQuantizeLinear: its definition in float ops; codes are dense u8."""
    x, graph = node.input(0), node.graph

    def scalar(value: float) -> Value:
        return graph.add_constant(np.asarray(value, np.float32), name="c")

    def op(name: str, operands: Sequence[Value], suffix: str, **attrs: Any) -> Value:
        return node.build(name, operands, attrs, suffix=suffix)[0]

    axes = tuple(range(x.type.rank))
    low = op("reduce_min", [x], ".min", axes=axes, keepdims=False)
    high = op("reduce_max", [x], ".max", axes=axes, keepdims=False)
    low = op("minimum", [low, scalar(0)], ".low")
    high = op("maximum", [high, scalar(0)], ".high")
    scale = op("div", [op("sub", [high, low], ".range"), scalar(255)], ".scale")
    ratio = op("div", [op("sub", [scalar(0), low], ".negated"), scale], ".ratio")
    clipped = op("clip", [ratio], ".clip", min=0.0, max=255.0)
    zero = op("round", [clipped], ".zero")
    codes = op("add", [op("round", [op("div", [x, scale], ".scaled")], ".round"), zero], ".shift")
    codes = op("clip", [codes], ".clamp", min=0.0, max=255.0)
    y = op("cast", [codes], ".codes", to=str(U8))
    return [y, scale, op("cast", [zero], ".zero_point", to=str(U8))]


def int32_encoding(scale: float) -> Affine:
    """Codes of an accumulator or bias."""
    return Affine.per_tensor(I32.bits, True, scale, 0)


@onnx_op("BipolarQuant", domain="qonnx.custom_op.general")
@onnx_op("BipolarQuant", domain="onnx.brevitas")
def import_bipolar_quant(node: OnnxNode) -> Sequence[Value]:
    """QONNX's BipolarQuant: the scale where x >= 0, else minus the scale; a constant stays binary.

    A constant may have a scale for each index of axis 0.
    """
    x, scale = node.input(0), node.constant(1, "the scale").astype(np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise Unsupported("the scale must be positive")
    scales = tuple(float(s) for s in scale.reshape(-1))
    if len(scales) > 1 and not (
        x.is_constant and scale.shape[:1] == x.type.shape[:1] == (len(scales),)
    ):
        raise Unsupported(f"scales of shape {list(scale.shape)} for {list(x.type.shape)}")
    encoding = Binary(scales, 0 if len(scales) > 1 else None)
    if x.is_constant:
        return [node.graph.add_constant(x.decoded(), encoding=encoding, name=x.name)]
    type_ = x.type.with_(encoding=encoding)
    signs = build(node.graph, "quantize", [x], loc=f"{node.name}.signs", types=[type_]).output
    return build(node.graph, "dequantize", [signs], loc=node.name, names=[node.name]).outputs
