"""Kernels of scalar code on a GPU: a thread for each work item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dlcc.lowering.kernel import KernelPlan, KernelStep
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
        return replace(plan, steps=tuple(thread_each(step) for step in plan.steps))
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
        steps.append(thread_each(replace(step, args=args), private))
    scratch = (*plan.scratch, *(size * count for size in sizes))
    return replace(plan, steps=tuple(steps), scratch=scratch, thread_scratch=())


def thread_each(step: KernelStep, private: Mapping[int, int] | None = None) -> KernelStep:
    """A thread for each work item; ``private`` as :func:`dlcc.tir.cuda.on_items` has it."""
    launch = items_launch(step.work_items)
    return replace(step, build=_kernel(step, launch, private or {}), launch=launch, footprint=None)


def _kernel(step: KernelStep, launch: Launch, private: Mapping[int, int]) -> Callable[[], Any]:
    def build() -> Any:
        from dlcc.tir.cuda import on_items

        return on_items(step.build(), step.work_items, launch.block[0], private)

    return build
