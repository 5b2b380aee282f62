"""Measured cells: kept in a JSON file that grows, is resumed, and merges with others."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "dlcc-peers-1"


class Group(NamedTuple):
    """What is timed in the same rounds."""

    network: str
    threads: int
    amx: bool
    batch: int = 1


@dataclass
class Cell:
    """One contender on one network.

    Attributes:
        failed: why there are no times; "" if there are.
        identity: what was run: version of the engine, or fingerprint of the artifact.
        facts: what the worker said of itself: load_seconds, error, peak_kb, ...
        rounds: one slot for each round, by the round's name, which is unique over all runs.
    """

    failed: str = ""
    identity: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median over rounds of the slots' 20th percentiles."""
        return statistics.median(r["p20"] for r in self.rounds.values())

    @property
    def foreign(self) -> float:
        """Median over rounds of what others used of this contender's CPUs."""
        return statistics.median(r["foreign"] for r in self.rounds.values())

    @property
    def timed(self) -> bool:
        """Whether it has times."""
        return bool(self.rounds)

    @property
    def error(self) -> float:
        """Error of the output against the fp32 network, relative, by norms."""
        return float(self.facts.get("error", float("nan")))


def ratio(peer: Cell, ours: Cell) -> tuple[float, bool]:
    """How many times as long as ours the peer takes, and whether it is from common rounds.

    The median over common rounds of the rounds' ratios; without any, the ratio of the medians.
    """
    common = [name for name in ours.rounds if name in peer.rounds]
    if not common:
        return peer.seconds / ours.seconds, False
    ratios = [peer.rounds[name]["p20"] / ours.rounds[name]["p20"] for name in common]
    return statistics.median(ratios), True


@dataclass
class Results:
    """All cells, by group and contender's name."""

    machine: dict[str, Any] = field(default_factory=dict)
    cells: dict[Group, dict[str, Cell]] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)

    def merge(self, other: Results) -> None:
        """Take another's cells; where both have one, the other's, unless only ours has times."""
        self.machine = other.machine or self.machine
        for group, row in other.cells.items():
            mine = self.cells.setdefault(group, {})
            for name, cell in row.items():
                if cell.timed or name not in mine or not mine[name].timed:
                    mine[name] = cell
        found = {_memory_key(entry) for entry in other.memory}
        self.memory = [e for e in self.memory if _memory_key(e) not in found] + other.memory

    def complete(self, group: Group, wanted: dict[str, str]) -> bool:
        """Whether all wanted contenders (name -> identity, "" for any) have cells."""
        row = self.cells.get(group, {})
        return all(
            name in row and identity in ("", row[name].identity)
            for name, identity in wanted.items()
        )

    def save(self, path: Path) -> None:
        """Write the file anew; never half of it."""
        rows = [
            {**group._asdict(), "contender": name, **asdict(cell)}
            for group, row in self.cells.items()
            for name, cell in row.items()
        ]
        data = {"format": FORMAT, "machine": self.machine, "cells": rows, "memory": self.memory}
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        aside.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(aside, path)


def load_results(paths: Iterable[Path]) -> Results:
    """The cells of several files, later ones over earlier ones.

    Raises:
        ValueError: a file of another format.
    """
    results = Results()
    for path in paths:
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is not a file of results")
        found = Results(data["machine"], {}, data["memory"])
        for row in data["cells"]:
            group = Group(row.pop("network"), row.pop("threads"), row.pop("amx"))
            group = group._replace(batch=row.pop("batch", 1))
            name = row.pop("contender")
            found.cells.setdefault(group, {})[name] = Cell(**row)
        results.merge(found)
    return results


def _memory_key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["network"], entry["precision"], entry["threads"]
