"""Default TIR of the normalisation ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te

from dlcc.ir import Affine, Node
from dlcc.tir import expr
from dlcc.tir import math as tir_math
from dlcc.tir.access import Reader, TirContext, element
from dlcc.tir.rounding import separate
from dlcc.tir.staging import kept, real_reader, reduced, scaled_output, stage, write_real


def emit(node: Node, ctx: TirContext) -> None:
    """Declare the output of a normalisation node."""
    emitters: dict[str, Callable[[Node, TirContext], None]] = {
        "batch_norm": _batch_norm,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "instance_norm": _group_norm,
        "lrn": _lrn,
        "lp_norm": _lp_norm,
    }
    emitters[node.op](node, ctx)


def _attr(node: Node, key: str) -> Any:
    from dlcc.ops.base import op_of

    return op_of(node).get(node, key)


def _f32(value: float) -> Any:
    return expr.const(value, "float32")


def _like(node: Node, value: float) -> Any:
    """A constant of the type of operand 0."""
    return expr.const(value, element(node.input(0).type))


def _parameter(node: Node, ctx: TirContext, index: int) -> Reader | None:
    """An optional operand that broadcasts to operand 0, by indices of operand 0."""
    value = node.optional_input(index)
    if value is None:
        return None
    read, shape, rank = ctx.read(index), value.type.shape, node.input(0).type.rank
    if isinstance(value.type.encoding, Affine):
        read = real_reader(ctx, index)

    def at(*i: Any) -> Any:
        tail = i[rank - len(shape) :]
        zero = expr.const(0, "int32")
        return read(*(zero if d == 1 else v for v, d in zip(tail, shape, strict=True)))

    return at


# -- batch norm --------------------------------------------------------------------------------


def _batch_norm(node: Node, ctx: TirContext) -> None:
    x = ctx.read(0)
    if all(node.input(i).is_constant for i in range(1, 5)):
        from dlcc.ops.norm import channel_affine

        stats = [node.input(i).decoded().astype(np.float64) for i in range(1, 5)]
        pair = channel_affine(stats, float(_attr(node, "epsilon")))
        factor, offset = (ctx.constant(a.astype(element(node.input(0).type))) for a in pair)
        ctx.output(0, lambda *i: x(*i) * factor[i[1]] + offset[i[1]])
        return
    scale, shift, mean, var = (ctx.read(i) for i in range(1, 5))
    epsilon = _like(node, float(_attr(node, "epsilon")))

    def body(*i: Any) -> Any:
        c = i[1]
        return (x(*i) - mean(c)) / expr.sqrt(var(c) + epsilon) * scale(c) + shift(c)

    ctx.output(0, body)


# -- over trailing axes ------------------------------------------------------------------------


class _Rows:
    """Statistics over all axes from ``first`` on, one per index of the axes before it."""

    def __init__(self, node: Node, ctx: TirContext) -> None:
        shape, axis = node.input(0).type.shape, int(_attr(node, "axis"))
        self.first = axis + len(shape) if axis < 0 else axis
        self.outer, self.inner = shape[: self.first], shape[self.first :]
        self.count = prod(self.inner)
        self.contiguous = node.output.type.permutation[-1] == len(shape) - 1
        if node.output.type.permutation == tuple(range(len(shape))):
            ctx.item_axes = self.first

    def sum(self, value: Callable[..., Any], name: str) -> Reader:
        """Sum of ``value(full index)`` per row."""
        return reduced(
            self.outer,
            self.inner,
            te.sum,
            lambda outer, inner: value(*outer, *inner),
            name,
            contiguous=self.contiguous,
        )

    def row(self, index: Sequence[Any]) -> Sequence[Any]:
        """The row of a full index."""
        return index[: self.first]


def _affine_part(
    value: Any, index: Sequence[Any], scale: Reader | None, bias: Reader | None
) -> Any:
    if scale is not None:
        value = value * scale(*index)
    return value if bias is None else value + bias(*index)


def _layer_norm(node: Node, ctx: TirContext) -> None:
    rows, x = _Rows(node, ctx), ctx.read(0)
    if isinstance(node.input(0).type.encoding, Affine):
        _integer_layer_norm(node, ctx, rows)
        return
    scale, bias = _parameter(node, ctx, 1), _parameter(node, ctx, 2)
    count, epsilon = _like(node, rows.count), _like(node, float(_attr(node, "epsilon")))
    total = rows.sum(x, "total")

    def centred(*i: Any) -> Any:
        return x(*i) - total(*rows.row(i)) / count

    squares = rows.sum(lambda *i: centred(*i) * centred(*i), "squares")
    deviation = kept(rows.outer, lambda *i: expr.sqrt(squares(*i) / count + epsilon), "deviation")
    write_real(ctx, lambda *i: _affine_part(centred(*i) / deviation(*rows.row(i)), i, scale, bias))


def _integer_layer_norm(node: Node, ctx: TirContext, rows: _Rows) -> None:
    from dlcc.ops.norm import LayerNorm

    op, x, source, out = LayerNorm(), ctx.read(0), node.input(0).type.affine, node.output.type
    depth = op.depth(node)
    scale, bias = (_over_scale(node, ctx, index) for index in (1, 2))

    def q(*i: Any) -> Any:
        return expr.centred(x(*i), source)

    s1 = rows.sum(q, "s1")
    s2 = rows.sum(lambda *i: q(*i) * q(*i), "s2")
    epsilon = _f32(float(op.epsilon_term(node, source)))

    def inverse(*i: Any) -> Any:
        """1 / sqrt(v + e); v is exact in float64 (below 2^53)."""
        wide = expr.const(depth, "float64") * s2(*i).astype("float64")
        first = s1(*i).astype("float64")
        v = (wide - first * first).astype("float32")
        return _f32(1.0) / expr.sqrt(v + epsilon)

    r = kept(rows.outer, inverse, "r")

    def body(*i: Any) -> Any:
        t = q(*i) * expr.const(depth, "int32") - s1(*rows.row(i))
        value = separate(t.astype("float32") * r(*rows.row(i)))
        assert scale is not None
        value = separate(value * scale(*i))
        return scaled_output(out, value if bias is None else value + bias(*i))

    ctx.output(0, body)


def _over_scale(node: Node, ctx: TirContext, index: int) -> Reader | None:
    """float32 parameter over the output scale; an absent scale is 1."""
    from dlcc.ops.integer import real_of
    from dlcc.ops.norm import over_scale

    out = node.output.type.encoding
    unit = out.scale if isinstance(out, Affine) else 1.0
    value = node.optional_input(index)
    if value is None:
        one = _f32(float(np.float32(1.0 / np.float64(unit))))
        return (lambda *_: one) if index == 1 else None
    array = over_scale(real_of(value, value.stored()), unit)
    assert array is not None
    rank, shape = node.input(0).type.rank, array.shape
    table = ctx.constant(array)
    if not shape:
        return lambda *_: table[0]

    def at(*i: Any) -> Any:
        tail = i[rank - len(shape) :]
        zero = expr.const(0, "int32")
        return table[tuple(zero if d == 1 else v for v, d in zip(tail, shape, strict=True))]

    return at


def _rms_norm(node: Node, ctx: TirContext) -> None:
    rows, x, scale = _Rows(node, ctx), ctx.read(0), _parameter(node, ctx, 1)
    count, epsilon = _like(node, rows.count), _like(node, float(_attr(node, "epsilon")))
    squares = rows.sum(lambda *i: x(*i) * x(*i), "squares")
    root = kept(rows.outer, lambda *i: expr.sqrt(squares(*i) / count + epsilon), "root_mean_square")
    ctx.output(0, lambda *i: _affine_part(x(*i) / root(*rows.row(i)), i, scale, None))


# -- groups of channels ------------------------------------------------------------------------


def _group_norm(node: Node, ctx: TirContext) -> None:
    from dlcc.ops.base import op_of

    x, type_ = ctx.read(0), node.input(0).type
    groups: int = op_of(node).groups(node)  # type: ignore[attr-defined]
    size = type_.shape[1] // groups
    spatial = type_.shape[2:]
    out = node.output.type
    ctx.item_axes = 2 if out.permutation[:2] == (0, 1) and out.rank > 2 else 1
    count = _like(node, size * prod(spatial))
    epsilon = _like(node, float(_attr(node, "epsilon")))

    def total(value: Callable[..., Any], name: str) -> Reader:
        def at(outer: Sequence[Any], inner: Sequence[Any]) -> Any:
            return value(outer[0], outer[1] * size + inner[0], *inner[1:])

        contiguous = type_.permutation[-1] == type_.rank - 1
        shape = (type_.shape[0], groups)
        return reduced(shape, (size, *spatial), te.sum, at, name, contiguous=contiguous)

    def group(c: Any) -> Any:
        return c if size == 1 else expr.floordiv(c, size)

    sums = total(x, "total")

    def centred(n: Any, c: Any, *place: Any) -> Any:
        return x(n, c, *place) - sums(n, group(c)) / count

    squares = total(lambda *i: centred(*i) * centred(*i), "squares")
    deviation = kept(
        (type_.shape[0], groups),
        lambda n, g: expr.sqrt(squares(n, g) / count + epsilon),
        "deviation",
    )
    scale = ctx.read(1) if node.optional_input(1) is not None else None
    bias = ctx.read(2) if node.optional_input(2) is not None else None
    ctx.output(
        0,
        lambda n, c, *place: _affine_part(
            centred(n, c, *place) / deviation(n, group(c)), (c,), scale, bias
        ),
    )


# -- others ------------------------------------------------------------------------------------


def _lrn(node: Node, ctx: TirContext) -> None:
    x, type_ = ctx.read(0), node.input(0).type
    size, channels = int(_attr(node, "size")), type_.shape[1]
    before = (size - 1) // 2
    alpha = _f32(float(np.float32(float(_attr(node, "alpha")) / size)))
    beta, bias = _f32(-float(_attr(node, "beta"))), _f32(float(_attr(node, "bias")))
    near = te.reduce_axis((0, size), name="near")

    def square(n: Any, c: Any, *place: Any) -> Any:
        at = c + near - before
        value = x(n, at, *place)
        inside = expr.both(at >= 0, at < channels)
        return te.sum(expr.guarded(inside, value * value, _f32(0.0)), axis=[near])

    total = stage(type_.shape, square, "total", node.output.type.permutation)
    ctx.output(0, lambda *i: x(*i) * tir_math.pow(bias + alpha * total(*i), beta))


def _lp_norm(node: Node, ctx: TirContext) -> None:
    x, type_ = ctx.read(0), node.input(0).type
    axis, p = int(_attr(node, "axis")) % type_.rank, int(_attr(node, "p"))
    inner = te.reduce_axis((0, type_.shape[axis]), name="k")
    shape = tuple(d for i, d in enumerate(type_.shape) if i != axis)
    order = [a - (a > axis) for a in node.output.type.permutation if a != axis]

    def term(*other: Any) -> Any:
        value = x(*other[:axis], inner, *other[axis:])
        return te.sum(expr.absolute(value) if p == 1 else value * value, axis=[inner])

    total = stage(shape, term, "total", order)

    def norm(*other: Any) -> Any:
        value = total(*other) if p == 1 else expr.sqrt(total(*other))
        return expr.select(value == _like(node, 0.0), _like(node, 1.0), value)

    length = kept(shape, norm, "length", order)
    ctx.output(0, lambda *i: x(*i) / length(*(v for a, v in enumerate(i) if a != axis)))
