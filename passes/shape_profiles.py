"""Runs a pipeline on a network's shape profiles, so that all have the same weights.

Exact passes run on every profile. From the first lossy pass to the last, which read data and choose
by it, passes run on one of them, and what they made is carried over to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcc.analysis.shape_profiles import Passage, Watch, carried
from dlcc.ir import Graph
from passes.base import Pass, PassContext
from passes.manager import PassManager, PassRecord

Managers = Callable[[Sequence[Pass], Callable[[PassRecord], None] | None], PassManager]
"""Makes the manager of a pipeline, which calls the function after each pass; with None it is that
of another profile than the leader, of which nothing is shown."""


def run_profiles(
    graphs: list[Graph],
    leader: int,
    steps: Sequence[Pass],
    manager: Managers,
    contexts: Sequence[PassContext],
) -> list[PassRecord]:
    """Run ``steps`` on every profile; the graphs are replaced in the list.

    Args:
        graphs: the network, once for each profile, and what becomes of it.
        leader: number of the profile on which lossy passes run.
        steps: the pipeline.
        manager: makes managers.
        contexts: of each profile.

    Returns:
        What each pass did to the leader.

    Raises:
        DlccError: as :meth:`PassManager.run`; PASS where the profiles cannot have the same weights.
    """
    lossy = [number for number, step in enumerate(steps) if step.lossy]
    start, stop = (lossy[0], lossy[-1] + 1) if lossy else (len(steps), len(steps))
    passages: list[Passage] = []
    watches = [Watch(graphs[leader])] if start == 0 and lossy and graphs[1:] else []
    done: list[str] = []

    def after(record: PassRecord) -> None:
        done.append(record.name)
        if len(done) == start and lossy and graphs[1:]:
            watches.append(Watch(graphs[leader]))
        if len(done) == stop and watches:
            passages.append(watches.pop().end(graphs[leader]))

    records = manager(steps, after).run(graphs[leader], contexts[leader]).records
    for number, graph in enumerate(graphs):
        if number == leader:
            continue
        manager(steps[:start], None).run(graph, contexts[number])
        if lossy:
            graphs[number] = carried(passages[0], graph)
            manager(steps[stop:], None).run(graphs[number], contexts[number])
    return records


__all__ = ["run_profiles"]
