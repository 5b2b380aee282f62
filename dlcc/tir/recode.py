"""Default TIR of quantize, dequantize, requantize and reinterpret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcc import numerics
from dlcc.ir import Affine, Node
from dlcc.tir import expr
from dlcc.tir.access import TirContext


def emit(node: Node, ctx: TirContext) -> None:
    """Declare the output of a recoding node."""
    {
        "quantize": _quantize,
        "dequantize": _dequantize,
        "requantize": _requantize,
        "reinterpret": _reinterpret,
    }[node.op](node, ctx)


class _Parameters:
    """Scale and zero point of an encoding at logical indices."""

    def __init__(self, ctx: TirContext, encoding: Affine) -> None:
        self.axis = encoding.axis
        self.encoding = encoding
        if encoding.axis is not None:
            self.scales = ctx.constant(np.asarray(encoding.scales, np.float32))
            self.zeros = ctx.constant(np.asarray(encoding.zero_points, np.int32))

    def scale(self, index: Sequence[Any]) -> Any:
        """float32 scale."""
        if self.axis is None:
            return expr.const(self.encoding.scale, "float32")
        return self.scales[index[self.axis]]

    def zero(self, index: Sequence[Any]) -> Any:
        """int32 zero point."""
        if self.axis is None:
            return expr.const(self.encoding.zero_point, "int32")
        return self.zeros[index[self.axis]]


def _quantize(node: Node, ctx: TirContext) -> None:
    x, out = ctx.read(0), node.output.type
    encoding = out.affine
    parameters, (low, high) = _Parameters(ctx, encoding), encoding.code_range

    def body(*i: Any) -> Any:
        codes = expr.rint(x(*i) / parameters.scale(i)) + parameters.zero(i).astype("float32")
        return expr.code(codes, low, high, str(out.storage.numpy))

    ctx.output(0, body)


def _dequantize(node: Node, ctx: TirContext) -> None:
    x = ctx.read(0)
    parameters = _Parameters(ctx, node.input(0).type.affine)

    def body(*i: Any) -> Any:
        centred = x(*i).astype("int32") - parameters.zero(i)
        return centred.astype("float32") * parameters.scale(i)

    ctx.output(0, body)


def _requantize(node: Node, ctx: TirContext) -> None:
    x, source, out = ctx.read(0), node.input(0).type.affine, node.output.type
    encoding = out.affine
    factor = expr.const(float(numerics.multiplier([source.scale], encoding.scale)[0]), "float32")
    low, high = encoding.code_range
    storage = str(out.storage.numpy)

    def body(*i: Any) -> Any:
        scaled = expr.centred(x(*i), source).astype("float32") * factor
        return expr.to_codes(scaled, encoding, low, high, storage)

    ctx.output(0, body)


def _reinterpret(node: Node, ctx: TirContext) -> None:
    x = ctx.read(0)
    ctx.output(0, lambda *i: x(*i))
