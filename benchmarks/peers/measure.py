"""Timing groups of contenders in interleaved rounds."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.artifacts import Artifacts, NoArtifact
from benchmarks.peers.catalogue import CONTENDERS, Contender
from benchmarks.peers.engines import Job
from benchmarks.peers.results import Cell, Group, Results
from benchmarks.peers.session import Slices, Worker, WorkerFailed
from benchmarks.peers.setup import Cache

FOREIGN_LIMIT = 0.2
"""A slot during which others used more than this of the worker's CPUs is repeated."""
TRIES = 2
SLOW_SECONDS = 0.2
"""A slot of a slower call is not repeated."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: interleaved rounds.
        slot_seconds: least time of a slot.
        cpus: CPUs to use, the first ones for fewer threads.
        loading: workers that load at once.
        realtime: give the worker that is timed real-time priority.
        slowest: contenders whose call takes longer than this are not timed in rounds.
    """

    rounds: int
    slot_seconds: float
    cpus: tuple[int, ...]
    loading: int = 2
    realtime: bool = False
    slowest: float = 3.0


@dataclass
class Bench:
    """Measures group after group.

    Attributes:
        cache: environments and models.
        artifacts: dlcc's own models.
        settings: how to measure.
        slices: the lock to hold while timing.
        say: told what happens.
        contenders: who is known, by name.
        machine: describes the machine.
        queue: inferences between two waits, for batches of that size (see :class:`Job`).
    """

    cache: Cache
    artifacts: Artifacts
    settings: Settings
    slices: Slices
    say: Callable[[str], None]
    contenders: Mapping[str, Contender] = field(default_factory=lambda: CONTENDERS)
    machine: Callable[[], dict[str, Any]] = lambda: machine()
    queue: Callable[[int], int] = lambda _: 0

    def run(
        self,
        groups: Sequence[Group],
        names: Sequence[str],
        results: Results,
        path: Path,
        again: bool = False,
    ) -> None:
        """Measure the groups that ``results`` lacks, and write the file after each.

        A group is measured whole, so that its ratios are of common rounds.
        """
        for index, group in enumerate(groups):
            models = self._models(group, [self.contenders[name] for name in names])
            wanted = {name: _identity(model) for name, model in models.items()}
            title = f"[{index + 1}/{len(groups)}] {describe(group)}"
            if not again and results.complete(group, wanted):
                self.say(f"{title}: measured before")
                continue
            self.say(title)
            found = self.measure(group, models)
            results.merge(Results(self.machine(), {group: found}))
            results.save(path)

    def _models(self, group: Group, contenders: list[Contender]) -> dict[str, Path | str]:
        """The model of each contender, or why there is none."""
        models: dict[str, Path | str] = {}
        for contender in contenders:
            if contender.ours:
                precision, hide = contender.precision, not group.amx
                try:
                    models[contender.name] = self.artifacts.ready(group.network, precision, hide)
                except NoArtifact as error:
                    models[contender.name] = str(error)
            else:
                reason = self.cache.missing(contender, group.network)
                model = self.cache.model(contender.product, group.network)
                models[contender.name] = reason or model
        return models

    def measure(self, group: Group, models: dict[str, Path | str]) -> dict[str, Cell]:
        """Cells of one group."""
        cells = {name: Cell(identity=_identity(model)) for name, model in models.items()}
        live: dict[str, Worker] = {}
        try:
            self._load(group, models, cells, live)
            with self.slices.held():
                self._rounds(live, cells)
        finally:
            for worker in live.values():
                worker.close()
        timed = sorted((c.seconds, name) for name, c in cells.items() if c.timed)
        self.say("  " + "  ".join(f"{name} {1e3 * seconds:.4g} ms" for seconds, name in timed))
        return cells

    def _load(
        self,
        group: Group,
        models: dict[str, Path | str],
        cells: dict[str, Cell],
        live: dict[str, Worker],
    ) -> None:
        """Start the workers, a few at a time."""
        waiting = []
        for name, model in models.items():
            if isinstance(model, Path):
                waiting.append(name)
            else:
                self._fail(cells[name], name, model)
        step = self.settings.loading
        for names in (waiting[i : i + step] for i in range(0, len(waiting), step)):
            started = {name: self._worker(group, name, models[name]) for name in names}
            live |= started
            for name, worker in started.items():
                try:
                    facts = worker.start()
                except WorkerFailed as error:
                    self._fail(cells[name], name, str(error))
                    del live[name]
                    continue
                cells[name].identity = cells[name].identity or str(facts["version"])
                cells[name].facts = facts
                if facts["call_seconds"] > self.settings.slowest:
                    self._fail(cells[name], name, f"a call takes {facts['call_seconds']:.1f} s")
                    live.pop(name).close()

    def _worker(self, group: Group, name: str, model: Path | str) -> Worker:
        contender = self.contenders[name]
        job = Job(
            contender.module,
            contender.precision,
            str(model),
            str(self.cache.samples(group.network)),
            group.threads,
            self.settings.cpus[: group.threads],
            hide_amx=not group.amx,
            batch=group.batch,
            queue=self.queue(group.batch),
        )
        where = f"{group.network}-{group.threads}" + f"-{group.batch}" * (group.batch > 1)
        log = self.cache.log(f"{where}-{name.replace(':', '-')}")
        return Worker(self.cache.python(contender.environment), job, log)

    def _rounds(self, live: dict[str, Worker], cells: dict[str, Cell]) -> None:
        run = f"{time.time_ns():x}"
        for index in range(self.settings.rounds):
            order = list(live) if index % 2 == 0 else list(live)[::-1]
            for name in order:
                self.slices.breathe()
                try:
                    cells[name].rounds[f"{run}.{index}"] = self._slot(live[name])
                except WorkerFailed as error:
                    cells[name].rounds.clear()
                    self._fail(cells[name], name, str(error))
                    del live[name]

    def _slot(self, worker: Worker) -> dict[str, Any]:
        """The try with the least foreign load."""
        tries = TRIES if worker.facts["call_seconds"] < SLOW_SECONDS else 1
        best: dict[str, Any] | None = None
        for _ in range(tries):
            found = worker.slot(self.settings.slot_seconds, self.settings.realtime)
            if best is None or found["foreign"] < best["foreign"]:
                best = found
            if best["foreign"] <= FOREIGN_LIMIT:
                break
        assert best is not None
        return best

    def _fail(self, cell: Cell, name: str, reason: str) -> None:
        cell.failed = reason
        self.say(f"  {name}: {reason}")


def describe(group: Group) -> str:
    """A group in words."""
    amx = "" if group.amx else ", AMX hidden"
    batch = f", batch {group.batch}" if group.batch > 1 else ""
    return f"{group.network}{batch}, {group.threads} thread{'s' * (group.threads > 1)}{amx}"


def _identity(model: Path | str) -> str:
    """An artifact's fingerprint; "" for other models."""
    manifest = Path(model) / "manifest.json"
    if isinstance(model, str) or not manifest.exists():
        return ""
    return str(json.loads(manifest.read_text())["fingerprint"])


def machine() -> dict[str, Any]:
    """The CPU, its features and the system."""
    from dlcc.bench import cpu_description

    cpu, features = cpu_description()
    return {
        "cpu": cpu,
        "features": features,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
