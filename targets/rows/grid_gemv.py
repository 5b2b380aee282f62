"""Rows of linear layers of few rows on a GPU: dense weights, and weights that stay packed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Binary, Codebook, Grouped, Node, Ternary, Value
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from targets.kernels.grid_gemv import (
    Form,
    Weights,
    gemv_cost,
    gemv_refusal,
    grid_gemv,
    split_planes,
)
from targets.kernels.grid_gemv_code import Plane
from targets.kernels.packed_bits import Codes
from targets.rows import layers
from targets.rows.grid import MachineRow

MOST_BITS = 8
"""Bits of an index into a table."""


class GridGemvRow(MachineRow):
    """Linear layers of up to 8 rows, and convolutions of as many pixels, by dense weights."""

    name: ClassVar[str] = "grid-gemv"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, windows, groups, more rows."""
        why = layers.refusal(node)
        spec = None if why else layers.conv_spec(node)
        return why if spec is None else gemv_refusal(spec, Form.dense(spec.in_dtype))

    def cost(self, node: Node) -> float:
        """Bytes of the weights, mostly."""
        spec = layers.conv_spec(node)
        return gemv_cost(spec, Form.dense(spec.in_dtype), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of the input where its rows do not fill 16 bytes, then the product."""
        made, spec = layers.layer_constants(node), layers.conv_spec(node)
        matrix = made.weights.reshape(spec.oc, spec.c)
        sums = matrix.astype(np.int64).sum(axis=1) if spec.in_dtype == "u8" else None
        weights = Weights(Form.dense(spec.in_dtype), (matrix,), sums=sums)
        return grid_gemv(spec, weights, made.bias, made.multiplier, made.ratio, self.machine)


class GridPackedGemvRow(GridGemvRow):
    """The same layers by weights of a few bits, which are unpacked in registers."""

    name: ClassVar[str] = "grid-packed-gemv"
    encodings: ClassVar[tuple[str, ...]] = (
        Affine.name,
        Ternary.name,
        Binary.name,
        Codebook.name,
        Grouped.name,
    )

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes, where activations do, too."""
        if not super().serves(node):
            return False
        quantised = isinstance(node.input(0).type.encoding, Affine)
        return not quantised or layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, wide codes, scales of columns, windows, more rows."""
        why = layers.refusal(node) or _encoding_refusal(node)
        return why or gemv_refusal(layers.conv_spec(node), _form(node))

    def cost(self, node: Node) -> float:
        """Bytes of the packed weights, and unpacking them."""
        return gemv_cost(layers.conv_spec(node), _form(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of the input where its rows do not fill 16 bytes, then the product."""
        spec = layers.conv_spec(node)
        if spec.in_dtype != "u8":
            weights, bias = _real_weights(node), layers.float_bias(node)
            return grid_gemv(spec, weights, bias, None, None, self.machine)
        made, codes = layers.layer_constants(node), layers.narrow_codes(node)
        matrix = made.weights.reshape(spec.oc, spec.c)
        planes = split_planes(codes.unsigned(matrix), codes)
        sums = matrix.astype(np.int64).sum(axis=1)
        weights = Weights(Form.codes(codes), planes, sums=sums)
        return grid_gemv(spec, weights, made.bias, made.multiplier, made.ratio, self.machine)


def _encoding_refusal(node: Node) -> str:
    """Why weights cannot be unpacked; "" if they can."""
    encoding = node.input(1).type.encoding
    bits = getattr(encoding, "bits", 1)
    if bits > MOST_BITS:
        return f"codes of {bits} bits; up to {MOST_BITS} are unpacked"
    if getattr(encoding, "axis", None) not in (None, 0):
        return "the scales belong to columns"
    if isinstance(encoding, Affine) and len(set(encoding.zero_points)) > 1:
        return "the outputs' zero points differ"
    return ""


def _form(node: Node) -> Form:
    """What :func:`_real_weights`, or the codes of an integer layer, are like."""
    encoding = node.input(1).type.encoding
    if isinstance(node.input(0).type.encoding, Affine):
        return Form.codes(layers.narrow_codes(node))
    if isinstance(encoding, Codebook):
        width = 1 << (encoding.bits - 1).bit_length()
        return Form("table", (Plane(width),), entries=1 << width)
    if isinstance(encoding, Grouped):
        return _narrow(Codes.signed(encoding.bits), 0, encoding.group)
    if isinstance(encoding, Ternary) and encoding.positive != encoding.negative:
        return Form("codes", (Plane(1), Plane(1, 0, -1, 1)), factors=2)
    if isinstance(encoding, Ternary):
        return _narrow(Codes.signed(2), 1)
    if isinstance(encoding, Binary):
        return _narrow(Codes(1, 1, -2), 1)
    assert isinstance(encoding, Affine)
    low = encoding.code_range[0] - int(encoding.narrow)
    return _narrow(Codes(encoding.bits, low - encoding.zero_points[0]), 1)


def _narrow(codes: Codes, factors: int, group: int = 0) -> Form:
    """Planes; codes of 8 bits are one."""
    if codes.bits < 8:
        return Form.codes(codes, factors, group)
    return Form("codes", (Plane(8, codes.base),), factors=factors, group=group)


def _factors(weight: Value, *scales: tuple[float, ...]) -> Array:
    shape = (len(scales), weight.type.shape[0])
    return np.broadcast_to(np.asarray(scales, np.float32), shape)


def _real_weights(node: Node) -> Weights:
    """Codes of a layer of float32 activations, and what they stand for."""
    weight, form = node.input(1), _form(node)
    encoding, constant, shape = weight.type.encoding, weight.constant, weight.type.shape
    assert constant is not None
    parts, count, n = constant.parts, int(np.prod(shape)), shape[0]
    factors = _factors(weight, *_scales(weight)) if form.factors else None
    if isinstance(encoding, Codebook):
        places = encoding.unpack(parts, count).reshape(n, -1).astype(np.uint8)
        return Weights(form, (places,), np.asarray(parts["codebook"], np.float32))
    if isinstance(encoding, Grouped):
        u: Array = encoding.codes(parts, shape).astype(np.int32) + (1 << (encoding.bits - 1))
        return Weights(form, _planes(u, encoding.bits), factors=np.asarray(parts["scales"]))
    if isinstance(encoding, Affine):
        low = encoding.code_range[0] - int(encoding.narrow)
        u = parts["values"].reshape(n, -1).astype(np.int32) - low
        return Weights(form, _planes(u, encoding.bits), factors=factors)
    assert isinstance(encoding, Ternary | Binary)
    q: Array = encoding.unpack(parts, count).reshape(n, -1)
    if form.factors == 2:
        signs = (q > 0).astype(np.uint8), (q < 0).astype(np.uint8)
        return Weights(form, signs, factors=factors)
    planes = _planes(q & 1, 1) if isinstance(encoding, Binary) else _planes(q + 2, 2)
    return Weights(form, planes, factors=factors)


def _scales(weight: Value) -> tuple[tuple[float, ...], ...]:
    """The rows of factors of codes."""
    encoding = weight.type.encoding
    if isinstance(encoding, Ternary):
        both = encoding.positive, encoding.negative
        return both if both[0] != both[1] else both[:1]
    assert isinstance(encoding, Affine | Binary)
    return (encoding.scales,)


def _planes(u: Array, bits: int) -> tuple[Array, ...]:
    return split_planes(u, Codes(bits, 0)) if bits < 8 else (u.astype(np.uint8),)
