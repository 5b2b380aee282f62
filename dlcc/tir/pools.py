"""Default TIR of max and average pooling, and of the places of maxima."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te

from dlcc.ir import Affine, Node
from dlcc.ops.windows import Window
from dlcc.tir import expr
from dlcc.tir.access import TirContext, element
from dlcc.tir.staging import (
    highest_of,
    lowest_of,
    mean_factor,
    scaled_output,
    stage,
    write_real,
)


def emit(node: Node, ctx: TirContext, window: Window) -> None:
    """Declare the output of a pool node with this geometry."""
    if node.op == "max_pool2d":
        _max(node, ctx, window)
    else:
        _average(node, ctx, window)


def _taps(node: Node, ctx: TirContext, window: Window, pad: Any, convert: Any) -> Any:
    """(value at a tap of a window, reduction axes); ``pad`` stands outside the input."""
    x = ctx.read(0)
    rows = te.reduce_axis((0, window.kernel[0]), name="kh")
    columns = te.reduce_axis((0, window.kernel[1]), name="kw")
    (height, width), (top, left, _, _) = window.size, window.pads

    def tap(n: Any, c: Any, oh: Any, ow: Any) -> Any:
        h = oh * window.strides[0] + rows * window.dilations[0] - top
        w = ow * window.strides[1] + columns * window.dilations[1] - left
        inside = [
            condition
            for needed, condition in (
                (window.pads[0] > 0, h >= 0),
                (window.pads[2] > 0, h < height),
                (window.pads[1] > 0, w >= 0),
                (window.pads[3] > 0, w < width),
            )
            if needed
        ]
        value = convert(x(n, c, h, w))
        return expr.guarded(expr.both(*inside), value, pad) if inside else value

    return tap, [rows, columns]


def _max(node: Node, ctx: TirContext, window: Window) -> None:
    dtype = element(node.input(0).type)
    reducer = highest_of(dtype)
    kind = np.dtype(dtype)
    lowest = np.iinfo(kind).min if kind.kind in "iu" else -float("inf")
    tap, axes = _taps(node, ctx, window, expr.const(lowest, dtype), lambda v: v)
    out = node.output.type
    best = stage(out.shape, lambda *i: reducer(tap(*i), axis=axes), "best", out.permutation)
    ctx.output(0, lambda *i: best(*i))


def _average(node: Node, ctx: TirContext, window: Window) -> None:
    from dlcc.ops.pool import AvgPool2d

    out, source = node.output.type, node.input(0).type.encoding
    counts = AvgPool2d().counts(node)
    integer = isinstance(source, Affine)
    dtype = "int32" if integer else str(node.input(0).type.dtype.numpy)

    def convert(value: Any) -> Any:
        return expr.centred(value, source) if isinstance(source, Affine) else value

    tap, axes = _taps(node, ctx, window, expr.const(0, dtype), convert)
    total = stage(out.shape, lambda *i: te.sum(tap(*i), axis=axes), "total", out.permutation)
    factors = mean_factor(node, counts) if integer else counts.astype(dtype)
    uniform = bool((factors == factors.flat[0]).all())
    table = None if uniform else ctx.constant(factors)

    def factor(oh: Any, ow: Any) -> Any:
        return (
            expr.const(float(factors.flat[0]), str(factors.dtype))
            if table is None
            else table[oh, ow]
        )

    if not integer:
        write_real(ctx, lambda n, c, oh, ow: total(n, c, oh, ow) / factor(oh, ow))
        return
    ctx.output(
        0,
        lambda n, c, oh, ow: scaled_output(
            out, total(n, c, oh, ow).astype("float32") * factor(oh, ow)
        ),
    )


def emit_indices(
    node: Node, ctx: TirContext, lines: Sequence[tuple[int, ...]], strides: Sequence[int]
) -> None:
    """Declare the places of the maxima of a max pool.

    Args:
        node: the max_pool_indices node.
        ctx: its context.
        lines: (size, kernel, stride, dilation, first pad, windows) of each spatial axis.
        strides: of each spatial axis in the numbering of places.
    """
    x, dtype, out = ctx.read(0), element(node.input(0).type), node.output.type
    channels, count = node.input(0).type.shape[1], prod(line[0] for line in lines)
    kind = np.dtype(dtype)
    lowest = np.iinfo(kind).min if kind.kind in "iu" else -float("inf")

    def reduced(reducer: Any, pick: Any, absent: Any, name: str) -> Any:
        taps = [te.reduce_axis((0, line[1]), name=f"{name}{a}") for a, line in enumerate(lines)]

        def body(n: Any, c: Any, *windows: Any) -> Any:
            place = [
                w * stride + t * dilation - begin
                for w, t, (_, _, stride, dilation, begin, _) in zip(
                    windows, taps, lines, strict=True
                )
            ]
            inside = [
                c
                for p, line in zip(place, lines, strict=True)
                if line[4] or (line[5] - 1) * line[2] + (line[1] - 1) * line[3] >= line[0]
                for c in (p >= 0, p < line[0])
            ]
            value = pick(n, c, windows, place, taps)
            value = expr.guarded(expr.both(*inside), value, absent) if inside else value
            return reducer(value, axis=taps)

        return stage(out.shape, body, name, out.permutation)

    best = reduced(
        highest_of(dtype), lambda n, c, w, p, t: x(n, c, *p), expr.const(lowest, dtype), "best"
    )
    kernel, none = [line[1] for line in lines], expr.const(prod(line[1] for line in lines), "int32")

    def holding(n: Any, c: Any, windows: Any, place: Any, taps: Any) -> Any:
        """The number of this tap where it holds the maximum."""
        same = expr.same(x(n, c, *place), best(n, c, *windows))
        return expr.select(same, expr.flat_index(taps, kernel), none)

    first = reduced(lowest_of("int32"), holding, none, "first")

    def body(n: Any, c: Any, *windows: Any) -> Any:
        taps = expr.unflatten(expr.minimum(first(n, c, *windows), none - 1), kernel)
        number = expr.const(0, "int64")
        for w, t, (size, _, stride, dilation, begin, _), step in zip(
            windows, taps, lines, strides, strict=True
        ):
            place = expr.clamp(w * stride + t * dilation - begin, 0, size - 1)
            number = number + place.astype("int64") * step
        return number + (n * channels + c).astype("int64") * count

    ctx.output(0, body)
