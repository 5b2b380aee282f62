"""Markdown tables of results: dlcc against the best peer, every engine, errors, memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.catalogue import (
    CONTENDERS,
    FP32_GOAL,
    FP32_GOAL_MEAN,
    GOAL_MEAN,
    GOALS,
    NETWORKS,
)
from benchmarks.peers.memory import ALLOWANCE_KB
from benchmarks.peers.results import Cell, Group, Results, ratio

WRONG, WRONG_TIMES = 0.5, 3.0
"""An output is no answer if it is this far from the fp32 network's (relative, by norms) and this
many times as far as the others of the same precision are: the logits of a deep network with random
weights may cancel, and every int8 engine is then far off."""
NOISY = 0.2
"""CPUs' worth of foreign work on the contender's CPUs from which a time is marked with ``*``."""
RIVALS = {"int8": ("int8", "bf16", "fp32"), "bf16": ("bf16", "fp32"), "fp32": ("fp32",)}
"""Precision of dlcc -> those of the peers that it must beat: the same and every finer one."""


@dataclass(frozen=True)
class Duel:
    """dlcc against the best peer on one network.

    Attributes:
        network: its name.
        ours: dlcc's cell.
        peer: name of the fastest peer whose results are right; "" if there is none.
        best: its cell.
        ratio: times as long as dlcc that it takes; NaN where one of both has no time.
        common: whether that is from common rounds.
        goal: what the ratio is to be at least.
    """

    network: str
    ours: Cell
    peer: str
    best: Cell
    ratio: float
    common: bool
    goal: float

    @property
    def met(self) -> bool:
        """Whether the goal is met; a NaN never is."""
        return self.ratio >= self.goal


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def is_right(row: dict[str, Cell], name: str) -> bool:
    """Whether a timed contender's output is near enough to count; a NaN never is."""
    precision = name.rpartition(":")[2]
    others = [
        cell.error
        for other, cell in row.items()
        if other != name and cell.timed and other.rpartition(":")[2] == precision
    ]
    usual = statistics.median_low(others) if others else 0.0
    return row[name].error <= max(WRONG, WRONG_TIMES * usual)


def is_ours(name: str) -> bool:
    """Whether a contender is dlcc."""
    return name.startswith("dlcc:")


def duel(
    network: str,
    row: dict[str, Cell],
    precision: str,
    goals: Mapping[str, float] | None = None,
    rival_precisions: Mapping[str, Sequence[str]] = RIVALS,
) -> Duel:
    """Choose the best peer of a group: of the precisions that are rivals, with right results."""
    ours = row.get(f"dlcc:{precision}", Cell(failed="not measured"))
    goals = goals or (GOALS if precision == "int8" else dict.fromkeys(GOALS, FP32_GOAL))
    goal = goals[network]
    rivals = {
        name: cell
        for name, cell in row.items()
        if not is_ours(name)
        and cell.timed
        and is_right(row, name)
        and name.rpartition(":")[2] in rival_precisions[precision]
    }
    if not rivals:
        return Duel(network, ours, "", Cell(), math.nan, False, goal)
    if ours.timed and is_right(row, f"dlcc:{precision}"):
        ratios = {name: ratio(cell, ours) for name, cell in rivals.items()}
        peer = min(ratios, key=lambda name: ratios[name][0])
        return Duel(network, ours, peer, rivals[peer], *ratios[peer], goal)
    peer = min(rivals, key=lambda name: rivals[name].seconds)
    return Duel(network, ours, peer, rivals[peer], math.nan, False, goal)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a leading ``>`` of a column's name sets it right."""
    names = [c.removeprefix(">") for c in columns]
    rules = ["---:" if c.startswith(">") else "---" for c in columns]
    lines = [names, rules, *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(results: Results, threads: Sequence[int], amx: Sequence[bool]) -> str:
    """All tables of the chosen thread counts, with AMX and without."""
    return "\n\n".join(_sections(results, threads, amx)) + "\n"


def _sections(results: Results, threads: Sequence[int], amx: Sequence[bool]) -> Iterator[str]:
    if results.machine:
        facts = results.machine
        yield f"{facts['cpu']}, {facts['cpus']} CPUs ({' '.join(facts['features'])}), " + (
            f"{facts['system']}, {facts['date']}. Batch 1, fp32 at the border."
        )
    for with_amx in amx:
        for count in threads:
            groups = [Group(network, count, with_amx) for network in NETWORKS]
            groups = [g for g in groups if g in results.cells]
            if not groups:
                continue
            where = f"{count} thread{'s' * (count > 1)}"
            where += "" if with_amx else ", AMX hidden from all engines"
            for precision in ("int8", "fp32", "bf16"):
                ours = [results.cells[g].get(f"dlcc:{precision}", Cell()) for g in groups]
                if any(cell.timed for cell in ours):
                    yield f"### dlcc {precision}, {where}"
                    yield _duels(results, groups, precision)
            yield f"### Every engine, {where}: ms (error of the output)"
            yield engines_table(results, groups, CONTENDERS)
    chosen = [g for g in results.cells if g.threads in threads and g.amx in amx]
    if table := failures_table(results, chosen, _where):
        yield "### What did not run"
        yield table
    if results.memory:
        yield "### Peak resident memory of a C program that runs the artifact, kB"
        yield _memory(results)


def _duels(results: Results, groups: Sequence[Group], precision: str) -> str:
    duels = [duel(g.network, results.cells[g], precision) for g in groups]
    duels.sort(key=lambda d: (d.met, NETWORKS.index(d.network)))  # missed ones first
    rows = [
        (
            d.network,
            d.peer or "none",
            time_text(d.best),
            error_text(d.best),
            time_text(d.ours),
            error_text(d.ours),
            ratio_text(d),
            f"{d.goal:g}",
            "met" if d.met else "**missed**",
        )
        for d in duels
    ]
    known = [d.ratio for d in duels if not math.isnan(d.ratio)]
    mean, goal = geometric_mean(known), GOAL_MEAN if precision == "int8" else FP32_GOAL_MEAN
    kinds = " or ".join(RIVALS[precision])
    columns = ("network", f"best peer ({kinds})", ">ms", ">error", ">dlcc ms", ">error")
    table = markdown((*columns, ">peer / dlcc", ">goal", ""), rows)
    verdict = "met" if mean >= goal else "**missed**"
    return (
        f"{table}\n\nGeometric mean over {len(known)} networks: {mean:.2f} (goal {goal:g}: "
        f"{verdict}). Goals met: {sum(d.met for d in duels)} of {len(duels)}."
    )


def engines_table(results: Results, groups: Sequence[Group], known: Iterable[str]) -> str:
    """Time and error of every engine that is known and was tried."""
    names = [n for n in known if any(n in results.cells[g] for g in groups)]
    rows = []
    for group in groups:
        row = results.cells[group]
        cells = [row.get(name, Cell()) for name in names]
        rows.append((group.network, *(time_and_error(cell) for cell in cells)))
    return markdown(("network", *(f">{name}" for name in names)), rows)


def _where(group: Group) -> str:
    return f"{group.network} {group.threads}T{'' if group.amx else ' no AMX'}"


def failures_table(
    results: Results, groups: Iterable[Group], where_of: Callable[[Group], str]
) -> str:
    """What did not run and why, told once where it is the same everywhere; "" if all ran."""
    places: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        row, where = results.cells[group], where_of(group)
        for name, cell in row.items():
            reason = cell.failed
            if cell.timed and not is_right(row, name):
                reason = f"not counted: its output is wrong (error {cell.error:.2g})"
            if reason:
                places.setdefault((name, reason), []).append(where)
    rows = [
        (", ".join(where) if len(where) <= 4 else f"{where[0]} and {len(where) - 1} more", *key)
        for key, where in places.items()
    ]
    return markdown(("where", "engine", "why"), rows) if rows else ""


def _memory(results: Results) -> str:
    rows = []
    entries = sorted(results.memory, key=lambda e: (e["precision"], e["threads"]))
    for e in sorted(entries, key=lambda e: NETWORKS.index(e["network"])):
        where = (e["network"], e["precision"], str(e["threads"]))
        if e.get("failed"):
            rows.append((*where, *[""] * 5, e["failed"]))
            continue
        bound = e["weights_kb"] + e["arena_kb"] + ALLOWANCE_KB
        numbers = (e["weights_kb"], e["arena_kb"], e["border_kb"], e["peak_kb"], bound)
        verdict = "met" if e["peak_kb"] <= bound else "**missed**"
        rows.append((*where, *(f"{n:.0f}" for n in numbers), verdict))
    columns = ("network", "precision", ">threads", ">weights", ">arena", ">inputs and outputs")
    bound_name = f">weights + arena + {ALLOWANCE_KB} kB"
    return markdown((*columns, ">peak", bound_name, ""), rows)


def time_text(cell: Cell) -> str:
    """Milliseconds."""
    if not cell.timed:
        return "-"
    return f"{1e3 * cell.seconds:.4g}" + ("*" if cell.foreign > NOISY else "")


def error_text(cell: Cell) -> str:
    """Error of the output."""
    return f"{cell.error:.1e}" if cell.timed else ""


def time_and_error(cell: Cell) -> str:
    """Both, or a dash."""
    return f"{time_text(cell)} ({error_text(cell)})" if cell.timed else "-"


def ratio_text(d: Duel) -> str:
    """Times as long as dlcc that the peer takes; ``~``: not from common rounds."""
    if math.isnan(d.ratio):
        return "-"
    return f"{d.ratio:.2f}" + ("" if d.common else "~")
