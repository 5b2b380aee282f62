"""Command line: ``python -m benchmarks.instructions COMMAND``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.instructions.encodings import LAYERS, count
from benchmarks.instructions.machine import CPUS, litert_instructions, set_up
from benchmarks.instructions.networks import NETWORKS, describe
from benchmarks.peers.catalogue import ENVIRONMENTS
from benchmarks.peers.setup import Cache, make_environment
from dlcc.cli.console import Console, Table
from dlcc.cycles.emulator import executed
from dlcc.driver import CompileOptions, compile

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
CacheOption = Annotated[
    Path, typer.Option("--cache", envvar="DLCC_BENCH", help="Folder for everything it makes.")
]
NetworksOption = Annotated[str, typer.Option("--networks", help="Comma-separated names.")]
CpusOption = Annotated[str, typer.Option("--cpus", help="Comma-separated names of qemu's.")]
DEFAULT_CACHE = Path.home() / ".cache" / "dlcc-bench"


def _chosen(text: str, known: list[str]) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()] or known
    if unknown := [n for n in names if n not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


@app.command("set-up")
def make(cache: CacheOption = DEFAULT_CACHE, networks: NetworksOption = "") -> None:
    """Make LiteRT's models, and an arm64 Python that has LiteRT."""
    place, folder = Cache(cache), cache / "instructions"
    folder.mkdir(parents=True, exist_ok=True)
    if not make_environment(place, ENVIRONMENTS["lt"], typer.echo):
        raise typer.Exit(1)
    set_up(folder / "arm64", typer.echo)
    script = Path(__file__).with_name("convert.py")
    for network in _chosen(networks, list(NETWORKS)):
        if (folder / f"{network}.int8.tflite").is_file():
            continue
        describe(network, folder)
        command = [place.python("lt"), script, folder, network]
        done = subprocess.run(command, capture_output=True, text=True)
        last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
        typer.echo(f"{network}: {' '.join(last)}")


@app.command("run")
def run(
    cache: CacheOption = DEFAULT_CACHE,
    networks: NetworksOption = "",
    cpus: CpusOption = "",
    output: Annotated[Path | None, typer.Option("--out", help="Write the counts there.")] = None,
) -> None:
    """Count, and print a table: instructions of one inference, int8, one thread."""
    folder, console = cache / "instructions", Console()
    wanted = _chosen(cpus, [c.qemu for c in CPUS])
    rows, counts = [], []
    for network in _chosen(networks, list(NETWORKS)):
        for cpu in (c for c in CPUS if c.qemu in wanted):
            peer = litert_instructions(folder / "arm64", folder / f"{network}.int8.tflite", cpu)
            ours, macs = dlcc_instructions(network, cpu.target, cpu.qemu)
            counts.append(
                {"network": network, "cpu": cpu.qemu, "target": cpu.target, "macs": macs}
                | {"dlcc": ours, "litert": peer.total(), "litert_files": dict(peer)}
            )
            ratio, rates = ours / peer.total(), (macs / ours, macs / peer.total())
            found = (str(macs), str(ours), str(peer.total()), f"{ratio:.2f}")
            rows.append((network, cpu.name, *found, *(f"{rate:.1f}" for rate in rates)))
            console.note(" ".join(rows[-1]))
    columns = ("network", "CPU", ">MACs", ">dlcc", ">LiteRT", ">dlcc/LiteRT")
    console.line(Table((*columns, ">MACs/instr. dlcc", ">LiteRT"), rows).markdown())
    if output is not None:
        output.write_text(json.dumps(counts, indent=1) + "\n")


@app.command("encodings")
def encodings(
    layers: Annotated[str, typer.Option("--layers", help="Comma-separated names.")] = "",
    cpus: CpusOption = "",
) -> None:
    """Count single layers, dense and from the codes of compressed encodings."""
    console, wanted, rows = Console(), _chosen(cpus, [c.qemu for c in CPUS]), []
    for name in _chosen(layers, list(LAYERS)):
        source, kinds = LAYERS[name]
        for cpu in (c for c in CPUS if c.qemu in wanted):
            counts = list(count(source, kinds, cpu.target))
            dense = counts[0].cost
            for one in counts:
                cost = one.cost
                found = (
                    f"{cost.instructions:.0f}",
                    f"{cost.instructions / dense.instructions:.2f}",
                )
                size = (str(cost.weight_bytes), f"{cost.weight_bytes / dense.weight_bytes:.2f}")
                picked = "yes" if one.chosen else ""
                rows.append((name, cpu.name, one.encoding, one.kernel, *found, *size, picked))
                console.note(" ".join(rows[-1]))
    columns = ("layer", "CPU", "weights", "kernel", ">instr.", ">ratio", ">bytes", ">ratio")
    console.line(Table((*columns, "chosen"), rows).markdown())


def dlcc_instructions(network: str, target: str, cpu: str) -> tuple[int, int]:
    """Instructions and multiply-accumulates of one ``run`` of dlcc's library.

    Float in and out: quantising the input is part of it.
    """
    options = CompileOptions(target=target, bits=8, threads=1, emit=("a",), shapes={"N": 1})
    with tempfile.TemporaryDirectory(prefix="dlcc-instructions-") as work:
        result = compile(NETWORKS[network], Path(work) / "artifact", options=options)
        layers = result.program.report["layers"]
        best = list(result.artifact.variants)[-1]
        counted = executed(result.artifact, Path(work), best, cpu)
    macs = sum(int(layer["macs"]) for layer in layers)  # type: ignore[attr-defined]
    return counted.instructions, macs


if __name__ == "__main__":
    app()
