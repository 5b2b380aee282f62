"""Puts the parts together: model -> passes -> lowering -> artifact.

The only module of dlcc (with the command line) that knows the pass and target packages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import passes as pass_library
import targets as target_library
from dlcc.accuracy import has_labels, labels_in, scores_output
from dlcc.analysis.certificates import Assignment, Certificate, certify, digest, with_kernels
from dlcc.analysis.footprint import check_footprint
from dlcc.artifact import (
    Artifact,
    Pack,
    check_name,
    check_output,
    check_pack,
    write_artifact,
)
from dlcc.bounds import Progress, bounded
from dlcc.codegen import build_object, print_sources
from dlcc.data import Batches, load_npz, named_inputs, split_batches
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import load_graph
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.ir.text import files_of
from dlcc.lowering.choice import choose
from dlcc.lowering.lower import lower_variants
from dlcc.lowering.predict import CostModel
from dlcc.lowering.target import Target
from dlcc.lowering.tuning import TuningDatabase
from dlcc.program import Program, Sample
from dlcc.recording import record_sample
from dlcc.tuner import CANDIDATES, ROUNDS, LayerTimes
from dlcc.tuner import tune as measure_candidates
from dlcc.verification import Verification, prepare
from passes.base import Pass, PassContext, Remark
from passes.borders import Borders, as_given
from passes.compression.sensitivity import (
    SPARSITIES,
    Curve,
    Labels,
    analyse,
    check_sparsities,
)
from passes.manager import PassManager, PassRecord, Selection
from passes.pipeline import parse_pipeline, print_pipeline
from passes.pipelines import OPTIMISE, default_pipeline
from passes.prune import Prune
from passes.quantization.samples import read
from passes.recipe import Recipe

if TYPE_CHECKING:
    from dlcc.remote.board import Board

Calibration = str | Path | Callable[[], Iterable[Mapping[str, Array]]]

DEFAULT_THREADS = 8
"""Not this machine's core count: the same input and options give the same bytes everywhere."""


def _silent(_phase: str, _fraction: float) -> None:
    return None


@dataclass(frozen=True)
class CompileOptions:
    """Everything that decides what comes out of a compilation.

    Attributes:
        target: ``cpu`` (this machine), a name from ``dlcc targets``, or several of its levels
            (``cpu:avx2+amx``), of which the library runs the best that the CPU can; None for
            ``cpu``, or for ``c`` where nothing but C source is written.
        bits: 8 for post-training int8, 16 for 16-bit floats (float16 on 64-bit ARM, bfloat16
            elsewhere), 32 for float.
        passes: pipeline text or passes; None for the default pipeline of ``bits``.
        recipe: TOML file that tells what is done to which layer, in place of ``passes``.
        integer_inputs: the caller gives codes where the network begins by quantising an input.
        integer_outputs: the caller gets codes; the default pipeline quantises the results too.
        nhwc: images of such codes have the channels of a pixel side by side.
        threads: upper bound on threads at run time; 0 for :data:`DEFAULT_THREADS`, or for as many
            as the target's runtime has.
        shapes: symbolic dimension -> size, or input name -> shape.
        constants: input name -> what it always is; no input of the compiled network.
        calibration: .npz file, or a callable that starts an iterator of feeds.
        tuning: database file of ``dlcc tune``; kernels it has measured are chosen by it.
        emit: kinds of library to write (``so``, ``a``, ``o``, ``c``); none for the usual one of
            the target.
        embed: put the weights into the library.
        pack: "speed" for a weights file that is mapped as it is, "size" for a small one that is
            unpacked when the network is loaded; same results.
        name: prefix of the library's files, functions and macros; None: made from the network's.
        sample: .npz file whose first sample the example program runs, its output recorded; "none"
            for no such sample; None: the first of ``calibration``, else seeded numbers.
        keep_ir: write the compiled graph into the artifact too (``.dlir`` and ``.npz``).
        without: rows of the target's kernel table that may not be used (``winograd``, say).
        fuse: run layers band by band where that keeps large values in the cache; same results.
        verify_numerics: samples on which exact passes are checked, and the library, where this
            machine runs it, before anything is written (0: none).
        print_before: names of passes before which the IR is printed ("all" for every one).
        print_after: the same, after.
        dump_dir: write the IR after each pass there.
        timeout: seconds; looked at between steps (the command line stops within them too).
        max_memory: bytes that a tensor, and the network at work, may need; None: 4 GiB.
    """

    target: str | None = None
    bits: int = 8
    passes: str | Sequence[Pass] | None = None
    recipe: str | Path | Recipe | None = None
    integer_inputs: bool = False
    integer_outputs: bool = False
    nhwc: bool = False
    threads: int = 0
    shapes: Mapping[str, Any] | None = None
    constants: Mapping[str, Any] | None = None
    calibration: Calibration | None = None
    tuning: str | Path | None = None
    emit: tuple[str, ...] = ()
    embed: bool = False
    pack: Pack = "speed"
    name: str | None = None
    sample: str | Path | None = None
    keep_ir: bool = False
    without: tuple[str, ...] = ()
    fuse: bool = True
    verify_numerics: int = 0
    print_before: tuple[str, ...] = ()
    print_after: tuple[str, ...] = ()
    dump_dir: Path | None = None
    timeout: float | None = None
    max_memory: int | None = None

    @property
    def machine(self) -> str:
        """The name of the target."""
        return self.target or ("c" if set(self.emit) == {"c"} else "cpu")

    def read_recipe(self) -> Recipe | None:
        """The recipe, if there is one.

        Raises:
            DlccError: it cannot be read, is no recipe, or ``passes`` are given too.
        """
        pass_library.load_plugins()
        if self.recipe is None:
            return None
        if self.passes is not None:
            raise DlccError(
                ExitCode.USAGE,
                "a recipe and passes are given",
                why="each of them says which passes run",
                fix="leave one out; a recipe's first passes stand behind its key before",
            )
        return self.recipe if isinstance(self.recipe, Recipe) else Recipe.load(self.recipe)

    def pipeline(self, target: Target | None = None) -> list[Pass]:
        """The passes to run where no recipe tells them; at 16 bits they depend on the target.

        Raises:
            DlccError: bad pipeline text or an unsupported bit width.
        """
        pass_library.load_plugins()
        if self.passes is not None:
            if isinstance(self.passes, str):
                return parse_pipeline(self.passes)
            return list(self.passes)
        short = () if target is None else target.short_floats[:1]
        return parse_pipeline(default_pipeline(self.bits, *short, outputs=self.integer_outputs))

    @property
    def borders(self) -> Borders:
        """What the caller gives and gets."""
        return Borders(self.integer_inputs, self.integer_outputs, self.nhwc)


@dataclass(frozen=True)
class Optimised:
    """A graph after its passes."""

    graph: Graph
    pipeline: str
    remarks: tuple[Remark, ...]
    passes: tuple[PassRecord, ...]
    recipe: Recipe | None = None
    assigned: Mapping[str, Assignment] = field(default_factory=dict)
    calibration: Batches | None = field(default=None, repr=False)
    imported: Graph | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CompileResult:
    """What a compilation made."""

    artifact: Artifact
    optimised: Optimised = field(repr=False)
    program: Program = field(repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict)


def optimise(
    model: str | Path | Graph | Any,
    options: CompileOptions,
    progress: Progress = _silent,
    target: Target | None = None,
) -> Optimised:
    """Import ``model`` and run the pipeline, with facts and costs of ``target`` where it is known.

    Raises:
        DlccError: the model, the data or the pipeline is at fault.
    """
    remarks: list[Remark] = []
    recipe, last = options.read_recipe(), options.borders.passes()
    pipeline = [] if recipe else options.pipeline(target)
    progress("import", 0.0)
    graph = model.copy() if isinstance(model, Graph) else import_model(model, options, remarks)
    check_footprint(graph)
    progress("import", 1.0)
    if recipe is not None:
        pipeline = recipe.passes(graph)
    pipeline += last
    before = {value.name: value.type for value in graph.inputs}
    kept = options.verify_numerics and not last and not any(step.lossy for step in pipeline)
    imported = graph.copy() if kept else None
    calibration, labels = _calibration(options.calibration, graph)
    samples = () if calibration is None else tuple(islice(calibration(), options.verify_numerics))
    widths = [width for step in pipeline if (width := step.layer_bits) is not None]
    context = PassContext(
        calibration=calibration,
        labels=labels,
        verify_inputs=samples,
        target={} if target is None else target.facts,
        cost=None if target is None else CostModel(target, widths[-1] if widths else 32),
        remarks=remarks,
        progress=lambda p: progress(p.pass_name, p.fraction),
    )
    manager = PassManager(
        pipeline,
        print_before=_selection(options.print_before),
        print_after=_selection(options.print_after),
        verify_numerics=options.verify_numerics,
        dump_dir=options.dump_dir,
    )
    records = manager.run(graph, context).records
    options.borders.check(graph, context.remarks)
    if calibration is not None:
        calibration = as_given(calibration, pipeline, before, graph)
    return Optimised(
        graph,
        print_pipeline(pipeline),
        tuple(context.remarks),
        tuple(records),
        recipe,
        context.assigned,
        calibration,
        imported,
    )


def _calibration(
    source: Calibration | None, graph: Graph
) -> tuple[Batches | None, Callable[[], Array] | None]:
    """Batches of the calibration data and, where a file holds some, what gives their labels.

    Raises:
        DlccError: the data does not fit the network.
    """
    if source is None:
        return None, None
    if callable(source):
        start = source
        return lambda: (dict(feed) for feed in start()), None
    arrays, names, where = load_npz(Path(source)), {v.name for v in graph.inputs}, str(source)
    batches = split_batches(named_inputs(arrays, graph, where), graph, where)
    if not has_labels(arrays, names):
        return batches, None
    return batches, lambda: labels_in(arrays, names, where)


def _selection(names: tuple[str, ...]) -> Selection:
    return "all" if "all" in names else names


def import_model(model: str | Path | Any, options: CompileOptions, remarks: list[Remark]) -> Graph:
    """A graph from a path or an ONNX ModelProto, its remarks added to ``remarks``."""
    notes: list[str] = []
    graph = load_graph(model, shapes=options.shapes, constants=options.constants, remarks=notes)
    remarks += [Remark("import", "", "note", note) for note in notes]
    return graph


def compile(
    model: str | Path | Graph | Any,
    output: str | Path,
    *,
    options: CompileOptions | None = None,
    progress: Progress = _silent,
    **changes: Any,
) -> CompileResult:
    """Compile a network to an artifact folder.

    Args:
        model: path of an .onnx or .dlir file, an ``onnx.ModelProto``, or a graph.
        output: the folder to write; replaced if it is an artifact already.
        options: all options; or give single ones by keyword (see :class:`CompileOptions`).
        progress: told of each phase.
        changes: single options, where ``options`` is not given.

    Raises:
        DlccError: anything the user can mend.
    """
    chosen = options or CompileOptions(**changes)
    with bounded(progress, chosen.timeout, chosen.max_memory) as told:
        return _compiled(model, output, chosen, told)


def _compiled(
    model: str | Path | Graph | Any, output: str | Path, chosen: CompileOptions, progress: Progress
) -> CompileResult:
    targets = target_library.without_rows(
        target_library.get_targets(chosen.machine), chosen.without
    )
    target = targets[-1]  # what passes fit to it fits the others: its vectors are the widest
    check_pack(chosen.pack)
    if chosen.name is not None:
        check_name(chosen.name)
    check_output(output)  # nobody wants to hear of it after a minute of compiling
    emit, threads = target.kinds(chosen.emit), target.threads(chosen.threads, DEFAULT_THREADS)
    chooser = choose if chosen.tuning is None else TuningDatabase.load(Path(chosen.tuning)).choose
    marks = [time.perf_counter()]
    optimised = optimise(model, chosen, progress, target)
    certificates = certify(optimised.graph, optimised.assigned)
    marks.append(time.perf_counter())
    program = lower_variants(
        optimised.graph,
        targets,
        build_object,
        threads=threads,
        progress=progress,
        chooser=chooser,
        fuse=chosen.fuse,
        print_sources=print_sources if "c" in emit else None,
        every=bool(target.device) or chosen.machine not in target_library.SEVERAL,
    )
    marks.append(time.perf_counter())
    optimised, sample = _recorded(optimised, program, chosen)
    optimised = _with_variants_left_out(optimised, program)
    count = chosen.verify_numerics if "so" in emit else 0
    optimised, check = _verified(optimised, program, targets, count) if count else (optimised, None)
    program.report.update(_report(optimised))
    progress("link", 0.0)
    layers = _narrowest(certificates, program)
    told = {
        "pipeline": optimised.pipeline,
        "target": target_library.joined_name(targets),
        "certificates": [c.to_json() for c in layers],
        "ir": digest(optimised.graph),
    }
    if optimised.recipe is not None:
        told["recipe"] = optimised.recipe.text
    artifact = write_artifact(
        program,
        Path(output),
        emit=emit,
        embed=chosen.embed,
        pack=chosen.pack,
        name=chosen.name,
        sample=sample,
        manifest_extra=told,
        documents=files_of(optimised.graph) if chosen.keep_ir else None,
        check=check,
    )
    progress("link", 1.0)
    marks.append(time.perf_counter())
    names = ("passes", "lowering", "link")
    seconds = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
    return CompileResult(artifact, optimised, program, seconds)


def _with_variants_left_out(optimised: Optimised, program: Program) -> Optimised:
    """With a remark for each variant of the kernels that the library does without."""
    left_out = program.report.get("left_out", {})
    assert isinstance(left_out, dict)
    notes = [f"{name} has no kernels of its own: {why}" for name, why in left_out.items()]
    remarks = tuple(Remark("variants", "", "note", note) for note in notes)
    return replace(optimised, remarks=(*optimised.remarks, *remarks))


def _verified(
    optimised: Optimised, program: Program, targets: Sequence[Target], count: int
) -> tuple[Optimised, Callable[[Path], None] | None]:
    """What --verify-numerics holds the library to; a remark where this machine cannot run it."""
    here = {t.name.rpartition(":")[2] for t in targets if not target_library.missing_here(t)}
    feeds = optimised.calibration() if optimised.calibration else ()
    made = prepare(optimised.graph, optimised.imported, program, here, feeds, count)
    if isinstance(made, Verification):
        return optimised, made.check
    remark = Remark("verify-numerics", "", "note", made)
    return replace(optimised, remarks=(*optimised.remarks, remark)), None


def _narrowest(certificates: Sequence[Certificate], program: Program) -> list[Certificate]:
    """The certificates with the widths in which the kernels sum; of all variants the narrowest."""
    made = [with_kernels(certificates, p.report["layers"]) for p in program.variants]  # type: ignore[arg-type]
    return [min(row, key=lambda one: one.accumulator) for row in zip(*made, strict=True)]


def _recorded(
    optimised: Optimised, program: Program, options: CompileOptions
) -> tuple[Optimised, Sample | None]:
    """The input of the example program with its output; and the remark, where there is none."""
    source, given = options.calibration, optimised.calibration
    name = "the first calibration sample"
    if isinstance(source, str | Path):
        name = f"the first sample of {Path(source).name}"
    sample, why = record_sample(
        optimised.graph, program.inputs, options.sample, given() if given else None, name
    )
    if why:
        remark = Remark("sample", "", "note", why)
        optimised = replace(optimised, remarks=(*optimised.remarks, remark))
    return optimised, sample


def sensitivity(
    model: str | Path | Graph | Any,
    data: str | Path | Mapping[str, Array],
    step: Prune,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    output: str = "",
    options: CompileOptions | None = None,
    progress: Progress = _silent,
) -> list[Curve]:
    """How much a network's result suffers when each layer alone is pruned.

    Args:
        model: as for :func:`compile`.
        data: .npz file or arrays: inputs by name and, for accuracies, integer ``labels``.
        step: says which layers, which of their weights are dropped first, in which pattern, and how
            many samples are used; its own sparsity is not looked at.
        sparsities: rising, each above 0 and at most 1.
        output: name of the output with the scores; "" for the only one.
        options: passes that come before (default: the exact ones), shapes and target.
        progress: told of each phase.

    Raises:
        DlccError: anything the user can mend.
    """
    check_sparsities(sparsities)
    chosen = options or CompileOptions(passes=OPTIMISE)
    target = target_library.get_targets(chosen.machine)[-1]
    arrays = load_npz(Path(data)) if isinstance(data, str | Path) else dict(data)
    where = str(data) if isinstance(data, str | Path) else "data"
    graph = optimise(model, chosen, progress, target).graph
    names = {v.name for v in graph.inputs}
    labels = None
    if has_labels(arrays, names):
        scores = scores_output(graph.output_names, output, str(model))
        labels = Labels(labels_in(arrays, names, where), scores)
    batches = split_batches(named_inputs(arrays, graph, where), graph, where)
    samples = read(graph, batches(), step.samples)
    found = step.candidates(
        graph,
        samples,
        target.facts,
        lambda _loc, _why: None,
        PassContext().rng("saliency"),
        lambda f: progress("saliency", f),
    )
    return analyse(samples, found, sparsities, lambda f: progress("sensitivity", f), labels)


def tune(
    model: str | Path | Graph | Any,
    database: str | Path,
    *,
    options: CompileOptions | None = None,
    rounds: int = ROUNDS,
    candidates: int = CANDIDATES,
    board: Board | None = None,
    progress: Progress = _silent,
    **changes: Any,
) -> list[LayerTimes]:
    """Measure the kernels of a network's layers on a machine and keep the times in a file.

    Args:
        model: as for :func:`compile`.
        database: the file; measurements that it holds of other layers and targets are kept.
        options: what the network is to be compiled with, or single options by keyword; ``threads``
            is the number of threads of the measured runs (0: one).
        rounds: interleaved rounds of measurement.
        candidates: ways of computing a layer that are measured at most.
        board: the machine, connected; None for this one.
        progress: told of each phase.
        changes: single options, where ``options`` is not given.

    Returns:
        The layers that had a choice, target by target where ``target`` names several.

    Raises:
        DlccError: anything the user can mend; TARGET if the machine cannot run a target's code.
    """
    chosen = options or CompileOptions(**changes)
    targets = target_library.get_targets(chosen.machine)
    if chosen.machine in target_library.SEVERAL:  # those that the machine runs, if it runs any
        targets = tuple(t for t in targets if not _missing(t, board)) or targets[:1]
        _check_runs(targets[0], board, chosen.machine)
    for target in targets:
        _check_runs(target, board, target.name)
    path = Path(database)
    known = TuningDatabase.load(path) if path.exists() else TuningDatabase()
    optimised = optimise(model, chosen, progress, targets[-1])
    results = []
    for target in targets:
        results += measure_candidates(
            optimised.graph,
            target,
            build_object,
            known,
            threads=chosen.threads or 1,
            rounds=rounds,
            limit=candidates,
            board=board,
            progress=progress,
        )
    known.save(path)
    return results


def _report(optimised: Optimised) -> dict[str, object]:
    passes = [
        {
            "pass": p.text,
            "modified": p.modified,
            "statistics": p.statistics,
            "max_abs_errors": {name: e.max_abs for name, e in (p.errors or {}).items()},
        }
        for p in optimised.passes
    ]
    remarks = [
        {"pass": r.pass_name, "layer": r.loc, "kind": r.kind, "message": r.message}
        for r in optimised.remarks
    ]
    return {"pipeline": optimised.pipeline, "passes": passes, "remarks": remarks}


__all__ = ["CompileOptions", "CompileResult", "Optimised", "compile", "import_model", "optimise"]
__all__ += ["sensitivity", "tune"]


def _missing(target: Target, board: Board | None) -> list[str]:
    """What this machine, or the board, lacks for code of ``target``."""
    if board is None:
        return target_library.missing_here(target)
    return board.missing(target.triple, target.features)


def _check_runs(target: Target, board: Board | None, name: str) -> None:
    """Refuses to measure ``target``, which ``name`` stands for, where its code does not run."""
    place, machine, fix = (
        "here",
        "this machine",
        "give such a machine by --remote, or tune for `cpu`",
    )
    if board is not None:
        place, machine, fix = f"at {board.place}", "the board", "tune for the board's target"
    missing = _missing(target, board)
    if missing:
        raise DlccError(
            ExitCode.TARGET,
            f"nothing of target {name} can be measured {place}",
            where="--target",
            why=f"{machine} lacks {', '.join(missing)}",
            fix=fix,
        )
