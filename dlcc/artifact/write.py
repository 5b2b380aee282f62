"""From a :class:`Program` to an artifact folder."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from dlcc.artifact import manifest as manifests
from dlcc.artifact.bare import (
    bare_header,
    bare_model_source,
    bare_weights_assembly,
    check_bare,
)
from dlcc.artifact.check import check_program, tensor_bytes
from dlcc.artifact.csource import (
    header_source,
    model_source,
    step_functions,
    weights_assembly,
)
from dlcc.artifact.device import cubin_assembly, kernel_facts, launch_record
from dlcc.artifact.folder import replace_folder
from dlcc.artifact.names import c_identifier, check_name
from dlcc.artifact.packaging import Delivery, package_files
from dlcc.artifact.packed import pack as pack_weights
from dlcc.artifact.portable import c_files
from dlcc.artifact.runtime import RuntimeKind, runtime_object, unpack_object
from dlcc.artifact.stack import stack_bytes
from dlcc.artifact.storage import (
    Pack,
    check_pack,
    kernel_bytes,
    storage_report,
    weights_record,
)
from dlcc.artifact.toolchain import Toolchain, is_bare, is_macos, library_name, versions
from dlcc.artifact.weights import weights_image
from dlcc.errors import DlccError, ExitCode
from dlcc.objects import isolate, read_object
from dlcc.program import Program, Sample, Step, TensorInfo

EMITS: Final = ("so", "a", "o", "c")
_SYSTEM_LIBRARIES = re.compile(
    r"lib(c|pthread|dl)\.so\.\d|ld-linux[\w-]*\.so\.\d|/usr/lib/libSystem\.B\.dylib"
)


def write_artifact(
    program: Program,
    out_dir: str | Path,
    *,
    emit: Sequence[str] = ("so",),
    embed: bool = False,
    pack: Pack = "speed",
    name: str | None = None,
    sample: Sample | None = None,
    manifest_extra: Mapping[str, object] | None = None,
    documents: Mapping[str, bytes] | None = None,
    check: Callable[[Path], None] | None = None,
) -> manifests.Artifact:
    """Compiles, links and writes ``program``; equal arguments give equal bytes in every file.

    Args:
        program: the lowered network.
        out_dir: the artifact folder; made with its parents. An artifact that is already there is
            replaced as a whole at the end, files of others in it are kept.
        emit: which libraries: "so" shared, "a" static, "o" one relocatable object; or "c", C
            source with the constants in it and the interface of :mod:`dlcc.artifact.bare`.
        embed: link the weights into the library instead of writing ``<name>.weights``.
        pack: "speed": the weights file is mapped as it is; "size": it is packed as small as it can
            be, and unpacked when an instance is made.
        name: the C name; None: made from the network's.
        sample: recorded input and output for the example program, if it is to check one.
        manifest_extra: JSON values to add to manifest.json (source model, options, ...).
        documents: further files, of which the library knows nothing, by suffix of the C name.
        check: given the whole artifact in a folder aside; what it raises stops the writing.

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
    check_pack(pack)
    symbol = c_identifier(program.name) if name is None else check_name(name)
    options = _Options(symbol, tuple(sorted(set(emit))), embed, pack)
    bare = is_bare(program.triple)
    build = _build_bare if bare else _build
    check_program(program)
    if "c" in emit:
        _check_source(options)
        build = _build_source
        # of no machine, but in its libraries
        program = replace(program, triple="", features=(), object_code=b"")
    with replace_folder(Path(out_dir)) as folder:
        with tempfile.TemporaryDirectory(prefix="dlcc-") as work:
            contents, facts = build(program, Path(work), options)
        source = "c" in emit
        shown = _delivery(program, facts, embed or bare or source, bare or source, sample)
        contents |= package_files(shown)
        contents |= {f"{symbol}{suffix}": text for suffix, text in (documents or {}).items()}
        record = _manifest(program, contents, facts, dict(manifest_extra or {}))
        contents[manifests.NAME] = manifests.dump_json(record)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        if check is not None:
            check(folder)
    return manifests.Artifact(Path(out_dir), record)


def fingerprint(program: Program) -> int:
    """64 bits over everything that a library and its weights file have to agree on."""
    facts = [hashlib.sha256(program.weights).hexdigest(), *map(_identity, program.schedules)]
    digest = hashlib.sha256(manifests.dump_json(facts)).digest()
    return int.from_bytes(digest[:8], "little")


def _identity(variant: Program) -> dict[str, object]:
    """What makes a variant what it is, but for the weights, which all share."""
    alone = replace(variant, better=(), more_shapes=())
    facts = asdict(replace(alone, weights=b"", transforms={}, report={}, sources={}))
    facts["object_code"] = hashlib.sha256(variant.object_code).hexdigest()
    return {key: value for key, value in facts.items() if key not in ("weights", "more_shapes")}


@dataclass(frozen=True)
class _Options:
    symbol: str
    emit: tuple[str, ...]
    embed: bool
    pack: Pack


def _check_source(options: _Options) -> None:
    others = [kind for kind in options.emit if kind != "c"]
    what, where, why, fix = "", "", "", ""
    if others:
        what, where = f"C source and {', '.join(others)} cannot be written at once", "--emit"
        why = "their interfaces differ, and their headers have one name"
        fix = "compile to two folders"
    elif options.pack != "speed":
        what, where = f"C source cannot be packed for {options.pack}", "--pack"
        why = "its constants are arrays, which are read where they are"
        fix = "leave the option out"
    if what:
        raise DlccError(ExitCode.USAGE, what, where=where, why=why, fix=fix)


def _build_source(
    program: Program, work: Path, options: _Options
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """As :func:`_build`, for C source, which is compiled elsewhere."""
    del work
    symbol = options.symbol
    storage = storage_report(program, options.pack, program.weights, None)
    contents = c_files(program, symbol)
    contents["report.json"] = manifests.dump_json({**program.report, "storage": storage})
    return contents, {
        "symbol": symbol,
        "fingerprint": f"{fingerprint(program):016x}",
        "emit": options.emit,
        "needed": [],
        "weights": weights_record(program, None, True),
    }


def _build(
    program: Program, work: Path, options: _Options
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Compiles in ``work``. Returns the artifact's files and facts for the manifest."""
    symbol = options.symbol
    mark, embed = fingerprint(program), options.embed
    packed = pack_weights(program, mark) if options.pack == "size" else None
    image = packed.image if packed else weights_image(program.weights, mark)
    header = header_source(program, symbol).encode()
    (work / f"{symbol}.h").write_bytes(header)
    kernels, objects = _write_kernels(program, work, symbol)
    source = model_source(
        program,
        symbol,
        kernels,
        fingerprint=mark,
        weights_bytes=len(image),
        embed=embed,
        work_bytes=packed.work_bytes if packed else None,
    )
    (work / "model.c").write_text(source, "utf-8")
    kind = RuntimeKind(
        embedded=embed,
        packed=packed is not None,
        # all of it goes into a GPU's memory
        parts=len(program.schedules) > 1 and packed is None and not program.device,
        single=program.threads == 1,
        device=program.device,
    )
    (work / "runtime.o").write_bytes(runtime_object(kind, symbol, program.triple))
    tools = Toolchain(program.triple, work)
    with as_file(files("dlcc.runtime").joinpath("c")) as include:
        tools.compile("model.c", "model.o", include=include)
        if program.device:
            (work / "cubins.S").write_text(_write_cubins(program, work, symbol), "utf-8")
            tools.compile("cubins.S", "cubins.o", include=include)
            objects.append("cubins.o")
        if packed:
            (work / "unpack.o").write_bytes(unpack_object(symbol, program.triple))
            objects.append("unpack.o")
        if embed:
            (work / "weights.bin").write_bytes(image)
            macos = is_macos(program.triple)
            assembly = weights_assembly(symbol, "weights.bin", macos=macos)
            (work / "weights.S").write_text(assembly, "utf-8")
            tools.compile("weights.S", "weights.o", include=include)
            objects.append("weights.o")
    tools.merge(["runtime.o", "model.o", *objects], f"{symbol}.o")
    pointed = [] if program.device else step_functions(program)
    steps = [name for variant in pointed for name in variant]
    stack = stack_bytes((work / f"{symbol}.o").read_bytes(), f"{symbol}_run", steps)
    report = _report(program) | {"storage": storage_report(program, options.pack, image, packed)}
    if program.more_shapes:
        report["more_shapes"] = [_report(profile) for profile in program.more_shapes]
    contents = {f"{symbol}.h": header, "report.json": manifests.dump_json(report)}
    facts: dict[str, Any] = {"symbol": symbol, "fingerprint": f"{mark:016x}", "kernels": kernels}
    facts |= {"weights_bytes": len(image), "stack_bytes": stack}
    facts |= {"emit": options.emit, "needed": [], "weights": weights_record(program, packed, embed)}
    if not embed:
        contents[f"{symbol}.weights"] = image
    contents |= _libraries(tools, work, program, options)
    if "so" in options.emit:
        shared = library_name(symbol, "so", program.triple)
        facts["needed"] = _check_library(contents[shared])
    return contents, facts


def _report(program: Program) -> dict[str, object]:
    """What report.json tells of one shape profile."""
    if not program.better:
        return dict(program.report)
    better = [{"variant": p.variant, **p.report} for p in program.better]
    return {**program.report, "better": better}


def _delivery(
    program: Program, facts: Mapping[str, Any], embed: bool, bare: bool, sample: Sample | None
) -> Delivery:
    return Delivery(
        program,
        facts["symbol"],
        facts["emit"],
        embed,
        facts.get("weights_bytes", len(program.weights)),
        bare=bare,
        unpacked_bytes=len(program.weights) if facts["weights"]["pack"] == "size" else 0,
        stack_bytes=facts.get("stack_bytes"),
        sample=sample,
    )


def _build_bare(
    program: Program, work: Path, options: _Options
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """As :func:`_build` for a machine without an operating system: weights are always embedded."""
    symbol = options.symbol
    check_bare(program)
    if options.pack == "size":
        raise DlccError(
            ExitCode.USAGE,
            f"there are no packed weights for {program.triple}",
            where="--pack",
            why="they would be unpacked into memory, and this runtime has none of its own",
            fix="leave the option out: the weights are read where they are",
        )
    header = bare_header(program, symbol, alignment=program.alignment).encode()
    (work / f"{symbol}.h").write_bytes(header)
    kernels, objects = _write_kernels(program, work, symbol)
    (work / "model.c").write_text(bare_model_source(program, symbol, kernels), "utf-8")
    (work / "weights.bin").write_bytes(program.weights)
    source = bare_weights_assembly(symbol, "weights.bin", program.alignment)
    (work / "weights.S").write_text(source, "utf-8")
    tools = Toolchain(program.triple, work)
    for name in ("model.c", "weights.S"):
        output = f"{name.partition('.')[0]}.o"
        tools.compile(name, output, include=work)
        objects.append(output)
    tools.merge(objects, f"{symbol}.o")
    report = {**program.report, "storage": storage_report(program, "speed", program.weights, None)}
    contents = {f"{symbol}.h": header, "report.json": manifests.dump_json(report)}
    contents |= _libraries(tools, work, program, options)
    facts: dict[str, Any] = {"symbol": symbol, "fingerprint": f"{fingerprint(program):016x}"}
    facts |= {"kernels": kernels, "emit": options.emit, "needed": []}
    facts["weights"] = weights_record(program, None, True) | {"header_bytes": 0}
    facts["stack_bytes"] = stack_bytes((work / f"{symbol}.o").read_bytes(), f"{symbol}_run", ())
    return contents, facts


def _libraries(
    tools: Toolchain, work: Path, program: Program, options: _Options
) -> dict[str, bytes]:
    """The kinds asked for, from the one object that holds everything."""
    merged, contents = f"{options.symbol}.o", {}
    for kind in options.emit:
        name = library_name(options.symbol, kind, program.triple)
        if kind == "a":
            tools.archive(merged, name)
        elif kind == "so":
            tools.link_shared([merged], name, ["-ldl"] if program.device else [])
        contents[name] = (work / name).read_bytes()
    return contents


def _write_kernels(program: Program, work: Path, symbol: str) -> tuple[dict[str, str], list[str]]:
    """Writes the kernels under names of their own. Returns the names and the object files."""
    taken: set[str] = set()

    def rename(name: str) -> str:
        stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        new = f"{symbol}_kernel_{stem}"
        while new in taken:
            new += "_"
        taken.add(new)
        return new

    kernels: dict[str, str] = {}
    objects: list[str] = []
    for index, variant in enumerate(program.variants):
        if variant.object_code and not variant.device:
            code, names = isolate(variant.object_code, rename)
            steps = [s for profile in program.profiles for s in profile.variants[index].steps]
            kernels |= {c.function: names[c.function] for s in steps for c in s.calls}
            objects.append(f"kernels{index}.o")
            (work / objects[-1]).write_bytes(code)
    return kernels, objects


def _write_cubins(program: Program, work: Path, symbol: str) -> str:
    """Writes the cubins of all variants. Returns the assembly that makes them a section."""
    names = [f"cubin{index}.bin" for index in range(len(program.variants))]
    for name, variant in zip(names, program.variants, strict=True):
        (work / name).write_bytes(variant.object_code)
    return cubin_assembly(symbol, names)


def _check_library(library: bytes) -> list[str]:
    """The libraries it needs, which must all belong to libc."""
    needed = sorted(read_object(library).needed())
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
    rows: list[dict[str, object]] = []
    for t in tensors:
        rows.append(
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": tensor_bytes(t)}
        )
        if t.scale is not None:
            rows[-1] |= {"scale": t.scale, "zero_point": t.zero_point}
    return rows


def _step_rows(program: Program) -> list[dict[str, object]]:
    code_bytes = kernel_bytes(program)
    kernels = kernel_facts(program) if program.device else {}
    return [
        {
            "layer": step.layer,
            "function": step.function,
            "work_items": step.work_items,
            "max_threads": step.max_threads,
            "code_bytes": sum(code_bytes.get(f, 0) for f in {c.function for c in step.calls}),
            **(launch_record(step, kernels) if isinstance(step, Step) and step.launch else {}),
        }
        for step in program.steps
    ]


def _variant_record(program: Program) -> dict[str, object]:
    """What the manifest tells of one variant."""
    return {
        "variant": program.variant,
        "features": list(program.features),
        "steps": _step_rows(program),
    }


def _profile_record(program: Program) -> dict[str, object]:
    """What the manifest tells of one shape profile."""
    return {
        **_variant_record(program),
        "arena_bytes": program.arena_bytes,
        "inputs": _tensor_rows(program.inputs),
        "outputs": _tensor_rows(program.outputs),
        "better": [_variant_record(variant) for variant in program.better],
    }


def _manifest(
    program: Program,
    contents: dict[str, bytes],
    facts: dict[str, Any],
    extra: dict[str, object],
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "format": manifests.FORMAT,
        "version": manifests.VERSION,
        "abi": manifests.ABI,
        "name": program.name,
        "symbol": facts["symbol"],
        "fingerprint": facts["fingerprint"],
        "triple": program.triple,
        **({"device": program.device} if program.device else {}),
        **_profile_record(program),
        "more_shapes": [_profile_record(profile) for profile in program.more_shapes],
        "threads": program.threads,
        "stack_bytes": facts.get("stack_bytes"),
        "weights": facts["weights"],
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
