"""Verbs that run a network: run, eval, compare, bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlcc.cli.common import (
    JsonOption,
    ShapeOption,
    ThreadsOption,
    check_writable_file,
    parse_shapes,
)
from dlcc.cli.console import Console, Table
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:

    from dlcc.ir.encodings import Array

PEERS = ("onnxruntime", "openvino")


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("run")(run_network)


def run_network(
    network: Annotated[
        Path,
        typer.Argument(help="An artifact folder, or a model to run by the numpy reference."),
    ],
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs", "-i", metavar="FILE.npz", help="Arrays by input name.", show_default=False
        ),
    ],
    outputs: Annotated[
        Path,
        typer.Option(
            "--outputs",
            "-o",
            metavar="FILE.npz",
            help="Where to write the outputs by name.",
            show_default=False,
        ),
    ],
    threads: ThreadsOption = 0,
    shape: ShapeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a network on arrays from a file; several samples run one after another."""
    console = Console(as_json)
    check_writable_file(outputs, "--outputs")
    from dlcc.data import load_npz
    from dlcc.executable import open_executable, run_samples

    with open_executable(network, shapes=parse_shapes(shape), threads=threads) as executable:
        results = run_samples(executable, load_npz(inputs), str(inputs))
    _save_npz(outputs, results)
    rows = [(name, str(a.dtype), str(list(a.shape))) for name, a in results.items()]
    console.table(Table(("output", "dtype", "shape"), rows))
    console.line(f"wrote {outputs}")
    listed = {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in results.items()}
    console.json({"file": outputs, "outputs": listed})


def _save_npz(path: Path, arrays: dict[str, Array]) -> None:
    import numpy as np

    try:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DlccError(
            ExitCode.OUTPUT,
            "the outputs cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another file with --outputs",
        ) from None
