"""Default TIR of matmul: for the shapes (broadcasts, constants) that no kernel generator serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te

from dlcc import numerics
from dlcc.ir import Affine, Node
from dlcc.ops.base import op_of
from dlcc.tir import expr
from dlcc.tir.access import Reader, TirContext, short_float
from dlcc.tir.staging import stage


def emit(node: Node, ctx: TirContext, transpose_b: bool, limits: tuple[float, float]) -> None:
    """Declare the output of a matmul node, clamped to ``limits``."""
    out, depth = node.output.type, node.input(0).type.shape[-1]
    a, b = (_broadcast(node, ctx, index) for index in (0, 1))
    inner = te.reduce_axis((0, depth), name="k")

    def product(*i: Any) -> Any:
        *lead, row, column = i
        left = a(*lead, row, inner)
        right = b(*lead, column, inner) if transpose_b else b(*lead, inner, column)
        return te.sum(left * right, axis=[inner])

    total = stage(out.shape, product, "total", out.permutation)
    residual = None if node.optional_input(2) is None else ctx.read(2)
    if isinstance(node.input(0).type.encoding, Affine):
        ctx.output(0, lambda *i: _requantised(node, total(*i), residual and residual(*i), limits))
        return

    def real(*i: Any) -> Any:
        value = total(*i) if residual is None else total(*i) + residual(*i)
        return expr.clamp(value, *limits)

    ctx.output(0, real)


def _broadcast(node: Node, ctx: TirContext, index: int) -> Reader:
    """Operand ``index`` by the output's leading indices; codes come centred, as int32."""
    read, type_ = ctx.read(index), node.input(index).type
    encoding, lead = type_.encoding, type_.shape[:-2]
    factors = (node.input(i).type for i in op_of(node).multiplied)
    short = None if type_.short_float else next(filter(None, map(short_float, factors)), None)

    def at(*i: Any) -> Any:
        outer: Sequence[Any] = i[len(i) - 2 - len(lead) : -2]
        zero = expr.const(0, "int32")
        place = [zero if d == 1 else v for v, d in zip(outer, lead, strict=True)]
        value = read(*place, *i[-2:])
        if short is not None:
            return short.widened(short.rounded(value))
        return expr.centred(value, encoding) if isinstance(encoding, Affine) else value

    return at


def _requantised(node: Node, acc: Any, residual: Any, limits: tuple[float, float]) -> Any:
    """The epilogue of :func:`dlcc.ops.integer.finish` with one multiplier."""
    out = node.output.type
    scale = np.float64(node.input(0).type.affine.scale) * node.input(1).type.affine.scale
    if residual is not None:
        encoding = node.input(2).type.affine
        ratio = float(numerics.multiplier([encoding.scale], scale)[0])
        centred = expr.centred(residual, encoding).astype("float32")
        acc = acc + expr.rint(centred * expr.const(ratio, "float32")).astype("int32")
    encoding_out = out.encoding
    unit = encoding_out.scale if isinstance(encoding_out, Affine) else 1.0
    scaled = acc.astype("float32") * expr.const(
        float(numerics.multiplier([float(scale)], unit)[0]), "float32"
    )
    if not isinstance(encoding_out, Affine):
        return expr.clamp(scaled, *limits)
    low, high = numerics.activation_codes(encoding_out, *limits)
    return expr.to_codes(scaled, encoding_out, low, high, str(out.storage.numpy))
