"""Max and average pooling; importers are in :mod:`dlcc.ops.pool_onnx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc import numerics
from dlcc.bounds import check_shape
from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.integer import evaluate_mixed, float_dtype
from dlcc.ops.windows import Window

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class _Pool(Op):
    """What both pools share: attributes and shapes."""

    def window(self, node: Node) -> Window:
        """Geometry of a pool node."""
        shape = node.input(0).type.shape
        return Window(
            (shape[2], shape[3]),
            self.get(node, "kernel"),
            self.get(node, "strides"),
            self.get(node, "dilations"),
            self.get(node, "pads"),
        )

    def infer(self, node: Node) -> list[TensorType]:
        """[N,C,H,W] -> [N,C,OH,OW]."""
        x = node.input(0).type
        if x.rank != 4:
            raise type_error(node, "the input must have 4 axes")
        window = self.window(node)
        if why := window.problem():
            raise type_error(node, why)
        check_shape((*x.shape[:2], *window.padded), x.storage.bits / 8, node.loc)
        return [TensorType((*x.shape[:2], *window.output), x.dtype)]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A reduction over the taps, computed on the padded input (:mod:`dlcc.tir.windows`)."""
        from dlcc.tir.pools import emit

        emit(node, ctx, self.window(node))


class MaxPool2d(_Pool):
    """Largest element of each window; padding never wins.

    x [N,C,H,W] -> [N,C,OH,OW]; works on codes as on real numbers.
    """

    name = "max_pool2d"
    attributes: ClassVar[Mapping[str, Any]] = {
        "kernel": ...,
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
    }
    quantised = Quantised.SAME

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """A running maximum over the taps."""
        x = xs[0]
        assert x is not None
        window = self.window(node)
        padded = window.pad(x, lowest(x.dtype))
        out: Array | None = None
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                tap = window.tap(padded, i, j)
                out = tap.copy() if out is None else np.maximum(out, tap, out=out)
        assert out is not None
        return [out]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range."""
        assert xs[0] is not None
        return [xs[0]]


def lowest(dtype: np.dtype[Any]) -> Any:
    """The number that no other number of ``dtype`` is below."""
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return dtype.type(-np.inf)


class AvgPool2d(_Pool):
    """Mean of each window; pads count as zeros only with ``count_include_pad``.

    x f32[N,C,H,W] -> f32[N,C,OH,OW]: sum / count in float32.

    Integer: acc = sum(xq - zx) over the taps inside the input, in int32; then requantise with
    f32(f64(sx) / (f64(sy) * count)) where count belongs to the output position. With a Dense
    output: f32(acc) * f32(f64(sx) / count).
    """

    name = "avg_pool2d"
    attributes: ClassVar[Mapping[str, Any]] = {
        **MaxPool2d.attributes,
        "count_include_pad": False,
    }
    quantised = Quantised.INTEGER

    def counts(self, node: Node) -> Array:
        """int32 [OH, OW]: divisor of each output position (at least 1)."""
        window = self.window(node)
        if self.get(node, "count_include_pad"):
            return np.full(window.output, window.kernel[0] * window.kernel[1], np.int32)
        return np.maximum(window.counts(), 1)

    def _sums(self, node: Node, x: Array, dtype: Any) -> Array:
        window = self.window(node)
        padded = window.pad(x, 0)
        out = np.zeros((*x.shape[:2], *window.output), dtype)
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                out += window.tap(padded, i, j)
        return out

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Sums in float32, divided by the counts."""
        x = xs[0]
        assert x is not None
        dtype = float_dtype(x)
        sums = self._sums(node, x.astype(dtype, copy=False), dtype)
        return [(sums / self.counts(node).astype(dtype)).astype(x.dtype)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Exact sums, one multiplier per output position."""
        x, out = xs[0], node.output.type.encoding
        source = node.input(0).type.encoding
        if not isinstance(source, Affine):
            return evaluate_mixed(self, node, xs)
        assert x is not None
        acc = self._sums(node, x.astype(np.int32) - np.int32(source.zero_point), np.int32)
        mult = mean_multiplier(source, out, self.counts(node))
        if isinstance(out, Affine):
            return [numerics.requantise(acc, mult, out)]
        return [numerics.dequantise(acc, mult)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """A mean lies between its terms."""
        assert xs[0] is not None
        zeros = self.get(node, "count_include_pad") and any(self.get(node, "pads"))
        return [xs[0].union(Interval(0.0, 0.0)) if zeros else xs[0]]


def mean_multiplier(source: Affine, out: object, count: Array | int) -> Array:
    """float32 multiplier of a mean of ``count`` codes: f32(f64(sx) / (f64(sy) * count))."""
    scale = out.scale if isinstance(out, Affine) else 1.0
    return numerics.multiplier(source.scale / (np.float64(scale) * np.asarray(count, np.float64)))
