"""Rows of a GPU for reductions and group normalisation, by the threads of a block."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, cast

import numpy as np

from dlcc.ir import F32, Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from dlcc.ops.integer import real_of
from dlcc.ops.norm import GroupNorm
from dlcc.ops.pool import mean_multiplier
from targets.kernels.grid_reduce import (
    GroupNormSpec,
    Kind,
    ReduceSpec,
    grid_group_norm,
    grid_reduce,
)
from targets.kernels.grid_rows import View, rows_cost
from targets.rows import layers
from targets.rows.grid import MachineRow

_REDUCED = ("mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square")
_ON_CODES = frozenset({"mean", "max", "min", "argmax", "argmin"})


def _refusal(type_: TensorType) -> str:
    """Why elements cannot be read or written so; "" if they can."""
    if type_.is_binary or type_.dtype != F32:
        return "it takes float32 numbers, and codes that stand for them"
    encoding = type_.encoding
    if isinstance(encoding, Affine):
        if encoding.bits > 8 or encoding.axis is not None or encoding.signed:
            return "the codes are signed, have more than 8 bits, or several scales"
    elif not type_.is_dense and not type_.short_float:
        return f"it does not read {encoding.name}"
    return "" if type_.elements else "a tensor has no elements"


class GridReduceRow(MachineRow):
    """Reductions over neighbouring axes, arg-reductions and LpNormalization."""

    name: ClassVar[str] = "grid-reduce"
    ops: ClassVar[tuple[str, ...]] = (
        *(f"reduce_{kind}" for kind in _REDUCED),
        "argmax",
        "argmin",
        "lp_norm",
    )

    def refuses(self, node: Node) -> str:
        """Other types, axes that are apart, and results in another order than the rows."""
        x, out, kind = node.input(0).type, node.output.type, _kind(node)
        places = kind.startswith("arg")
        why = _refusal(x) or ("" if places else _refusal(out))
        if why:
            return why
        coded = isinstance(x.encoding, Affine)
        if coded and kind not in _ON_CODES:
            return f"there is no {kind} of codes"
        if isinstance(out.encoding, Affine) and not coded:
            return "the output is quantised and the input is not"
        if coded and not places and out.short_float:
            return "the input has codes and the output floats of 16 bits"
        if kind == "lp_norm":
            same = x.permutation == out.permutation
            return "" if same else "the output lies in another order"
        if _view(node) is None:
            return "the reduced axes are no neighbours in memory"
        return "" if _kept(node) else "results lie in another order than rows"

    def cost(self, node: Node) -> float:
        """Of all rows."""
        view = _view(node)
        assert view is not None
        return rows_cost(view, self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        view, op, kind = _view(node), op_of(node), _kind(node)
        assert view is not None
        source, out = node.input(0).type.encoding, node.output.type.encoding
        coded = isinstance(source, Affine)
        spec = ReduceSpec(
            kind,
            "u8" if coded else layers.real_dtype(source),
            "f32" if kind.startswith("arg") else layers.epilogue_dtype(out),
            int(op.get(node, "p")) if kind == "lp_norm" else 2,
            kind.startswith("arg") and bool(op.get(node, "select_last_index")),
        )
        if kind != "mean" or not isinstance(source, Affine):
            return grid_reduce(spec, view)
        factor = float(mean_multiplier(source, out, view.length))
        codes = (out.zero_point, *out.code_range) if isinstance(out, Affine) else (0, 0, 0)
        return grid_reduce(spec, view, factor, source.zero_point, codes)


def _kind(node: Node) -> Kind:
    return cast("Kind", node.op.removeprefix("reduce_"))


def _axes(node: Node) -> tuple[int, ...]:
    op, rank = op_of(node), node.input(0).type.rank
    given = op.get(node, "axes") if "axes" in op.attributes else (op.get(node, "axis"),)
    return tuple(int(axis) % rank for axis in given)


def _physical(node: Node) -> list[int]:
    """Axes longer than 1 in the order of memory."""
    type_ = node.input(0).type
    return [axis for axis in type_.permutation if type_.shape[axis] > 1]


def _view(node: Node) -> View | None:
    """The rows over the reduced axes; None where these are apart."""
    shape, order, axes = node.input(0).type.shape, _physical(node), set(_axes(node))
    places = [i for i, axis in enumerate(order) if axis in axes]
    if not places:
        return View.rows(node.input(0).type.elements, 1)
    if places != list(range(places[0], places[-1] + 1)):
        return None
    before, after = order[: places[0]], order[places[-1] + 1 :]
    return View.of(_extent(shape, before), _extent(shape, axes), _extent(shape, after))


def _extent(shape: Sequence[int], axes: Sequence[int] | set[int]) -> int:
    return prod(shape[axis] for axis in axes)


def _kept(node: Node) -> bool:
    """Whether results lie in memory as their rows do."""
    x, out, axes = node.input(0).type, node.output.type, _axes(node)
    left = [axis for axis in range(x.rank) if axis not in axes or out.rank == x.rank]
    order = [left[place] for place in out.permutation]
    rows = [axis for axis in _physical(node) if axis not in axes]
    return rows == [axis for axis in order if axis in rows]


class GridGroupNormRow(MachineRow):
    """Group and instance normalisation, a block for each group of an image."""

    name: ClassVar[str] = "grid-group-norm"
    ops: ClassVar[tuple[str, ...]] = ("group_norm", "instance_norm")

    def refuses(self, node: Node) -> str:
        """Codes, other layouts, and parameters of the run time."""
        x, out = node.input(0).type, node.output.type
        for type_ in (x, out):
            if why := _refusal(type_):
                return why
            if isinstance(type_.encoding, Affine):
                return "there is no group normalisation of codes"
        if out.permutation != x.permutation or _channels_last(x) is None:
            return "channels lie neither before nor behind all pixels"
        if any(v is not None and not v.is_constant for v in node.inputs[1:]):
            return "its parameters are not known at compile time"
        return ""

    def cost(self, node: Node) -> float:
        """Of all groups."""
        spec, images, groups = _group_norm(node)
        return rows_cost(spec.view(images, groups), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        spec, images, groups = _group_norm(node)
        epsilon = float(op_of(node).get(node, "epsilon"))
        scale, bias = (_parameter(node, index) for index in (1, 2))
        return grid_group_norm(spec, images, groups, epsilon, scale, bias)


def _channels_last(type_: TensorType) -> bool | None:
    """Whether axis 1 lies innermost; None where it lies between pixels."""
    ranks = range(type_.rank)
    if type_.permutation == tuple(ranks):
        return False
    return True if type_.permutation == (0, *ranks[2:], 1) else None


def _group_norm(node: Node) -> tuple[GroupNormSpec, int, int]:
    """The layer, its images and groups."""
    x, groups = node.input(0).type, cast("GroupNorm", op_of(node)).groups(node)
    images, channels, *pixels = x.shape
    spec = GroupNormSpec(
        channels // groups,
        prod(pixels),
        bool(_channels_last(x)),
        layers.real_dtype(x.encoding),
        layers.epilogue_dtype(node.output.type.encoding),
        node.optional_input(1) is not None,
        node.optional_input(2) is not None,
    )
    return spec, images, groups


def _parameter(node: Node, index: int) -> Array | None:
    """A scale or bias by channel, in real numbers."""
    value = node.optional_input(index)
    return None if value is None else np.asarray(real_of(value, value.stored()), np.float32)
