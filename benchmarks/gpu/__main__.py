"""Command line of the comparison on a GPU: ``python -m benchmarks.gpu COMMAND``.

Only the standard library and numpy are imported by what ``run`` needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.bundle import Bundle, NoBundle
from benchmarks.gpu.catalogue import CONTENDERS
from benchmarks.peers.catalogue import BATCHES, HALF, NETWORKS

FOLDER = Path("build") / "gpu-bench"
CACHE = Path(os.environ.get("DLCC_BENCH") or Path.home() / ".cache" / "dlcc-bench")


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers above zero."""
    found = [int(name) for name in names(text)]
    if not found or min(found) < 1:
        raise ValueError(text)
    return found


def say(text: str) -> None:
    """A line about what happens."""
    print(text, flush=True)


def setup_command(options: argparse.Namespace) -> int:
    """Makes the models, and environments to make them in."""
    from benchmarks.peers.setup import Cache, set_up

    wanted = (BATCHES, HALF) if options.onnx else (BATCHES,)
    peers = [c for c in CONTENDERS.values() if c.product in wanted]
    with Cache(options.cache).alone(say):
        failures = set_up(Cache(options.cache), options.networks or list(NETWORKS), peers, say)
    return int(failures > 0)


def prepare_command(options: argparse.Namespace) -> int:
    """Compiles and makes the folder."""
    from benchmarks.gpu.prepare import archive, prepare
    from benchmarks.peers.setup import Cache

    cache = Cache(options.cache)
    with cache.alone(say):
        failures = prepare(
            cache,
            options.folder,
            options.networks or list(NETWORKS),
            options.bits,
            options.batches,
            options.architectures,
            say,
            options.artifacts,
            options.onnx,
        )
    path = archive(options.folder)
    say(f"carry {path} ({path.stat().st_size / 1e6:.0f} MB) to the machine, unpack it, ./run")
    return int(failures > 0)


def run_command(options: argparse.Namespace) -> int:
    """Measures, in a folder that was prepared."""
    from benchmarks.gpu.kernels import Load
    from benchmarks.gpu.measure import check_gpu, run_kernels, run_networks
    from benchmarks.peers.measure import Settings

    bundle = Bundle(options.folder.resolve())
    facts = bundle.read()
    if reason := check_gpu():
        say(reason)
        return 1
    contenders = [
        name
        for name, c in CONTENDERS.items()
        if not options.engines or name in options.engines or c.engine in options.engines
    ]
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    settings = Settings(options.rounds, options.slot, cpus, loading=1)
    networks = options.networks or facts["networks"]
    run_networks(
        bundle,
        networks,
        options.batches or facts["batches"],
        contenders,
        settings,
        options.folder / "results.json",
        say,
    )
    if options.kernels in facts["networks"]:
        load = Load(rounds=options.peak_rounds)
        batch = max(facts["batches"])
        where = options.folder / "kernels.json"
        run_kernels(bundle, options.kernels, batch, facts["bits"], load, where, say)
    say(f"python -m benchmarks.gpu table {options.folder} makes tables of the results")
    return 0


def table_command(options: argparse.Namespace) -> int:
    """Prints tables."""
    from benchmarks.gpu.tables import report
    from benchmarks.peers.results import load_results

    kernels: dict[str, Any] = {}
    if (path := options.folder / "kernels.json").exists():
        kernels = json.loads(path.read_text("utf-8"))
    print(report(load_results([options.folder / "results.json"]), kernels), end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    commands = made.add_subparsers(required=True)
    for command in (setup_command, prepare_command, run_command, table_command):
        name = command.__name__.removesuffix("_command")
        one = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        one.set_defaults(command=command)
        if name != "setup":
            one.add_argument("folder", nargs="?", type=Path, default=FOLDER)
        if name != "table":
            one.add_argument("--networks", type=names, help="comma-separated; default: all")
        if name in ("setup", "prepare"):
            one.add_argument("--cache", type=Path, default=CACHE, help="models and artifacts")
            one.add_argument("--no-onnx", dest="onnx", action="store_false",
                             help="leave out the models of ONNX Runtime and TensorRT")  # fmt: skip
        if name == "prepare":
            one.add_argument("--bits", type=numbers, default=[32, 16, 8])
            one.add_argument("--batches", type=numbers, default=[1, 64])
            one.add_argument("--architectures", type=names, default=["sm_80", "sm_90"])
            one.add_argument("--artifacts", type=Path, help="take these NETWORK-BITS folders")
        if name == "run":
            one.add_argument("--batches", type=numbers, help="default: those that were prepared")
            one.add_argument("--engines", type=names, help="ENGINE or ENGINE:PRECISION, ...")
            one.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
            one.add_argument("--slot", type=float, default=0.2, help="seconds of a slot")
            one.add_argument("--kernels", default="resnet50", help="network for shares of the peak")
            one.add_argument("--peak-rounds", type=int, default=20000, help="length of the loop")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command."""
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except NoBundle as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
