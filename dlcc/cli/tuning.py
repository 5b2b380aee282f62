"""The verb that measures kernels: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlcc.cli.building import CalibOption, PassesOption, RecipeOption
from dlcc.cli.common import (
    ConstantOption,
    JsonOption,
    QuietOption,
    ShapeOption,
    check_writable_file,
    parse_constants,
    parse_shapes,
)
from dlcc.cli.console import Console, Table, seconds_text
from dlcc.cli.progress import PhaseProgress
from dlcc.cli.remoting import RemoteOption, TokenOption, connected

if TYPE_CHECKING:
    from dlcc.tuner import LayerTimes

_NOTABLE = 0.02
"""A candidate that is faster by a smaller part is not called better: clocks are not so exact."""


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("tune")(tune_network)


def tune_network(
    model: Annotated[Path, typer.Argument(help="An .onnx or .dlir file.", show_default=False)],
    database: Annotated[
        Path,
        typer.Option(
            "--database",
            "-d",
            metavar="FILE.json",
            help="Where the times are kept; what it holds of other layers stays.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Option("--target", help="Machine to compile for; it must be this one or the board."),
    ] = "cpu",
    bits: Annotated[int, typer.Option("--bits", help="As for `dlcc compile`.")] = 8,
    calib: CalibOption = None,
    passes: PassesOption = None,
    recipe: RecipeOption = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads of the measured runs.")
    ] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Interleaved rounds of measurement.")
    ] = 9,
    candidates: Annotated[
        int,
        typer.Option("--candidates", min=2, help="Ways of computing a layer to measure at most."),
    ] = 6,
    remote: RemoteOption = None,
    token: TokenOption = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the kernels of a network's layers; `dlcc compile --tuning` chooses by it."""
    console = Console(as_json)
    check_writable_file(database, "--database")
    from dlcc.driver import CompileOptions, tune

    options = CompileOptions(
        target=target,
        bits=bits,
        passes=passes,
        recipe=recipe,
        threads=threads,
        shapes=parse_shapes(shape),
        constants=parse_constants(constant),
        calibration=calib,
    )
    with connected(remote, token) as board, PhaseProgress(quiet) as progress:
        results = tune(
            model,
            database,
            options=options,
            rounds=rounds,
            candidates=candidates,
            board=board,
            progress=progress,
        )
    _show(console, database, results)


def _show(console: Console, database: Path, results: list[LayerTimes]) -> None:
    several = len({entry.target for entry in results}) > 1
    rows = [
        (
            *([entry.target] if several else []),
            f"{entry.layer} (x{entry.count})" if entry.count > 1 else entry.layer,
            entry.predicted,
            seconds_text(entry.seconds[entry.predicted]),
            entry.best,
            seconds_text(entry.seconds[entry.best]),
        )
        for entry in results
        if entry.saved > _NOTABLE * entry.seconds[entry.predicted]
    ]
    if rows:
        columns = ("layer", "predicted best", "takes", "measured best", "takes")
        console.table(Table((*(["target"] if several else []), *columns), rows))
    saved = sum(entry.saved for entry in results)
    total = sum(entry.seconds[entry.predicted] for entry in results)
    better = f"{len(rows)} of {len(results)} distinct layers have a faster kernel than predicted"
    console.line(f"{better}; {seconds_text(saved)} of their {seconds_text(total)} can be saved")
    console.line(f"wrote {database}: compile with --tuning {database}")
    layers = [
        {
            "target": e.target,
            "layer": e.layer,
            "count": e.count,
            "predicted": e.predicted,
            "seconds": e.seconds,
        }
        for e in results
    ]
    console.json({"database": database, "layers": layers})
