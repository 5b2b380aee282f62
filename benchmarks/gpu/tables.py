"""Markdown tables of what was measured on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.catalogue import CONTENDERS, RIVALS
from benchmarks.peers.catalogue import NETWORKS
from benchmarks.peers.results import Cell, Group, Results
from benchmarks.peers.tables import (
    duel,
    engines_table,
    error_text,
    failures_table,
    geometric_mean,
    markdown,
    ratio_text,
    time_text,
)

GOAL = 1.0
"""Times as long as dlcc that the best peer is to take."""

KERNEL_GOAL = 0.7
"""Share of the peak that products are to reach."""


def report(results: Results, kernels: Mapping[str, Any]) -> str:
    """All tables."""
    return "\n\n".join([*_networks(results), *_kernels(kernels)]) + "\n"


def _networks(results: Results) -> Iterator[str]:
    if facts := results.machine:
        yield (
            f"{facts['gpu']} (sm_{facts['capability']}, driver for {facts['driver']}), "
            f"{facts['cpu']}, {facts['system']}, {facts['date']}. Tensors in the GPU's memory, "
            "fp32 at the border."
        )
    for batch in sorted({group.batch for group in results.cells}):
        groups = [g for g in results.cells if g.batch == batch]
        groups.sort(key=lambda g: NETWORKS.index(g.network) if g.network in NETWORKS else 99)
        what = "latency" if batch == 1 else "throughput"
        for precision in RIVALS:
            if any(results.cells[g].get(f"dlcc:{precision}", Cell()).timed for g in groups):
                yield f"### dlcc {precision}, batch {batch} ({what})"
                yield _duels(results, groups, precision)
        yield f"### Every engine, batch {batch}: ms (error of the output)"
        yield engines_table(results, groups, CONTENDERS)
    if table := failures_table(results, results.cells, _where):
        yield "### What did not run"
        yield table


def _where(group: Group) -> str:
    return f"{group.network} batch {group.batch}"


def _spread(cell: Cell) -> str:
    """Distance of the fastest round from the slowest, relative to the median."""
    if not cell.timed:
        return ""
    times = [r["p20"] for r in cell.rounds.values()]
    return f"{100 * (max(times) - min(times)) / cell.seconds:.1f} %"


def _rate(cell: Cell, batch: int) -> str:
    return f"{batch / cell.seconds:.4g}" if cell.timed else "-"


def _duels(results: Results, groups: Sequence[Group], precision: str) -> str:
    goals = {g.network: GOAL for g in groups}
    duels = [duel(g.network, results.cells[g], precision, goals, RIVALS) for g in groups]
    batch = groups[0].batch
    rows = [
        (
            *(d.network, d.peer or "none", time_text(d.best), _spread(d.best)),
            *(error_text(d.best), time_text(d.ours), _spread(d.ours), error_text(d.ours)),
            *(_rate(d.ours, batch), ratio_text(d)),
            "met" if d.met else "-" if math.isnan(d.ratio) else "**missed**",
        )
        for d in duels
    ]
    known = [d.ratio for d in duels if not math.isnan(d.ratio)]
    peer = (f"best peer ({' or '.join(RIVALS[precision])})", ">ms", ">spread", ">error")
    ours = (">dlcc ms", ">spread", ">error", ">samples/s", ">peer / dlcc", f"goal {GOAL:g}")
    table = markdown(("network", *peer, *ours), rows)
    if not known:
        return f"{table}\n\nNo peer was there to compare with."
    return f"{table}\n\nGeometric mean over {len(known)} networks: {geometric_mean(known):.2f}."


def _kernels(found: Mapping[str, Any]) -> Iterator[str]:
    if not found:
        return
    facts, peaks = found["machine"], found["peaks"]
    yield f"### Products of {found['network']} at batch {found['batch']} on {facts['gpu']}"
    rates = ", ".join(f"{name} {2e-12 * rate:.4g}" for name, rate in peaks.items())
    yield (
        "Measured peak of `mma` or `wgmma`, whichever is more (fp32: of fused multiply-adds), "
        f"TOP/s: {rates}. Shares are of "
        f"these; the goal is {100 * KERNEL_GOAL:.0f} %."
    )
    for precision, layers in found["layers"].items():
        if layers:
            yield f"#### {precision}"
            yield _shares(layers, peaks[precision])


def _shares(layers: Sequence[Mapping[str, Any]], peak: float) -> str:
    """Layers of one shape and kernel are one row; the first column has their number."""
    same: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for layer in layers:
        same.setdefault((layer["weights"], layer["output"], layer["kernel"]), []).append(layer)
    rows = []
    for (weights, output, kernel), group in same.items():
        macs, seconds = (sum(layer[key] for layer in group) for key in ("macs", "seconds"))
        share = macs / seconds / peak
        verdict = "met" if share >= KERNEL_GOAL else "**missed**"
        times = f"{1e6 * seconds / len(group):.4g}"
        rows.append(
            (str(len(group)), weights, output, kernel, times, f"{100 * share:.1f} %", verdict)
        )
    whole = sum(layer["macs"] for layer in layers) / sum(layer["seconds"] for layer in layers)
    columns = (">layers", "second operand", "result", "kernel", ">us each", ">of peak", "")
    return f"{markdown(columns, rows)}\n\nAll together: {100 * whole / peak:.1f} % of the peak."
