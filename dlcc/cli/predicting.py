"""``inspect --target``: cycles predicted from the emitted code, without the machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcc.cli.console import Console, Table, bytes_text, count_text, seconds_text
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.cycles.predict import LayerCycles, Prediction
    from dlcc.lowering.target import Core, Target

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Predict the cycles of each layer on this core, from the emitted code.",
        show_default=False,
    ),
]
CoreOption = Annotated[
    str | None,
    typer.Option(
        "--core",
        metavar="NAME",
        help="LLVM's name of the core, where --target names none (arm:dotprod, cpu:avx2).",
        show_default=False,
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", help="What a model is compiled with for --target.", show_default="8"),
]


def show_prediction(
    console: Console,
    network: Path,
    target: str,
    core: str | None,
    options: dict[str, Any],
) -> None:
    """Predicts and prints; a model is compiled first.

    Args:
        console: where to.
        network: an artifact or a model.
        target: what to predict for.
        core: LLVM's name of the core, where the target does not tell one.
        options: of the compilation of a model.

    Raises:
        DlccError: as :func:`dlcc.cycles.predict.predict` and :func:`dlcc.driver.compile`.
    """
    from dlcc.cycles.predict import predict
    from targets import get_target

    machine = get_target(target)
    model = _core(machine, core)
    if network.is_dir():
        variant = _fitting(network, machine)
        prediction = predict(network, model, machine.mattr, variant)
    else:
        from dlcc.driver import CompileOptions, compile

        with tempfile.TemporaryDirectory(prefix="dlcc-") as folder:
            made = CompileOptions(target=target, threads=1, emit=("a",), **options)
            compile(network, Path(folder) / "artifact", options=made)
            prediction = predict(Path(folder) / "artifact", model, machine.mattr)
    console.json({"target": machine.name, **prediction.to_json()})
    if not console.as_json:
        _show(console, machine, prediction)


def _core(target: Target, name: str | None) -> Core:
    from dlcc.lowering.target import Core

    if name is not None:
        if target.core is not None:
            raise DlccError(
                ExitCode.USAGE,
                f"{target.name} names a core already",
                where=f"--core {name}",
                why=f"its cycles are predicted by LLVM's model of {target.core.name}",
                fix="leave --core out, or name a feature level by --target",
            )
        return Core(name)
    if target.core is None:
        raise DlccError(
            ExitCode.USAGE,
            f"{target.name} tells instruction sets, and no core to predict for",
            where="--target",
            fix="name a core (`dlcc targets` lists them), or add --core with LLVM's name of one",
        )
    if target.core.unpredicted:
        raise DlccError(
            ExitCode.TARGET,
            f"cycles of {target.core.name} cannot be predicted",
            where="--target",
            why=target.core.unpredicted,
            fix="count instructions on an emulated board (docs/cortex-m.md), or measure",
        )
    return target.core


def _fitting(folder: Path, target: Target) -> str:
    """The variant of an artifact's kernels that the target runs: the best that it can.

    Raises:
        DlccError: TARGET.
    """
    from dlcc.artifact import Artifact

    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    lacks = {
        name: [f for f in told["features"] if f not in target.features]
        for name, told in artifact.variants.items()
    }
    fitting = [name for name, missing in lacks.items() if not missing]
    if manifest["triple"] == target.triple and fitting:
        return fitting[-1]
    missing = next(iter(lacks.values()))
    raise DlccError(
        ExitCode.TARGET,
        f"the artifact is not for {target.name}",
        where=str(folder),
        why=f"its code needs {', '.join(missing)}"
        if manifest["triple"] == target.triple
        else f"it is for {manifest['triple']}",
        fix=f"compile the model with --target {target.name}",
    )


def _show(console: Console, target: Target, prediction: Prediction) -> None:
    from dlcc.cycles.predict import NOTE

    total = prediction.cycles
    rows = [(*_row(layer), _share(layer.bound_cycles, total)) for layer in prediction.layers]
    outside = prediction.outside_cycles
    counts = (f"{prediction.outside_instructions:.0f}", f"{outside:.0f}")
    rows.append(
        ("outside the kernels", "", "", "", *counts, "", "", "", "", _share(outside, total))
    )
    columns = ("layer", "op", "kernel", ">MACs", ">instructions", ">cycles", ">MACs/cycle")
    console.table(Table((*columns, ">weights", ">activations", ">memory", ">share"), rows))
    time = "" if prediction.seconds is None else f", {seconds_text(prediction.seconds)}"
    clock = f" at {_clock_text(prediction.clock)}" if prediction.clock else ""
    macs = sum(layer.macs for layer in prediction.layers)
    console.line()
    console.line(
        f"one inference on {target.name}, one thread: {count_text(round(total))} cycles{time}"
        f"{clock}, {count_text(round(prediction.instructions))} instructions, "
        f"{macs / total:.2f} MACs/cycle"
    )
    console.line(f"This is {NOTE}.")
    console.line(
        f"Model: {prediction.core}, by LLVM {prediction.llvm} (units of {prediction.model}); "
        f"instructions by {prediction.emulator}. Column memory: cycles to read the bytes "
        "that lie beyond the first-level cache; the larger of the two counts."
    )
    if prediction.unknown:
        names = ", ".join(sorted({text.split()[0] for text in prediction.unknown}))
        console.line(f"The model knows nothing of {names}: taken to cost nothing but a slot.")


def _clock_text(clock: float) -> str:
    return f"{clock * 1e-9:.1f} GHz" if clock >= 1e9 else f"{clock * 1e-6:.0f} MHz"


def _row(layer: LayerCycles) -> tuple[str, ...]:
    memory = "" if layer.memory_cycles is None else f"{layer.memory_cycles:.0f}"
    return (
        layer.layer,
        layer.op,
        layer.kernel,
        count_text(layer.macs),
        f"{layer.instructions:.0f}",
        f"{layer.cycles:.0f}",
        f"{layer.macs / layer.bound_cycles:.2f}" if layer.macs and layer.cycles else "",
        bytes_text(layer.weight_bytes),
        bytes_text(layer.activation_bytes),
        memory,
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
