"""From a :class:`Program` to an artifact folder."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from dlcc.artifact import manifest as manifests
from dlcc.artifact.check import check_program, tensor_bytes
from dlcc.artifact.csource import header_source, model_source, weights_assembly
from dlcc.artifact.elf import ElfFile, isolate
from dlcc.artifact.folder import replace_folder
from dlcc.artifact.names import c_identifier
from dlcc.artifact.toolchain import Toolchain, versions, zig_target
from dlcc.artifact.weights import HEADER_BYTES, weights_image
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Program, TensorInfo

EMITS: Final = ("so", "a", "o")
_SYSTEM_LIBRARIES = re.compile(r"lib(c|pthread)\.so\.\d|ld-linux[\w-]*\.so\.\d")


def write_artifact(
    program: Program,
    out_dir: str | Path,
    *,
    emit: Sequence[str] = ("so",),
    embed: bool = False,
    manifest_extra: Mapping[str, object] | None = None,
) -> manifests.Artifact:
    """Compiles, links and writes ``program``; equal arguments give equal bytes in every file.

    Args:
        program: the lowered network.
        out_dir: the artifact folder; made with its parents. An artifact that is already there is
            replaced as a whole at the end, files of others in it are kept.
        emit: which libraries: "so" shared, "a" static, "o" one relocatable object.
        embed: link the weights into the library instead of writing ``<name>.weights``.
        manifest_extra: JSON values to add to manifest.json (source model, options, ...).

    Raises:
        DlccError: OUTPUT if the folder cannot be written or holds something else; USAGE for an
            unknown ``emit``; TARGET for a triple without runtime; INTERNAL for a faulty program.
    """
    if not emit or set(emit) - set(EMITS):
        raise DlccError(
            ExitCode.USAGE,
            f"cannot emit {', '.join(emit) or 'nothing'}",
            where="--emit",
            fix=f"choose from {', '.join(EMITS)}",
        )
    zig_target(program.triple)
    check_program(program)
    with replace_folder(Path(out_dir)) as folder:
        with tempfile.TemporaryDirectory(prefix="dlcc-") as work:
            contents, facts = _build(program, Path(work), tuple(sorted(set(emit))), embed)
        record = _manifest(program, contents, facts, dict(manifest_extra or {}))
        contents[manifests.NAME] = manifests.dump_json(record)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    return manifests.Artifact(Path(out_dir), record)


def fingerprint(program: Program) -> int:
    """64 bits over everything that a library and its weights file have to agree on."""
    facts = asdict(program)
    facts["weights"] = hashlib.sha256(program.weights).hexdigest()
    facts["object_code"] = hashlib.sha256(program.object_code).hexdigest()
    del facts["report"]
    digest = hashlib.sha256(manifests.dump_json(facts)).digest()
    return int.from_bytes(digest[:8], "little")


def _build(
    program: Program, work: Path, emit: tuple[str, ...], embed: bool
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Compiles in ``work``. Returns the artifact's files and facts for the manifest."""
    symbol = c_identifier(program.name)
    mark = fingerprint(program)
    image = weights_image(program.weights, mark)
    header = header_source(program, symbol).encode()
    (work / f"{symbol}.h").write_bytes(header)
    kernels, objects = _write_kernels(program, work, symbol)
    source = model_source(
        program, symbol, kernels, fingerprint=mark, weights_bytes=len(image), embed=embed
    )
    (work / "model.c").write_text(source, "utf-8")
    tools = Toolchain(program.triple, work)
    with as_file(files("dlcc.runtime").joinpath("c")) as include:
        tools.compile("model.c", "model.o", include=include)
        if embed:
            (work / "weights.bin").write_bytes(image)
            (work / "weights.S").write_text(weights_assembly(symbol, "weights.bin"), "utf-8")
            tools.compile("weights.S", "weights.o", include=include)
            objects.append("weights.o")
    merged = f"{symbol}.o"
    tools.merge(["model.o", *objects], merged)
    contents = {f"{symbol}.h": header, "report.json": manifests.dump_json(program.report)}
    facts: dict[str, Any] = {"symbol": symbol, "fingerprint": f"{mark:016x}", "emit": emit}
    facts |= {"embed": embed, "kernels": kernels, "needed": []}
    if not embed:
        contents[f"{symbol}.weights"] = image
    if "o" in emit:
        contents[merged] = (work / merged).read_bytes()
    if "a" in emit:
        tools.archive(merged, f"lib{symbol}.a")
        contents[f"lib{symbol}.a"] = (work / f"lib{symbol}.a").read_bytes()
    if "so" in emit:
        tools.link_shared([merged], f"lib{symbol}.so")
        library = (work / f"lib{symbol}.so").read_bytes()
        facts["needed"] = _check_library(library)
        contents[f"lib{symbol}.so"] = library
    return contents, facts


def _write_kernels(program: Program, work: Path, symbol: str) -> tuple[dict[str, str], list[str]]:
    """Writes the kernels under names of their own. Returns the names and the object files."""
    if not program.object_code:
        return {}, []
    taken: set[str] = set()

    def rename(name: str) -> str:
        stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        new = f"{symbol}_kernel_{stem}"
        while new in taken:
            new += "_"
        taken.add(new)
        return new

    code, kernels = isolate(program.object_code, rename)
    (work / "kernels.o").write_bytes(code)
    return kernels, ["kernels.o"]


def _check_library(library: bytes) -> list[str]:
    """The libraries it needs, which must all belong to libc."""
    needed = sorted(ElfFile(library).needed())
    foreign = [name for name in needed if not _SYSTEM_LIBRARIES.fullmatch(name)]
    if foreign:
        raise DlccError(
            ExitCode.INTERNAL,
            "the library depends on more than libc",
            why=f"it needs {', '.join(foreign)}",
            fix="this is a fault in a kernel; please report it",
        )
    return needed


def _tensor_rows(tensors: tuple[TensorInfo, ...]) -> list[dict[str, object]]:
    return [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": tensor_bytes(t)}
        for t in tensors
    ]


def _step_rows(program: Program) -> list[dict[str, object]]:
    code_bytes: dict[str, int] = {}
    if program.object_code:
        symbols = ElfFile(program.object_code).symbols()
        code_bytes = {s.name: s.size for s in symbols if s.is_function and s.section}
    return [
        {
            "layer": step.layer,
            "function": step.function,
            "work_items": step.work_items,
            "max_threads": step.max_threads,
            "code_bytes": sum(code_bytes.get(f, 0) for f in {c.function for c in step.calls}),
        }
        for step in program.steps
    ]


def _manifest(
    program: Program,
    contents: dict[str, bytes],
    facts: dict[str, Any],
    extra: dict[str, object],
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "format": manifests.FORMAT,
        "version": manifests.VERSION,
        "abi": 1,
        "name": program.name,
        "symbol": facts["symbol"],
        "fingerprint": facts["fingerprint"],
        "triple": program.triple,
        "features": list(program.features),
        "threads": program.threads,
        "arena_bytes": program.arena_bytes,
        "inputs": _tensor_rows(program.inputs),
        "outputs": _tensor_rows(program.outputs),
        "steps": _step_rows(program),
        "weights": {
            "embedded": facts["embed"],
            "header_bytes": HEADER_BYTES,
            "content_bytes": len(program.weights),
            "entries": [asdict(e) for e in program.weight_entries],
        },
        "emit": list(facts["emit"]),
        "needed": facts["needed"],
        "compilers": {"dlcc": manifests.compiler_name(), **versions()},
        "files": {name: manifests.file_record(c) for name, c in sorted(contents.items())},
    }
    clash = sorted(set(extra) & set(record))
    if clash:
        raise ValueError(f"manifest_extra repeats {', '.join(clash)}")
    record |= extra
    record["checksum"] = manifests.checksum(record)
    return record
