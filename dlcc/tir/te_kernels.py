"""Kernels from tensor expressions: pooling, elementwise, normalisation, data movement.

A layer is written as :mod:`tvm.te` computes; :func:`elementwise_like` schedules it the one way that
suits them all: elementwise producers are inlined, reductions and other producers are computed
inside a work item into stack memory, the outer axes of the output become work items, and the
innermost output axis becomes vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import s_tir, te

from dlcc.tir.loops import ITEMS, VECTOR


def elementwise_like(
    name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    lanes: int,
    *,
    item_axes: int | None = None,
    item_elements: int = 4096,
) -> tuple[Any, int]:
    """A kernel ``name(inputs..., outputs..., begin, end)`` that computes ``outputs``.

    Args:
        name: the function's symbol.
        inputs: placeholders, in parameter order. A constant is a placeholder too.
        outputs: results of ``te.compute``, in parameter order; with more than one, all must have
            the same number of work items (equal shapes do).
        lanes: vector lanes of the innermost axis (elements of the widest dtype in one register:
            16 for f32/i32 on AVX-512, 8 on AVX2, 4 on NEON and SSE; 1: scalar code).
        item_axes: how many leading output axes a work item fixes; ``None``: all but the last.
            An axis that a reduction runs over for the whole row (softmax, layer norm) must not be
            among them.
        item_elements: output elements that one work item aims at: some microseconds of work, tens
            of items a layer. 1: every element is an item, as far as ``item_axes`` allows.

    Returns:
        The scheduled PrimFunc and its number of work items.

    Raises:
        ValueError: no outputs, an output of no elements or no axes, or outputs with different
            numbers of work items. (Temporaries too large for the stack: at compile_object.)
    """
    if not outputs:
        raise ValueError(f"{name}: a kernel needs an output")
    for tensor in outputs:
        if not tensor.shape or prod(int(dim) for dim in tensor.shape) == 0:
            raise ValueError(f"{name}: output {tensor.name} has no axes or no elements")
    func = te.create_prim_func([*inputs, *outputs]).with_attr("global_symbol", name)
    schedule = s_tir.Schedule(func, debug_mask="none")
    schedule.work_on(schedule.mod.get_global_vars()[0].name_hint)
    results = [schedule.get_sblock(tensor.op.name) for tensor in outputs]
    _inline(schedule, results)
    counts = []
    for block in results:
        loop, row, count = _item_loop(schedule, block, item_axes, item_elements)
        _compute_inside(schedule, block, row)
        if lanes == 1:
            _start_apart(schedule, loop)
        else:
            _vectorise(schedule, loop, lanes)
        schedule.annotate(loop, ITEMS, 1)
        counts.append(count)
    if len(set(counts)) != 1:
        raise ValueError(f"{name}: outputs have different numbers of work items: {counts}")
    return schedule.mod[schedule.mod.get_global_vars()[0]], counts[0]


def _same(schedule: Any, left: Any, right: Any) -> bool:
    return bool(schedule.get(left).same_as(schedule.get(right)))


def _is_reduction(schedule: Any, block: Any) -> bool:
    return schedule.get(block).init is not None


def _children(schedule: Any) -> list[Any]:
    """All compute blocks, in program order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _inline(schedule: Any, results: list[Any]) -> None:
    """Inlines every producer that is not a reduction and not an output."""
    for block in _children(schedule):
        if any(_same(schedule, block, result) for result in results):
            continue
        if not _is_reduction(schedule, block):
            schedule.compute_inline(block)


def _spatial_loops(schedule: Any, block: Any) -> list[Any]:
    """The loops of ``block`` that are not reduction loops (te puts them first)."""
    axes = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    return [loop for loop, axis in zip(loops, axes, strict=True) if int(axis.iter_type) == 0]


def _divisor(count: int, limit: int) -> int:
    """The largest divisor of ``count`` that is at most ``limit`` (at least 1)."""
    return max(d for d in range(1, max(1, min(count, limit)) + 1) if count % d == 0)


def _item_loop(
    schedule: Any, block: Any, item_axes: int | None, item_elements: int
) -> tuple[Any, Any, int]:
    """Fuses leading axes of ``block`` into the work-item loop.

    Returns it, the loop inside it over single rows (where temporaries belong: a work item's rows
    may come from several images or lines, and a temporary that covers them all could be huge),
    and the number of work items.
    """
    loops = _spatial_loops(schedule, block)
    extents = [int(schedule.get(loop).extent) for loop in loops]
    if item_axes is None and item_elements == 1:
        item_axes = len(loops)
    axes = len(loops) - 1 if item_axes is None else min(item_axes, len(loops))
    if axes == 0 and item_axes is None:  # one axis only: cut it into chunks
        chunk = _divisor(extents[0], item_elements)
        if chunk * 16 < min(extents[0], item_elements):  # a prime, say: one item is better
            chunk = extents[0]
        outer, _ = schedule.split(loops[0], [extents[0] // chunk, chunk])
        return outer, outer, extents[0] // chunk
    if axes == 0:
        unit = schedule.add_unit_loop(loops[0])
        return unit, unit, 1
    outer = schedule.fuse(*loops[:axes]) if axes > 1 else loops[0]
    count, inside = prod(extents[:axes]), prod(extents[axes:])
    rows = _divisor(count, max(1, item_elements // max(inside, 1)))
    if rows == 1 and count > 1:
        return outer, outer, count
    outer, row = schedule.split(outer, [count // rows, rows])
    return outer, row, count // rows


def _compute_inside(schedule: Any, block: Any, loop: Any) -> None:
    """Moves all producers of ``block`` into the work item."""
    moved = True
    while moved:
        moved = False
        for producer in reversed(_children(schedule)):
            if _same(schedule, producer, block) or not schedule.get_consumers(producer):
                continue
            if any(_same(schedule, outer, loop) for outer in schedule.get_loops(producer)):
                continue
            if all(
                any(_same(schedule, outer, loop) for outer in schedule.get_loops(consumer))
                for consumer in schedule.get_consumers(producer)
            ):
                schedule.compute_at(producer, loop, preserve_unit_loops=True)
                moved = True


def _start_apart(schedule: Any, item: Any) -> None:
    """Gives the reductions inside the item loop their first values before they loop."""
    for inner in _children(schedule):
        loops = schedule.get_loops(inner)
        if not _is_reduction(schedule, inner) or not any(
            _same(schedule, outer, item) for outer in loops
        ):
            continue
        axes = schedule.get(inner).iter_vars
        reductions = sum(1 for axis in axes if int(axis.iter_type) != 0)
        schedule.decompose_reduction(inner, loops[len(loops) - reductions])


def _vectorise(schedule: Any, item: Any, lanes: int) -> None:
    """Marks the innermost spatial loop of every block inside the item loop as a vector loop."""
    for inner in _children(schedule):
        loops = schedule.get_loops(inner)
        if not any(_same(schedule, outer, item) for outer in loops):
            continue
        axes = schedule.get(inner).iter_vars
        reductions = sum(1 for axis in axes if int(axis.iter_type) != 0)
        spatial = loops[: len(loops) - reductions]
        last = spatial[-1]
        if _same(schedule, last, item) or int(schedule.get(last).extent) == 1:
            continue
        schedule.annotate(last, VECTOR, lanes)
