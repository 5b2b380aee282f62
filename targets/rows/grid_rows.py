"""Rows of a GPU whose threads share a row of numbers."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import ClassVar, cast

import numpy as np

from dlcc.ir import F32, Affine, Node, Value
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from dlcc.ops.integer import real_of
from dlcc.ops.norm import LayerNorm, over_scale
from dlcc.ops.softmax import Softmax
from targets.kernels.grid_norm import NormSpec, grid_norm
from targets.kernels.grid_rows import View, rows_cost
from targets.kernels.grid_softmax import grid_softmax
from targets.rows import layers
from targets.rows.grid import MachineRow


class GridSoftmaxRow(MachineRow):
    """Softmax, a block for each row; over other axes than the last in memory for some of them."""

    name: ClassVar[str] = "grid-softmax"
    ops: ClassVar[tuple[str, ...]] = ("softmax",)

    def refuses(self, node: Node) -> str:
        """Other types and layouts."""
        return layers.softmax_refusal(node, any_axis=True)

    def cost(self, node: Node) -> float:
        """Of all rows."""
        return rows_cost(_softmax_view(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        spec, view = layers.softmax_spec(node), _softmax_view(node)
        spec = replace(spec, rows=view.count, length=view.length)
        if spec.in_dtype != "u8":
            return grid_softmax(spec, view=view)
        op, out = Softmax(), node.output.type.encoding
        tables, unit = op.factors(node), float(op.factor(out))
        if not isinstance(out, Affine):
            return grid_softmax(spec, tables, unit, view=view)
        return grid_softmax(spec, tables, unit, out.zero_point, out.code_range[1], view)


def _softmax_view(node: Node) -> View:
    """Rows along the softmax's axis."""
    type_ = node.input(0).type
    place = type_.permutation.index(int(op_of(node).get(node, "axis")) % type_.rank)
    shape = type_.physical_shape
    return View.of(prod(shape[:place]), shape[place], prod(shape[place + 1 :]))


class GridNormRow(MachineRow):
    """Layer and RMS normalisation over neighbouring elements, a block for each row."""

    name: ClassVar[str] = "grid-norm"
    ops: ClassVar[tuple[str, ...]] = ("layer_norm", "rms_norm")

    def refuses(self, node: Node) -> str:
        """Other types, other layouts, and parameters of the run time."""
        x, out = node.input(0).type, node.output.type
        for type_ in (x, out):
            if type_.dtype != F32 or type_.permutation != tuple(range(type_.rank)):
                return "it takes float32 numbers in row-major order, and codes that stand for them"
            encoding = type_.encoding
            if isinstance(encoding, Affine) and (encoding.bits > 8 or encoding.axis is not None):
                return "the codes have more than 8 bits, or several scales"
        if any(v is not None and not v.is_constant for v in node.inputs[1:]):
            return "its parameters are not known at compile time"
        if isinstance(out.encoding, Affine) and not isinstance(x.encoding, Affine):
            return "the output is quantised and the input is not"
        if isinstance(x.encoding, Affine) and (x.encoding.signed or node.op == "rms_norm"):
            return "there is no such normalisation of these codes"
        return "" if x.elements else "the input has no elements"

    def cost(self, node: Node) -> float:
        """Of all rows."""
        rows, length = _sizes(node)
        return rows_cost(View.rows(rows, length), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        (rows, length), op = _sizes(node), op_of(node)
        source, out = node.input(0).type.encoding, node.output.type.encoding
        epsilon, zero, codes = float(op.get(node, "epsilon")), 0, (0, 0, 0)
        scale, bias = (_parameter(node, index) for index in (1, 2))
        if isinstance(source, Affine):
            layer = cast("LayerNorm", op)
            layer.depth(node)
            epsilon, zero = float(layer.epsilon_term(node, source)), source.zero_point
            unit = out.scale if isinstance(out, Affine) else 1.0
            ones = np.ones(length, np.float32)
            scale = over_scale(ones if scale is None else scale, unit)
            bias = over_scale(bias, unit)
        if isinstance(out, Affine):
            codes = (out.zero_point, *out.code_range)
        spec = NormSpec(
            "layer" if node.op == "layer_norm" else "rms",
            length,
            "u8" if isinstance(source, Affine) else layers.real_dtype(source),
            layers.epilogue_dtype(out),
            scale is not None,
            bias is not None,
        )
        return grid_norm(spec, rows, epsilon, scale, bias, zero, codes)


def _sizes(node: Node) -> tuple[int, int]:
    """Rows, and elements of a row."""
    shape, axis = node.input(0).type.shape, int(op_of(node).get(node, "axis"))
    axis += len(shape) if axis < 0 else 0
    return prod(shape[:axis]), prod(shape[axis:])


def _parameter(node: Node, index: int) -> Array | None:
    """A scale or bias in real numbers, one for each element of a row."""
    value: Value | None = node.optional_input(index)
    if value is None:
        return None
    shape, axis = node.input(0).type.shape, int(op_of(node).get(node, "axis"))
    real = np.asarray(real_of(value, value.stored()), np.float32)
    return np.broadcast_to(real, shape[axis:]).reshape(-1)
