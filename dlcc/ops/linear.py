"""Fully connected layers and matrix products, and their ONNX importers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.conv import (
    add_bias,
    check_bias,
    check_integer,
    check_residual,
    clamp,
    clamp_interval,
    layer_interval,
)
from dlcc.ops.integer import (
    affine_of,
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
from dlcc.ops.weights import as_weight, known, reshape_value, transposed

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

_INF = float("inf")
_CLAMP: Mapping[str, Any] = {"act_min": -_INF, "act_max": _INF}


class Linear(Op):
    """Fully connected layer: y = clamp(x @ weight.T + bias + residual, act_min, act_max).

    x f32[...,K], weight f32[N,K], bias f32[N] -> f32[...,N].

    Integer: as conv2d, one weight scale per output feature.
    """

    name = "linear"
    operands = ("x", "weight", "bias?", "residual?")
    attributes = _CLAMP
    quantised = Quantised.INTEGER
    multiplied = (0, 1)

    def infer(self, node: Node) -> list[TensorType]:
        """[...,K], [N,K] -> [...,N]."""
        x, weight = node.input(0).type, node.input(1).type
        if x.rank < 1 or weight.rank != 2 or x.shape[-1] != weight.shape[1]:
            raise type_error(node, "the input's last axis must be as long as the weight's second")
        shape = (*x.shape[:-1], weight.shape[0])
        check_bias(node, weight.shape[0])
        check_residual(node, shape)
        return [TensorType(shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """One GEMM in float32 (float64 for float64 operands)."""
        x, weight, bias, residual = filled(xs, 4)
        assert x is not None
        assert weight is not None
        dtype = float_dtype(x, weight)
        rows = x.astype(dtype, copy=False).reshape(-1, x.shape[-1])
        out = (rows @ weight.astype(dtype, copy=False).T).reshape(*x.shape[:-1], -1)
        if bias is not None:
            out = out + bias.astype(dtype)
        if residual is not None:
            out = out + residual.astype(dtype)
        return [clamp(out, self.get(node, "act_min"), self.get(node, "act_max")).astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact integer sums."""
        x, weight, bias, residual = filled(xs, 4)
        xe, we = affine_of(node.input(0)), affine_of(node.input(1))
        if xe is None or we is None:
            return evaluate_mixed(self, node, xs)
        assert x is not None
        assert weight is not None
        check_integer(node, xe, we, 0)
        codes = codes_of(node.input(1), weight)
        acc = integer_product(codes_of(node.input(0), x), xe.zero_point, codes.T, 0)
        scales = xe.scale * weight_scales(we, codes.shape[0])
        limits = self.get(node, "act_min"), self.get(node, "act_max")
        if node.input(0).type.is_binary:
            return [finish_binary(node, acc, scales, bias, residual, *limits)]
        sums = add_bias(acc, bias, (-1,))
        extra = None if residual is None else (node.input(3), residual)
        return [finish(node, sums, scales, extra, *limits)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Exact per output feature for a constant weight."""
        return [layer_interval(self, node, xs, padded=False)]

    def macs(self, node: Node) -> int:
        """Outputs times K."""
        return int(node.output.type.elements * node.input(1).type.shape[1])


def integer_product(a: Array, za: int, b: Array, zb: int) -> Array:
    """(a - za) @ (b - zb) as int32 modulo 2^32, with numpy's broadcasting.

    Runs through float BLAS where the sums are exact in it (else in float64, exact below 2^53).
    """
    largest_a, largest_b = magnitude(a) + abs(za), magnitude(b) + abs(zb)
    dtype = exact_dtype(max(largest_a * largest_b * a.shape[-1], largest_a, largest_b))
    product = np.matmul(a.astype(dtype) - dtype(za), b.astype(dtype) - dtype(zb))
    return to_int32(np.asarray(product))


class MatMul(Op):
    """Product of two activations with numpy's broadcasting of leading axes.

    a f32[...,M,K], b f32[...,K,N] (or [...,N,K] with transpose_b) -> f32[...,M,N], plus a residual
    of that shape, clamped to [act_min, act_max].

    Integer: acc = sum((aq - za) * (bq - zb)) in int32; one multiplier f32(sa * sb / sy).
    """

    name = "matmul"
    operands = ("a", "b", "residual?")
    attributes: ClassVar[Mapping[str, Any]] = {"transpose_b": False, **_CLAMP}
    quantised = Quantised.INTEGER
    multiplied = (0, 1)

    def infer(self, node: Node) -> list[TensorType]:
        """[...,M,K], [...,K,N] -> [...,M,N]."""
        a, b = node.input(0).type, node.input(1).type
        if a.rank < 2 or b.rank < 2:
            raise type_error(node, "both operands need at least 2 axes")
        inner, outer = (-1, -2) if self.get(node, "transpose_b") else (-2, -1)
        if a.shape[-1] != b.shape[inner]:
            raise type_error(node, f"inner extents {a.shape[-1]} and {b.shape[inner]} differ")
        try:
            lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise type_error(node, "the leading axes cannot be broadcast") from None
        shape = (*lead, a.shape[-2], b.shape[outer])
        check_residual(node, shape, 2)
        return [TensorType(shape, a.dtype)]

    def _right(self, node: Node, b: Array) -> Array:
        return b.swapaxes(-1, -2) if self.get(node, "transpose_b") else b

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """BLAS in float32 (float64 for float64 operands); integers exactly."""
        a, b, residual = filled(xs, 3)
        assert a is not None
        assert b is not None
        dtype = float_dtype(a, b)
        if a.dtype.kind in "iu":  # numpy's integer products wrap, as the compiled ones do
            dtype = a.dtype
        right = self._right(node, b).astype(dtype, copy=False)
        out = np.matmul(a.astype(dtype, copy=False), right)
        if residual is not None:
            out = out + residual.astype(dtype, copy=False)
        bounded = clamp(out, self.get(node, "act_min"), self.get(node, "act_max"))
        return [bounded.astype(a.dtype, copy=False)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact integer sums, one multiplier."""
        a, b, residual = filled(xs, 3)
        ae, be = affine_of(node.input(0)), affine_of(node.input(1))
        if ae is None or be is None:
            return evaluate_mixed(self, node, xs)
        if ae.axis is not None or be.axis is not None:
            raise type_error(node, "an integer matmul needs one scale for each operand")
        assert a is not None
        assert b is not None
        right = self._right(node, codes_of(node.input(1), b))
        acc = integer_product(a, ae.zero_point, right, be.zero_point)
        scale = np.asarray(np.float64(ae.scale) * be.scale)
        extra = None if residual is None else (node.input(2), residual)
        return [
            finish(node, acc, scale, extra, self.get(node, "act_min"), self.get(node, "act_max"))
        ]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """K times the extreme products."""
        a, b = xs[0], xs[1]
        assert a is not None
        assert b is not None
        corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        if not np.all(np.isfinite(corners)):
            return [Interval(-_INF, _INF)]
        depth = node.input(0).type.shape[-1]
        low, high = min(corners) * depth, max(corners) * depth
        residual = xs[2] if len(xs) > 2 else None
        if residual is not None:
            low, high = low + residual.low, high + residual.high
        limits = self.get(node, "act_min"), self.get(node, "act_max")
        return [clamp_interval(Interval(low, high), *limits)]

    def macs(self, node: Node) -> int:
        """Outputs times K."""
        return int(node.output.type.elements * node.input(0).type.shape[-1])

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Plain sums (:mod:`dlcc.tir.products`): for shapes that no matmul kernel serves."""
        from dlcc.tir.products import emit

        limits = float(self.get(node, "act_min")), float(self.get(node, "act_max"))
        emit(node, ctx, bool(self.get(node, "transpose_b")), limits)


# -- ONNX --------------------------------------------------------------------------------------


def _scaled(node: OnnxNode, value: Value, factor: float, suffix: str) -> Value:
    """``value * factor``; folded where the value is a plain constant."""
    if factor == 1.0:
        return value
    kind = value.type.dtype.numpy.type
    if value.is_constant and value.type.is_dense:
        return node.graph.add_constant(
            np.asarray(value.decoded() * kind(factor), value.type.dtype.numpy), name=value.name
        )
    scalar = node.graph.add_constant(np.asarray(factor, value.type.dtype.numpy), name="factor")
    return node.build("mul", [value, scalar], suffix=suffix)[0]


@onnx_op("Gemm")
def import_gemm(node: OnnxNode) -> Sequence[Value]:
    """Gemm: a linear layer where B is known, else a matmul; alpha and beta are folded."""
    a, b = node.input(0), as_weight(node.graph, node.input(1), node.name)
    if node.attrs.get("transA", 0):
        (a,) = node.build("transpose", [a], {"perm": (1, 0)}, suffix=".a")
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    trans_b = bool(node.attrs.get("transB", 0))
    bias = node.optional(2)
    if bias is not None:
        bias = _scaled(node, bias, beta, ".beta")
    if not known(b) or a.type.dtype != F32:
        return _gemm_matmul(node, a, b, trans_b, alpha, bias)
    weight = b if trans_b else transposed(node.graph, b, (1, 0), node.name)
    if alpha != 1.0:
        weight = _scaled(node, weight, alpha, ".alpha")
    outputs = weight.type.shape[0]
    vector = None if bias is None else _bias_vector(node, bias, outputs)
    if bias is None or vector is not None:
        return node.build("linear", [a, weight, vector])
    (product,) = node.build("linear", [a, weight], suffix=".product")
    return node.build("add", [product, bias])


def _gemm_matmul(
    node: OnnxNode, a: Value, b: Value, trans_b: bool, alpha: float, bias: Value | None
) -> Sequence[Value]:
    a = _scaled(node, a, alpha, ".alpha")
    if bias is None:
        return node.build("matmul", [a, b], {"transpose_b": trans_b})
    (product,) = node.build("matmul", [a, b], {"transpose_b": trans_b}, suffix=".product")
    return node.build("add", [product, bias])


def _bias_vector(node: OnnxNode, bias: Value, outputs: int) -> Value | None:
    """C of a Gemm as a vector of one number per output, or None where it depends on the row."""
    shape = bias.type.shape
    if any(extent != 1 for extent in shape[:-1]) or (shape and shape[-1] not in (1, outputs)):
        return None
    if shape == (outputs,):
        return bias
    if bias.is_constant and bias.type.is_dense:
        array = np.ascontiguousarray(np.broadcast_to(bias.decoded().reshape(-1), (outputs,)))
        return node.graph.add_constant(array, name=bias.name)
    if shape and shape[-1] == outputs:
        return reshape_value(node, bias, (outputs,), ".bias")
    return None


@onnx_op("MatMul")
def import_matmul(node: OnnxNode) -> Sequence[Value]:
    """MatMul: a linear layer where B is a known matrix; vectors get an axis and lose it again."""
    return build_matmul(node, node.input(0), as_weight(node.graph, node.input(1), node.name))


def build_matmul(node: OnnxNode, a: Value, b: Value) -> Sequence[Value]:
    """Numpy's ``matmul`` of any ranks, as ``linear`` where ``b`` is a known matrix of float32."""
    if not a.type.rank or not b.type.rank:
        raise Unsupported("MatMul of a scalar")
    if known(b) and b.type.rank == 2 and a.type.dtype == F32:
        return node.build("linear", [a, transposed(node.graph, b, (1, 0), node.name)])
    if a.type.rank >= 2 and b.type.rank >= 2:
        return node.build("matmul", [a, b])
    left = a if a.type.rank >= 2 else reshape_value(node, a, (1, *a.type.shape), ".a")
    right = b if b.type.rank >= 2 else reshape_value(node, b, (*b.type.shape, 1), ".b")
    (product,) = node.build("matmul", [left, right], suffix=".product")
    shape = list(product.type.shape)
    if a.type.rank < 2:
        del shape[-2]
    if b.type.rank < 2:
        del shape[-1]
    return [reshape_value(node, product, tuple(shape), "")]
