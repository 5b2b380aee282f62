"""Runs a pipeline: verifies after every pass, times it, prints the IR, compares outputs."""

from __future__ import annotations

import difflib
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, Value, print_graph
from dlcc.ir.encodings import Array
from dlcc.ir.text import save
from passes.base import Batch, Pass, PassContext, PassResult, Remark, Statistic
from passes.pipeline import as_passes, print_pass

Selection = Collection[str] | Literal["all"]


_SLAB = 1 << 18
"""Numbers that are compared at a time: what is made on the way is no larger."""


@dataclass(frozen=True)
class OutputError:
    """How far one output moved, over all samples.

    Attributes:
        max_abs: largest |after - before|, in units of the output.
        relative: ``max_abs`` over the largest |before|.
        sqnr_db: signal to quantisation noise, 10 log10(sum before^2 / sum (after-before)^2); inf
            where nothing moved.
    """

    max_abs: float
    relative: float
    sqnr_db: float

    @staticmethod
    def between(before: Sequence[Array], after: Sequence[Array]) -> OutputError:
        """Error of ``after`` against ``before``. Equal infinities and NaNs count as no error."""
        peak = max_abs = noise = signal = 0.0
        for a, b in _slabs(before, after):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                delta = np.where(same, 0.0, b - a)
            delta = np.where(np.isnan(delta), np.inf, delta)
            finite = a[np.isfinite(a)]
            peak = max(peak, float(np.max(np.abs(finite), initial=0.0)))
            max_abs = max(max_abs, float(np.max(np.abs(delta), initial=0.0)))
            noise += float(np.sum(delta**2))
            signal += float(np.sum(finite**2))
        if noise == 0.0:
            return OutputError(0.0, 0.0, float("inf"))
        ratio = signal / noise
        sqnr = 10 * math.log10(ratio) if ratio > 0 else -float("inf")
        return OutputError(max_abs, max_abs / peak if peak else float("inf"), sqnr)


def _slabs(before: Sequence[Array], after: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
    """Pieces of pairs of arrays, flat and in float64."""
    for one, other in zip(before, after, strict=True):
        a, b = np.ravel(one), np.ravel(other)
        for start in range(0, a.size, _SLAB):
            piece = slice(start, start + _SLAB)
            yield a[piece].astype(np.float64), b[piece].astype(np.float64)


@dataclass
class PassRecord:
    """What one pass of a pipeline did.

    Attributes:
        name: its name.
        text: its text with options.
        modified: the graph changed.
        seconds: wall-clock time of the pass itself.
        nodes_before: number of nodes when it started.
        nodes_after: number of nodes when it ended.
        statistics: as the pass reported them.
        remarks: as the pass reported them.
        errors: movement of each output against the graph before this pass (verify-numerics).
    """

    name: str
    text: str
    modified: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    statistics: dict[str, Statistic]
    remarks: list[Remark]
    errors: dict[str, OutputError] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON data."""
        from dataclasses import asdict

        return asdict(self)


@dataclass
class PipelineResult:
    """What a pipeline did: one record per pass, in order."""

    graph: Graph
    records: list[PassRecord] = field(default_factory=list)

    @property
    def modified(self) -> bool:
        """True if any pass changed the graph."""
        return any(r.modified for r in self.records)

    @property
    def remarks(self) -> list[Remark]:
        """All remarks in order."""
        return [remark for r in self.records for remark in r.remarks]


@dataclass
class PassManager:
    """Runs passes over a graph, in place.

    Attributes:
        passes: the pipeline, as passes, text, or both mixed.
        verify: check the graph before the first and after every pass.
        print_before: names of passes before which the IR is printed, or "all".
        print_after: names of passes after which the IR is printed, or "all".
        verify_numerics: number of samples on which outputs are compared after every pass; 0 = off.
            The samples are the context's ``verify_inputs``, topped up with random ones.
        tolerance: largest error of an exact pass, relative to the largest output of the sample.
        dump_dir: where to write ``NN-pass.dlir`` (and .npz) after every pass that changed the IR.
        stream: where the IR is printed; None is standard error.
        after_each: called with every record as soon as it is complete.
    """

    passes: str | Sequence[Pass | str]
    verify: bool = True
    print_before: Selection = ()
    print_after: Selection = ()
    verify_numerics: int = 0
    tolerance: float = 1e-4
    dump_dir: Path | None = None
    stream: TextIO | None = None
    after_each: Callable[[PassRecord], None] | None = None

    def run(self, graph: Graph, context: PassContext | None = None) -> PipelineResult:
        """Run the pipeline on ``graph``.

        Raises:
            DlccError: a pass refused the user's request, broke the graph, or (exact pass, with
                ``verify_numerics``) changed an output.
        """
        context = context or PassContext()
        steps = as_passes(self.passes)
        self._check_selections(steps)
        if self.verify:
            verify(graph)
        samples = self._samples(graph, context)
        reference = [run_real(graph, sample) for sample in samples]
        self._dump(graph, 0, "input")
        result = PipelineResult(graph)
        for index, step in enumerate(steps):
            context.enter(step.name, index, len(steps))
            self._print(graph, step, "before", self.print_before)
            record = self._run_one(step, graph, context)
            if samples and record.modified:
                outputs = [run_real(graph, sample) for sample in samples]
                record.errors = self._compare(step, reference, outputs)
                reference = outputs
            self._print(graph, step, "after", self.print_after)
            if record.modified:
                self._dump(graph, index + 1, step.name)
            result.records.append(record)
            context.advance(1.0)
            if self.after_each is not None:
                self.after_each(record)
        return result

    def _run_one(self, step: Pass, graph: Graph, context: PassContext) -> PassRecord:
        text_before, nodes_before = print_graph(graph), len(graph.nodes)
        start = time.perf_counter()
        try:
            outcome = step.run(graph, context)
            if step.bodies:
                _run_on_bodies(step, graph, context, outcome)
        except Exception as error:
            error.add_note(f"in pass {print_pass(step)}")
            raise
        seconds = time.perf_counter() - start
        graph.forget_unused_constants()
        modified = print_graph(graph) != text_before
        if self.verify:
            self._check(step, graph, outcome, modified)
        context.remarks += outcome.remarks
        return PassRecord(
            name=step.name,
            text=print_pass(step),
            modified=modified,
            seconds=seconds,
            nodes_before=nodes_before,
            nodes_after=len(graph.nodes),
            statistics=dict(outcome.statistics),
            remarks=list(outcome.remarks),
        )

    def _check(self, step: Pass, graph: Graph, outcome: PassResult, modified: bool) -> None:
        try:
            verify(graph)
        except DlccError as error:
            raise DlccError(
                ExitCode.INTERNAL,
                f"pass {step.name!r} broke the graph: {error.what}",
                where=error.where,
                why=error.why,
                fix=f"report it with the pipeline text; --print-after={step.name} shows the IR",
            ) from error
        if modified and not outcome.modified:
            raise DlccError(
                ExitCode.INTERNAL,
                f"pass {step.name!r} changed the graph but says that it did not",
                fix="report it with the pipeline text",
            )

    def _compare(
        self, step: Pass, before: list[dict[str, Array]], after: list[dict[str, Array]]
    ) -> dict[str, OutputError]:
        errors = {
            name: OutputError.between([b[name] for b in before], [a[name] for a in after])
            for name in before[0]
        }
        for name, error in errors.items():
            if not step.lossy and error.relative > self.tolerance:
                raise DlccError(
                    ExitCode.VERIFICATION,
                    f"exact pass {step.name!r} changed the outputs",
                    where=f"output {name!r}",
                    why=f"largest difference {error.max_abs:.3g}, which is {error.relative:.3g} of "
                    f"the largest output; allowed is {self.tolerance:g}",
                    fix=f"leave {step.name} out of the pipeline and report it",
                )
        return errors

    def _samples(self, graph: Graph, context: PassContext) -> list[Batch]:
        samples = list(context.verify_inputs[: self.verify_numerics])
        rng = context.rng("verify-numerics")
        while len(samples) < self.verify_numerics:
            samples.append(random_inputs(graph, rng))
        return samples

    def _check_selections(self, steps: list[Pass]) -> None:
        names = [step.name for step in steps]
        for selection in (self.print_before, self.print_after):
            for name in () if selection == "all" else selection:
                if name not in names:
                    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                    raise DlccError(
                        ExitCode.USAGE,
                        f"cannot print the IR around {name!r}: it is not in the pipeline",
                        why=f"the pipeline is {', '.join(names) or 'empty'}",
                        fix=f"did you mean {near[0]!r}?" if near else "name one of its passes",
                    )

    def _print(self, graph: Graph, step: Pass, when: str, selection: Selection) -> None:
        if selection == "all" or step.name in selection:
            stream = self.stream or sys.stderr
            stream.write(f"// IR {when} {print_pass(step)}\n{print_graph(graph)}")

    def _dump(self, graph: Graph, index: int, name: str) -> None:
        if self.dump_dir is not None:
            self.dump_dir.mkdir(parents=True, exist_ok=True)
            save(graph, self.dump_dir / f"{index:02}-{name}.dlir")


def _run_on_bodies(step: Pass, graph: Graph, context: PassContext, outcome: PassResult) -> None:
    """Run a pass on the bodies of all loops, at any depth, and add up what it did."""
    for node in graph.nodes:
        body = node.attrs.get("body")
        if not isinstance(body, Graph):
            continue
        copy = body.copy()
        inner = step.run(copy, context)
        _run_on_bodies(step, copy, context, inner)
        if inner.modified:
            copy.forget_unused_constants()
            node.attrs["body"] = copy
            outcome.modified = True
        outcome.remarks += inner.remarks
        for key, value in inner.statistics.items():
            before = outcome.statistics.get(key, 0)
            if isinstance(value, int) and isinstance(before, int):
                outcome.statistics[key] = before + value


def random_inputs(graph: Graph, rng: np.random.Generator) -> dict[str, Array]:
    """One random feed in real values: normal floats, small non-negative integers, coin flips."""
    feed: dict[str, Array] = {}
    for value in graph.inputs:
        shape, dtype = value.type.shape, value.type.dtype
        if dtype.is_float:
            feed[value.name] = rng.standard_normal(shape).astype(dtype.numpy)
        elif dtype.is_integer:
            feed[value.name] = rng.integers(0, 4, shape).astype(dtype.numpy)
        else:
            feed[value.name] = rng.integers(0, 2, shape).astype(np.bool_)
    return feed


def run_real(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Reference outputs as real values, from real inputs, whatever their encodings are."""
    feed = {v.name: _store(v, inputs[v.name]) for v in graph.inputs if v.name in inputs}
    stored = execute(graph, feed)
    out = {}
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        affine = isinstance(value.type.encoding, Affine)
        out[name] = value.type.affine.dequantise(stored[name]) if affine else stored[name]
    return out


def _store(value: Value, array: Array) -> Array:
    encoding = value.type.encoding
    if isinstance(encoding, Affine) and array.dtype == value.type.dtype.numpy:
        return encoding.quantise(array)
    return array
