"""MatMulInteger and ConvInteger: int32 sums of products of codes, exact modulo 2^32.

Integer layers give float32 numbers here, whose integers are exact below 2^24. So a sum is split
along its products where the weights allow it to grow larger: every part is a layer whose results
are proven to stay below 2^24, and the parts are added in int32. Zero points that no layer takes
(known only at run time, or of weights that do not fit int8 without them) are taken off by

    sum((x - zx) * (w - zw)) = sum(x * w) - zx * sum(w) - zw * sum(x - zx)

with sums over what lies inside the input alone: padding stands for zx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I32, Affine, Value
from dlcc.ir.encodings import DENSE, Array
from dlcc.ops.cast import cast_to
from dlcc.ops.linear import build_matmul
from dlcc.ops.movement import sliced
from dlcc.ops.qlinear import Weight, centred_integers, convolution, late_convolution, typed
from dlcc.ops.quant import as_codes, code_dtype, known_array
from dlcc.ops.weights import reshape_value

_EXACT = 1 << 24
"""Integers of a smaller magnitude are float32 numbers, and so are sums of them."""

Inside = Callable[[OnnxNode, Array], Value]
"""Sums over what lies inside the input: node, weights summed over channels -> int32."""

Layer = Callable[[OnnxNode, Value, Array], Value]
"""A layer without a bias: node, codes of x, int8 weights -> float32 numbers."""


@dataclass(frozen=True)
class _Products:
    """The sums of products of a node, whose weights are known.

    Attributes:
        node: the node.
        x: its codes, whose known zero point is that of their encoding.
        late: the zero point where no encoding holds it, int32 that broadcasts to the result.
        layer: what sums.
        inside: sums of weights by which a late zero point is multiplied.
        axis: the axis of x that is summed over. Weights are [outputs, summed, ...].
        splits: whether parts of that axis can be summed by themselves.
    """

    node: OnnxNode
    x: Value
    late: Value | None
    layer: Layer
    inside: Inside
    axis: int
    splits: bool

    def int32(self, op: str, a: Value, b: Value, part: str) -> Value:
        """One int32 operation, folded where both are known."""
        start = len(self.node.graph.nodes)
        return fold_nodes(self.node.graph, start, self.node.build(op, [a, b], suffix=part))[0]

    def parts(self, weight: Array) -> list[tuple[int, int]]:
        """Runs of the summed axis whose sums stay below 2^24, whatever the codes.

        Raises:
            Unsupported: one step of it can exceed that, or it cannot be split.
        """
        low, high = self.x.type.affine.code_range
        zero = self.x.type.affine.zero_point
        largest = max(high - zero, zero - low)
        steps = np.abs(weight.astype(np.int64)).reshape(*weight.shape[:2], -1).sum(axis=2) * largest
        totals, start, runs = np.cumsum(steps, axis=1), 0, []
        while start < steps.shape[1]:
            before = totals[:, start] - steps[:, start]
            peaks = (totals[:, start:] - before[:, None]).max(axis=0, initial=0)
            end = start + int(np.searchsorted(peaks, _EXACT))
            if end == start:
                raise Unsupported("one input channel alone sums to 2^24 and more")
            runs.append((start, end))
            start = end
        if len(runs) > 1 and not self.splits:
            raise Unsupported("a group's channels sum to 2^24 and more")
        return runs

    def sum(self, weight: Array, part: str = "") -> Value:
        """int32 sums of (x - zx) * weight."""
        total = self._bare(self.x, weight, part)
        if self.late is None:
            return total
        inside = self.inside(self.node, weight.sum(axis=1))
        offset = self.int32("mul", self.late, inside, f"{part}.offset")
        return self.int32("sub", total, offset, f"{part}.centred")

    def _bare(self, x: Value, weight: Array, part: str) -> Value:
        total: Value | None = None
        runs = self.parts(weight)
        for index, (start, end) in enumerate(runs):
            first, whole = len(self.node.graph.nodes), len(runs) == 1
            name = part if whole else f"{part}.part{index}"
            span = [start], [end], [self.axis], [1]
            cut = x if whole else sliced(self.node, x, *span, f"{name}.codes")
            view = replace(self.node, name=f"{self.node.name}{name}.product")
            real = self.layer(view, cut, weight[:, start:end])
            made = cast_to(self.node, real, I32, f"{name}.int32")
            (made,) = fold_nodes(self.node.graph, first, [made])
            total = made if total is None else self.int32("add", total, made, f"{name}.sum")
        assert total is not None
        return total


def _constant(node: OnnxNode, values: Array) -> Value:
    """An int32 constant, modulo 2^32."""
    return node.graph.add_constant(values.astype(np.int64).astype(np.int32), name="sums")


# -- operands ----------------------------------------------------------------------------------


def _coded(node: OnnxNode) -> tuple[Value, Value | None]:
    """Codes of operand 0 under scale 1, and the zero point where their encoding has it not."""
    x, zero = node.input(0), node.optional(2)
    known = 0
    if zero is not None and zero.is_constant and zero.type.elements == 1:
        known, zero = int(zero.stored().reshape(-1)[0]), None
    codes = code_dtype(x)
    if codes.itemsize != 1:
        raise Unsupported(f"codes of type {codes}")
    unit = Affine.per_tensor(8, codes.kind == "i", 1.0, known)
    return as_codes(node, x, unit, ".codes"), zero


def _weight(node: OnnxNode, axis: int) -> tuple[Array, Array]:
    """int8 codes of operand 1, and what is left of its zero points: int64, one per ``axis``."""
    codes = known_array(node, 1, "the weight").astype(np.int64)
    if codes.size and (codes.min() < -128 or codes.max() > 255):
        raise Unsupported("weights of more than 8 bits")
    zeros = np.zeros(1, np.int64)
    if node.optional(3) is not None:
        zeros = known_array(node, 3, "the weight's zero point").astype(np.int64).reshape(-1)
    extent = codes.shape[axis]
    if zeros.size not in (1, extent):
        raise Unsupported(f"{zeros.size} zero points for {extent} outputs")
    zeros = np.broadcast_to(zeros, (extent,))
    shape = [1] * codes.ndim
    shape[axis] = -1
    centred = codes - zeros.reshape(shape)
    if centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127:
        return centred, np.zeros(extent, np.int64)
    middle = 128 if codes.max(initial=0) > 127 else 0
    return codes - middle, zeros - middle


def _unit_weight(codes: Array) -> Weight:
    return Weight(codes.astype(np.int32), np.ones(codes.shape[0], np.float32), 0)


def _late(node: OnnxNode) -> bool:
    """Whether the weight or its zero point is only known at run time."""
    zero = node.optional(3)
    return not node.input(1).is_constant or (zero is not None and not zero.is_constant)


# -- importers ---------------------------------------------------------------------------------


def _product(node: OnnxNode, x: Value, weight: Array) -> Value:
    return typed(node, "linear", [x, _unit_weight(weight).value(node, "weight")], {}, DENSE)


@onnx_op("MatMulInteger", since=10)
def import_matmul_integer(node: OnnxNode) -> Sequence[Value]:
    """MatMulInteger: layers of codes where B is a known matrix, else a product of int32."""
    rows = node.optional(2)
    matrix = node.input(1).type.rank == 2 and not _late(node)
    if not matrix or not node.input(0).type.rank or not node.input(1).type.elements:
        view = replace(node, name=node.name + ".product")
        a = centred_integers(node, 0, 2, -2 if rows is not None and rows.type.rank == 1 else None)
        zero = node.optional(3)
        b = centred_integers(node, 1, 3, -1 if zero is not None and zero.type.rank == 1 else None)
        return build_matmul(view, a, b)
    x, late = _coded(node)
    if late is not None:
        late = cast_to(node, late, I32, ".zero")
        if late.type.rank == 1:  # one for every row
            count = late.type.elements
            late = reshape_value(node, late, (count, 1) if count > 1 else (), ".zeros")
    weight, zeros = (v.T for v in _weight(node, 1))
    products = _Products(node, x, late, _product, _constant, x.type.rank - 1, splits=True)
    total = products.sum(weight)
    if not zeros.any():
        return [total]
    sums = products.sum(np.ones((1, weight.shape[1]), np.int64), ".row")
    offset = products.int32("mul", sums, _constant(node, zeros), ".row.offset")
    return [products.int32("sub", total, offset, ".all")]


def _convolved(node: OnnxNode, x: Value, weight: Array) -> Value:
    return convolution(node, x, _unit_weight(weight), None, DENSE)


def _windows(node: OnnxNode, weight: Array) -> Value:
    """[1,O,...]: the sums of those taps of weights [O,...] that lie inside the image."""
    start, size = len(node.graph.nodes), node.input(0).type.shape[2:]
    ones = _constant(node, np.ones((1, 1, *size)))
    attrs = {**node.attrs, "group": 1}
    operands = (ones, _constant(node, weight[:, None]))
    view = replace(node, name=node.name + ".inside", inputs=operands, attrs=attrs)
    return fold_nodes(node.graph, start, [late_convolution(view, 0, 1, (2, 3), None)])[0]


@onnx_op("ConvInteger", since=10)
def import_conv_integer(node: OnnxNode) -> Sequence[Value]:
    """ConvInteger: layers of codes where the weight is known, else products of int32 windows."""
    groups = int(node.attrs.get("group", 1))
    if _late(node) or not node.input(1).type.elements or not node.input(0).type.elements:
        return [late_convolution(node, 0, 1, (2, 3), None)]
    x, late = _coded(node)
    late = None if late is None else cast_to(node, late, I32, ".zero")
    if late is not None:
        late = reshape_value(node, late, (), ".zeros")
    weight, zeros = _weight(node, 0)
    products = _Products(node, x, late, _convolved, _windows, 1, splits=groups == 1)
    try:
        total = products.sum(weight)
    except Unsupported:
        return [late_convolution(node, 0, 1, (2, 3), None)]
    if not zeros.any():
        return [total]
    ones = np.ones((groups, *weight.shape[1:]), np.int64)
    return [_without_zeros(products, total, products.sum(ones, ".window"), zeros)]


def _without_zeros(products: _Products, total: Value, sums: Value, zeros: Array) -> Value:
    """``total`` minus the windows' sums of each group [N,G,...] times zero points of outputs."""
    node, shape = products.node, total.type.shape
    groups = sums.type.shape[1]
    windows = reshape_value(node, sums, (shape[0], groups, 1, *shape[2:]), ".window.groups")
    factors = zeros.reshape(groups, -1, *(1,) * (len(shape) - 2))
    offset = products.int32("mul", windows, _constant(node, factors), ".window.offset")
    flat = reshape_value(node, offset, shape, ".window.flat")
    return products.int32("sub", total, flat, ".all")


__all__ = ["import_conv_integer", "import_matmul_integer"]
