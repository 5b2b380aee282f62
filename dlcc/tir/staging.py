"""What the emitters of default TIR share: stages in memory order, real values in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te

from dlcc import numerics
from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.tir import expr
from dlcc.tir.access import Reader, TirContext

Expr = Any
Body = Callable[..., Any]

STAGE_ELEMENTS = 16 * 1024
"""Largest intermediate that one work item keeps on its stack."""


def stage(
    shape: Sequence[int], body: Body, name: str, order: Sequence[int] | None = None
) -> Reader:
    """An intermediate with logical ``shape`` (may be empty), stored with its axes in ``order``.

    ``body`` takes logical indices; so does the returned reader.
    """
    rank = len(shape)
    places = tuple(range(rank)) if order is None else tuple(order)
    if not rank:
        scalar = te.compute((1,), lambda _: body(), name=name)
        return lambda: scalar[0]

    def physical(*place: Any) -> Any:
        logical: list[Any] = [None] * rank
        for index, axis in zip(place, places, strict=True):
            logical[axis] = index
        return body(*logical)

    tensor = te.compute(tuple(shape[a] for a in places), physical, name=name)
    return lambda *logical: tensor[tuple(logical[a] for a in places)]


def kept(shape: Sequence[int], body: Body, name: str, order: Sequence[int] | None = None) -> Reader:
    """As :func:`stage`, for an elementwise ``body`` that is stored instead of computed at each use.

    The scheduler inlines what is not a reduction; a sum over one element is one.
    """
    unit = te.reduce_axis((0, 1), name=f"{name}_once")

    def summed(*logical: Any) -> Any:
        return te.sum(body(*logical), axis=[unit])

    return stage(shape, summed, name, order)


def reduced(
    outer: Sequence[int],
    inner: Sequence[int],
    reducer: Any,
    value: Body,
    name: str,
    order: Sequence[int] | None = None,
    *,
    contiguous: bool = True,
) -> Reader:
    """A stage of shape ``outer``: ``reducer`` of ``value(outer, inner)`` over ``inner``.

    Where the last inner axis is ``contiguous`` in memory, a vector of partial results runs along it
    first: float sums have no order that a compiler may change, so it would not do this by itself.
    """
    lanes = _partials(inner[-1]) if contiguous and inner else 1
    axes = [te.reduce_axis((0, d), name=f"{name}_{i}") for i, d in enumerate(inner)]
    if lanes == 1:
        return stage(outer, lambda *i: reducer(value(i, axes), axis=axes), name, order)
    steps = te.reduce_axis((0, inner[-1] // lanes), name=f"{name}_steps")
    places = tuple(range(len(outer))) if order is None else tuple(order)

    def part(*index: Any) -> Any:
        last = steps * lanes + index[-1]
        return reducer(value(index[:-1], [*axes[:-1], last]), axis=[*axes[:-1], steps])

    shape = (*outer, lanes)
    parts = stage(shape, part, f"{name}_parts", (*places, len(outer)))
    lane = te.reduce_axis((0, lanes), name=f"{name}_lane")
    return stage(outer, lambda *i: reducer(parts(*i, lane), axis=[lane]), name, order)


def _partials(length: int) -> int:
    """Partial results along an axis: a power of two that divides it and leaves some steps."""
    return next((n for n in (16, 8) if length % n == 0 and length >= 2 * n), 1)


def highest_of(dtype: str) -> Any:
    """A reducer for the maximum whose identity is -inf for floats."""
    return _extreme(dtype, expr.maximum, -1)


def lowest_of(dtype: str) -> Any:
    """A reducer for the minimum whose identity is +inf for floats."""
    return _extreme(dtype, expr.minimum, 1)


def _extreme(dtype: str, combine: Any, sign: int) -> Any:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        identity: float = limits.max if sign > 0 else limits.min
    else:
        identity = sign * float("inf")
    return te.comm_reducer(
        lambda a, b: combine(a, b), lambda t: expr.const(identity, str(t)), name="extreme"
    )


def dequantised(code: Expr, encoding: Affine) -> Expr:
    """f32(q - zero_point) * f32(scale)."""
    return expr.centred(code, encoding).astype("float32") * expr.const(encoding.scale, "float32")


def real_reader(ctx: TirContext, index: int) -> Reader:
    """Access to the real values of operand ``index``."""
    read, encoding = ctx.read(index), ctx.node.input(index).type.encoding
    if not isinstance(encoding, Affine):
        return read
    return lambda *i: dequantised(read(*i), encoding)


def write_real(ctx: TirContext, body: Body) -> None:
    """Declare output 0 from its real values (quantised by float32 division where affine)."""
    type_ = ctx.node.output.type
    encoding = type_.encoding
    if not isinstance(encoding, Affine):
        ctx.output(0, body)
        return
    scale = expr.const(encoding.scale, "float32")
    low, high = encoding.code_range
    storage = str(type_.storage.numpy)
    ctx.output(0, lambda *i: expr.to_codes(body(*i) / scale, encoding, low, high, storage))


def scaled_output(type_: TensorType, scaled: Expr) -> Expr:
    """A value in units of the output scale: codes, or as it is where the output is dense."""
    encoding = type_.encoding
    if not isinstance(encoding, Affine):
        return scaled
    low, high = encoding.code_range
    return expr.to_codes(scaled, encoding, low, high, str(type_.storage.numpy))


def mean_factor(node: Node, counts: Array) -> Array:
    """float32 multipliers of integer means with these counts."""
    from dlcc.ops.pool import mean_multiplier

    source = node.input(0).type.affine
    return mean_multiplier(source, node.output.type.encoding, counts)


def multiplier(value: float) -> Expr:
    """A float32 constant rounded once from float64."""
    return expr.const(float(numerics.multiplier([value])[0]), "float32")
