"""Rows of a GPU: those of scalar code, with a thread for each work item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan, KernelStep
from dlcc.lowering.target import KernelRow
from dlcc.program import Launch

THREADS = 128
"""Threads of a block where they have nothing to do with each other."""


def items_launch(work_items: int) -> Launch:
    """A thread for each item."""
    threads = min(THREADS, work_items)
    return Launch((-(-work_items // threads), 1, 1), (threads, 1, 1))


def on_grid(plan: KernelPlan) -> KernelPlan:
    """``plan``, made for one CPU, with a thread for each work item.

    What every CPU thread has of its own, every item has then.
    """
    if not plan.thread_scratch:
        return replace(plan, steps=tuple(_thread_each(step, {}) for step in plan.steps))
    count = max(s.work_items for s in plan.steps)
    shared = len(plan.scratch)
    sizes = [-(-size // 64) * 64 for size in plan.thread_scratch]
    steps = []
    for step in plan.steps:
        private = {
            position: sizes[int(which)]
            for position, (kind, which) in enumerate(step.args)
            if kind == "thread_scratch"
        }
        args = tuple(
            ("scratch", shared + int(which)) if kind == "thread_scratch" else (kind, which)
            for kind, which in step.args
        )
        steps.append(_thread_each(replace(step, args=args), private))
    scratch = (*plan.scratch, *(size * count for size in sizes))
    return replace(plan, steps=tuple(steps), scratch=scratch, thread_scratch=())


def _thread_each(step: KernelStep, private: dict[int, int]) -> KernelStep:
    launch = items_launch(step.work_items)
    return replace(step, build=_kernel(step, launch, private), launch=launch, footprint=None)


def _kernel(step: KernelStep, launch: Launch, private: dict[int, int]) -> Callable[[], Any]:
    def build() -> Any:
        from dlcc.tir.cuda import on_items

        return on_items(step.build(), step.work_items, launch.block[0], private)

    return build


class GridRow(KernelRow):
    """Another row's kernels on a GPU.

    ``row``: of scalar code. Its costs are a CPU's: they only rank such rows among each other, after
    all that are made for GPUs.
    """

    def __init__(self, row: KernelRow) -> None:
        self.row = row
        self.name, self.ops, self.encodings = row.name, row.ops, row.encodings  # type: ignore[misc]

    def refuses(self, node: Node) -> str:
        """What the row refuses."""
        return self.row.refuses(node)

    def cost(self, node: Node) -> float:
        """The row's own."""
        return self.row.cost(node)

    def plan(self, node: Node) -> KernelPlan:
        """The row's own, with a thread for each work item."""
        return on_grid(self.row.plan(node))
