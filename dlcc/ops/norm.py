"""Normalisation: batch, layer, RMS, instance, group, local response, Lp; ONNX importers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed, filled, float_dtype, real_of

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

_WIDEST = 1 << 16
"""Most channels of a window of the local response normalisation."""


class _Normalisation(Op):
    """Same shape and dtype out as in; TIR in :mod:`dlcc.tir.norms`."""

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        x = node.input(0).type
        if not x.rank:
            raise type_error(node, "a scalar cannot be normalised")
        return [TensorType(x.shape, x.dtype)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Statistics as reduction stages, then one elementwise expression."""
        from dlcc.tir.norms import emit

        emit(node, ctx)


class BatchNorm(_Normalisation):
    """Batch normalisation with fixed statistics: (x - mean) / sqrt(var + epsilon) * scale + shift.

    x f32[N,C,...]; scale, shift, mean, var f32[C].
    """

    name = "batch_norm"
    operands = ("x", "scale", "shift", "mean", "var")
    attributes: ClassVar[Mapping[str, Any]] = {"epsilon": 1e-5}

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape; the statistics have one number per channel."""
        x = node.input(0).type
        if x.rank < 2:
            raise type_error(node, "the input needs a channel axis")
        for index in range(1, 5):
            if node.input(index).type.shape != (x.shape[1],):
                raise type_error(node, f"operand {index} must have shape [{x.shape[1]}]")
        return super().infer(node)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """As x * factor + offset with factor and offset computed in float64."""
        x = xs[0]
        assert x is not None
        factor, offset = channel_affine(
            [np.asarray(a, np.float64) for a in xs[1:]], self.get(node, "epsilon")
        )
        dtype = float_dtype(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        out = x * factor.astype(dtype).reshape(shape) + offset.astype(dtype).reshape(shape)
        return [out.astype(x.dtype)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The extreme of all channels, for constant statistics."""
        if xs[0] is None or not all(node.input(i).is_constant for i in range(1, 5)):
            return super().interval(node, xs)
        if not (np.isfinite(xs[0].low) and np.isfinite(xs[0].high)):
            return super().interval(node, xs)
        factor, offset = channel_affine(
            [node.input(i).decoded().astype(np.float64) for i in range(1, 5)],
            self.get(node, "epsilon"),
        )
        ends = np.stack([factor * xs[0].low + offset, factor * xs[0].high + offset])
        return [Interval.of(ends)]


def channel_affine(stats: Sequence[Array], epsilon: float) -> tuple[Array, Array]:
    """float64 (factor, offset) per channel of a batch norm: x * factor + offset.

    Args:
        stats: scale, shift, mean, var.
        epsilon: added to the variance.
    """
    scale, shift, mean, var = stats
    factor = scale / np.sqrt(var + epsilon)
    return factor, shift - mean * factor


def _normalised_axes(node: Node, rank: int, axis: int) -> tuple[int, ...]:
    first = axis + rank if axis < 0 else axis
    if not 0 <= first < rank:
        raise type_error(node, f"axis {axis} does not fit rank {rank}")
    return tuple(range(first, rank))


class _OverTrailingAxes(_Normalisation):
    """Normalisation over the axes from ``axis`` on."""

    def axes(self, node: Node) -> tuple[int, ...]:
        """The normalised axes."""
        return _normalised_axes(node, node.input(0).type.rank, self.get(node, "axis"))

    def infer(self, node: Node) -> list[TensorType]:
        """Scale and bias must broadcast to the operand."""
        x = node.input(0).type
        self.axes(node)
        for value in node.inputs[1:]:
            if value is None:
                continue
            try:
                fits = np.broadcast_shapes(value.type.shape, x.shape) == x.shape
            except ValueError:
                fits = False
            if not fits:
                raise type_error(node, f"{list(value.type.shape)} does not broadcast to the input")
        return super().infer(node)


class LayerNorm(_OverTrailingAxes):
    """Layer normalisation (Ba et al. 2016): (x - mean) / sqrt(var + epsilon) * scale + bias.

    Mean and variance over the axes from ``axis`` on; scale and bias broadcast to x.

    Integer, with D elements per row, q = xq - zx and t = D * q - s1: s1 = sum(q) and s2 = sum(q^2)
    in int32 (so D * 255^2 must stay below 2^31), v = D * s2 - s1^2 exactly (below 2^53);
    r = 1 / sqrt(f32(v) + f32(epsilon * D^2 / sx^2));
    y = clamp(rint((f32(t) * r) * f32(scale / sy) + f32(bias / sy)) + zy), where every operation is
    one IEEE float32 operation. With a Dense output sy is 1, and rint, zy and clamp fall away.
    """

    name = "layer_norm"
    operands = ("x", "scale?", "bias?")
    attributes: ClassVar[Mapping[str, Any]] = {"axis": -1, "epsilon": 1e-5}
    quantised = Quantised.INTEGER

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Two passes: mean, then variance of the differences."""
        x, scale, bias = filled(xs, 3)
        assert x is not None
        dtype, axes = float_dtype(x), self.axes(node)
        wide = x.astype(dtype, copy=False)
        centred = wide - wide.mean(axis=axes, keepdims=True, dtype=dtype)
        var = (centred * centred).mean(axis=axes, keepdims=True, dtype=dtype)
        out = centred / np.sqrt(var + dtype(self.get(node, "epsilon")))
        return [affine_part(out, scale, bias).astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact sums, then separate float32 operations."""
        x, scale, bias = filled(xs, 3)
        source, out = node.input(0).type.encoding, node.output.type.encoding
        if not isinstance(source, Affine):
            return evaluate_mixed(self, node, xs)
        assert x is not None
        axes, depth = self.axes(node), self.depth(node)
        q = x.astype(np.int64) - source.zero_point
        s1 = q.sum(axis=axes, keepdims=True)
        s2 = (q * q).sum(axis=axes, keepdims=True)
        v, t = depth * s2 - s1 * s1, depth * q - s1
        root = np.sqrt(v.astype(np.float32) + self.epsilon_term(node, source))
        r = np.float32(1.0) / root
        sy = out.scale if isinstance(out, Affine) else 1.0
        real = [
            None if a is None else real_of(value, a) if value is not None else a
            for value, a in zip((*node.inputs[1:], None, None), (scale, bias), strict=False)
        ]
        unit = np.ones((), np.float32) if real[0] is None else real[0]
        y = affine_part(t.astype(np.float32) * r, over_scale(unit, sy), over_scale(real[1], sy))
        if not isinstance(out, Affine):
            return [y]
        low, high = out.code_range
        codes = np.clip(np.rint(y) + np.float32(out.zero_point), np.float32(low), np.float32(high))
        return [codes.astype(np.int32).astype(node.output.type.storage.numpy)]

    def depth(self, node: Node) -> int:
        """Elements per row; checked against the int32 sums."""
        depth = prod(node.input(0).type.shape[a] for a in self.axes(node))
        if depth * 255 * 255 >= 1 << 31:
            raise type_error(node, f"integer sums over {depth} elements do not fit int32")
        return depth

    def epsilon_term(self, node: Node, source: Affine) -> np.float32:
        """f32(epsilon * D^2 / sx^2), not below the smallest normal number."""
        scaled = self.get(node, "epsilon") * self.depth(node) ** 2 / np.float64(source.scale) ** 2
        return np.float32(max(scaled, float(np.finfo(np.float32).tiny)))


def over_scale(values: Array | None, scale: float) -> Array | None:
    """f32(f64(values) / scale)."""
    return None if values is None else (values.astype(np.float64) / scale).astype(np.float32)


def affine_part(x: Array, scale: Array | None, bias: Array | None) -> Array:
    """``x * scale + bias``, each where present."""
    if scale is not None:
        x = x * scale.astype(x.dtype)
    return x if bias is None else x + bias.astype(x.dtype)


class RmsNorm(_OverTrailingAxes):
    """RMS normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + epsilon) * scale."""

    name = "rms_norm"
    operands = ("x", "scale?")
    attributes: ClassVar[Mapping[str, Any]] = {"axis": -1, "epsilon": 1e-5}

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32."""
        x, scale = filled(xs, 2)
        assert x is not None
        dtype = float_dtype(x)
        wide = x.astype(dtype, copy=False)
        square = (wide * wide).mean(axis=self.axes(node), keepdims=True, dtype=dtype)
        out = wide / np.sqrt(square + dtype(self.get(node, "epsilon")))
        return [affine_part(out, scale, None).astype(x.dtype)]


class GroupNorm(_Normalisation):
    """Group normalisation (Wu and He 2018) of x f32[N,C,...] in ``groups`` groups of channels.

    Scale and bias are f32[C]. Instance normalisation is the case of one channel per group.
    """

    name = "group_norm"
    operands = ("x", "scale?", "bias?")
    attributes: ClassVar[Mapping[str, Any]] = {"groups": ..., "epsilon": 1e-5}

    def infer(self, node: Node) -> list[TensorType]:
        """Channels must divide into the groups."""
        x, groups = node.input(0).type, self.groups(node)
        if x.rank < 2 or groups < 1 or x.shape[1] % groups:
            raise type_error(node, f"{groups} groups do not divide the channels")
        for value in node.inputs[1:]:
            if value is not None and value.type.shape != (x.shape[1],):
                raise type_error(node, f"scale and bias must have shape [{x.shape[1]}]")
        return super().infer(node)

    def groups(self, node: Node) -> int:
        """Number of groups."""
        return int(self.get(node, "groups"))

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Mean and variance per sample and group, in float32."""
        x, scale, bias = filled(xs, 3)
        assert x is not None
        dtype = float_dtype(x)
        rows = x.astype(dtype, copy=False).reshape(x.shape[0], self.groups(node), -1)
        centred = rows - rows.mean(axis=2, keepdims=True, dtype=dtype)
        var = (centred * centred).mean(axis=2, keepdims=True, dtype=dtype)
        out = (centred / np.sqrt(var + dtype(self.get(node, "epsilon")))).reshape(x.shape)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        parts = [None if a is None else a.reshape(shape) for a in (scale, bias)]
        return [affine_part(out, *parts).astype(x.dtype)]


class InstanceNorm(GroupNorm):
    """Instance normalisation (Ulyanov et al. 2016): every channel of every sample by itself."""

    name = "instance_norm"
    attributes: ClassVar[Mapping[str, Any]] = {"epsilon": 1e-5}

    def groups(self, node: Node) -> int:
        """One per channel."""
        return node.input(0).type.shape[1]


class Lrn(_Normalisation):
    """Local response normalisation across channels (Krizhevsky et al. 2012).

    x / (bias + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta.
    """

    name = "lrn"
    attributes: ClassVar[Mapping[str, Any]] = {
        "size": ...,
        "alpha": 1e-4,
        "beta": 0.75,
        "bias": 1.0,
    }

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape; axis 1 are the channels."""
        if node.input(0).type.rank < 2:
            raise type_error(node, "the input needs a channel axis")
        if not 1 <= self.get(node, "size") <= _WIDEST:
            size = self.get(node, "size")
            raise type_error(node, f"a window of {size} channels; 1 to {_WIDEST} can be")
        return super().infer(node)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32."""
        x = xs[0]
        assert x is not None
        dtype, size = float_dtype(x), int(self.get(node, "size"))
        square = x.astype(dtype) ** 2
        total = np.zeros_like(square)
        channels, before = x.shape[1], (size - 1) // 2
        for offset in range(max(-before, 1 - channels), min(size - before, channels)):
            low, high = max(0, -offset), min(channels, channels - offset)
            if low < high:
                total[:, low:high] += square[:, low + offset : high + offset]
        alpha, beta = self.get(node, "alpha") / size, self.get(node, "beta")
        base = dtype(self.get(node, "bias")) + dtype(alpha) * total
        return [(x / base ** dtype(beta)).astype(x.dtype)]


class LpNorm(_Normalisation):
    """x divided by its L1 or L2 norm along ``axis``; a zero row stays zero."""

    name = "lp_norm"
    attributes: ClassVar[Mapping[str, Any]] = {"axis": -1, "p": 2}

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        _normalised_axes(node, node.input(0).type.rank, self.get(node, "axis"))
        if self.get(node, "p") not in (1, 2):
            raise type_error(node, f"p is {self.get(node, 'p')}, there are the norms 1 and 2")
        return super().infer(node)

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32."""
        x, axis = xs[0], self.get(node, "axis")
        assert x is not None
        if self.get(node, "p") == 1:
            norm = np.abs(x).sum(axis=axis, keepdims=True, dtype=x.dtype)
        else:
            norm = np.sqrt((x * x).sum(axis=axis, keepdims=True, dtype=x.dtype))
        return [(x / np.where(norm == 0, 1, norm)).astype(x.dtype)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """A component is never larger than the norm."""
        return [Interval(-1.0, 1.0)]


# -- ONNX --------------------------------------------------------------------------------------


@onnx_op("BatchNormalization")
def import_batch_norm(node: OnnxNode) -> Sequence[Value]:
    """BatchNormalization; in training mode by the batch's own statistics."""
    if not node.attrs.get("spatial", 1):
        raise Unsupported("spatial=0")
    if node.attrs.get("training_mode", 0):
        from dlcc.ops.batch_statistics import normalised

        return normalised(node)
    operands = [node.input(i) for i in range(5)]
    return node.build("batch_norm", operands, {"epsilon": node.attrs.get("epsilon", 1e-5)})


@onnx_op("LayerNormalization", since=17)
@onnx_op("LayerNormalization", since=1, domain="com.microsoft")
def import_layer_norm(node: OnnxNode) -> Sequence[Value]:
    """LayerNormalization; the mean and inverse deviation are made where they are asked for."""
    operands = [node.input(0), node.optional(1), node.optional(2)]
    attrs: dict[str, Any] = {
        "axis": int(node.attrs.get("axis", -1)),
        "epsilon": node.attrs.get("epsilon", 1e-5),
    }
    made = node.build("layer_norm", operands, attrs)
    return made if node.output_count == 1 else [*made, *_row_statistics(node, attrs)]


def _row_statistics(node: OnnxNode, attrs: Mapping[str, Any]) -> list[Value]:
    """Mean and 1 / sqrt(variance + epsilon) of a layer norm's rows."""
    x, graph = node.input(0), node.graph
    rank = x.type.rank
    over = {"axes": tuple(range(attrs["axis"] % rank, rank))}
    (mean,) = node.build("reduce_mean", [x], over, suffix=".mean")
    (centred,) = node.build("sub", [x, mean], suffix=".centred")
    (square,) = node.build("mul", [centred, centred], suffix=".square")
    (var,) = node.build("reduce_mean", [square], over, suffix=".var")
    epsilon = graph.add_constant(np.asarray(attrs["epsilon"], x.type.dtype.numpy), name="epsilon")
    (shifted,) = node.build("add", [var, epsilon], suffix=".shifted")
    (deviation,) = node.build("sqrt", [shifted], suffix=".deviation")
    return [mean, *node.build("reciprocal", [deviation], suffix=".inverse")]


@onnx_op("RMSNormalization", since=23)
@onnx_op("SimplifiedLayerNormalization", since=1)
@onnx_op("SimplifiedLayerNormalization", since=1, domain="com.microsoft")
def import_rms_norm(node: OnnxNode) -> Sequence[Value]:
    """RMSNormalization and ONNX Runtime's older spelling of it."""
    attrs = {
        "axis": int(node.attrs.get("axis", -1)),
        "epsilon": node.attrs.get("epsilon", 1e-5),
    }
    return node.build("rms_norm", [node.input(0), node.optional(1)], attrs)


@onnx_op("InstanceNormalization")
def import_instance_norm(node: OnnxNode) -> Sequence[Value]:
    """InstanceNormalization."""
    operands = [node.input(0), node.input(1), node.input(2)]
    return node.build("instance_norm", operands, {"epsilon": node.attrs.get("epsilon", 1e-5)})


@onnx_op("GroupNormalization", since=18)
def import_group_norm(node: OnnxNode) -> Sequence[Value]:
    """GroupNormalization; opset 18 has one scale per group, 21 one per channel."""
    x, groups = node.input(0), int(node.attrs["num_groups"])
    operands: list[Value | None] = [x]
    for index in (1, 2):
        value = node.input(index)
        if value.type.shape == (x.type.shape[1],):
            operands.append(value)
            continue
        array = np.repeat(node.constant(index, "scale and bias"), x.type.shape[1] // groups)
        operands.append(node.graph.add_constant(array, name=value.name))
    attrs = {"groups": groups, "epsilon": node.attrs.get("epsilon", 1e-5)}
    return node.build("group_norm", operands, attrs)


@onnx_op("LRN")
def import_lrn(node: OnnxNode) -> Sequence[Value]:
    """LRN."""
    attrs = {
        "size": int(node.attrs["size"]),
        "alpha": node.attrs.get("alpha", 1e-4),
        "beta": node.attrs.get("beta", 0.75),
        "bias": node.attrs.get("bias", 1.0),
    }
    return node.build("lrn", [node.input(0)], attrs)


@onnx_op("LpNormalization")
def import_lp_norm(node: OnnxNode) -> Sequence[Value]:
    """LpNormalization."""
    attrs = {"axis": int(node.attrs.get("axis", -1)), "p": int(node.attrs.get("p", 2))}
    return node.build("lp_norm", [node.input(0)], attrs)
