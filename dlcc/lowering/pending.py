"""Steps of which kernel and operands are known, and places are not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from dlcc.ir import Node
from dlcc.lowering.bands import Accesses, BandPlan
from dlcc.lowering.fusion import Candidate
from dlcc.lowering.kernel import KernelStep
from dlcc.lowering.memory import Span
from dlcc.lowering.order import Touch
from dlcc.lowering.threads import Work
from dlcc.lowering.views import Buffer
from dlcc.program import Arg, FusedStep, Member, Window

Place = Callable[["Buffer | Scratch"], tuple[Hashable, int, int]]
"""Finds an argument's memory and bytes."""


@dataclass
class Scratch:
    """Memory of a step beside its tensors; ``per_thread`` > 0: each thread has so much of it."""

    span: Span
    per_thread: int


@dataclass
class Pending:
    """A step whose arguments have no place yet."""

    layer: str
    function: str
    step: KernelStep
    args: list[Arg | Buffer | Scratch]
    seconds: float
    weight_bytes: int
    mark: Node | None = None
    """Of a loop, whose condition it writes."""

    def candidate(self) -> Candidate:
        """The step as the choice of fused groups sees it."""
        return Candidate(
            self.layer,
            frozenset(id(arg) for arg in self.args if not isinstance(arg, Arg)),
            self._accesses(),
            self.seconds,
            self.weight_bytes,
        )

    def touches(
        self, place: Callable[[Buffer | Scratch], tuple[Hashable, int, int]]
    ) -> list[Touch]:
        """What the step uses of buffers, which ``place`` finds a memory and its bytes for."""
        return [
            Touch(*place(arg), kind != "in")
            for (kind, _), arg in zip(self.step.args, self.args, strict=True)
            if not isinstance(arg, Arg)
        ]

    def _accesses(self) -> Accesses | None:
        if self.step.footprint is None:
            return None
        footprint = self.step.footprint()
        reads = {id(self.args[position]): spans for position, spans in footprint.reads.items()}
        writes = {id(self.args[position]): spans for position, spans in footprint.writes.items()}
        return Accesses(self.step.work_items, reads, writes)


def work_items(steps: Iterable[Pending]) -> dict[str, int]:
    """Work items of each function's steps, which what determines its code determines too."""
    found: dict[str, int] = {}
    for pending in steps:
        items = pending.step.work_items
        if found.setdefault(pending.function, items) != items:
            raise ValueError(f"{pending.function} has steps of different work items")
    return found


def work_of(run: list[Pending]) -> Work:
    """What steps that run together compute, and what they read that they have not made."""
    made: set[int] = set()
    read = 0
    for pending in run:
        for (kind, _), arg in zip(pending.step.args, pending.args, strict=True):
            if id(arg) in made:
                continue
            if kind == "in" and isinstance(arg, Buffer):
                read += arg.size
            elif kind == "scratch" and isinstance(arg, Scratch):
                read += arg.span.size
        made.update(id(arg) for arg in pending.args if not isinstance(arg, Arg))
    return Work(sum(pending.seconds for pending in run), read)


def fused_step(
    plan: BandPlan, run: list[Pending], windows: Mapping[int, Scratch], threads: int
) -> FusedStep:
    """Steps that run band by band, as one."""
    order = {key: index for index, key in enumerate(plan.windows)}
    members = [
        Member(
            one.layer,
            one.function,
            tuple(
                Arg("window", index=order[id(arg)]) if id(arg) in order else final_arg(arg)
                for arg in one.args
            ),
            tuple(map(int, plan.first[index])),
            tuple(map(int, plan.until[index])),
        )
        for index, one in enumerate(run)
    ]
    held = [
        Window(
            windows[key].span.offset,
            windows[key].per_thread,
            tuple(map(int, window.start)),
            tuple(map(int, window.kept)),
        )
        for key, window in plan.windows.items()
    ]
    return FusedStep(tuple(members), tuple(held), plan.bands, threads)


def written_place(pending: Pending) -> Arg:
    """Where a step writes its layer's only result."""
    return final_arg(pending.args[pending.step.args.index(("out", 0))])


def final_arg(arg: Arg | Buffer | Scratch) -> Arg:
    """An argument at its place."""
    if isinstance(arg, Buffer):
        return Arg(arg.kind, arg.span.offset if arg.kind == "arena" else 0, arg.index)
    if isinstance(arg, Scratch):
        return Arg("arena", arg.span.offset, 0, arg.per_thread)
    return arg


def final_place(arg: Buffer | Scratch) -> tuple[Hashable, int, int]:
    """A memory, and an argument's bytes in it."""
    if isinstance(arg, Buffer) and arg.kind != "arena":
        return (arg.kind, arg.index), 0, arg.size
    return "arena", arg.span.offset, arg.span.offset + arg.span.size


def last_users(pending: Iterable[Pending], when: Iterable[int]) -> dict[int, int]:
    """For each buffer's span (by id) the number of steps at the time when it is used last."""
    found: dict[int, tuple[int, int]] = {}
    for one, time in zip(pending, when, strict=True):
        for span in {id(arg.span) for arg in one.args if isinstance(arg, Buffer)}:
            last, count = found.get(span, (time, 0))
            found[span] = (time, count + 1 if last == time else 1)
    return {span: count for span, (_, count) in found.items()}
