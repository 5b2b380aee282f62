"""inspect --verify: an artifact's certificates of accumulators, computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcc.cli.console import Console, Table
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.analysis.certificates import Certificate
    from dlcc.artifact import Artifact
    from dlcc.ir import Graph

VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Compute what the accumulators can reach again (artifacts)."),
]
SourceOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="For --verify: the model that was compiled, or its graph (.dlir).",
        show_default="the graph in the artifact",
    ),
]


def show_certificates(
    console: Console, folder: Path, source: Path | None, calib: Path | None, bound: dict[str, Any]
) -> None:
    """Verify an artifact's certificates and print them; ``bound``: shapes and constants.

    Raises:
        DlccError: VERIFICATION, if they are not those of the network.
    """
    from dlcc.analysis.certificates import check
    from dlcc.artifact import Artifact

    artifact = Artifact.open(folder)
    artifact.verify()
    stated = artifact.manifest.get("certificates")
    if not isinstance(stated, list):
        raise DlccError(
            ExitCode.ARTIFACT,
            "the artifact has no certificates",
            where=str(folder),
            why="an older dlcc compiled it",
            fix="compile the model again",
        )
    told = (artifact.manifest, *artifact.manifest.get("more_graphs", ()))
    graphs = _graphs(artifact, source, calib, bound)
    if len(graphs) != len(told):
        raise DlccError(
            ExitCode.VERIFICATION,
            f"the artifact holds {len(told)} shape profiles, the model has {len(graphs)} here",
            where=str(source or folder),
            fix="give the same --shape that it was compiled with",
        )
    found = [
        check(row["certificates"], graph, str(folder))
        for row, graph in zip(told, graphs, strict=True)
    ]
    for row, graph in zip(told, graphs, strict=True):
        _check_graph(row["ir"], graph, source or folder)
    _check_weights(artifact, graphs)
    payload: dict[str, Any] = {"certificates": [c.to_json() for c in found[0]]}
    if found[1:]:
        payload["more_shapes"] = [[c.to_json() for c in rows] for rows in found[1:]]
    console.json({"artifact": folder, **payload})
    for row, rows, profile in zip(told, found, artifact.shape_profiles, strict=True):
        if found[1:]:
            console.line(f"shape profile {profile}")
        _show(console, row["certificates"], rows)


def _graphs(
    artifact: Artifact, source: Path | None, calib: Path | None, bound: dict[str, Any]
) -> list[Graph]:
    """The graph that was compiled, for each shape profile: kept in the artifact, given, or made
    again from the model.
    """
    from dlcc.analysis.certificates import digest
    from dlcc.artifact import profile_suffix
    from dlcc.driver import CompileOptions, optimise_profiles
    from dlcc.frontends import load_graph
    from targets import get_targets

    manifest = artifact.manifest
    if source is None:
        suffixes = [profile_suffix(n) for n in range(len(artifact.shape_profiles))]
        kept = [path for s in suffixes if (path := artifact.path(f"{s}.dlir"))]
        if len(kept) < len(suffixes):
            raise DlccError(
                ExitCode.USAGE,
                "the artifact does not hold the graph that was compiled",
                where=str(artifact.folder),
                why="kernels store weights in an order of their own",
                fix="give the model with --from, or compile with --keep-ir",
            )
        return [load_graph(path) for path in kept]
    if source.suffix == ".dlir":
        graph = load_graph(source, **bound)
        if digest(graph) == manifest["ir"]:
            return [graph]
    options = CompileOptions(
        target=str(manifest["target"]),
        passes=str(manifest["pipeline"]),
        calibration=calib,
        **bound,
    )
    target = get_targets(options.machine)[-1]
    return [one.graph for one in optimise_profiles(source, options, target=target)]


def _check_graph(wanted: str, graph: Graph, source: Path) -> None:
    """The certificates fit the graph; so must the rest.

    Raises:
        DlccError: VERIFICATION, if it is not the graph that was compiled.
    """
    from dlcc.analysis.certificates import digest

    if digest(graph) == wanted:
        return
    raise DlccError(
        ExitCode.VERIFICATION,
        "the graph is not the one that was compiled",
        where=str(source),
        why="its SHA-256 is not the manifest's",
        fix="give the same model, shapes and calibration data that it was compiled from",
    )


def _check_weights(artifact: Artifact, graphs: Sequence[Graph]) -> None:
    """Pack the graphs' constants for the artifact's kernels: these are the bytes that it holds.

    Raises:
        DlccError: VERIFICATION, if they are not; ARTIFACT, if there are none to be found.
    """
    from dlcc.artifact.weights import content_hash, padded, stored_hash
    from dlcc.lowering.attention import attention_layers
    from dlcc.lowering.lower import packed_weights
    from dlcc.lowering.tuning import Chosen
    from targets import get_target

    report = artifact.report()
    try:
        profiles = (report, *report.get("more_shapes", ()))
        fused = [attention_layers(profile["layers"]) for profile in profiles]
        choosers = [
            [
                (get_target(str(row["target"])), Chosen.of(row["layers"]))
                for row in (profile, *profile.get("better", ()))
            ]
            for profile in profiles
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise artifact.bad_report(error) from None
    wanted = content_hash(padded(packed_weights(graphs, choosers, fused)))
    try:
        found = stored_hash(_weights_image(artifact))
    except ValueError as error:
        raise DlccError(
            ExitCode.ARTIFACT,
            "the weights of the artifact cannot be found",
            where=str(artifact.folder),
            why=str(error),
            fix="compile the model again",
        ) from None
    if found != wanted:
        raise DlccError(
            ExitCode.VERIFICATION,
            "the weights of the artifact are not those of the graph",
            where=str(artifact.folder),
            why=f"packed for its kernels they have the hash {wanted:016x}, stored is {found:016x}",
            fix="compile the model again",
        )


def _weights_image(artifact: Artifact) -> bytes:
    """The weights file, or its copy in the library.

    Raises:
        ValueError: there is neither.
    """
    from dlcc.artifact.csource import MACOS_WEIGHTS_SECTION, WEIGHTS_SECTION
    from dlcc.objects import read_object

    path = artifact.path(".weights")
    if path is not None:
        return path.read_bytes()
    for suffix in (".so", ".dylib", ".o"):
        path = artifact.path(suffix)
        if path is None:
            continue
        data = path.read_bytes()
        for section in read_object(data).sections:
            if section.name in (WEIGHTS_SECTION, MACOS_WEIGHTS_SECTION):
                return data[section.offset : section.offset + section.size]
    raise ValueError("they are in a static library alone; compile with --emit so,a")


def _show(console: Console, stated: Sequence[dict[str, Any]], found: Sequence[Certificate]) -> None:
    if not found:
        console.line("no integer layers")
        return
    rows = []
    for old, new in zip(stated, found, strict=True):
        promise = new.assigned
        said = "" if promise is None else f"{promise.accumulator} bits for {promise.guarantee}"
        if promise is not None and promise.tile:
            said += f", sums of {promise.tile} channels"
        sums = f"{new.low}..{new.high}"
        row = (new.layer, new.terms, sums, new.bits, new.guarantee, old["accumulator"], said)
        rows.append(row)
    heads = ("layer", ">terms", "accumulator", ">bits", "for these", ">kernel", "assigned")
    console.table(Table(heads, rows))
    console.line()
    console.line(
        f"{len(found)} certificates computed again, from the weights that the kernels read: "
        "no accumulator overflows"
    )


__all__ = ["SourceOption", "VerifyOption", "show_certificates"]
