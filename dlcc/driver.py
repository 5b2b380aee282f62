"""Puts the parts together: model -> passes -> lowering -> artifact.

The only module of dlcc (with the command line) that knows the pass and target packages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import passes as pass_library
import targets as target_library
from dlcc.accuracy import has_labels, labels_in, scores_output
from dlcc.analysis.certificates import Certificate, certify, digest, with_kernels
from dlcc.analysis.footprint import check_footprint
from dlcc.artifact import (
    Artifact,
    Pack,
    check_name,
    check_output,
    check_pack,
    has_profiles,
    profile_suffix,
    write_artifact,
)
from dlcc.bounds import Progress, bounded
from dlcc.calibration import Calibration, calibrations
from dlcc.codegen import build_object, print_sources
from dlcc.data import load_npz, named_inputs, split_batches
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import load_profiles
from dlcc.frontends.profiles import MOST
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
from dlcc.tuner import CANDIDATES, ROUNDS, LayerTimes, check_runs
from dlcc.tuner import tune as measure_candidates
from dlcc.verification import Verification, check_all, prepare
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
from passes.outcome import Optimised
from passes.pipeline import parse_pipeline, print_pipeline
from passes.pipelines import OPTIMISE, default_pipeline
from passes.prune import Prune
from passes.quantization.samples import read
from passes.recipe import Recipe
from passes.shape_profiles import run_profiles

if TYPE_CHECKING:
    from dlcc.remote.board import Board

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
        shapes: symbolic dimension -> size, or input name -> shape; or several of each: the artifact
            holds a shape profile for every combination, the first one first.
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
        tf32: GPUs round float32 operands of convolutions and products to TF32 (10 bits).
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
    tf32: bool = False
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

    def manager(
        self, steps: Sequence[Pass], after_each: Callable[[PassRecord], None] | None
    ) -> PassManager:
        """Runs ``steps`` as the options say; what is shown and written, is so where a function is
        to be called after each.
        """
        shown = after_each is not None
        return PassManager(
            steps,
            print_before=_selection(self.print_before) if shown else (),
            print_after=_selection(self.print_after) if shown else (),
            verify_numerics=self.verify_numerics,
            dump_dir=self.dump_dir if shown else None,
            after_each=after_each,
        )

    @property
    def borders(self) -> Borders:
        """What the caller gives and gets."""
        return Borders(self.integer_inputs, self.integer_outputs, self.nhwc)


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
        DlccError: the model, the data or the pipeline is at fault; USAGE for several profiles.
    """
    (optimised,) = optimise_profiles(model, options, progress, target, most=1)
    return optimised


def optimise_profiles(
    model: str | Path | Graph | Any,
    options: CompileOptions,
    progress: Progress = _silent,
    target: Target | None = None,
    *,
    most: int = MOST,
) -> list[Optimised]:
    """As :func:`optimise`, for each shape profile, of which ``most`` are allowed.

    All have the same weights and encodings; calibration data is that of the first profile it fits.
    The remarks and records are those of this profile, on which lossy passes ran.
    """
    remarks: list[Remark] = []
    recipe, last = options.read_recipe(), options.borders.passes()
    pipeline = [] if recipe else options.pipeline(target)
    progress("import", 0.0)
    graphs = [model.copy()] if isinstance(model, Graph) else _import(model, options, remarks, most)
    for graph in graphs:
        check_footprint(graph)
    progress("import", 1.0)
    leader, given = calibrations(options.calibration, graphs)
    if recipe is not None:
        pipeline = recipe.passes(graphs[leader])
    pipeline += last
    before = [{value.name: value.type for value in graph.inputs} for graph in graphs]
    kept = options.verify_numerics and not last and not any(step.lossy for step in pipeline)
    imported = [graph.copy() if kept else None for graph in graphs]
    samples = options.verify_numerics
    widths = [width for step in pipeline if (width := step.layer_bits) is not None]
    contexts = [
        PassContext(
            calibration=data.batches,
            labels=data.labels,
            verify_inputs=tuple(islice(data.batches(), samples)) if data.batches else (),
            target={} if target is None else target.facts,
            cost=None if target is None else CostModel(target, widths[-1] if widths else 32),
            remarks=remarks if number == leader else [],
            progress=lambda p: progress(p.pass_name, p.fraction),
        )
        for number, data in enumerate(given)
    ]
    records = run_profiles(graphs, leader, pipeline, options.manager, contexts)
    made = []
    for number, graph in enumerate(graphs):
        options.borders.check(graph, contexts[number].remarks)
        batches = given[number].batches
        made.append(
            Optimised(
                graph,
                print_pipeline(pipeline),
                tuple(remarks),
                tuple(records),
                recipe,
                contexts[leader].assigned,
                batches and as_given(batches, pipeline, before[number], graph),
                imported[number],
            )
        )
    return made


def _selection(names: tuple[str, ...]) -> Selection:
    return "all" if "all" in names else names


def import_model(model: str | Path | Any, options: CompileOptions, remarks: list[Remark]) -> Graph:
    """A graph from a path or an ONNX ModelProto, its remarks added to ``remarks``."""
    return _import(model, options, remarks, 1)[0]


def _import(
    model: str | Path | Any, options: CompileOptions, remarks: list[Remark], most: int
) -> list[Graph]:
    notes: list[str] = []
    graphs = load_profiles(
        model,
        shapes=options.shapes,
        constants=options.constants,
        remarks=notes,
        most=most,
        doubles=options.bits == 32,
    )
    remarks += [Remark("import", "", "note", note) for note in notes]
    return graphs


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
    targets = target_library.get_targets(chosen.machine, tf32=chosen.tf32)
    targets = target_library.without_rows(targets, chosen.without)
    target = targets[-1]  # what passes fit to it fits the others: its vectors are the widest
    check_pack(chosen.pack)
    if chosen.name is not None:
        check_name(chosen.name)
    check_output(output)  # nobody wants to hear of it after a minute of compiling
    emit, threads = target.kinds(chosen.emit), target.threads(chosen.threads, DEFAULT_THREADS)
    chooser = choose if chosen.tuning is None else TuningDatabase.load(Path(chosen.tuning)).choose
    marks = [time.perf_counter()]
    most = MOST if has_profiles(target.triple, emit) else 1
    profiles = optimise_profiles(model, chosen, progress, target, most=most)
    certificates = [certify(one.graph, one.assigned) for one in profiles]
    marks.append(time.perf_counter())
    program = lower_variants(
        [one.graph for one in profiles],
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
    optimised, sample = _recorded(profiles[0], program, chosen)
    optimised = _with_variants_left_out(optimised, program)
    count = chosen.verify_numerics if "so" in emit else 0
    check: Callable[[Path], None] | None = None
    if count:
        optimised, check = _verified(optimised, profiles, program, targets, chosen)
    program.report.update(optimised.report())
    progress("link", 0.0)
    artifact = write_artifact(
        program,
        Path(output),
        emit=emit,
        embed=chosen.embed,
        pack=chosen.pack,
        name=chosen.name,
        sample=sample,
        manifest_extra={
            "target": target_library.joined_name(targets),
            **_told(profiles, certificates, program),
            **({"tf32": True} if chosen.tf32 else {}),
        },
        documents=_documents(profiles) if chosen.keep_ir else None,
        check=check,
    )
    progress("link", 1.0)
    marks.append(time.perf_counter())
    names = ("passes", "lowering", "link")
    seconds = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
    return CompileResult(artifact, optimised, program, seconds)


def _told(
    profiles: Sequence[Optimised],
    certificates: Sequence[Sequence[Certificate]],
    program: Program,
) -> dict[str, object]:
    """What the manifest tells of the passes, and of the graph of each shape profile."""
    first, *others = (
        {
            "certificates": [c.to_json() for c in _narrowest(found, lowered)],
            "ir": digest(one.graph),
        }
        for one, found, lowered in zip(profiles, certificates, program.profiles, strict=True)
    )
    recipe = profiles[0].recipe
    return {
        "pipeline": profiles[0].pipeline,
        **first,
        **({"more_graphs": others} if others else {}),
        **({} if recipe is None else {"recipe": recipe.text}),
    }


def _documents(profiles: Sequence[Optimised]) -> dict[str, bytes]:
    """The graph of each shape profile, by suffix of the C name."""
    return {
        f"{profile_suffix(number)}{suffix}": text
        for number, one in enumerate(profiles)
        for suffix, text in files_of(one.graph).items()
    }


def _with_variants_left_out(optimised: Optimised, program: Program) -> Optimised:
    """With a remark for each variant of the kernels that the library does without."""
    left_out = program.report.get("left_out", {})
    assert isinstance(left_out, dict)
    notes = [f"{name} has no kernels of its own: {why}" for name, why in left_out.items()]
    return optimised.noted("variants", *notes)


def _verified(
    optimised: Optimised,
    profiles: Sequence[Optimised],
    program: Program,
    targets: Sequence[Target],
    chosen: CompileOptions,
) -> tuple[Optimised, Callable[[Path], None] | None]:
    """What --verify-numerics holds the library to; a remark where this machine cannot run it."""
    here = {t.name.rpartition(":")[2] for t in targets if not target_library.missing_here(t)}
    checks: list[Verification] = []
    for one, lowered in zip(profiles, program.profiles, strict=True):
        feeds = one.calibration() if one.calibration else ()
        count = chosen.verify_numerics
        made = prepare(one.graph, one.imported, lowered, here, feeds, count, tf32=chosen.tf32)
        if not isinstance(made, Verification):
            return optimised.noted("verify-numerics", made), None
        checks.append(made)
    return optimised, lambda folder: check_all(checks, folder)


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
    first = given() if given else None
    sample, why = record_sample(
        optimised.graph, program.inputs, options.sample, first, name, tf32=options.tf32
    )
    return optimised.noted("sample", why) if why else optimised, sample


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
        check_runs(_missing(targets[0], board), chosen.machine, board)
    for target in targets:
        check_runs(_missing(target, board), target.name, board)
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


__all__ = ["CompileOptions", "CompileResult", "Optimised", "compile", "import_model", "optimise"]
__all__ += ["optimise_profiles", "sensitivity", "tune"]


def _missing(target: Target, board: Board | None) -> list[str]:
    """What this machine, or the board, lacks for code of ``target``."""
    if board is None:
        return target_library.missing_here(target)
    return board.missing(target.triple, target.features)
