"""Reshapes, transpositions and broadcasts, and the many ONNX ops that are one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, Quantised, type_error
from dlcc.ops.pointwise import broadcast_reader, present

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext


class Movement(Op):
    """Base of ops that move numbers without changing them."""

    quantised = Quantised.SAME

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The union of the operands' ranges."""
        known = [x for x in xs if x is not None]
        union = known[0]
        for x in known[1:]:
            union = union.union(x)
        return [union for _ in node.outputs]


class Reshape(Movement):
    """reshape(x) {shape}: the same numbers in row-major order; ``shape`` holds no 0 or -1 rules."""

    name = "reshape"
    attributes = {"shape": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The attribute, which must have as many elements."""
        x = node.input(0).type
        shape = tuple(int(d) for d in self.get(node, "shape"))
        if any(d < 0 for d in shape) or math.prod(shape) != x.elements:
            raise type_error(node, f"{x.elements} elements do not fit shape {list(shape)}")
        return [TensorType(shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's reshape."""
        return [present(xs[0]).reshape(self.get(node, "shape"))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Element k of the result is element k of the operand."""
        from dlcc.tir import expr

        x, source, shape = ctx.read(0), node.input(0).type.shape, node.output.type.shape
        ctx.output(0, lambda *i: x(*expr.unflatten(expr.flat_index(i, shape), source)))


class Transpose(Movement):
    """transpose(x) {perm}: axis k of the result is axis perm[k] of the operand."""

    name = "transpose"
    attributes = {"perm": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's axes in the new order."""
        x = node.input(0).type
        perm = tuple(self.get(node, "perm"))
        if sorted(perm) != list(range(x.rank)):
            raise type_error(node, f"perm {list(perm)} is no permutation of {x.rank} axes")
        return [TensorType(tuple(x.shape[p] for p in perm), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's transpose."""
        return [np.transpose(present(xs[0]), self.get(node, "perm"))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """A permutation of indices."""
        x, perm = ctx.read(0), tuple(self.get(node, "perm"))

        def body(*index: Any) -> Any:
            source: list[Any] = [None] * len(perm)
            for axis, i in zip(perm, index, strict=True):
                source[axis] = i
            return x(*source)

        ctx.output(0, body)


class Expand(Movement):
    """expand(x) {shape}: x broadcast to ``shape`` (numpy rules, ``shape`` is the result's)."""

    name = "expand"
    attributes = {"shape": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """The attribute, to which the operand must broadcast."""
        x = node.input(0).type
        shape = tuple(int(d) for d in self.get(node, "shape"))
        try:
            fits = np.broadcast_shapes(x.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise type_error(node, f"it does not broadcast to {list(shape)}")
        return [TensorType(shape, x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's broadcast_to."""
        return [np.broadcast_to(present(xs[0]), self.get(node, "shape"))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Axes of size 1 are read at 0."""
        ctx.output(0, broadcast_reader(ctx.read(0), node.input(0).type.shape))


class Tile(Movement):
    """tile(x) {repeats}: x repeated along each axis."""

    name = "tile"
    attributes = {"repeats": ...}  # noqa: RUF012

    def infer(self, node: Node) -> list[TensorType]:
        """Each axis times its repeats."""
        x, repeats = node.input(0).type, tuple(self.get(node, "repeats"))
        if len(repeats) != x.rank or any(r < 0 for r in repeats):
            raise type_error(node, f"repeats {list(repeats)} do not fit {x.rank} axes")
        return [TensorType(tuple(d * r for d, r in zip(x.shape, repeats, strict=True)), x.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Numpy's tile."""
        return [np.tile(present(xs[0]), self.get(node, "repeats"))]

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Indices modulo the operand's sizes."""
        from dlcc.tir import expr

        x, shape = ctx.read(0), node.input(0).type.shape
        ctx.output(0, lambda *i: x(*(expr.floormod(k, d) for k, d in zip(i, shape, strict=True))))


# -- importers ---------------------------------------------------------------------------------


def integers(array: Array) -> tuple[int, ...]:
    """The elements of a constant as Python ints."""
    return tuple(int(v) for v in np.asarray(array).reshape(-1))


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as a non-negative one.

    Raises:
        Unsupported: it lies outside the rank.
    """
    if not -rank <= axis < max(rank, 1):
        raise Unsupported(f"axis {axis} is outside a tensor of {rank} axes")
    return axis % rank if rank else 0


def reshaped(node: OnnxNode, x: Value, shape: Sequence[int], suffix: str = "") -> Value:
    """``x`` in ``shape``; no node where it already has it."""
    if x.type.shape == tuple(shape):
        return x
    return node.build("reshape", [x], {"shape": tuple(shape)}, suffix=suffix)[0]


@onnx_op("Reshape", since=5)
def _reshape(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    wanted = list(integers(node.constant(1, "the shape")))
    if not node.attrs.get("allowzero", 0):
        for axis, size in enumerate(wanted):
            if size == 0:
                if axis >= x.type.rank:
                    raise Unsupported(f"shape {wanted} copies axis {axis}, which the input lacks")
                wanted[axis] = x.type.shape[axis]
    if wanted.count(-1) > 1:
        raise Unsupported(f"shape {wanted} has several unknown sizes")
    if -1 in wanted:
        rest = math.prod(d for d in wanted if d != -1)
        wanted[wanted.index(-1)] = x.type.elements // rest if rest else 0
    return [reshaped(node, x, wanted)]


@onnx_op("Flatten")
def _flatten(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    rank = x.type.rank
    axis = node.attrs.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise Unsupported(f"axis {axis} is outside a tensor of {rank} axes")
    return [reshaped(node, x, (math.prod(x.type.shape[:axis]), math.prod(x.type.shape[axis:])))]


def _axes(node: OnnxNode, rank: int) -> tuple[int, ...] | None:
    """Axes from the attribute (until opset 12) or the second operand."""
    if node.opset < 13:
        axes = node.attrs.get("axes")
    else:
        given = node.optional_constant(1, "axes")
        axes = None if given is None else integers(given)
    return None if axes is None else tuple(axis_of(a, rank) for a in axes)


@onnx_op("Squeeze")
def _squeeze(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    axes = _axes(node, x.type.rank)
    if axes is None:
        axes = tuple(i for i, d in enumerate(x.type.shape) if d == 1)
    if any(x.type.shape[a] != 1 for a in axes):
        raise Unsupported(f"axes {list(axes)} of shape {list(x.type.shape)} are not all 1")
    return [reshaped(node, x, [d for i, d in enumerate(x.type.shape) if i not in axes])]


@onnx_op("Unsqueeze")
def _unsqueeze(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    count = len(node.attrs.get("axes", ())) if node.opset < 13 else node.input(1).type.elements
    axes = _axes(node, x.type.rank + count)
    if axes is None or len(set(axes)) != count:
        raise Unsupported("axes are missing or repeated")
    sizes = iter(x.type.shape)
    rank = x.type.rank + count
    return [reshaped(node, x, [1 if i in axes else next(sizes) for i in range(rank)])]


@onnx_op("Transpose")
def _transpose(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    perm = tuple(node.attrs.get("perm", range(x.type.rank)[::-1]))
    if perm == tuple(range(x.type.rank)):
        return [x]
    return node.build("transpose", [x], {"perm": perm})


@onnx_op("Expand", since=8)
def _expand(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    wanted = integers(node.constant(1, "the shape"))
    shape = tuple(np.broadcast_shapes(x.type.shape, wanted))
    return [x] if shape == x.type.shape else node.build("expand", [x], {"shape": shape})


@onnx_op("Tile", since=6)
def _tile(node: OnnxNode) -> Sequence[Value]:
    repeats = integers(node.constant(1, "repeats"))
    if all(r == 1 for r in repeats):
        return [node.input(0)]
    return node.build("tile", [node.input(0)], {"repeats": repeats})


def _regroup(
    node: OnnxNode, x: Value, split: Sequence[int], perm: Sequence[int], merged: Sequence[int]
) -> list[Value]:
    """Reshape -> transpose -> reshape: how blocks move between axes."""
    parts = reshaped(node, x, split, "/split")
    (moved,) = node.build("transpose", [parts], {"perm": tuple(perm)}, suffix="/moved")
    return [reshaped(node, moved, merged)]


@onnx_op("DepthToSpace")
def _depth_to_space(node: OnnxNode) -> Sequence[Value]:
    x, size = node.input(0), int(node.attrs["blocksize"])
    n, c, h, w = x.type.shape
    depth = c // (size * size)
    merged = (n, depth, h * size, w * size)
    if node.attrs.get("mode", "DCR") == "CRD":
        return _regroup(node, x, (n, depth, size, size, h, w), (0, 1, 4, 2, 5, 3), merged)
    return _regroup(node, x, (n, size, size, depth, h, w), (0, 3, 4, 1, 5, 2), merged)


@onnx_op("SpaceToDepth")
def _space_to_depth(node: OnnxNode) -> Sequence[Value]:
    x, size = node.input(0), int(node.attrs["blocksize"])
    n, c, h, w = x.type.shape
    split = (n, c, h // size, size, w // size, size)
    merged = (n, c * size * size, h // size, w // size)
    crd = node.attrs.get("mode", "DCR") == "CRD"
    return _regroup(node, x, split, (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4), merged)
