"""Measuring the candidates of every layer inside the network they belong to (``dlcc tune``).

Pass ``k`` compiles the whole network with each layer's ``k``-th candidate; the passes then run in
interleaved rounds and the clock of the runtime's profile entry tells what each layer took. So a
candidate is measured with the caches as its neighbours leave them, which a loop over one kernel
would not show, and drifts of the machine hit all candidates alike.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dlcc.artifact import write_artifact
from dlcc.bench import cpu_description
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import ProfiledNetwork, open_compiled, random_feed
from dlcc.ir import Graph, Node
from dlcc.lowering.choice import Choice
from dlcc.lowering.lower import Builder, lower
from dlcc.lowering.target import Target
from dlcc.lowering.tuning import Candidate, TuningDatabase, candidates, layer_key

if TYPE_CHECKING:
    from dlcc.remote.board import Board

CANDIDATES = 6
"""Ways of computing a layer that are measured at most."""

ROUNDS = 9
"""Interleaved rounds over all passes."""

_RUNS = 3
"""Runs of a pass in a round after one that warms it up; the fastest of each layer counts."""

Progress = Callable[[str, float], None]


@dataclass
class LayerTimes:
    """What the candidates of one layer took.

    Attributes:
        target: name of the target.
        layer: the layer's name; the first one's where several are alike.
        key: :func:`dlcc.lowering.tuning.layer_key`.
        count: layers of the network that are alike.
        predicted: name of the candidate that a compilation without measurements takes.
        seconds: candidate name to the median over rounds, all alike layers together.
    """

    target: str
    layer: str
    key: str
    count: int
    predicted: str
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        """Name of the fastest candidate."""
        return min(self.seconds, key=lambda name: (self.seconds[name], name))

    @property
    def saved(self) -> float:
        """Seconds that the fastest candidate takes less than the predicted one."""
        return self.seconds[self.predicted] - self.seconds[self.best]


@dataclass
class _Pass:
    """One compilation of the network: the candidate of each layer, in the order of the layers."""

    layers: list[tuple[Node, str, Candidate]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Steps of each layer."""


@dataclass
class _Plan:
    """Which candidate each distinct layer has in which pass."""

    limit: int
    known: dict[str, list[Candidate]] = field(default_factory=dict)

    def of(self, node: Node, target: Target) -> tuple[str, list[Candidate]]:
        key = layer_key(node)
        if key not in self.known:
            self.known[key] = candidates(node, target, self.limit)
        return key, self.known[key]

    @property
    def passes(self) -> int:
        """As many as the layer with the most candidates has."""
        return max(map(len, self.known.values()), default=0)


def tune(
    graph: Graph,
    target: Target,
    build_object: Builder,
    database: TuningDatabase,
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    limit: int = CANDIDATES,
    board: Board | None = None,
    progress: Progress = lambda _phase, _fraction: None,
) -> list[LayerTimes]:
    """Measure the candidates of the layers of ``graph`` and add the times to ``database``.

    Args:
        graph: the network after all passes.
        target: the machine, which must be this one or the board.
        build_object: compiles TIR functions.
        database: takes the result; equal layers that it knows are measured again.
        threads: threads of a run.
        rounds: interleaved rounds.
        limit: candidates of a layer at most.
        board: where they are measured; None for this machine.
        progress: told how far each phase is.

    Returns:
        The layers that had a choice, in the order of the network.

    Raises:
        DlccError: a layer has no kernel, or the machine lacks a feature of ``target``.
    """
    plan = _Plan(limit)
    with tempfile.TemporaryDirectory(prefix="dlcc-tune-") as folder:
        passes: list[tuple[_Pass, ProfiledNetwork]] = []
        try:
            while len(passes) < max(1, plan.passes):
                progress("compile candidates", len(passes) / max(1, plan.passes))
                place = Path(folder) / str(len(passes))
                made = _compiled(graph, target, build_object, plan, place, threads)
                passes.append((made, open_compiled(place, threads, board)))
            progress("compile candidates", 1.0)
            samples = _measured(passes, rounds, progress)
        finally:
            for _, network in passes:
                network.close()
    results = _summed([made for made, _ in passes], samples, target.name)
    cpu = cpu_description()[0] if board is None else board.cpu
    for entry in results:
        database.add(target.name, entry.key, entry.seconds, cpu, threads)
    return results


def _compiled(
    graph: Graph,
    target: Target,
    build_object: Builder,
    plan: _Plan,
    place: Path,
    threads: int,
) -> _Pass:
    """Writes the network with every layer's candidate number ``place.name`` to ``place``."""
    number = int(place.name)
    made = _Pass()

    def chooser(node: Node, on: Target) -> Choice:
        key, ways = plan.of(node, on)
        way = ways[min(number, len(ways) - 1)]
        made.layers.append((node, key, way))
        return Choice(node, way.row, way.plan(node), way.predicted)

    program = lower(graph, target, build_object, threads=threads, chooser=chooser)
    layers = program.report["layers"]
    assert isinstance(layers, list)
    made.steps = [len(layer["functions"]) for layer in layers]
    write_artifact(program, place)
    return made


def _measured(
    passes: list[tuple[_Pass, ProfiledNetwork]], rounds: int, progress: Progress
) -> list[list[list[float]]]:
    """Seconds of each pass, layer and round."""
    samples: list[list[list[float]]] = [[[] for _ in made.steps] for made, _ in passes]
    order = list(range(len(passes)))
    for number in range(rounds):
        for index in order if number % 2 == 0 else order[::-1]:
            measured = _layer_seconds(*passes[index])
            for times, seconds in zip(samples[index], measured, strict=True):
                times.append(seconds)
        progress("measure", (number + 1) / rounds)
    return samples


def _layer_seconds(made: _Pass, network: ProfiledNetwork) -> list[float]:
    """Seconds of each layer: the fastest of a few runs."""
    feed = random_feed(network.inputs)
    ends = [sum(made.steps[: i + 1]) for i in range(len(made.steps))]
    best: list[float] = []
    for times in network.profile(feed, least_seconds=0.0, least_runs=_RUNS, most_runs=_RUNS):
        layers = [1e-9 * sum(times[end - n : end]) for n, end in zip(made.steps, ends, strict=True)]
        best = [min(pair) for pair in zip(best or layers, layers, strict=True)]
    return best


def _summed(passes: list[_Pass], samples: list[list[list[float]]], target: str) -> list[LayerTimes]:
    """Median times per distinct layer and candidate, of the layers that had a choice."""
    results: dict[str, LayerTimes] = {}
    for number, made in enumerate(passes):
        totals: dict[tuple[str, str], float] = {}
        for (node, key, way), times in zip(made.layers, samples[number], strict=True):
            median = max(statistics.median(times), 1e-9)  # the clock counts nanoseconds
            totals[key, way.name] = totals.get((key, way.name), 0.0) + median
            if number == 0:
                entry = results.setdefault(key, LayerTimes(target, node.loc, key, 0, way.name, {}))
                entry.count += 1
        for (key, name), seconds in totals.items():
            results[key].seconds.setdefault(name, seconds)
    return [entry for entry in results.values() if len(entry.seconds) > 1]


def check_runs(missing: Sequence[str], name: str, board: Board | None) -> None:
    """Refuses to measure a target where its code does not run.

    Args:
        missing: what the machine lacks for it.
        name: of the target.
        board: the machine; None for this one.

    Raises:
        DlccError: TARGET.
    """
    if not missing:
        return
    place, machine, fix = (
        "here",
        "this machine",
        "give such a machine by --remote, or tune for `cpu`",
    )
    if board is not None:
        place, machine, fix = f"at {board.place}", "the board", "tune for the board's target"
    raise DlccError(
        ExitCode.TARGET,
        f"nothing of target {name} can be measured {place}",
        where="--target",
        why=f"{machine} lacks {', '.join(missing)}",
        fix=fix,
    )
