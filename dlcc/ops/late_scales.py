"""QuantizeLinear and DequantizeLinear in float32 ops: where no encoding of the IR says it.

That is scales known only at run time, scales of blocks, and codes of float8 and float4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported
from dlcc.ir import F32, AttrValue, DType, Value
from dlcc.ops.cast import cast_to
from dlcc.ops.shape import axis_of, reshaped


def _spread(node: OnnxNode, value: Value, x: Value, name: str) -> Value:
    """A scale or zero point as float32 that broadcasts to ``x``: one, per index, or per block."""
    value = cast_to(node, value, F32, f".{name}.f32")
    rank, shape = x.type.rank, value.type.shape
    if value.type.elements == 1:
        return reshaped(node, value, (), f".{name}.scalar")
    axis, block = (
        axis_of(int(node.attrs.get("axis", 1)), rank),
        int(node.attrs.get("block_size", 0)),
    )
    extent = x.type.shape[axis]
    if not block:
        if shape != (extent,):
            raise Unsupported(f"scales of shape {list(shape)} along axis {axis}")
        line = tuple(extent if k == axis else 1 for k in range(rank))
        return reshaped(node, value, line, f".{name}.line")
    blocks = tuple(-(-extent // block) if k == axis else d for k, d in enumerate(x.type.shape))
    if shape != blocks:
        raise Unsupported(f"scales of shape {list(shape)} for blocks of {block} along axis {axis}")
    places = node.graph.add_constant(np.arange(extent, dtype=np.int64) // block, name="blocks")
    return node.build("gather", [value, places], {"axis": axis}, suffix=f".{name}.spread")[0]


def quantize(node: OnnxNode, codes: DType) -> Sequence[Value]:
    """Codes as numbers: clamp(rint(x / scale) + zero_point), or the quotient as a narrow float."""
    x = cast_to(node, node.input(0), F32, ".x")
    scale = _spread(node, node.input(1), x, "scale")
    (y,) = node.build("div", [x, scale], suffix=".scaled")
    if codes.is_integer:
        (y,) = node.build("round", [y], suffix=".rounded")
    if node.optional(2) is not None:
        y = node.build("add", [y, _spread(node, node.input(2), x, "zero")], suffix=".shifted")[0]
    if codes.is_float:
        attrs: dict[str, AttrValue] = {
            "to": str(codes),
            "saturate": bool(node.attrs.get("saturate", 1)),
        }
        (narrow,) = node.build("cast", [y], attrs, suffix=f".{codes}")
        return [cast_to(node, narrow, F32)]
    low, high = codes.integer_range()
    (y,) = node.build("clip", [y], {"min": float(low), "max": float(high)}, suffix=".clamped")
    made = cast_to(node, y, codes.computed, ".codes")
    if codes.is_narrow:
        (narrow,) = node.build("cast", [made], {"to": str(codes)}, suffix=f".{codes}")
        return [cast_to(node, narrow, codes.computed)]
    return [made]


def dequantize(node: OnnxNode) -> Sequence[Value]:
    """(q - zero_point) * scale."""
    q = node.input(0)
    real = cast_to(node, q, F32, ".codes")
    if node.optional(2) is not None:
        zero = _spread(node, node.input(2), q, "zero")
        (real,) = node.build("sub", [real, zero], suffix=".centred")
    return node.build("mul", [real, _spread(node, node.input(1), q, "scale")])
