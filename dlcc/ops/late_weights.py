"""Convolutions whose weights are only known at run time: products over unfolded windows.

The windows of the input become columns (im2col), and one matrix product per group sums them; a
transposed convolution is the product first, then every tap added at its place (col2im). Works for
any number of spatial axes, in float32, float64 and int32; weights of float64 layers may be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlcc.frontends.registry import OnnxNode, Unsupported
from dlcc.ir import F32, AttrValue, Value
from dlcc.ops.weights import known, reshape_value, transposed
from dlcc.ops.windows import Window


@dataclass(frozen=True)
class TransposedLine:
    """A transposed convolution along one axis.

    Attributes:
        size: places of the input.
        kernel: taps.
        stride: places of the output from one place of the input to the next.
        dilation: places of the output from one tap to the next.
        begin: places cut off in front; negative: zeros added.
        end: the same at the end.
        extra: ``output_padding``: places added at the end.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    extra: int

    @property
    def full(self) -> int:
        """Places before anything is cut off."""
        return (self.size - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 + self.extra

    @property
    def output(self) -> int:
        """Places of the result."""
        return self.full - self.begin - self.end

    def padded(self, begin: int, end: int) -> TransposedLine:
        """With these pads."""
        return replace(self, begin=begin, end=end)


def convolution(
    node: OnnxNode,
    x: Value,
    weight: Value,
    bias: Value | None,
    lines: Sequence[Window],
    groups: int,
) -> Value:
    """[N, C, *spatial], [O, C/groups, *kernel] -> [N, O, *windows].

    Args:
        node: the layer.
        x: the input.
        weight: as Conv has it.
        bias: [O] or None.
        lines: the geometry along each spatial axis, as windows of height 1.
        groups: channel groups.
    """
    for line in lines:
        if why := line.problem():
            raise Unsupported(why)
    n, c = x.type.shape[:2]
    rank = len(lines)
    _check_groups(c, weight.type.shape[1] * groups, weight.type.shape[0], groups)
    order = (0, *range(2, rank + 2), 1)
    (columns,) = node.build("transpose", [x], {"perm": order}, suffix=".last")
    split = (n, *x.type.shape[2:], groups, c // groups)
    columns = reshape_value(node, columns, split, ".groups")
    for axis, line in enumerate(lines, start=1):
        attrs: dict[str, AttrValue] = {
            "axis": axis,
            "taps": line.kernel[1],
            "stride": line.strides[1],
            "dilation": line.dilations[1],
            "pads": (line.pads[1], line.pads[3]),
        }
        (columns,) = node.build("unfold", [columns], attrs, suffix=f".taps{axis}")
    spatial = tuple(line.output[1] for line in lines)
    depth = math.prod(weight.type.shape[1:])
    columns = reshape_value(node, columns, (n, math.prod(spatial), groups, depth), ".columns")
    return summed(node, columns, weight, bias, spatial)


def _check_groups(channels: int, wanted: int, outputs: int, groups: int) -> None:
    if groups < 1 or channels != wanted or outputs % groups:
        raise Unsupported(f"{channels} channels in {groups} groups do not fit the weight")


def summed(
    node: OnnxNode, columns: Value, weight: Value, bias: Value | None, spatial: tuple[int, ...]
) -> Value:
    """Columns [N, P, groups, taps * C/groups] times weight [O, C/groups, *kernel] -> [N, O, *P].

    The columns hold all channels of a tap, then those of the next.
    """
    n, places, groups, depth = columns.type.shape
    outputs = weight.type.shape[0]
    order = (0, *range(2, weight.type.rank), 1)
    if known(weight) and groups == 1 and columns.type.dtype == F32:
        kernel = transposed(node.graph, weight, order, node.name)
        kernel = reshape_value(node, kernel, (outputs, depth), ".kernel")
        rows = reshape_value(node, columns, (n, places, depth), ".rows")
        operands = [rows, kernel, bias]
        (made,) = node.build("linear", operands, suffix=".product")
        made, bias = reshape_value(node, made, (n, places, 1, outputs), ".groups"), None
    else:
        (kernel,) = node.build("transpose", [weight], {"perm": order}, suffix=".taps")
        kernel = reshape_value(node, kernel, (groups, outputs // groups, depth), ".kernel")
        (rows,) = node.build("transpose", [columns], {"perm": (0, 2, 1, 3)}, suffix=".rows")
        (made,) = node.build("matmul", [rows, kernel], {"transpose_b": True}, suffix=".product")
        (made,) = node.build("transpose", [made], {"perm": (0, 2, 1, 3)}, suffix=".outputs")
    made = reshape_value(node, made, (n, places, outputs), ".flat")
    if bias is not None:
        (made,) = node.build("add", [made, bias], suffix=".bias")
    (made,) = node.build("transpose", [made], {"perm": (0, 2, 1)}, suffix=".channels")
    return reshape_value(node, made, (n, outputs, *spatial), "")


def transposed_convolution(
    node: OnnxNode,
    x: Value,
    weight: Value,
    bias: Value | None,
    lines: Sequence[TransposedLine],
    groups: int,
) -> Value:
    """[N, C, *spatial], [C, O/groups, *kernel] -> [N, O, *output]."""
    n, c = x.type.shape[:2]
    _check_groups(c, weight.type.shape[0], c, groups)
    places, taps = math.prod(x.type.shape[2:]), math.prod(weight.type.shape[2:])
    outputs = weight.type.shape[1] * groups
    kernel = reshape_value(node, weight, (groups, c // groups, outputs // groups * taps), ".kernel")
    (kernel,) = node.build("transpose", [kernel], {"perm": (0, 2, 1)}, suffix=".columns")
    pixels = reshape_value(node, x, (n, groups, c // groups, places), ".pixels")
    (made,) = node.build("matmul", [kernel, pixels], suffix=".product")
    made = reshape_value(node, made, (n, outputs, taps, places), ".taps")
    attrs: dict[str, AttrValue] = {
        "sizes": tuple(line.output for line in lines),
        "kernel": tuple(line.kernel for line in lines),
        "strides": tuple(line.stride for line in lines),
        "dilations": tuple(line.dilation for line in lines),
        "pads": (*(line.begin for line in lines), *(line.end - line.extra for line in lines)),
    }
    (made,) = node.build("fold", [made], attrs, suffix=".fold")
    return made if bias is None else biased(node, made, bias)


def biased(node: OnnxNode, made: Value, bias: Value) -> Value:
    """[N, O, *spatial] plus [O]."""
    shape = (bias.type.elements, *(1,) * (made.type.rank - 2))
    return node.build("add", [made, reshape_value(node, bias, shape, ".bias")])[0]
