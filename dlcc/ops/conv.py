"""2-D convolution and transposed convolution; importers are in :mod:`dlcc.ops.conv_onnx`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from dlcc.bounds import check_shape
from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import (
    affine_of,
    check_binary,
    codes_of,
    evaluate_mixed,
    exact_dtype,
    filled,
    finish,
    finish_binary,
    float_dtype,
    magnitude,
    to_int32,
    weight_scales,
)
from dlcc.ops.windows import Window, pair, quad

_INF = float("inf")
_COLUMN_BYTES = 64 << 20
"""Upper bound of the im2col buffer of one step over the batch."""


def window_of(node: Node) -> Window:
    """Geometry of a conv2d node."""
    weight, x = node.input(1).type.shape, node.input(0).type.shape

    def attribute(key: str) -> Any:
        return node.attrs.get(key, Conv2d.attributes[key])

    return Window(
        (x[2], x[3]),
        (weight[2], weight[3]),
        pair(attribute("strides")),
        pair(attribute("dilations")),
        quad(attribute("pads")),
    )


def convolve(x: Array, weight: Array, window: Window, groups: int, dtype: Any) -> Array:
    """Sums of products [N, O, OH, OW] in ``dtype``; pads count as 0.

    Args:
        x: input [N, C, H, W].
        weight: [O, C/groups, KH, KW].
        window: the geometry.
        groups: channel groups.
        dtype: float32 or float64; the products are summed in it.
    """
    padded = window.pad(x.astype(dtype, copy=False), 0)
    weight = weight.astype(dtype, copy=False)
    if groups == x.shape[1]:
        return _depthwise(padded, weight, window)
    batch, outputs, (oh, ow) = x.shape[0], weight.shape[0], window.output
    out = np.empty((batch, outputs, oh, ow), dtype)
    kernels = weight.reshape(groups, outputs // groups, -1)
    for part in _steps(batch, kernels.shape[2] * groups * oh * ow * np.dtype(dtype).itemsize):
        columns = _columns(padded[part], window, groups)
        product = np.matmul(kernels[None], columns)
        out[part] = product.reshape(columns.shape[0], outputs, oh, ow)
    return out


def _steps(batch: int, bytes_per_image: int) -> Iterator[slice]:
    step = max(1, _COLUMN_BYTES // max(1, bytes_per_image))
    return (slice(i, min(i + step, batch)) for i in range(0, batch, step))


def _columns(padded: Array, window: Window, groups: int) -> Array:
    """im2col: [N, groups, C/groups * KH * KW, OH * OW]; 1x1 convolutions need no copy."""
    batch, channels = padded.shape[:2]
    (oh, ow), (kh, kw) = window.output, window.kernel
    taps = window.view(padded)
    return np.ascontiguousarray(taps).reshape(batch, groups, channels // groups * kh * kw, oh * ow)


def _depthwise(padded: Array, weight: Array, window: Window) -> Array:
    batch, channels = padded.shape[:2]
    multiplier = weight.shape[0] // channels
    kernels = weight.reshape(channels, multiplier, *window.kernel)
    out = np.zeros((batch, channels, multiplier, *window.output), padded.dtype)
    scratch = np.empty((batch, channels, *window.output), padded.dtype)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            tap = window.tap(padded, i, j)
            for m in range(multiplier):
                np.multiply(tap, kernels[None, :, m, i, j, None, None], out=scratch)
                out[:, :, m] += scratch
    return out.reshape(batch, channels * multiplier, *window.output)


def _centred(codes: Array, zero_point: int, weight: Array) -> tuple[Array, Any]:
    """Input codes minus the zero point, in a float dtype in which all partial sums are exact.

    ``weight`` has the output channels first.
    """
    centred = codes.astype(np.int32) - np.int32(zero_point)
    per_channel = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).sum(axis=1)
    largest = magnitude(centred) * max(1.0, float(per_channel.max(initial=0.0)))
    dtype = exact_dtype(largest)
    return centred.astype(dtype), dtype


def check_bias(node: Node, channels: int, index: int = 2) -> None:
    """Check operand ``index``: a vector of one number per output channel."""
    bias = node.optional_input(index)
    if bias is not None and bias.type.shape != (channels,):
        raise type_error(node, f"the bias has shape {list(bias.type.shape)}, not [{channels}]")


def check_residual(node: Node, shape: tuple[int, ...], index: int = 3) -> None:
    """Check operand ``index``: the shape of the output."""
    residual = node.optional_input(index)
    if residual is not None and residual.type.shape != shape:
        raise type_error(
            node, f"the residual has shape {list(residual.type.shape)}, not {list(shape)}"
        )


def clamp(values: Array, act_min: float, act_max: float) -> Array:
    """Fused activation of a float layer."""
    if act_min == -_INF and act_max == _INF:
        return values
    kind = values.dtype.type
    return np.clip(values, kind(act_min), kind(act_max))


def clamp_interval(interval: Interval, act_min: float, act_max: float) -> Interval:
    """Range after a fused activation."""
    low, high = max(interval.low, act_min), min(interval.high, act_max)
    return Interval(min(low, act_max), max(high, act_min))


def linear_interval(x: Interval, weight: Array, bias: Array | None, padded: bool) -> Interval:
    """Range of sum(w * x) + b over all outputs; row o of ``weight`` [O, K] makes output o.

    ``padded``: any term may be missing (counts as 0).
    """
    if not (np.isfinite(x.low) and np.isfinite(x.high)):
        return Interval(-_INF, _INF)
    rows = weight.reshape(weight.shape[0], -1).astype(np.float64)
    low, high = (min(x.low, 0.0), max(x.high, 0.0)) if padded else (x.low, x.high)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    lows = positive * low + negative * high
    highs = positive * high + negative * low
    offset = np.zeros(len(rows)) if bias is None else bias.astype(np.float64)
    return Interval(float((lows + offset).min()), float((highs + offset).max()))


def layer_interval(op: Op, node: Node, xs: Sequence[Interval | None], padded: bool) -> Interval:
    """Range of a conv2d or linear node whose weight and bias are constants."""
    weight, bias = node.input(1), node.optional_input(2)
    if xs[0] is None or not weight.is_constant or (bias is not None and not bias.is_constant):
        return Interval(-_INF, _INF)
    result = linear_interval(
        xs[0], weight.decoded(), None if bias is None else bias.decoded(), padded
    )
    residual = xs[3] if len(xs) > 3 else None
    if residual is not None:
        result = Interval(result.low + residual.low, result.high + residual.high)
    return clamp_interval(result, op.get(node, "act_min"), op.get(node, "act_max"))


class Conv2d(Op):
    """2-D convolution (cross-correlation), grouped, dilated, strided.

    x f32[N,C,H,W], weight f32[O,C/groups,KH,KW], bias f32[O], residual of the output's shape ->
    f32[N,O,OH,OW]: y = clamp(conv(x, w) + b + residual, act_min, act_max).

    Integer: acc = sum((xq - zx) * wq) + bias in int32, the residual in accumulator units, then
    requantise with one float32 multiplier per output channel (or, with a Dense output, decode).

    Binary x: acc = sum(xq * wq) in int32, xq -1 or 1 and 0 on padding, then float32: acc times one
    multiplier per output channel, plus a float32 bias and residual, clamped, or the sign of that.
    """

    name = "conv2d"
    operands = ("x", "weight", "bias?", "residual?")
    attributes: ClassVar[Mapping[str, Any]] = {
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "groups": 1,
        "act_min": -_INF,
        "act_max": _INF,
    }
    quantised = Quantised.INTEGER
    multiplied = (0, 1)

    def infer(self, node: Node) -> list[TensorType]:
        """[N,C,H,W], [O,C/g,KH,KW] -> [N,O,OH,OW]."""
        x, weight = node.input(0).type, node.input(1).type
        groups = self.get(node, "groups")
        if x.rank != 4 or weight.rank != 4:
            raise type_error(node, "input and weight must have 4 axes")
        if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
            raise type_error(
                node, f"{x.shape[1]} channels in {groups} groups do not fit the weight"
            )
        window = window_of(node)
        if why := window.problem():
            raise type_error(node, why)
        check_shape((*x.shape[:2], *window.padded), x.storage.bits / 8, node.loc)
        shape = (x.shape[0], weight.shape[0], *window.output)
        check_bias(node, weight.shape[0])
        check_residual(node, shape)
        return [TensorType(shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Sums in float32 (float64 for float64 operands) through BLAS."""
        x, weight, bias, residual = filled(xs, 4)
        assert x is not None
        assert weight is not None
        dtype = float_dtype(x, weight)
        out = convolve(x, weight, window_of(node), self.get(node, "groups"), dtype)
        if bias is not None:
            out += bias.astype(dtype).reshape(1, -1, 1, 1)
        if residual is not None:
            out += residual.astype(dtype)
        return [clamp(out, self.get(node, "act_min"), self.get(node, "act_max")).astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact integer sums; with a float input (weight-only quantisation) the float reference."""
        x, weight, bias, residual = filled(xs, 4)
        xe, we = affine_of(node.input(0)), affine_of(node.input(1))
        if xe is None or we is None:
            return evaluate_mixed(self, node, xs)
        assert x is not None
        assert weight is not None
        check_integer(node, xe, we, 0)
        codes = codes_of(node.input(1), weight)
        centred, dtype = _centred(codes_of(node.input(0), x), xe.zero_point, codes)
        acc = convolve(centred, codes, window_of(node), self.get(node, "groups"), dtype)
        scales = (xe.scale * weight_scales(we, codes.shape[0])).reshape(1, -1, 1, 1)
        limits = self.get(node, "act_min"), self.get(node, "act_max")
        if node.input(0).type.is_binary:
            term = None if bias is None else bias.reshape(1, -1, 1, 1)
            return [finish_binary(node, to_int32(acc), scales, term, residual, *limits)]
        sums = add_bias(to_int32(acc), bias, (1, -1, 1, 1))
        extra = None if residual is None else (node.input(3), residual)
        return [finish(node, sums, scales, extra, *limits)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Exact per output channel for a constant weight."""
        return [layer_interval(self, node, xs, any(self.get(node, "pads")))]

    def macs(self, node: Node) -> int:
        """Outputs times taps times input channels of a group."""
        weight = node.input(1).type.shape
        return int(node.output.type.elements * weight[1] * weight[2] * weight[3])


def add_bias(acc: Array, bias: Array | None, shape: tuple[int, ...]) -> Array:
    """int32 accumulators plus an int32 bias, modulo 2^32."""
    if bias is None:
        return acc
    return np.asarray(acc + bias.astype(np.int32).reshape(shape), dtype=np.int32)


def check_integer(node: Node, x: Affine, weight: Affine, axis: int) -> None:
    """Check the encodings of an integer layer against the numbers contract.

    Raises:
        DlccError: an encoding that the integer definition does not cover.
    """
    if x.axis is not None:
        raise type_error(node, "an integer layer's input needs one scale for the whole tensor")
    if node.input(0).type.is_binary:
        check_binary(node)
        bias = None
    else:
        bias = node.optional_input(2)
    if any(weight.zero_points) or weight.axis not in (None, axis):
        raise type_error(
            node, f"integer weights must have zero point 0 and scales along axis {axis}"
        )
    if bias is not None and node.op != "matmul" and not isinstance(bias.type.encoding, Affine):
        raise type_error(node, "the bias of an integer layer must be int32 codes")


class ConvTranspose2d(Op):
    """2-D transposed convolution (the gradient of conv2d with respect to its input).

    x f32[N,C,H,W], weight f32[C,O/groups,KH,KW], bias f32[O] -> f32[N,O,OH,OW] with
    OH = (H-1)*stride - top - bottom + (KH-1)*dilation + 1 + output_padding.

    Integer: as conv2d, with weight scales along axis 1.
    """

    name = "conv_transpose2d"
    operands = ("x", "weight", "bias?")
    attributes: ClassVar[Mapping[str, Any]] = {
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "output_padding": (0, 0),
        "groups": 1,
        "act_min": -_INF,
        "act_max": _INF,
    }
    quantised = Quantised.INTEGER
    multiplied = (0, 1)

    def infer(self, node: Node) -> list[TensorType]:
        """[N,C,H,W], [C,O/g,KH,KW] -> [N,O,OH,OW]."""
        x, weight = node.input(0).type, node.input(1).type
        groups = self.get(node, "groups")
        if x.rank != 4 or weight.rank != 4:
            raise type_error(node, "input and weight must have 4 axes")
        if groups < 1 or x.shape[1] != weight.shape[0] or x.shape[1] % groups:
            raise type_error(
                node, f"{x.shape[1]} channels in {groups} groups do not fit the weight"
            )
        steps = (*self.get(node, "strides"), *self.get(node, "dilations"), *weight.shape[2:])
        if min(steps) < 1 or min(self.get(node, "output_padding")) < 0:
            raise type_error(node, "kernel, strides and dilations must be at least 1")
        full, pads = self._full(node), self.get(node, "pads")
        check_shape((x.shape[0], weight.shape[1] * groups, *full), 4, node.loc)
        out = tuple(full[i] - pads[i] - pads[i + 2] for i in (0, 1))
        if min(out) < 1:
            raise type_error(node, f"the output would be {out}")
        check_bias(node, weight.shape[1] * groups)
        return [TensorType((x.shape[0], weight.shape[1] * groups, *out), x.dtype)]

    def _full(self, node: Node) -> tuple[int, ...]:
        """Output height and width before the pads are cut off."""
        x, weight = node.input(0).type.shape, node.input(1).type.shape
        strides, dilations = self.get(node, "strides"), self.get(node, "dilations")
        extra = self.get(node, "output_padding")
        return tuple(
            (x[i + 2] - 1) * strides[i] + (weight[i + 2] - 1) * dilations[i] + 1 + extra[i]
            for i in (0, 1)
        )

    def _scatter(self, node: Node, x: Array, weight: Array, dtype: Any) -> Array:
        """Sums of products [N,O,OH,OW]: one GEMM, then every tap added at its place (col2im)."""
        groups = self.get(node, "groups")
        (batch, channels, h, w), (_, outs, kh, kw) = x.shape, weight.shape
        kernels = weight.astype(dtype).reshape(groups, channels // groups, outs * kh * kw)
        images = np.ascontiguousarray(x.astype(dtype)).reshape(batch, groups, -1, h * w)
        columns = np.matmul(kernels.transpose(0, 2, 1)[None], images)
        columns = columns.reshape(batch, groups * outs, kh, kw, h, w)
        fh, fw = self._full(node)
        out = np.zeros((batch, groups * outs, fh, fw), dtype)
        (sh, sw), (dh, dw) = self.get(node, "strides"), self.get(node, "dilations")
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (h - 1) * sh + 1, sh)
                out[:, :, rows, j * dw : j * dw + (w - 1) * sw + 1 : sw] += columns[:, :, i, j]
        return _crop(out, self.get(node, "pads"))

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Sums in float32 (float64 for float64 operands)."""
        x, weight, bias, _ = filled(xs, 4)
        assert x is not None
        assert weight is not None
        dtype = float_dtype(x, weight)
        out = self._scatter(node, x, weight, dtype)
        if bias is not None:
            out += bias.astype(dtype).reshape(1, -1, 1, 1)
        return [clamp(out, self.get(node, "act_min"), self.get(node, "act_max")).astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact integer sums."""
        x, weight, bias, _ = filled(xs, 4)
        xe, we = affine_of(node.input(0)), affine_of(node.input(1))
        if xe is None or we is None:
            return evaluate_mixed(self, node, xs)
        assert x is not None
        assert weight is not None
        check_integer(node, xe, we, 1)
        if we.axis is not None and self.get(node, "groups") != 1:
            raise type_error(node, "grouped transposed convolutions need one weight scale")
        codes = codes_of(node.input(1), weight)
        outs = node.output.type.shape[1]
        grouped = codes.reshape(self.get(node, "groups"), -1, *codes.shape[1:])
        centred, dtype = _centred(
            x, xe.zero_point, grouped.transpose(0, 2, 1, 3, 4).reshape(outs, -1)
        )
        acc = to_int32(self._scatter(node, centred, codes, dtype))
        scales = (xe.scale * weight_scales(we, outs)).reshape(1, -1, 1, 1)
        sums = add_bias(acc, bias, (1, -1, 1, 1))
        return [
            finish(node, sums, scales, None, self.get(node, "act_min"), self.get(node, "act_max"))
        ]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Every term may be missing at a given output, so 0 counts as an input."""
        weight, bias = node.input(1), node.optional_input(2)
        if xs[0] is None or not weight.is_constant or (bias is not None and not bias.is_constant):
            return [Interval(-_INF, _INF)]
        array, groups = weight.decoded(), self.get(node, "groups")
        grouped = array.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2)
        rows = grouped.reshape(groups * array.shape[1], -1)
        offset = None if bias is None else bias.decoded()
        result = linear_interval(xs[0], rows, offset, padded=True)
        return [clamp_interval(result, self.get(node, "act_min"), self.get(node, "act_max"))]

    def macs(self, node: Node) -> int:
        """Inputs times taps times output channels of a group."""
        weight = node.input(1).type.shape
        return int(node.input(0).type.elements * weight[1] * weight[2] * weight[3])


def _crop(full: Array, pads: tuple[int, ...]) -> Array:
    """Cut pads off (negative pads add zeros)."""
    top, left, bottom, right = pads
    if min(pads) < 0:
        grow = [max(0, -p) for p in pads]
        full = np.pad(full, ((0, 0), (0, 0), (grow[0], grow[2]), (grow[1], grow[3])))
    height, width = full.shape[2] - max(0, bottom), full.shape[3] - max(0, right)
    return np.ascontiguousarray(full[:, :, max(0, top) : height, max(0, left) : width])
