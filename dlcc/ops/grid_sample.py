"""Sampling of images and volumes at run-time positions: GridSample, DeformConv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import AttrValue, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops import late_weights
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.conv_onnx import conv_geometry
from dlcc.ops.pointwise import present
from dlcc.ops.resize import cubic_weights
from dlcc.ops.weights import as_weight, reshape_value

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
FAR = 4
"""Pixels outside of an image from where on all positions sample the same."""


class GridSample(Op):
    """grid_sample(x, grid): the numbers of ``x`` at real positions, interpolated.

    x f32[N, *spatial, C], grid f32[N, *out, rank] -> f32[N, *out, C]: channels are innermost, so
    that one position serves a whole vector.

    Attributes: ``mode`` nearest, linear or cubic (Keys 1981, a = -0.75); ``padding`` zeros, border
    or reflection: what lies outside; ``coordinates``: a grid in ``pixels``, in the order of the
    axes, or normalised to -1 .. 1 and in reverse order, where 1 is the outermost pixel's centre
    (``corners``) or its edge (``edges``).

    A position that is NaN counts as far outside.
    """

    name = "grid_sample"
    operands = ("x", "grid")
    attributes: ClassVar[Mapping[str, Any]] = {
        "mode": "linear",
        "padding": "zeros",
        "coordinates": "edges",
    }

    def infer(self, node: Node) -> list[TensorType]:
        """[N, *spatial, C], [N, *out, rank] -> [N, *out, C]."""
        x, grid = node.input(0).type, node.input(1).type
        rank = x.rank - 2
        if rank < 1 or grid.rank < 2 or grid.shape[-1] != rank or grid.shape[0] != x.shape[0]:
            raise type_error(node, f"the grid does not hold positions in {rank} axes")
        for key, known in (
            ("mode", tuple(TAPS)),
            ("padding", ("zeros", "border", "reflection")),
            ("coordinates", ("pixels", "corners", "edges")),
        ):
            if self.get(node, key) not in known:
                raise type_error(node, f"unknown {key} {self.get(node, key)!r}")
        return [TensorType((*grid.shape[:-1], x.shape[-1]), x.dtype)]

    def limits(self, node: Node, size: int) -> tuple[float, float]:
        """Between which positions an axis of ``size`` reflects."""
        if self.get(node, "coordinates") == "edges":
            return -0.5, size - 0.5
        return 0.0, size - 1.0

    def _positions(self, node: Node, grid: Array, axis: int, size: int) -> Array:
        """Positions along one axis in pixels, brought inside as the padding says."""
        coordinates, rank = self.get(node, "coordinates"), grid.shape[-1]
        kind = grid.dtype.type
        if coordinates == "pixels":
            at = grid[..., axis]
        elif coordinates == "corners":
            at = (grid[..., rank - 1 - axis] + kind(1)) * kind((size - 1) / 2)
        else:
            at = (grid[..., rank - 1 - axis] + kind(1)) * kind(size / 2) - kind(0.5)
        if self.get(node, "mode") == "nearest":
            at = np.rint(at)
        low, high = self.limits(node, size)
        padding = self.get(node, "padding")
        if padding == "border":
            inside = np.clip(at, kind(0), kind(size - 1))
            at = np.where((at < low) | (at > high), inside, at)
        elif padding == "reflection":
            at = reflected(at, low, high)
        at = np.where(at > -FAR, at, kind(-FAR))  # NaN too
        return np.asarray(np.where(at < size + FAR, at, kind(size + FAR)))

    def _taps(self, node: Node, at: Array, size: int) -> list[tuple[Array, Array, Array]]:
        """(index, weight, inside) of every tap along one axis."""
        mode, padding = self.get(node, "mode"), self.get(node, "padding")
        base = np.floor(at)
        t = (at - base).astype(at.dtype)
        if mode == "nearest":
            weights, first = [np.ones_like(at)], 0
        elif mode == "linear":
            weights, first = [1 - t, t], 0
        else:
            weights, first = list(cubic_weights(t, at.dtype.type(-0.75))), -1
        made = []
        for k, weight in enumerate(weights):
            index = base + (first + k)
            inside = np.ones(index.shape, np.bool_)
            if padding == "zeros":
                inside = (index >= 0) & (index < size)
            elif padding == "reflection":
                index = np.trunc(reflected(index, *self.limits(node, size)))
            place = np.clip(index, 0, size - 1).astype(np.int64)
            made.append((place, weight.astype(at.dtype), inside))
        return made

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """One gather for every combination of taps; the last axis is interpolated first."""
        x, grid = present(xs[0]), present(xs[1])
        dtype = x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float32)
        batch, rank = x.shape[0], x.ndim - 2
        flat = grid.reshape(batch, -1, rank).astype(dtype)
        with np.errstate(all="ignore"):
            taps = [
                self._taps(node, self._positions(node, flat, a, size), size)
                for a, size in enumerate(x.shape[1:-1])
            ]
        images = np.arange(batch)[:, None]

        def along(axis: int, chosen: tuple[tuple[Array, Array, Array], ...]) -> Array:
            if axis == rank:
                value = x[(images, *(place for place, _, _ in chosen))].astype(dtype)
                inside = np.logical_and.reduce([part[2] for part in chosen])
                return np.where(inside[..., None], value, dtype.type(0))
            total: Array | None = None
            for tap in taps[axis]:
                term = along(axis + 1, (*chosen, tap))
                if len(taps[axis]) > 1:
                    term = term * tap[1][..., None]
                total = term if total is None else total + term
            return present(total)

        with np.errstate(all="ignore"):
            out = along(0, ())
        return [out.astype(x.dtype).reshape(node.output.type.shape)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The operand's range, with 0 where zeros pad; cubic weights may overshoot."""
        x = xs[0]
        assert x is not None
        if self.get(node, "padding") == "zeros":
            x = x.union(Interval(0.0, 0.0))
        if self.get(node, "mode") != "cubic":
            return [x]
        gain = 1.375 ** (node.input(0).type.rank - 2)  # sum |w| of Keys' kernel at t = 1/2
        largest = max(abs(x.low), abs(x.high)) * gain
        return [Interval(-largest, largest)]

    def macs(self, node: Node) -> int:
        """Outputs times taps."""
        taps = TAPS[self.get(node, "mode")] ** (node.input(0).type.rank - 2)
        return int(node.output.type.elements * taps)

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Positions once a pixel, then vectors of channels (:mod:`dlcc.tir.sampling`)."""
        from dlcc.tir.sampling import emit

        mode, padding, coordinates = (str(self.get(node, key)) for key in self.attributes)
        limits = [self.limits(node, size) for size in node.input(0).type.shape[1:-1]]
        emit(node, ctx, mode, padding, coordinates, limits)


def reflected(at: Array, low: float, high: float) -> Array:
    """Positions outside ``low`` .. ``high`` mirrored at these ends until they lie between."""
    kind = at.dtype.type
    span = kind(high - low)
    if span <= 0:
        return np.full_like(at, low)
    below, above = kind(low) - at, at - kind(high)
    over = np.maximum(below, above)
    turns = np.floor(over / span)
    rest = over - turns * span
    # an even number of turns ends next to the side that was left, an odd one at the other
    near_low = (below > 0) == (turns % 2 == 0)
    inside = np.where(near_low, kind(low) + rest, kind(high) - rest)
    return np.asarray(np.where(over > 0, inside, at))


# -- ONNX --------------------------------------------------------------------------------------


@onnx_op("GridSample", since=16)
def import_grid_sample(node: OnnxNode) -> Sequence[Value]:
    """GridSample of images and, from opset 20 on, of any number of axes."""
    x, grid = node.input(0), node.input(1)
    rank = x.type.rank - 2
    mode = str(node.attrs.get("mode", "linear"))
    attrs: dict[str, AttrValue] = {
        "mode": {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode),
        "padding": str(node.attrs.get("padding_mode", "zeros")),
        "coordinates": "corners" if node.attrs.get("align_corners", 0) else "edges",
    }
    order = (0, *range(2, rank + 2), 1)
    (last,) = node.build("transpose", [x], {"perm": order}, suffix=".last")
    (made,) = node.build("grid_sample", [last, grid], attrs, suffix=".samples")
    back = (0, made.type.rank - 1, *range(1, made.type.rank - 1))
    return node.build("transpose", [made], {"perm": back})


@onnx_op("DeformConv", since=19)
def import_deform_conv(node: OnnxNode) -> Sequence[Value]:
    """DeformConv (Dai et al. 2017; with a mask Zhu et al. 2019): samples, then a matrix product."""
    x, weight = node.input(0), as_weight(node.graph, node.input(1), node.name)
    groups, parts = (int(node.attrs.get(k, 1)) for k in ("group", "offset_group"))
    n, c, *size = x.type.shape
    kernel, rank = weight.type.shape[2:], len(size)
    if parts < 1 or c % parts or groups < 1 or weight.type.shape[1] * groups != c:
        raise Unsupported(f"{c} channels in {groups} groups and {parts} groups of offsets")
    lines = [conv_geometry(node, size, kernel, (axis,)) for axis in range(rank)]
    if why := next((line.problem() for line in lines if line.problem()), ""):
        raise Unsupported(why)
    out, taps = tuple(line.output[1] for line in lines), math.prod(kernel)
    if node.input(2).type.shape != (n, parts * taps * rank, *out):
        raise Unsupported(f"offsets of shape {list(node.input(2).type.shape)} for {list(out)}")

    def arranged(value: Value, shape: tuple[int, ...], order: Sequence[int], name: str) -> Value:
        parted = reshape_value(node, value, shape, f".{name}.parts")
        (moved,) = node.build("transpose", [parted], {"perm": tuple(order)}, suffix=f".{name}")
        return moved

    pixels = range(2, rank + 2)
    image = arranged(x, (n, parts, c // parts, *size), (0, 1, *(p + 1 for p in pixels), 2), "image")
    image = reshape_value(node, image, (n * parts, *size, c // parts), ".image.flat")
    order = (0, 1, *(p + 2 for p in pixels), 2, 3)
    offset = arranged(node.input(2), (n, parts, taps, rank, *out), order, "offset")
    offset = reshape_value(node, offset, (n * parts, *out, taps, rank), ".offset.flat")
    base = node.graph.add_constant(_base_positions(lines), name=node.name + ".base")
    (grid,) = node.build("add", [offset, base], suffix=".grid")
    (columns,) = node.build(
        "grid_sample", [image, grid], {"coordinates": "pixels"}, suffix=".samples"
    )
    mask = node.optional(4)
    if mask is not None:
        mask = arranged(mask, (n, parts, taps, *out), (0, 1, *(p + 1 for p in pixels), 2), "mask")
        mask = reshape_value(node, mask, (n * parts, *out, taps, 1), ".mask.flat")
        (columns,) = node.build("mul", [columns, mask], suffix=".masked")
    places = math.prod(out)
    columns = arranged(columns, (n, parts, places, taps, c // parts), (0, 2, 3, 1, 4), "columns")
    columns = arranged(columns, (n, places, taps, groups, c // groups), (0, 1, 3, 2, 4), "groups")
    columns = reshape_value(node, columns, (n, places, groups, taps * c // groups), ".rows")
    return [late_weights.summed(node, columns, weight, node.optional(3), out)]


def _base_positions(lines: Sequence[Any]) -> Array:
    """float32 [*out, taps, rank]: where the taps lie without offsets."""
    rank = len(lines)
    starts = [np.arange(line.output[1]) * line.strides[1] - line.pads[1] for line in lines]
    taps = list(product(*(range(line.kernel[1]) for line in lines)))
    steps = np.asarray([[k * line.dilations[1] for k, line in zip(t, lines, strict=True)]
                        for t in taps])  # fmt: skip
    corner = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1)
    return np.asarray(corner[..., None, :] + steps, np.float32).reshape(
        *(len(s) for s in starts), len(taps), rank
    )
