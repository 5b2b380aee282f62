"""Command line of the comparison: ``python -m benchmarks.peers COMMAND``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.artifacts import Artifacts, NoArtifact
from benchmarks.peers.catalogue import CONTENDERS, NETWORKS, Contender
from benchmarks.peers.layers import profile, profile_table
from benchmarks.peers.measure import Bench, Settings, describe
from benchmarks.peers.memory import peak_program
from benchmarks.peers.results import Group, Results, load_results
from benchmarks.peers.session import Slices
from benchmarks.peers.setup import Cache, set_up
from benchmarks.peers.tables import report

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

CacheOption = Annotated[
    Path,
    typer.Option(
        "--cache",
        envvar="DLCC_BENCH",
        help="Folder for environments, models and results; may grow to 12 GB.",
    ),
]
NetworksOption = Annotated[
    str, typer.Option("--networks", help="Comma-separated names.", show_default="all")
]
EnginesOption = Annotated[
    str,
    typer.Option(
        "--engines", help="Comma-separated ENGINE or ENGINE:PRECISION.", show_default="all"
    ),
]
ThreadsOption = Annotated[str, typer.Option("--threads", help="Comma-separated counts.")]
AmxOption = Annotated[
    str, typer.Option("--amx", help="on: as the machine is; off: AMX hidden; both.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="File of results.", show_default="in the cache")
]
GivenOption = Annotated[
    Path | None,
    typer.Option("--artifacts", help="Take these NETWORK-BITS folders; compile nothing."),
]
DEFAULT_CACHE = Path.home() / ".cache" / "dlcc-bench"


def chosen_networks(text: str) -> list[str]:
    """The networks that an option names."""
    names = [n.strip() for n in text.split(",") if n.strip()] or list(NETWORKS)
    if unknown := [n for n in names if n not in NETWORKS]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(NETWORKS)}")
    return names


def chosen_contenders(text: str) -> list[Contender]:
    """The contenders that an option names, an engine standing for all its precisions."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    engines = {c.engine for c in CONTENDERS.values()}
    if unknown := [n for n in names if n not in CONTENDERS and n not in engines]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(CONTENDERS)}")
    return [c for c in CONTENDERS.values() if not names or c.name in names or c.engine in names]


def chosen_threads(text: str) -> list[int]:
    """The thread counts that an option names."""
    try:
        counts = [int(n) for n in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of thread counts")
    return counts


def chosen_amx(text: str) -> list[bool]:
    """Whether AMX is there, for each table."""
    known = {"on": [True], "off": [False], "both": [True, False]}
    if text not in known:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(known)}")
    return known[text]


def chosen_cpus(text: str, most: int) -> tuple[int, ...]:
    """CPUs to run on: the given ones, or the last ones of this process."""
    cpus = [int(n) for n in text.split(",")] if text else sorted(os.sched_getaffinity(0))[::-1]
    if len(cpus) < most:
        raise typer.BadParameter(f"{most} threads need as many CPUs, there are {len(cpus)}")
    return tuple(cpus[:most])


def say(text: str) -> None:
    """A line about what happens."""
    typer.echo(text)


@app.command("setup")
def setup_command(
    cache: CacheOption = DEFAULT_CACHE, networks: NetworksOption = "", engines: EnginesOption = ""
) -> None:
    """Make the engines' environments and the models; what is there stays."""
    names, contenders = chosen_networks(networks), chosen_contenders(engines)
    with Cache(cache).alone(say):
        failures = set_up(Cache(cache), names, contenders, say)
    say(f"set up in {cache}" + (f"; {failures} things could not be made" if failures else ""))


@app.command("run")
def run_command(
    cache: CacheOption = DEFAULT_CACHE,
    networks: NetworksOption = "",
    engines: EnginesOption = "",
    threads: ThreadsOption = "1,2",
    amx: AmxOption = "on",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    slot: Annotated[float, typer.Option(min=0.01, help="Seconds of a slot.")] = 0.15,
    cpus: Annotated[
        str, typer.Option(help="CPUs to run on, the first for one thread.", show_default="the last")
    ] = "",
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Real-time priority in the slots (needs the right).")
    ] = False,
    loading: Annotated[int, typer.Option(min=1, help="Workers that load at once.")] = 2,
    lock: Annotated[
        Path | None, typer.Option(help="Hold this lock file (flock) while timing.")
    ] = None,
    lock_seconds: Annotated[float, typer.Option(help="Longest time to hold it.")] = 30.0,
    artifacts: GivenOption = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was measured before.")] = False,
    out: OutOption = None,
) -> None:
    """Measure; a run that was cut short goes on where it ended."""
    folder, counts = Cache(cache), chosen_threads(threads)
    path = out or cache / "results" / "peers.json"
    chosen = chosen_cpus(cpus, max(counts))
    settings = Settings(rounds, slot, chosen, loading, realtime)
    models = Artifacts(folder, artifacts, max(2, *counts))
    bench = Bench(folder, models, settings, Slices(lock, lock_seconds), say)
    names = chosen_networks(networks)
    groups = [Group(n, t, a) for a in chosen_amx(amx) for t in counts for n in names]
    contenders = [c.name for c in chosen_contenders(engines)]
    with folder.alone(say):
        results = load_results([path]) if path.exists() else Results()
        bench.run(groups, contenders, results, path, again)
    say(f"results in {path}")


@app.command("memory")
def memory_command(
    cache: CacheOption = DEFAULT_CACHE,
    networks: NetworksOption = "",
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = "int8,fp32",
    threads: ThreadsOption = "1",
    artifacts: GivenOption = None,
    out: OutOption = None,
) -> None:
    """Peak resident memory of a C program that runs dlcc's artifacts."""
    path = out or cache / "results" / "peers.json"
    models = Artifacts(Cache(cache), artifacts)
    folder, program = peak_program()
    with folder, Cache(cache).alone(say):
        results = load_results([path]) if path.exists() else Results()
        for network in chosen_networks(networks):
            for precision in precisions.split(","):
                for count in chosen_threads(threads):
                    entry = {"network": network, "precision": precision, "threads": count}
                    try:
                        found = program.measure(models.ready(network, precision), count)
                    except NoArtifact as error:
                        found = {"failed": str(error)}
                    say(f"{describe(Group(network, count, True))}, {precision}: {found}")
                    results.merge(Results(memory=[{**entry, **found}]))
                    results.save(path)


@app.command("layers")
def layers_command(
    cache: CacheOption = DEFAULT_CACHE,
    networks: NetworksOption = "",
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = "int8,fp32",
    threads: ThreadsOption = "1",
    artifacts: GivenOption = None,
) -> None:
    """Fraction of the machine's limit that dlcc's networks use, and their worst layers."""
    models = Artifacts(Cache(cache), artifacts)
    profiles = []
    kinds = [(n, p) for n in chosen_networks(networks) for p in precisions.split(",")]
    with Cache(cache).alone(say):
        for network, precision in kinds:
            try:
                folder = models.ready(network, precision)
            except NoArtifact as error:
                say(f"{network}, {precision}: {error}")
                continue
            profiles += [profile(network, precision, n, folder) for n in chosen_threads(threads)]
    say(profile_table(profiles))


@app.command("table")
def table_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of results, later ones over earlier ones.")
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    threads: ThreadsOption = "1,2",
    amx: AmxOption = "both",
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write to this file as well.")
    ] = None,
) -> None:
    """Print the tables in Markdown."""
    paths = files or [cache / "results" / "peers.json"]
    if missing := [p for p in paths if not p.exists()]:
        raise typer.BadParameter(f"there is no {missing[0]}; measure first")
    text = report(load_results(paths), chosen_threads(threads), chosen_amx(amx))
    say(text)
    if markdown is not None:
        markdown.write_text(text)


if __name__ == "__main__":
    app()
