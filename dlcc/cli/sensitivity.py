"""The verb that tells what pruning costs, layer by layer: sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlcc.cli.building import RecipeOption
from dlcc.cli.common import (
    ConstantOption,
    JsonOption,
    QuietOption,
    ShapeOption,
    check_writable_file,
    parse_constants,
    parse_shapes,
    split_names,
)
from dlcc.cli.console import Console, Table
from dlcc.cli.progress import PhaseProgress
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from passes.compression.sensitivity import Curve

PLOT_SUFFIXES = (".svg", ".png", ".pdf")
"""Kinds of files that a plot is written to."""

_LEGEND_ROWS = 30

OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="LAYER",
        help="Layer to look at; * and ? match. Repeatable.",
        show_default="all",
    ),
]
BeforeOption = Annotated[
    str | None,
    typer.Option(
        "--passes",
        metavar="PIPELINE",
        help="Passes to run before.",
        show_default="the exact ones",
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw the curves: .svg, .png or .pdf (needs matplotlib).",
        show_default=False,
    ),
]
SparsitiesOption = Annotated[
    str,
    typer.Option("--sparsities", metavar="LIST", help="Shares of zeros to try in each layer."),
]


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("sensitivity")(show_sensitivity)


def show_sensitivity(
    model: Annotated[Path, typer.Argument(help="An .onnx or .dlir file.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE.npz",
            help="Inputs by name; with integer 'labels' accuracies are told too.",
            show_default=False,
        ),
    ],
    sparsities: SparsitiesOption = "0.5,0.7,0.8,0.9",
    pattern: Annotated[
        str, typer.Option("--pattern", help="As option pattern of pass prune.")
    ] = "unstructured",
    saliency: Annotated[
        str, typer.Option("--saliency", help="As option saliency of pass prune.")
    ] = "magnitude",
    only: OnlyOption = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Most samples to use.")] = 128,
    output: Annotated[
        str, typer.Option("--output", help="The output with the scores, if there are several.")
    ] = "",
    passes: BeforeOption = None,
    recipe: RecipeOption = None,
    target: Annotated[
        str, typer.Option("--target", help="Machine whose blocks --pattern block means.")
    ] = "cpu",
    plot: PlotOption = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Output error and accuracy against sparsity, each layer pruned alone."""  # fmt: skip
    console = Console(as_json)
    steps = _numbers(sparsities)
    if plot is not None:
        _check_plot(plot)
    from dlcc.driver import CompileOptions, sensitivity
    from passes.pipelines import OPTIMISE
    from passes.prune import Prune

    step = Prune(
        sparsity=0.5,
        pattern=pattern,
        saliency=saliency,  # type: ignore[arg-type]  # the pass checks it
        only=split_names(only),
        samples=samples,
    )
    options = CompileOptions(
        target=target,
        passes=OPTIMISE if passes is None and recipe is None else passes,
        recipe=recipe,
        shapes=parse_shapes(shape),
        constants=parse_constants(constant),
    )
    with PhaseProgress(quiet) as progress:
        curves = sensitivity(
            model, data, step, steps, output=output, options=options, progress=progress
        )
    _show(console, curves)
    if plot is not None:
        draw(curves, plot, f"{model.stem}: each layer pruned alone ({pattern}, {saliency})")
        console.line(f"wrote {plot}")
    console.json({"model": model, "layers": [c.to_json() for c in curves]})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(t) for t in text.split(",") if t.strip())
    except ValueError:
        raise DlccError(
            ExitCode.USAGE,
            f"--sparsities {text!r} is not valid",
            why="it is not a list of numbers",
            fix="write for example --sparsities 0.5,0.7,0.9",
        ) from None


def _show(console: Console, curves: Sequence[Curve]) -> None:
    """A row per layer; per sparsity the error of the outputs and, with labels, the accuracy."""
    if not curves:
        console.line("no layer can be pruned so")
        return
    rows: list[tuple[str | int, ...]] = []
    for curve in curves:
        cells = [
            f"{p.error:.3g}" + ("" if p.accuracy is None else f" ({100 * p.accuracy:.1f} %)")
            for p in curve.points
        ]
        rows.append((curve.layer, curve.weights, *cells))
    heads = [f">{100 * p.sparsity:.0f} % zero" for p in curves[0].points]
    console.table(Table(("layer", ">weights", *heads), rows))
    console.line("error of the outputs over their norm" + _accuracy_note(curves))


def _accuracy_note(curves: Sequence[Curve]) -> str:
    told = any(p.accuracy is not None for c in curves for p in c.points)
    return " (accuracy)" if told else ""


def _check_plot(path: Path) -> None:
    """Refuse what cannot be drawn before the work.

    Raises:
        DlccError: another suffix, no matplotlib, or no place to write.
    """
    if path.suffix not in PLOT_SUFFIXES:
        raise DlccError(
            ExitCode.USAGE,
            "the plot must be an .svg, .png or .pdf file",
            where=str(path),
            why=f"its suffix is {path.suffix or 'empty'!r}",
            fix=f"write --plot {path.with_suffix('.svg')}",
        )
    check_writable_file(path, "--plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DlccError(
            ExitCode.USAGE,
            "--plot needs matplotlib",
            why="it is not installed",
            fix="pip install 'dlcc[plot]'",
        ) from None


def draw(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draw a line per layer: accuracy where it is known, else the outputs' error.

    Args:
        curves: the layers.
        path: an .svg, .png or .pdf file.
        title: above the plot.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    accuracy = bool(_accuracy_note(curves))
    columns = -(-len(curves) // _LEGEND_ROWS)
    figure = Figure(figsize=(8 + 2 * columns, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        y = [p.error if p.accuracy is None else p.accuracy for p in curve.points]
        color = colormaps["viridis"](index / max(1, len(curves) - 1))
        axes.plot([p.sparsity for p in curve.points], y, ".-", color=color, label=curve.layer)
    axes.set_xlabel("sparsity of the layer")
    axes.set_ylabel("accuracy" if accuracy else "relative error of the outputs")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if curves:
        figure.legend(loc="outside right upper", fontsize="x-small", ncols=columns)
    # the same data gives the same bytes: no date, no random ids
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
