"""Softmax and its logarithm, and their ONNX importers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Affine, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed, float_dtype
from dlcc.ops.weights import reshape_value

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


TABLE = 16
"""Entries of a factor's table: what one vector permutation of AVX-512 selects from."""


class _SoftmaxLike(Op):
    attributes: ClassVar[Mapping[str, Any]] = {"axis": -1}

    def axis(self, node: Node) -> int:
        """The normalised axis, not negative."""
        rank, axis = node.input(0).type.rank, int(self.get(node, "axis"))
        return axis + rank if axis < 0 else axis

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape and dtype."""
        x = node.input(0).type
        if not 0 <= self.axis(node) < x.rank:
            raise type_error(node, f"axis {self.get(node, 'axis')} does not fit rank {x.rank}")
        return [TensorType(x.shape, x.dtype)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Maximum, sum of exponentials, quotient (:mod:`dlcc.tir.softmax`)."""
        from dlcc.tir.softmax import emit

        emit(node, ctx, self.axis(node))


class Softmax(_SoftmaxLike):
    """exp(x - max) / sum(exp(x - max)) along ``axis``.

    Integer, for codes of up to 8 bits: d = max(xq) - xq selects the int32 e = rint(C[d // 16] *
    F[d % 16]), a float32 product of C[i] = f32(exp(-16 * i * sx) * 2^k) and F[i] = f32(exp(-i *
    sx)), with k such that a row's sum stays below 2^31 (at most 24);
    y = clamp(rint(f32(e) * (f32(1 / sy) / f32(sum))) + zy). With a Dense output sy is 1, and rint,
    zy and clamp fall away.
    """

    name = "softmax"
    quantised = Quantised.INTEGER

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32."""
        x, axis = xs[0], self.axis(node)
        assert x is not None
        wide = x.astype(float_dtype(x), copy=False)
        with np.errstate(invalid="ignore"):  # a row of -inf, all of it masked, has no softmax
            powers = np.exp(wide - wide.max(axis=axis, keepdims=True))
        return [(powers / powers.sum(axis=axis, keepdims=True, dtype=powers.dtype)).astype(x.dtype)]

    def factors(self, node: Node) -> tuple[Array, Array]:
        """C and F, float32: two tables short enough for vector registers."""
        encoding = node.input(0).type.affine
        if encoding.bits > 8 or encoding.axis is not None:
            raise type_error(node, "an integer softmax takes 8-bit codes with one scale")
        low, high = encoding.code_range
        length = node.input(0).type.shape[self.axis(node)]
        bits = min(24, 30 - (length - 1).bit_length())
        steps = np.arange(TABLE) * np.float64(encoding.scale)
        coarse = np.exp(-TABLE * steps[: -(-(high - low + 1) // TABLE)]) * 2.0**bits
        return coarse.astype(np.float32), np.exp(-steps).astype(np.float32)

    def powers(self, node: Node) -> Array:
        """int32 table over d = max - x of the exponentials e."""
        coarse, fine = self.factors(node)
        table: Array = np.rint(coarse[:, None] * fine).astype(np.int32).reshape(-1)
        return table

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Table, integer sum, separate float32 operations."""
        x, axis, out = xs[0], self.axis(node), node.output.type.encoding
        if not isinstance(node.input(0).type.encoding, Affine):
            return evaluate_mixed(self, node, xs)
        assert x is not None
        codes = x.astype(np.int32)
        e = self.powers(node)[codes.max(axis=axis, keepdims=True) - codes]
        total = e.sum(axis=axis, keepdims=True, dtype=np.int32)
        factor = self.factor(out) / total.astype(np.float32)
        y = e.astype(np.float32) * factor
        if not isinstance(out, Affine):
            return [y]
        low, high = out.code_range
        shifted = np.rint(y) + np.float32(out.zero_point)
        codes = np.clip(shifted, np.float32(low), np.float32(high)).astype(np.int32)
        return [codes.astype(node.output.type.storage.numpy)]

    @staticmethod
    def factor(out: object) -> np.float32:
        """f32(1 / sy)."""
        return np.float32(1.0 / np.float64(out.scale)) if isinstance(out, Affine) else np.float32(1)

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Probabilities."""
        return [Interval(0.0, 1.0)]


class LogSoftmax(_SoftmaxLike):
    """x - max - log(sum(exp(x - max))) along ``axis``."""

    name = "log_softmax"

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32."""
        x, axis = xs[0], self.axis(node)
        assert x is not None
        wide = x.astype(float_dtype(x), copy=False)
        shifted = wide - wide.max(axis=axis, keepdims=True)
        total = np.exp(shifted).sum(axis=axis, keepdims=True, dtype=wide.dtype)
        return [(shifted - np.log(total)).astype(x.dtype)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Never positive."""
        assert xs[0] is not None
        length = node.input(0).type.shape[self.axis(node)]
        return [Interval(xs[0].low - xs[0].high - float(np.log(length)), 0.0)]


# -- ONNX --------------------------------------------------------------------------------------


def flattened_softmax(node: OnnxNode, op: str) -> Sequence[Value]:
    """Softmax before opset 13: over all axes from ``axis`` (default 1) on, taken as one."""
    x = node.input(0)
    rank, axis = x.type.rank, int(node.attrs.get("axis", 1))
    first = axis + rank if axis < 0 else axis
    if not 0 <= first <= rank:
        raise Unsupported(f"axis {axis} does not fit rank {rank}")
    shape = x.type.shape
    if all(extent == 1 for extent in shape[first + 1 :]) and first < rank:
        return node.build(op, [x], {"axis": first})
    rows = (prod(shape[:first]), prod(shape[first:]))
    flat = reshape_value(node, x, rows, ".rows")
    (made,) = node.build(op, [flat], {"axis": 1}, suffix=".flat")
    return [reshape_value(node, made, shape, ".shape")]


@onnx_op("Softmax")
def import_softmax_flat(node: OnnxNode) -> Sequence[Value]:
    """Softmax, opset 1 to 12."""
    return flattened_softmax(node, "softmax")


@onnx_op("Softmax", since=13)
def import_softmax(node: OnnxNode) -> Sequence[Value]:
    """Softmax along one axis (default -1)."""
    return node.build("softmax", [node.input(0)], {"axis": int(node.attrs.get("axis", -1))})


@onnx_op("LogSoftmax")
def import_log_softmax_flat(node: OnnxNode) -> Sequence[Value]:
    """LogSoftmax, opset 1 to 12."""
    return flattened_softmax(node, "log_softmax")


@onnx_op("LogSoftmax", since=13)
def import_log_softmax(node: OnnxNode) -> Sequence[Value]:
    """LogSoftmax along one axis (default -1)."""
    return node.build("log_softmax", [node.input(0)], {"axis": int(node.attrs.get("axis", -1))})
