"""Importers of Conv and ConvTranspose in one to three dimensions.

1-D layers are 2-D ones of height 1, 3-D ones 2-D ones over unfolded depth (:mod:`volumes`); layers
whose weights are only known at run time are matrix products over unfolded windows
(:mod:`late_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, Value
from dlcc.ops import late_weights, volumes
from dlcc.ops.weights import as_weight, known, rebuilt, reshape_value, reshape_weight
from dlcc.ops.windows import Window, auto_pads, pair, quad


def spatial_rank(node: OnnxNode, rank: int) -> int:
    """Spatial axes of an input of ``rank`` axes: 1 to 3.

    Raises:
        Unsupported: more axes, or none.
    """
    if rank not in (3, 4, 5):
        raise Unsupported(f"{rank - 2}-D {node.op_type}: 1-D to 3-D are supported")
    return rank - 2


def conv_geometry(
    node: OnnxNode, size: Sequence[int], kernel: Sequence[int], axes: Sequence[int] | None = None
) -> Window:
    """Window of a Conv or pool node with its automatic padding resolved.

    ``axes``: the one or two spatial axes that it covers, by default all of them.
    """
    rank, attrs = len(size), node.attrs
    axes = range(rank) if axes is None else axes

    def chosen(values: Sequence[int]) -> tuple[int, int]:
        return pair([values[a] for a in axes])

    pads = attrs.get("pads") or (0,) * (2 * rank)
    if not (len(kernel) == rank and len(pads) == 2 * rank):
        raise Unsupported(f"a kernel of {list(kernel)} with pads {list(pads)} in {rank}-D")
    check_axes(node, rank, kernel)
    window = Window(
        chosen(size),
        chosen(kernel),
        chosen(attrs.get("strides") or (1,) * rank),
        chosen(attrs.get("dilations") or (1,) * rank),
        quad([pads[a] for a in axes] + [pads[rank + a] for a in axes]),
    )
    if min(window.pads) < 0:  # before a depth becomes an unfolding, which could crop
        raise Unsupported(f"pads {list(pads)}: they must not be negative")
    mode = attrs.get("auto_pad", "NOTSET")
    return Window(
        window.size, window.kernel, window.strides, window.dilations, auto_pads(mode, window)
    )


def check_axes(node: OnnxNode, rank: int, kernel: Sequence[int]) -> None:
    """Hold the attributes of a window against its axes and its kernel.

    Raises:
        Unsupported: there are more or fewer than axes, or ``kernel_shape`` is another kernel.
    """
    for name in ("strides", "dilations", "output_padding"):
        if len(node.attrs.get(name) or (0,) * rank) != rank:
            raise Unsupported(f"{name} {list(node.attrs[name])} in {rank}-D")
    given = node.attrs.get("kernel_shape") or kernel
    if tuple(given) != tuple(kernel):
        raise Unsupported(f"kernel_shape {list(given)}, and a kernel of {list(kernel)}")


def conv_attrs(window: Window, groups: int) -> dict[str, Any]:
    """Attributes of a conv2d node."""
    return {
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.pads,
        "groups": groups,
    }


@onnx_op("Conv")
def import_conv(node: OnnxNode) -> Sequence[Value]:
    """Conv in one to three dimensions."""
    x, weight = node.input(0), as_weight(node.graph, node.input(1), node.name)
    if known(weight) and x.type.dtype == F32:
        return [known_convolution(node, x, weight, node.optional(2))]
    size, kernel = x.type.shape[2:], weight.type.shape[2:]
    axes = range(spatial_rank(node, x.type.rank))
    lines = [conv_geometry(node, size, kernel, (a,)) for a in axes]
    groups = int(node.attrs.get("group", 1))
    return [late_weights.convolution(node, x, weight, node.optional(2), lines, groups)]


def known_convolution(node: OnnxNode, x: Value, weight: Value, bias: Value | None) -> Value:
    """A convolution with the attributes of ``node`` and a known weight, as ``conv2d``."""
    if bias is not None and not known(bias):
        made = known_convolution(replace(node, name=node.name + ".sums"), x, weight, None)
        return late_weights.biased(node, made, bias)
    rank, groups = spatial_rank(node, x.type.rank), int(node.attrs.get("group", 1))
    size, kernel = x.type.shape[2:], weight.type.shape[2:]
    if rank == 3:
        line, plane = (conv_geometry(node, size, kernel, axes) for axes in ((0,), (1, 2)))
        images = volumes.depth_windows(node, x, line, groups)
        flat = rebuilt(node, weight, volumes.depth_kernel)
        attrs = conv_attrs(plane, groups)
        (made,) = node.build("conv2d", [images, flat, bias], attrs, suffix=".planes")
        return volumes.volume_of(node, made, x.type.shape[0])
    attrs = conv_attrs(conv_geometry(node, size, kernel), groups)
    if rank == 2:
        return node.build("conv2d", [x, weight, bias], attrs)[0]
    return _one_dimensional(node, "conv2d", [x, weight, bias], attrs)


def _one_dimensional(
    node: OnnxNode, op: str, operands: Sequence[Value | None], attrs: dict[str, Any]
) -> Value:
    """A 1-D (transposed) convolution as a 2-D one of height 1."""
    x, weight = operands[0], operands[1]
    assert x is not None
    assert weight is not None
    n, c, length = x.type.shape
    flat = reshape_value(node, x, (n, c, 1, length), ".rows")
    o, i, k = weight.type.shape
    kernel = reshape_weight(node, weight, (o, i, 1, k))
    (wide,) = node.build(op, [flat, kernel, operands[2]], attrs, suffix=".2d")
    shape = wide.type.shape
    return reshape_value(node, wide, (shape[0], shape[1], shape[3]), "")


@onnx_op("ConvTranspose")
def import_conv_transpose(node: OnnxNode) -> Sequence[Value]:
    """ConvTranspose in 1-D to 3-D; ``output_shape`` and ``auto_pad`` become pads."""
    x, weight = node.input(0), as_weight(node.graph, node.input(1), node.name)
    rank = spatial_rank(node, x.type.rank)
    lines = [_transposed_line(node, axis, x, weight) for axis in range(rank)]
    bias, groups = node.optional(2), int(node.attrs.get("group", 1))
    if not known(weight) or x.type.dtype != F32:
        return [late_weights.transposed_convolution(node, x, weight, bias, lines, groups)]
    if bias is not None and not known(bias):
        view = replace(node, name=node.name + ".sums", inputs=node.inputs[:2])
        return [late_weights.biased(node, import_conv_transpose(view)[0], bias)]
    if rank == 3:
        return [_transposed_volume(node, [x, weight, bias], lines, groups)]
    operands, attrs = [x, weight, bias], _transposed_attrs(lines, groups)
    if rank == 2:
        return node.build("conv_transpose2d", operands, attrs)
    return [_one_dimensional(node, "conv_transpose2d", operands, attrs)]


def _transposed_line(
    node: OnnxNode, axis: int, x: Value, weight: Value
) -> late_weights.TransposedLine:
    """The geometry of a ConvTranspose along one spatial axis, its padding resolved."""
    rank, attrs = x.type.rank - 2, node.attrs
    size, kernel = x.type.shape[axis + 2], weight.type.shape[axis + 2]
    check_axes(node, rank, weight.type.shape[2:])
    stride = int((attrs.get("strides") or (1,) * rank)[axis])
    dilation = int((attrs.get("dilations") or (1,) * rank)[axis])
    extra = int((attrs.get("output_padding") or (0,) * rank)[axis])
    line = late_weights.TransposedLine(size, kernel, stride, dilation, 0, 0, extra)
    mode, wanted = attrs.get("auto_pad", "NOTSET"), attrs.get("output_shape")
    if wanted:
        target = int(wanted[len(wanted) - rank + axis])
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        target = size * stride
    elif mode == "VALID":
        return line
    else:
        pads = attrs.get("pads") or (0,) * (2 * rank)
        return line.padded(int(pads[axis]), int(pads[rank + axis]))
    total = line.full - target
    half = total // 2
    upper = mode == "SAME_UPPER"
    return line.padded(half if upper else total - half, total - half if upper else half)


def _transposed_attrs(lines: Sequence[late_weights.TransposedLine], groups: int) -> dict[str, Any]:
    """Attributes of a conv_transpose2d over the last one or two lines."""
    begin, end = ([getattr(line, key) for line in lines] for key in ("begin", "end"))
    extra = tuple(line.extra for line in lines)
    return {
        "strides": pair([line.stride for line in lines]),
        "dilations": pair([line.dilation for line in lines]),
        "output_padding": (0, *extra) if len(extra) == 1 else extra,
        "groups": groups,
        "pads": quad(begin + end),
    }


def _transposed_volume(
    node: OnnxNode,
    operands: Sequence[Value | None],
    lines: Sequence[late_weights.TransposedLine],
    groups: int,
) -> Value:
    """A 3-D transposed convolution: one 2-D one for every place of a slice between two strides."""
    x, weight, bias = operands
    assert x is not None
    assert weight is not None
    line, attrs = lines[0], _transposed_attrs(lines[1:], groups)
    if line.output < 1:
        raise Unsupported(f"the result would have {line.output} slices")
    first = line.begin // line.stride
    count = (line.begin + line.output - 1) // line.stride - first + 1
    made = []
    for k in range(line.stride):
        phase = volumes.DepthPhase(k, line.kernel, line.stride, line.dilation)
        images = volumes.phase_windows(node, x, phase, first, count, groups, str(k))

        def chosen(array: Any, phase: volumes.DepthPhase = phase) -> Any:
            return phase.weights(array, groups)

        kernel = rebuilt(node, weight, chosen)
        layer = [images, kernel, bias]
        made += node.build("conv_transpose2d", layer, attrs, suffix=f".phase{k}")
    begin = line.begin - first * line.stride
    return volumes.interleaved(node, made, x.type.shape[0], begin, line.output)
