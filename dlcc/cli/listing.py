"""Verbs that tell: inspect, passes, targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcc.cli.building import CalibOption
from dlcc.cli.common import (
    ConstantOption,
    JsonOption,
    ShapeOption,
    ShapeProfileOption,
    ThreadsOption,
    VariantOption,
    parse_constants,
    parse_shapes,
)
from dlcc.cli.console import Console, Table, bytes_text, count_text
from dlcc.cli.layers import LimitsOption, limits_from, show_profile
from dlcc.cli.predicting import BitsOption, CoreOption, TargetOption, show_prediction
from dlcc.cli.verifying import SourceOption, VerifyOption, show_certificates
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.inspection import Report


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("inspect")(inspect_network)
    app.command("passes")(list_passes)
    app.command("targets")(list_targets)


def inspect_network(
    network: Annotated[
        Path, typer.Argument(help="An artifact folder or a model file.", show_default=False)
    ],
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure each layer's time (artifacts).")
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FILE.npz",
            help="Inputs for --profile.",
            show_default="random numbers",
        ),
    ] = None,
    threads: ThreadsOption = 0,
    variant: VariantOption = None,
    shape_profile: ShapeProfileOption = 0,
    limits: LimitsOption = None,
    every_byte: Annotated[
        bool, typer.Option("--bytes", help="List every section of every file.")
    ] = False,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print the recipe it was compiled by (artifacts).")
    ] = False,
    target: TargetOption = None,
    core: CoreOption = None,
    bits: BitsOption = None,
    verify: VerifyOption = False,
    source: SourceOption = None,
    calib: CalibOption = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a model or an artifact, per layer and per byte."""
    console = Console(as_json)
    from dlcc.frontends import load_graph
    from dlcc.inspection import inspect_artifact, inspect_model

    if target is not None:
        made = {"--bits": bits, "--calib": calib, "--shape": shape, "--constant": constant}
        others: dict[str, Any] = {"--profile": profile, "--inputs": inputs, "--bytes": every_byte}
        others |= {"--recipe": recipe, "--verify": verify, "--from": source, "--variant": variant}
        others["--shape-profile"] = shape_profile
        _refuse_with_target(others | (made if network.is_dir() else {}))
        options = {"bits": bits or 8, "calibration": calib, **_bound(shape, constant)}
        return show_prediction(console, network, target, core, options)
    if core is not None or bits is not None:
        raise _needs("--bits" if core is None else "--core", "--target")
    for option, path in (("--from", source), ("--calib", calib)):
        if path is not None and not verify:
            raise _needs(option, "--verify")
    if network.is_dir():
        if verify:
            show_certificates(console, network, source, calib, _bound(shape, constant))
            return
        if shape or constant:
            raise _only_for("--shape" if shape else "--constant", "models", network)
        if recipe:
            _show_recipe(console, network)
            return
        report = inspect_artifact(
            network,
            profile=profile,
            feed=_feed(network, inputs, profile),
            threads=threads,
            limits=limits_from(limits) if profile else None,
            variant=variant,
            shape_profile=shape_profile,
        )
    else:
        given: dict[str, Any] = {"--profile": profile, "--inputs": inputs, "--bytes": every_byte}
        given |= {"--recipe": recipe, "--verify": verify, "--variant": variant}
        _refuse_for_models({**given, "--shape-profile": shape_profile}, network)
        report = inspect_model(load_graph(network, **_bound(shape, constant)), str(network))
    console.json(report.to_json())
    if not as_json:
        _show_report(console, report, every_byte)


def _bound(shape: list[str] | None, constant: list[str] | None) -> dict[str, Any]:
    """What --shape and --constant say, as keyword arguments."""
    return {"shapes": parse_shapes(shape), "constants": parse_constants(constant)}


def _refuse_for_models(given: dict[str, Any], model: Path) -> None:
    for option, value in given.items():
        if value:
            raise _only_for(option, "artifacts", model)


def _show_recipe(console: Console, folder: Path) -> None:
    """The recipe of an artifact, as it was written."""
    from dlcc.artifact import Artifact

    manifest = Artifact.open(folder).manifest
    if "recipe" not in manifest:
        raise DlccError(
            ExitCode.USAGE,
            "the artifact was not compiled by a recipe",
            where=str(folder),
            why=f"its pipeline is {manifest.get('pipeline', 'unknown')}",
            fix="leave out --recipe",
        )
    console.json({"recipe": manifest["recipe"], "pipeline": manifest["pipeline"]})
    console.line(str(manifest["recipe"]).rstrip("\n"))


def _needs(option: str, wanted: str) -> DlccError:
    return DlccError(ExitCode.USAGE, f"{option} is for {wanted}", fix=f"add {wanted}")


def _refuse_with_target(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value:
            raise DlccError(
                ExitCode.USAGE,
                f"{option} does not go with --target",
                why="--target predicts cycles, of an artifact as it is or of a model compiled here",
                fix=f"leave out {option} or --target",
            )


def _only_for(option: str, what: str, path: Path) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        f"{option} is for {what}",
        where=str(path),
        fix="leave it out, or compile the model first" if what == "artifacts" else "leave it out",
    )


def _feed(network: Path, inputs: Path | None, profile: bool) -> dict[str, Any] | None:
    if inputs is None:
        return None
    if not profile:
        raise DlccError(ExitCode.USAGE, "--inputs is for --profile", fix="add --profile")
    from dlcc.data import load_npz
    from dlcc.executable import feeds_of, open_executable

    with open_executable(network) as executable:
        return next(feeds_of(load_npz(inputs), executable, str(inputs)))


def _show_report(console: Console, report: Report, every_byte: bool) -> None:
    console.line(f"{report.kind} {report.name}")
    for name, value in report.facts.items():
        console.line(f"  {name.replace('_', ' ')}: {_fact(name, value)}")
    for text in report.inputs:
        console.line(f"  input {text}")
    for text in report.outputs:
        console.line(f"  output {text}")
    console.line()
    if any(layer.seconds is not None for layer in report.layers):
        show_profile(console, report.layers)
        return
    packed = any(layer.stored_bytes is not None for layer in report.layers)
    columns = ["layer", "op", "encoding", "shape", ">weights"]
    columns += [">stored", ">MACs"] if packed else [">MACs"]
    columns += ["kernel", "why"] if report.kind == "artifact" else []
    rows = []
    for layer in report.layers:
        shape = "x".join(map(str, layer.shape))
        row = [layer.layer, layer.op, layer.encoding, shape]
        row += [bytes_text(layer.weight_bytes)]
        row += [bytes_text(layer.stored_bytes or 0)] if packed else []
        row += [count_text(layer.macs)]
        row += [layer.kernel, layer.why] if report.kind == "artifact" else []
        rows.append(row)
    console.table(Table(tuple(columns), rows))
    if report.files:
        console.line()
        _show_bytes(console, report, every_byte)


def _fact(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value} ({bytes_text(value)})" if value >= 10_000 else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and value >= 10_000:
        return f"{value} ({count_text(value)})"
    return str(value)


def _show_bytes(console: Console, report: Report, every_byte: bool) -> None:
    """The bytes of each file by section, sections of few bytes together unless all are wanted."""
    rows: list[tuple[str, str, int]] = []
    for name, size in report.files.items():
        parts = sorted((r for r in report.bytes if r[0] == name), key=lambda r: -r[2])
        shown = parts if every_byte else parts[:8]
        rows += [(name, section, count) for _, section, count in shown]
        rest = sum(count for _, _, count in parts[len(shown) :])
        if rest:
            rows.append((name, f"{len(parts) - len(shown)} smaller sections", rest))
        rows.append((name, "= the whole file", size))
    rows.append(("total", "", sum(report.files.values())))
    console.table(Table(("file", "section", ">bytes"), rows))


def list_passes(
    name: Annotated[
        str | None, typer.Argument(help="Tell all about this pass.", show_default="list all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the passes, or tell about one with its options."""
    console = Console(as_json)
    from passes import describe, load_plugins, registered_passes

    load_plugins()
    known = {key: describe(cls) for key, cls in registered_passes().items()}
    if name is not None and name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise DlccError(
            ExitCode.USAGE,
            f"there is no pass named {name!r}",
            fix=(f"did you mean {near[0]!r}? " if near else "") + "`dlcc passes` lists all passes",
        )
    if name is None:
        console.json({"passes": list(known.values())})
        listed = [(k, "lossy" if d["lossy"] else "exact", d["summary"]) for k, d in known.items()]
        console.table(Table(("pass", "kind", "summary"), listed))
        console.line("\n`dlcc passes NAME` tells about one and its options.")
        return
    told = known[name]
    console.json(told)
    console.line(f"{told['name']} ({'lossy' if told['lossy'] else 'exact'}): {told['summary']}")
    if told["description"]:
        console.line(f"\n{told['description']}")
    rows = [(o["name"], _default(o), o["type"], o["help"]) for o in told["options"]]
    console.line()
    if rows:
        console.table(Table(("option", "default", "type", "help"), rows))
    else:
        console.line("It takes no options.")


def _default(described: dict[str, Any]) -> str:
    return "required" if described["required"] else str(described["default"])


def list_targets(
    table: Annotated[
        bool,
        typer.Option("--table", help="Which kernel serves which op on which target (Markdown)."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the targets, and which of them run on this machine."""
    console = Console(as_json)
    from targets import all_targets, missing_here

    told: list[dict[str, Any]] = []
    for target in all_targets():
        missing = missing_here(target)
        told.append(
            {
                "name": target.name,
                "triple": target.triple,
                "features": list(target.features),
                "runs_here": not missing,
                "missing": list(missing),
                "kernels": {row.name: list(row.ops) for row in target.rows},
            }
        )
    console.json({"targets": told})
    if table:
        console.line(_support_table(told).markdown())
        return
    rows = [
        (t["name"], "yes" if t["runs_here"] else "no", " ".join(t["missing"]), t["triple"])
        for t in told
    ]
    console.table(Table(("target", "runs here", "missing features", "triple"), rows))
    console.line("\n`cpu` alone is the best of them that runs on this machine.")
    console.line("`cpu:avx2+amx` and the like put the kernels of several into one library.")


def _support_table(told: list[dict[str, Any]]) -> Table:
    """Ops down, targets across; rows of a kernel table that serve every op come last."""
    import dlcc.ops
    from dlcc.ops.base import OPS

    assert dlcc.ops
    named = {op for t in told for ops in t["kernels"].values() for op in ops} - {"*"}
    rows = []
    for op in sorted(named & set(OPS)):
        cells = [", ".join(k for k, ops in t["kernels"].items() if op in ops) or "-" for t in told]
        rows.append((op, *cells))
    general = [", ".join(k for k, ops in t["kernels"].items() if "*" in ops) or "-" for t in told]
    rows.append(("every op", *general))
    return Table(("op", *(str(t["name"]) for t in told)), rows)
