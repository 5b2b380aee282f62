"""Verbs that run a network: run, eval, compare, bench."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcc.cli.common import (
    ConstantOption,
    JsonOption,
    QuietOption,
    ShapeOption,
    ShapeProfileOption,
    Shapes,
    ThreadsOption,
    check_writable_file,
    parse_constants,
    parse_list,
    parse_shapes,
)
from dlcc.cli.console import Console, Table, seconds_text
from dlcc.cli.layers import LimitsOption, limits_from, show_profile
from dlcc.cli.remoting import RemoteOption, TokenOption, connected
from dlcc.errors import DlccError, ExitCode
from dlcc.wholefile import write_whole

if TYPE_CHECKING:
    from dlcc.bench import BenchResult, Contender
    from dlcc.compare import Comparison, Error
    from dlcc.executable import Executable
    from dlcc.inspection import Report
    from dlcc.ir.encodings import Array
    from dlcc.limits import Limits
    from dlcc.remote import Board


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("run")(run_network)
    app.command("eval")(evaluate_network)
    app.command("compare")(compare_networks)
    app.command("bench")(bench_artifact)


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
    constant: ConstantOption = None,
    remote: RemoteOption = None,
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Run a network on arrays from a file; several samples run one after another."""
    console = Console(as_json)
    check_writable_file(outputs, "--outputs")
    from dlcc.data import load_npz
    from dlcc.executable import open_executable, run_samples

    arrays = load_npz(inputs)
    shapes, constants = parse_shapes(shape), parse_constants(constant)
    with (
        connected(remote, token) as board,
        open_executable(
            network, shapes=shapes, constants=constants, threads=threads, board=board
        ) as executable,
    ):
        results = run_samples(executable, arrays, str(inputs))
    _save_npz(outputs, results)
    rows = [(name, str(a.dtype), str(list(a.shape))) for name, a in results.items()]
    console.table(Table(("output", "dtype", "shape"), rows))
    console.line(f"wrote {outputs}")
    listed = {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in results.items()}
    console.json({"file": outputs, "outputs": listed})


def _save_npz(path: Path, arrays: dict[str, Array]) -> None:
    import numpy as np

    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **arrays)
    try:
        write_whole({path: held.getvalue()})
    except OSError as error:
        raise DlccError(
            ExitCode.OUTPUT,
            "the outputs cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another file with --outputs",
        ) from None


def evaluate_network(
    network: Annotated[
        Path,
        typer.Argument(help="An artifact folder, or a model to run by the numpy reference."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE.npz",
            help="Inputs by name, and integer 'labels'.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", help="The output with the scores, if there are several.")
    ] = "",
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Samples to run at most; 0: all.")
    ] = 0,
    threads: ThreadsOption = 0,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    remote: RemoteOption = None,
    token: TokenOption = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Top-1 and top-5 accuracy of a classifier on labelled samples."""
    console = Console(as_json)
    from dlcc.accuracy import evaluate_classifier
    from dlcc.cli.progress import PhaseProgress
    from dlcc.data import load_npz
    from dlcc.executable import open_executable

    arrays = load_npz(data)
    shapes, constants = parse_shapes(shape), parse_constants(constant)
    with (
        connected(remote, token) as board,
        open_executable(
            network, shapes=shapes, constants=constants, threads=threads, board=board
        ) as executable,
        PhaseProgress(quiet) as progress,
    ):
        result = evaluate_classifier(
            executable, arrays, str(data), output=output, most=samples, progress=progress
        )
    console.json({"network": network, **result.to_json()})
    top5 = "-" if result.top5 is None else f"{100 * result.top5:.2f} %"
    row = (network.name, result.samples, result.classes, f"{100 * result.top1:.2f} %", top5)
    console.table(Table(("network", ">samples", ">classes", ">top-1", ">top-5"), [row]))


def compare_networks(
    reference: Annotated[
        Path, typer.Argument(metavar="A", help="The reference: a model or artifact.")
    ],
    other: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs",
            "-i",
            metavar="FILE.npz",
            help="Inputs, samples along the first axis.",
            show_default=False,
        ),
    ],
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Batches to run at most; 0: all.")
    ] = 8,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    remote: RemoteOption = None,
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Error of B against A per output, and per layer where both are models.

    Accumulated: both run whole. Isolated: each layer of B gets A's values as operands.
    With --remote, artifacts run on the board.
    """
    console = Console(as_json)
    from itertools import islice

    from dlcc.compare import compare
    from dlcc.data import load_npz
    from dlcc.executable import feeds_of

    shapes, constants = parse_shapes(shape), parse_constants(constant)
    arrays = load_npz(inputs)
    with (
        connected(remote, token) as board,
        _open_compared(reference, shapes, constants, board) as a,
        _open_compared(other, shapes, constants, board) as b,
    ):
        feeds = feeds_of(arrays, a, str(inputs))
        result = compare(a, b, islice(feeds, samples or None))
    console.json(result.to_json())
    if not as_json:
        _show_comparison(console, result)


def _open_compared(
    path: Path, shapes: Shapes, constants: dict[str, Any], board: Board | None
) -> Executable:
    """--shape and --constant concern whichever is an ONNX file, --remote whichever an artifact."""
    from dlcc.executable import open_executable

    if path.is_dir():
        return open_executable(path, board=board)
    if path.suffix == ".dlir":
        return open_executable(path)
    return open_executable(path, shapes=shapes, constants=constants)


def _show_comparison(console: Console, result: Comparison) -> None:
    console.line(f"{result.samples} batches")
    rows = [(name, *_error_cells(error)) for name, error in result.outputs.items()]
    console.table(Table(("output", ">SQNR dB", ">max abs", ">cosine"), rows))
    if result.layers:
        console.line()
        columns = ("layer", "op", "against", ">isolated dB", ">max abs", ">accumulated dB")
        layers = [
            (
                row.layer,
                row.op,
                f"{row.reference} (rescaled)" if row.rescaled else row.reference,
                f"{row.isolated.sqnr_db:.1f}",
                f"{row.isolated.max_abs:.3g}",
                f"{row.accumulated.sqnr_db:.1f}",
                f"{row.accumulated.max_abs:.3g}",
                f"{row.accumulated.cosine:.6f}",
            )
            for row in result.layers
        ]
        console.table(Table((*columns, ">max abs", ">cosine"), layers))
    if result.unmatched:
        console.line(f"without counterpart: {', '.join(result.unmatched)}")


def _error_cells(error: Error) -> tuple[str, str, str]:
    return f"{error.sqnr_db:.1f}", f"{error.max_abs:.3g}", f"{error.cosine:.6f}"


def bench_artifact(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders.")
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="ENGINES",
            help="Peers: onnxruntime, openvino (if installed).",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="What the peers run: .onnx, or .dlir (as QDQ ONNX).",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads for each.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds.")] = 7,
    shape_profile: ShapeProfileOption = 0,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also each layer's time and share of the limit.")
    ] = False,
    limits: LimitsOption = None,
    remote: RemoteOption = None,
    token: TokenOption = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time artifacts, also against other engines, in interleaved rounds."""
    console = Console(as_json)
    from dlcc.artifact import Artifact
    from dlcc.bench import PEERS, bench, installed
    from dlcc.cli.progress import PhaseProgress

    peers = parse_list(against, "--against", PEERS) if against is not None else ()
    _check_options(peers, model, limits, remote)
    missing = [p for p in peers if not installed(p)]
    for artifact in artifacts:
        opened = Artifact.open(artifact)
        opened.verify()
        opened.shape_profile(shape_profile)
    with connected(remote, token) as board:
        with (
            tempfile.TemporaryDirectory(prefix="dlcc-bench-") as work,
            PhaseProgress(quiet) as progress,
        ):
            contenders = _contenders([p for p in peers if p not in missing], model, Path(work))
            given = {"threads": threads, "rounds": rounds, "shape_profile": shape_profile}
            result = bench(artifacts, contenders, **given, board=board, progress=progress)
        measured = limits_from(limits) if board is None else None
        told_of = artifacts if layers else []
        reports = _layer_reports(told_of, threads, measured, board, shape_profile)
        described = board.describe() if board is not None else ""
    result.unavailable.update({p: f"it is not installed (pip install {p})" for p in missing})
    told = [
        {**row, "network": str(artifact)}
        for artifact, report in reports
        for row in report.to_json()["layers"]
    ]
    console.json({**result.to_json(), **({"layers": told} if layers else {})})
    if as_json:
        return
    _show_bench(console, result, described)
    for artifact, report in reports:
        if len(reports) > 1:
            console.line(str(artifact))
        show_profile(console, report.layers)


def _check_options(
    peers: tuple[str, ...], model: Path | None, limits: Path | None, remote: str | None
) -> None:
    if peers and model is None:
        raise DlccError(
            ExitCode.USAGE,
            "--against needs --model",
            why="an artifact holds compiled code, which other engines cannot run",
            fix="give the model they should run: --model model.onnx",
        )
    if remote is not None and (peers or limits):
        raise DlccError(
            ExitCode.USAGE,
            f"{'--against' if peers else '--limits'} cannot be used with --remote",
            why="other engines and the machine's limits are measured here, not on the board",
            fix="leave it out, or leave --remote out",
        )


def _layer_reports(
    artifacts: list[Path],
    threads: int,
    limits: Callable[[int], Limits] | None,
    board: Board | None,
    shape_profile: int,
) -> list[tuple[Path, Report]]:
    """Each artifact with the times of its layers."""
    from dlcc.inspection import inspect_artifact

    return [
        (
            path,
            inspect_artifact(
                path,
                profile=True,
                threads=threads,
                limits=limits,
                board=board,
                shape_profile=shape_profile,
            ),
        )
        for path in artifacts
    ]


def _contenders(peers: list[str], model: Path | None, work: Path) -> list[Contender]:
    if not peers or model is None:
        return []
    from dlcc.bench import Contender, onnx_precision
    from dlcc.frontends import load_graph

    if model.suffix == ".dlir":
        from dlcc.frontends.onnx_export import export_onnx

        graph, network = load_graph(model), work / f"{model.stem}.onnx"
        export_onnx(graph, network, integer_adds=True)
    else:
        network = model
    precision = onnx_precision(network)
    return [Contender(peer, network, precision) for peer in peers]


def _show_bench(console: Console, result: BenchResult, described: str) -> None:
    if described:
        console.line(described)
    console.line(f"{result.cpu}: {' '.join(result.features) or 'none of the known features'}")
    several = sum(times.engine == "dlcc" for times in result.times) > 1
    rows = [
        (
            times.engine,
            *((Path(times.network).name,) if several else ()),
            times.version,
            times.precision,
            times.threads,
            seconds_text(times.load_seconds),
            seconds_text(min(times.rounds)),
            seconds_text(times.seconds),
            f"{result.ratio(times):.2f}",
        )
        for times in result.times
    ]
    names = ("engine", *(["network"] if several else []), "version", "precision")
    columns = (*names, ">threads", ">load", ">fastest", ">median")
    console.table(Table((*columns, ">time / first" if several else ">time / dlcc"), rows))
    for peer, reason in result.unavailable.items():
        console.line(f"{peer}: {reason}")
