"""Random graphs against ONNX Runtime, the references, and themselves compiled."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.sample import SUMS as TOLERANCE
from dlcc.analysis.sample import tolerances
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph, Node
from dlcc.ir.encodings import Array
from tests.fuzz.graphs import Sample, random_model
from tests.fuzz.sketch import is_real
from tests.onnx_backend.merge import merged


@dataclass(frozen=True)
class Case:
    """An imported sample with its reference outputs, in order."""

    sample: Sample
    graph: Graph = field(repr=False)

    @cached_property
    def wanted(self) -> list[Array]:
        return list(quietly(self.graph, self.sample.feeds).values())


@dataclass
class Findings:
    """What went wrong, one line each, and counts of what was looked at."""

    wrong: dict[int, str] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int, bits: int, why: str) -> None:
        self.wrong[seed] = f"{why}\n    python -m tests.fuzz {seed} --bits {bits}"


_SMALL = 0.01
"""Numbers that are differences of larger ones: what a graph is fed is some units large."""

_LACKING = (
    "NOT_IMPLEMENTED|is under development|Unsupported model IR version|"
    "No corresponding Numpy type for Tensor Type. bfloat16"
)
"""What ONNX Runtime says of what it has no kernel for, and of models that are newer than it."""


def quietly(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The reference's outputs, without numpy's remarks on overflow and the like."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return execute(graph, dict(feeds))


def difference(got: Array, want: Array, share: float = TOLERANCE) -> str:
    """How ``got`` differs; "" if it is near enough: floats within ``share`` of the largest."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if not is_real(want.dtype) or not share:
        same = (got == want) | ((got != got) & (want != want))
        if same.all():
            return ""
        place = tuple(np.argwhere(~same)[0].tolist())
        return f"{got[place]} instead of {want[place]} at {place}, {np.sum(~same)} differ"
    finite = np.isfinite(want)
    strange = np.where(np.isnan(want), np.isnan(got), got == want)
    if not strange[~finite].all() or not np.isfinite(got[finite]).all():
        return "infinities or NaNs elsewhere"
    error = np.abs(got[finite].astype(np.float64) - want[finite].astype(np.float64))
    worst = float(error.max(initial=0.0))
    peak = float(np.abs(want[finite].astype(np.float64)).max(initial=0.0))
    far = worst > share * max(peak, _SMALL)
    return f"differs by {worst:.3g}, largest {peak:.3g}" if far else ""


SHARE = 6
"""At 32 bits one graph in so many is fed special numbers."""

SPECIAL = (np.nan, np.inf, -np.inf, -0.0)

_SPREADING = {"Conv", "ConvTranspose", "DeformConv"}
"""Of small groups: they are computed together, where a NaN of one becomes one of all."""


def poisoned(sample: Sample) -> Sample | None:
    """The sample fed NaN, infinities and minus zero too; None where nothing is said of them."""
    nodes = sample.model.graph.node
    for node in nodes:
        groups = [a.i for a in node.attribute if a.name == "group"]
        to = [a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"]
        if node.op_type in _SPREADING and max(groups, default=1) > 1:
            return None
        if node.op_type == "CastLike" or any(kind not in _REAL for kind in to):
            return None  # undefined
    rng, feeds = np.random.default_rng(sample.seed + 2**41), dict(sample.feeds)
    for name, array in feeds.items():
        if is_real(array.dtype):
            flat = array.copy().reshape(-1)
            for place in rng.integers(0, flat.size, 1 + flat.size // 16):
                flat[place] = SPECIAL[rng.integers(len(SPECIAL))]
            feeds[name] = flat.reshape(array.shape)
    return replace(sample, feeds=feeds)


_REAL = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
         onnx.TensorProto.DOUBLE, onnx.TensorProto.BOOL}  # fmt: skip


def imported(
    sample: Sample, bits: int, findings: Findings, *, special: bool = False
) -> Case | None:
    """The case, its reference checked against ONNX Runtime where that has the ops.

    ``special``: not so, since ONNX Runtime goes its own ways with NaN.
    """
    try:
        case = Case(sample, import_onnx(sample.model))
        results = case.wanted
    except DlccError as error:
        findings.add(sample.seed, bits, f"refused: {error}")
        return None
    except Exception as error:
        findings.add(sample.seed, bits, f"import or reference: {type(error).__name__}: {error}")
        return None
    theirs = None if special else _onnxruntime(sample)
    if special:
        findings.count["special numbers"] += 1
        return case
    if theirs is None:
        findings.count["ONNX Runtime has it not"] += 1
        return case
    for value, got, want in zip(sample.model.graph.output, results, theirs, strict=True):
        why = difference(got, want, sample.errors[value.name])
        if why:
            ops = [n.op_type for n in sample.model.graph.node if value.name in n.output]
            findings.add(sample.seed, bits, f"reference, {ops} {value.name}: {why}")
            return None
    return case


def _onnxruntime(sample: Sample) -> list[Array] | None:
    try:
        import onnxruntime as ort
    except ImportError:  # the reference and the compiled network are still compared
        return None
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    contents = sample.model.SerializeToString()
    try:
        session = ort.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
        results: list[Array] = session.run(None, sample.feeds)
    except Exception as error:
        if re.search(_LACKING, str(error)):
            return None
        raise AssertionError(f"no valid graph, seed {sample.seed}: {error}") from error
    return results


def check(seeds: Sequence[int], bits: int = 32, nodes: int = 0, *, small: bool = False) -> Findings:
    """All of ``seeds`` imported, compiled as one library, run and compared."""
    findings = Findings()
    cases = []
    for seed in seeds:
        sample = random_model(seed, nodes, small=small)
        special = poisoned(sample) if bits == 32 and seed % SHARE == SHARE - 1 else None
        case = imported(special or sample, bits, findings, special=special is not None)
        if case is not None:
            cases.append(case)
    compare_compiled(cases, bits, findings)
    return findings


def compare_compiled(cases: Sequence[Case], bits: int, findings: Findings) -> None:
    """Compile together; halve what fails until what is at fault stands alone."""
    if not cases:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            _compare(cases, bits, Path(folder) / "all", findings)
    except Exception as error:
        name = error.where.split("/")[0] if isinstance(error, DlccError) else ""
        alone = [c for c in cases if c.sample.key == name] or cases
        if len(alone) == 1:
            findings.add(alone[0].sample.seed, bits, f"compile: {type(error).__name__}: {error}")
            compare_compiled([c for c in cases if c is not alone[0]], bits, findings)
            return
        half = len(cases) // 2
        compare_compiled(cases[:half], bits, findings)
        compare_compiled(cases[half:], bits, findings)


def _compare(cases: Sequence[Case], bits: int, folder: Path, findings: Findings) -> None:
    whole = merged({c.sample.key: c.graph for c in cases})
    feeds = {f"{c.sample.key}.{n}": a for c in cases for n, a in c.sample.feeds.items()}
    feeds = {v.name: feeds[v.name] for v in whole.inputs}
    more = {"calibration": lambda: iter([feeds])} if bits == 8 else {}
    result = dlcc.compile(whole, folder, bits=bits, threads=1, sample="none", **more)
    model = dlcc.load(folder)
    got = model.run(feeds)
    model.close()
    if bits == 32:
        references = {f"{c.sample.key}.{k}": a for c in cases for k, a in enumerate(c.wanted)}
        levels = {
            f"{c.sample.key}.{k}": c.sample.errors[v.name]
            for c in cases
            for k, v in enumerate(c.sample.model.graph.output)
        }
    else:
        references = quietly(result.optimised.graph, feeds)
        levels = shares(result.optimised.graph)
    for case in cases:
        for k, _ in enumerate(case.graph.outputs):
            name = f"{case.sample.key}.{k}"
            share = levels[name]
            findings.count[_name(share)] += 1
            why = "" if share == OPEN else difference(got[name], references[name], share)
            if why:
                findings.add(
                    case.sample.seed, bits, f"compiled, output {k} ({_name(share)}): {why}"
                )
        findings.count["graphs"] += 1


EXACT, OPEN = 0.0, np.inf
_NAMES = {EXACT: "exact", TOLERANCE: "sums", OPEN: "open"}

_JUMPS = {
    "floor",
    "ceil",
    "round",
    "sign",
    "equal",
    "less",
    "greater",
    "less_equal",
    "greater_equal",
    "argmax",
    "argmin",
    "top_k",
    "shrink",
    "thresholded_relu",
    "is_nan",
    "is_inf",
    "mod",
}


def _name(share: float) -> str:
    return _NAMES.get(share, "a code off")


def shares(graph: Graph) -> dict[str, float]:
    """What may differ, by output: as the compiler states it, and anything behind a jump.

    In a quantised graph an op that is not continuous can stand behind floats that are summed in
    some order; whatever follows depends on that order.
    """
    stated = dict(zip(graph.output_names, tolerances(graph), strict=True))
    jumps = [n for n in graph.nodes if n.op in _JUMPS or _cuts(n)]
    if not jumps:
        return stated
    twin = graph.copy()
    places = {n: k for k, n in enumerate(graph.nodes)}
    before = [twin.nodes[places[n]].input(0) for n in jumps]
    twin.set_outputs(before, [f"j{k}" for k in range(len(before))])
    loose = {n for n, share in zip(jumps, tolerances(twin), strict=True) if share}
    for node in graph.nodes:
        if any(v is not None and v.producer in loose for v in node.inputs):
            loose.add(node)
    behind = {
        n for n, v in zip(graph.output_names, graph.outputs, strict=True) if v.producer in loose
    }
    return {name: OPEN if name in behind else share for name, share in stated.items()}


def _cuts(node: Node) -> bool:
    return node.op == "cast" and not node.output.type.dtype.is_float


__all__ = ["Case", "Findings", "check", "compare_compiled", "difference", "imported"]
