"""Verbs that make something: compile, opt, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcc.cli.common import (
    ConstantOption,
    JsonOption,
    MemoryOption,
    QuietOption,
    ShapeOption,
    TimeoutOption,
    check_artifact_place,
    check_dump_dir,
    check_writable_file,
    parse_constants,
    parse_list,
    parse_memory,
    parse_shapes,
    split_names,
)
from dlcc.cli.console import Console, Table, bytes_text, count_text, seconds_text
from dlcc.cli.progress import PhaseProgress
from dlcc.cli.worker import run_bounded
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.driver import CompileOptions, CompileResult, Optimised
    from dlcc.inspection import Report
    from passes.base import Remark
    from passes.manager import PassRecord

_SHOWN_LAYERS = 4
"""Layers that are named where many have the same remark."""

_SHOWN_SHARE = 0.02
"""Phases that took a smaller part of the whole time are not listed one by one."""

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Machine to compile for, or several: cpu:avx2+amx; see `dlcc targets`.",
        show_default="cpu, or c for --emit c",
    ),
]
PassesOption = Annotated[
    str | None,
    typer.Option(
        "--passes",
        metavar="PIPELINE",
        help="Passes to run, e.g. 'fold-batch-norm,quantize{bits=8}'. See `dlcc passes`.",
        show_default="the default pipeline",
    ),
]
CalibOption = Annotated[
    Path | None,
    typer.Option(
        "--calib",
        "--calibration",
        metavar="FILE.npz",
        help="Typical inputs, one array per input, samples along the first axis.",
        show_default="none: synthetic inputs",
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="What is done to which layer, in place of --passes.",
        show_default=False,
    ),
]
TuningOption = Annotated[
    Path | None,
    typer.Option(
        "--tuning",
        metavar="FILE.json",
        help="Choose kernels by the times that `dlcc tune` measured.",
        show_default="by predicted cost",
    ),
]
PrintBeforeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--print-before", metavar="PASS", help="Print the IR before this pass, or 'all'.",
        show_default=False,
    ),
]  # fmt: skip
PrintAfterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--print-after", metavar="PASS", help="Print the IR after this pass, or 'all'.",
        show_default=False,
    ),
]  # fmt: skip
Tf32Option = Annotated[
    bool, typer.Option("--tf32", help="GPUs round operands of float32 layers to 10 bits.")
]
NoFuseOption = Annotated[
    bool, typer.Option("--no-fuse", help="Run layers one by one, never band by band.")
]

WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="ROW",
        help="Kernel row not to use, e.g. winograd. Repeatable.",
        show_default=False,
    ),
]
PackOption = Annotated[
    str,
    typer.Option(
        "--pack",
        metavar="speed|size",
        help="Weights file: mapped as it is, or as small as can be and unpacked at load.",
    ),
]
FolderOption = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="DIR", help="The artifact folder to write.", show_default=False
    ),
]
EmitOption = Annotated[
    str | None,
    typer.Option(
        "--emit",
        metavar="KINDS",
        help="What to write: libraries (so, a, o) or C source (c).",
        show_default="what is usual for the target",
    ),
]
IntegerInputsOption = Annotated[
    bool,
    typer.Option(
        "--integer-inputs", help="The caller gives 8-bit codes; the header has their scale."
    ),
]
IntegerOutputsOption = Annotated[
    bool,
    typer.Option(
        "--integer-outputs", help="The caller gets 8-bit codes; the header has their scale."
    ),
]
NhwcOption = Annotated[
    bool, typer.Option("--nhwc", help="Images of such codes have their channels last.")
]
MostThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=0, help="Most threads a run may use; 0: all cores here."),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Prefix of the library's files, functions and macros.",
        show_default="made from the network's name",
    ),
]
SampleOption = Annotated[
    str | None,
    typer.Option(
        "--sample",
        metavar="FILE.npz|none",
        help="The first sample of the file is recorded for the example program.",
        show_default="the first of --calib, else seeded numbers",
    ),
]
DumpOption = Annotated[
    Path | None,
    typer.Option(
        "--dump-dir", metavar="DIR", help="Write the IR after each pass there.", show_default=False
    ),
]
VerifyOption = Annotated[
    int,
    typer.Option(
        "--verify-numerics",
        metavar="[N]",
        min=0,
        help="Compare outputs before and after each pass, and the library's where it runs here, "
        "on N samples (alone: 2; 0: off).",
    ),
]
RemarksOption = Annotated[
    str,
    typer.Option(
        "--remarks",
        metavar="[PASS]",
        help="Show all remarks of PASS, or of every pass where it stands alone.",
        show_default="refusals and notes of every pass",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("compile")(compile_model)
    app.command("opt")(optimise_model)
    app.command("export")(export_model)


def compile_model(
    model: Annotated[Path, typer.Argument(help="An .onnx or .dlir file.", show_default=False)],
    output: FolderOption,
    target: TargetOption = None,
    bits: Annotated[
        int, typer.Option("--bits", help="8: int8; 16: bfloat16, on arm float16; 32: float.")
    ] = 8,
    calib: CalibOption = None,
    passes: PassesOption = None,
    recipe: RecipeOption = None,
    integer_inputs: IntegerInputsOption = False,
    integer_outputs: IntegerOutputsOption = False,
    nhwc: NhwcOption = False,
    threads: MostThreadsOption = 0,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    tuning: TuningOption = None,
    emit: EmitOption = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Put the weights into the library.")
    ] = False,
    pack: PackOption = "speed",
    name: NameOption = None,
    sample: SampleOption = None,
    keep_ir: Annotated[
        bool, typer.Option("--keep-ir", help="Write the compiled graph into the folder too.")
    ] = False,
    without: WithoutOption = None,
    tf32: Tf32Option = False,
    no_fuse: NoFuseOption = False,
    print_before: PrintBeforeOption = None,
    print_after: PrintAfterOption = None,
    dump_dir: DumpOption = None,
    verify_numerics: VerifyOption = 0,
    timeout: TimeoutOption = None,
    max_memory: MemoryOption = None,
    remarks: RemarksOption = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a network to a folder with a C library, its header and weights."""
    console = Console(as_json)
    from dlcc.artifact import EMITS, check_pack

    kinds = () if emit is None else parse_list(emit, "--emit", EMITS)
    check_artifact_place(output)
    check_dump_dir(dump_dir)
    from dlcc.driver import CompileOptions

    options = CompileOptions(
        target=target,
        bits=bits,
        passes=passes,
        recipe=recipe,
        integer_inputs=integer_inputs,
        integer_outputs=integer_outputs,
        nhwc=nhwc,
        threads=threads,
        shapes=parse_shapes(shape),
        constants=parse_constants(constant),
        calibration=calib,
        tuning=tuning,
        emit=kinds,
        embed=embed,
        pack=check_pack(pack),
        name=name,
        sample=sample,
        keep_ir=keep_ir,
        without=split_names(without),
        tf32=tf32,
        fuse=not no_fuse,
        verify_numerics=verify_numerics,
        print_before=split_names(print_before),
        print_after=split_names(print_after),
        dump_dir=dump_dir,
        max_memory=parse_memory(max_memory),
    )
    _check_remark_choice(remarks)
    work = partial(_compile_and_show, console, model, output, options, remarks, quiet)
    run_bounded(work, output, timeout, options.max_memory)


def _compile_and_show(
    console: Console, model: Path, output: Path, options: CompileOptions, remarks: str, quiet: bool
) -> None:
    from dlcc.driver import compile

    with PhaseProgress(quiet) as progress:
        result = compile(model, output, options=options, progress=progress)
    _show_compiled(console, model, result, remarks, progress.seconds)


def optimise_model(
    model: Annotated[Path, typer.Argument(help="An .onnx or .dlir file.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="A .dlir file (with its .npz beside it), or an .onnx file to export to.",
            show_default=False,
        ),
    ],
    passes: Annotated[
        str | None,
        typer.Option(
            "--passes", metavar="PIPELINE", help="Passes to run; may be empty.", show_default=False
        ),
    ] = None,
    recipe: RecipeOption = None,
    calib: CalibOption = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    print_before: PrintBeforeOption = None,
    print_after: PrintAfterOption = None,
    dump_dir: DumpOption = None,
    verify_numerics: VerifyOption = 0,
    remarks: RemarksOption = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run passes over a network and write the resulting IR."""
    console = Console(as_json)
    _check_graph_suffix(output)
    check_writable_file(output)
    _check_sidecar(output, calib)
    check_dump_dir(dump_dir)
    from dlcc.driver import CompileOptions, optimise

    if passes is None and recipe is None:
        raise DlccError(
            ExitCode.USAGE,
            "nothing says which passes are to run",
            fix="give --passes PIPELINE or --recipe FILE.toml",
        )
    options = CompileOptions(
        passes=passes,
        recipe=recipe,
        shapes=parse_shapes(shape),
        constants=parse_constants(constant),
        calibration=calib,
        verify_numerics=verify_numerics,
        print_before=split_names(print_before),
        print_after=split_names(print_after),
        dump_dir=dump_dir,
    )
    _check_remark_choice(remarks)
    with PhaseProgress(quiet) as progress:
        optimised = optimise(model, options, progress)
    _write_graph(optimised, output)
    payload = {
        "output": output,
        "pipeline": optimised.pipeline,
        "nodes": len(optimised.graph.nodes),
        "passes": [_pass_json(p) for p in optimised.passes],
        "remarks": [_remark_json(r) for r in optimised.remarks],
    }
    _show_passes(console, optimised)
    _show_remarks(console, optimised.remarks, remarks)
    console.line(f"wrote {output}: {len(optimised.graph.nodes)} nodes")
    console.json(payload)


def export_model(
    model: Annotated[Path, typer.Argument(help="A .dlir (or .onnx) file.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    opset: Annotated[int, typer.Option("--opset", help="ONNX opset of the result.")] = 17,
    integer_adds: Annotated[
        bool,
        typer.Option(
            "--integer-adds",
            help="Round to 8 bits before residual adds, so that engines run these in integers.",
        ),
    ] = False,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a network as ONNX; quantised values become QuantizeLinear/DequantizeLinear pairs."""
    console = Console(as_json)
    check_writable_file(output, "another path")
    from dlcc.frontends import load_graph
    from dlcc.frontends.onnx_export import export_onnx

    graph = load_graph(model, shapes=parse_shapes(shape), constants=parse_constants(constant))
    size = export_onnx(graph, output, opset=opset, integer_adds=integer_adds)
    console.line(f"wrote {output}: {bytes_text(size)}, opset {opset}")
    console.json({"output": output, "bytes": size, "opset": opset})


# -- output ------------------------------------------------------------------------------------


def _check_graph_suffix(path: Path) -> None:
    if path.suffix not in (".dlir", ".onnx"):
        raise DlccError(
            ExitCode.USAGE,
            "the output must be a .dlir or .onnx file",
            where=str(path),
            why=f"its suffix is {path.suffix or 'empty'!r}",
            fix=f"write -o {path.with_suffix('.dlir')}",
        )


def _check_sidecar(output: Path, calib: Path | None) -> None:
    """Refuse to replace the user's data by the IR's sidecar."""
    sidecar = output.with_suffix(".npz")
    if calib is None or output.suffix != ".dlir" or not sidecar.exists():
        return
    if calib.exists() and sidecar.samefile(calib):
        raise DlccError(
            ExitCode.OUTPUT,
            "the IR's sidecar would replace the calibration data",
            where=str(sidecar),
            why=f"{output.name} keeps its constants in {sidecar.name}",
            fix="choose another name with -o",
        )


def _write_graph(optimised: Optimised, output: Path) -> None:
    if output.suffix == ".onnx":
        from dlcc.frontends.onnx_export import export_onnx

        export_onnx(optimised.graph, output)
        return
    from dlcc.ir.text import save

    try:
        save(optimised.graph, output)
    except OSError as error:
        raise DlccError(
            ExitCode.OUTPUT,
            "cannot write the IR",
            where=str(output),
            why=error.strerror or str(error),
            fix="choose another place with -o",
        ) from None


def _check_remark_choice(choice: str) -> None:
    """Refuse a name that no pass has, before the work.

    Raises:
        DlccError: USAGE.
    """
    if choice in ("", "all", "import"):
        return
    from passes import load_plugins, registered_passes

    load_plugins()
    if choice not in registered_passes():
        raise DlccError(
            ExitCode.USAGE,
            f"there is no pass named {choice!r}",
            where="--remarks",
            fix="`dlcc passes` lists all passes",
        )


def _show_compiled(
    console: Console,
    model: Path,
    result: CompileResult,
    remarks: str,
    phases: Mapping[str, float],
) -> None:
    from dlcc.inspection import inspect_artifact, model_file_bytes

    report = inspect_artifact(result.artifact.folder)
    before, after = model_file_bytes(model), sum(report.files.values())
    if console.as_json:
        console.json(
            {
                "output": result.artifact.folder,
                "target": report.facts["target"],
                "pipeline": result.optimised.pipeline,
                "model_bytes": before,
                "artifact_bytes": after,
                "files": report.files,
                "weight_bytes": report.facts["weight_bytes"],
                "arena_bytes": report.facts["arena_bytes"],
                "kernels": _kernel_rows(report),
                "seconds": dict(result.seconds),
                "phases": dict(phases),
                "passes": [_pass_json(p) for p in result.optimised.passes],
                "remarks": [_remark_json(r) for r in result.optimised.remarks],
            }
        )
        return
    _show_remarks(console, result.optimised.remarks, remarks)
    kernels = [
        (r["kernel"], r["layers"], bytes_text(r["weight_bytes"]), count_text(r["macs"]))
        for r in _kernel_rows(report)
    ]
    console.table(Table(("kernel", ">layers", ">weights", ">MACs"), kernels))
    console.line()
    console.table(Table(("phase", ">time"), _phase_rows(phases)))
    console.line()
    sizes = [
        ("model", bytes_text(before), ""),
        ("artifact", bytes_text(after), _ratio(after, before)),
    ]
    sizes += [(f"  {name}", bytes_text(size), "") for name, size in report.files.items()]
    sizes.append(("memory for a run", bytes_text(int(report.facts["arena_bytes"])), ""))
    if report.facts["pack"] == "size":
        unpacked = bytes_text(int(report.facts["weight_bytes"]))
        sizes.append(("memory for unpacked weights", unpacked, ""))
    console.table(Table(("size", ">bytes", ">of the model"), sizes))
    console.line(f"\nwrote {result.artifact.folder}")


def _phase_rows(phases: Mapping[str, float]) -> list[tuple[str, str]]:
    """Times of the phases that matter, the others together."""
    total = sum(phases.values())
    slow = {name: value for name, value in phases.items() if value >= _SHOWN_SHARE * total}
    rows = [(name, seconds_text(value)) for name, value in slow.items()]
    if len(slow) < len(phases):
        rest = seconds_text(total - sum(slow.values()))
        rows.append((f"{len(phases) - len(slow)} other phases", rest))
    return [*rows, ("total", seconds_text(total))]


def _ratio(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else ""


def _kernel_rows(report: Report) -> list[dict[str, Any]]:
    return [
        {"kernel": kernel, "layers": layers, "weight_bytes": size, "macs": macs}
        for kernel, layers, size, macs in report.by_kernel()
    ]


def _pass_json(record: PassRecord) -> dict[str, Any]:
    """A record without its remarks, which stand in one list of their own."""
    return {key: value for key, value in record.to_json().items() if key != "remarks"}


def _show_passes(console: Console, optimised: Optimised) -> None:
    """One row per pass; with --verify-numerics also how far the outputs moved."""
    verified = any(record.errors for record in optimised.passes)
    rows = []
    for record in optimised.passes:
        text = ", ".join(f"{k}={v}" for k, v in record.statistics.items())
        row = [record.name, "yes" if record.modified else "no", seconds_text(record.seconds)]
        if verified:
            worst = max((e.relative for e in (record.errors or {}).values()), default=None)
            row.append("" if worst is None else f"{worst:.2g}")
        rows.append((*row, text))
    error = (">output moved",) if verified else ()
    if rows:
        console.table(Table(("pass", "changed", ">time", *error, "statistics"), rows))
        console.line()


def _remark_json(remark: Remark) -> dict[str, str]:
    return {
        "pass": remark.pass_name,
        "layer": remark.loc,
        "kind": remark.kind,
        "message": remark.message,
    }


def _show_remarks(console: Console, remarks: Sequence[Remark], choice: str) -> None:
    """Print the chosen remarks; equal ones of several layers on one line.

    Goes to standard error: remarks are about the result, not the result.
    """
    if console.as_json:
        return
    groups: dict[tuple[str, str, str], list[str]] = {}
    for remark in remarks:
        wanted = remark.kind != "applied" if not choice else choice in ("all", remark.pass_name)
        if wanted:
            message = remark.message.removeprefix(f"{remark.pass_name}: ")
            key = (remark.pass_name, remark.kind, message)
            groups.setdefault(key, []).append(remark.loc)
    for (name, kind, message), places in groups.items():
        named = [p for p in places if p]
        shown = ", ".join(named[:_SHOWN_LAYERS])
        if len(named) > _SHOWN_LAYERS:
            shown += f" and {len(named) - _SHOWN_LAYERS} more"
        console.note(f"{name}: {kind}: {message}" + (f" [{shown}]" if shown else ""))
