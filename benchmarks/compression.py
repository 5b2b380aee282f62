"""Every compression pass on the third-party models, without retraining.

    python -m benchmarks.compression [build] [time] [table] [--only 'resnet20: prune*']

``build`` compiles a row, counts right answers of its library on the evaluation split and adds up
its files; ``time`` runs it in turns with the dense fp32 and the dense int8 network; ``table``
prints Markdown. Without a verb all three are done. The rows stand in compression.toml. Every row is
kept as soon as it is there, and a later call goes on with those that are missing; ``--most 3``
stops after three.

A row's passes go behind the exact ones of the default pipeline. Calibration: ImageNet and KWS
0..199 at most, training images of CIFAR-10 and MNIST; evaluation: the rest, or the test sets. Times
are of the C function called with bound pointers, batch 1, one thread: 20th percentile, ratios
within each round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import dlcc
from benchmarks.compression_table import (
    FLOAT,
    INT8,
    Result,
    Results,
    Row,
    markdown,
    read_rows,
    select,
)
from benchmarks.peers.engines import Job
from benchmarks.peers.engines.dlcc import open_engine
from benchmarks.peers.measure import machine
from benchmarks.peers.worker import batch_of, slot, warm
from benchmarks.ptq import DATA, Split, entry_of, load_split
from benchmarks.size_speed import shipped_bytes
from dlcc.artifact import Artifact, write_artifact
from dlcc.driver import CompileResult
from dlcc.errors import DlccError
from dlcc.evaluate import fidelity, top_k
from dlcc.ir import Graph, Node, Sparse
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.pipelines import OPTIMISE

ROWS = Path(__file__).with_name("compression.toml")
SLOT_SECONDS = 0.1


def macs_left(graph: Graph) -> int:
    """Multiply-accumulates with weights that are stored."""
    return round(sum(op_of(n).macs(n) * _stored_share(n) for n in graph.nodes))


def _stored_share(node: Node) -> float:
    """Part of a layer's weights that a sparse encoding keeps; 1 of a dense one."""
    weight = node.input(1) if len(node.inputs) > 1 else None
    if weight is None or not weight.is_constant or not isinstance(weight.type.encoding, Sparse):
        return 1.0
    values = weight.decoded()
    return np.count_nonzero(values) / values.size


class Build:
    """Compiles rows and evaluates them."""

    def __init__(self, folder: Path, results: Results, limit: int | None) -> None:
        self.folder = folder
        self.results = results
        self.limit = limit
        self.split = lru_cache(maxsize=1)(self._split)
        self.reference = lru_cache(maxsize=1)(self._reference)

    def images(self, row: Row) -> int:
        """How many to evaluate on."""
        return min(row.model.images, self.limit or row.model.images)

    def done(self, row: Row) -> bool:
        """Whether a row's artifact and its result are there."""
        return self.results.built(row, self.images(row), fingerprint(self.folder, row)) is not None

    def run(self, row: Row) -> Result:
        """Compile and evaluate one row."""
        folder = self.folder / row.folder
        made = self.compile(row, folder)
        split = self.split(row)
        found = outputs(folder, split.evaluation)
        report = made.program.report
        layers: list[dict[str, Any]] = report["layers"]
        exact = set(OPTIMISE.split(","))
        steps = [p for p in report["passes"] if p["pass"] not in exact]
        source = dlcc.load_graph(_model(row), shapes={"N": 1})
        kernels = [str(layer["kernel"]) for layer in layers]
        result = Result(
            images=len(split.labels),
            calibration=row.model.calibration,
            fingerprint=fingerprint(self.folder, row),
            top1=top_k(found, split.labels),
            agreement=fidelity(self.reference(row), found).agreement,
            bytes=shipped_bytes(folder),
            packed_bytes=packed_bytes(made),
            macs=macs_left(made.optimised.graph),
            dense_macs=macs_left(source),
            predicted=float(sum(layer["predicted_seconds"] for layer in layers)),
            compile_seconds=sum(made.seconds.values()),
            kernels={name: kernels.count(name) for name in sorted(set(kernels))},
            statistics={p["pass"]: dict(p["statistics"]) for p in steps},
        )
        self.results.put(row, result)
        return result

    def compile(self, row: Row, folder: Path) -> CompileResult:
        """The artifact of a row."""
        samples = self.split(row).calibration
        name = dlcc.load_graph(_model(row), shapes={"N": 1}).inputs[0].name

        def batches() -> Iterator[dict[str, Array]]:
            return ({name: x[None]} for x in samples)

        return dlcc.compile(
            _model(row),
            folder,
            passes=",".join(filter(None, (OPTIMISE, row.pipeline))),
            threads=1,
            shapes={"N": 1},
            calibration=batches,
        )

    def _split(self, row: Row) -> Split:
        return load_split(entry_of(row.model.file), row.model.calibration, self.images(row))

    def _reference(self, row: Row) -> Array:
        """Outputs of the dense float network."""
        return outputs(self.folder / Row(row.model, FLOAT).folder, self.split(row).evaluation)


def _model(row: Row) -> Path:
    return DATA / "models" / f"{row.model.file}.onnx"


def packed_bytes(made: CompileResult) -> int:
    """Bytes of library and weights of the same program, its weights packed for size."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "packed"
        write_artifact(made.program, folder, pack="size")
        return shipped_bytes(folder)


def fingerprint(folder: Path, row: Row) -> str:
    """Of a row's artifact; "" where there is none."""
    place = folder / row.folder
    return str(Artifact.open(place).manifest["fingerprint"]) if place.is_dir() else ""


def outputs(folder: Path, x: Array) -> Array:
    """What an artifact computes, [count, outputs]; its input takes one sample."""
    with dlcc.load(folder, threads=1) as model:
        return np.stack([next(iter(model.run(_feed(model, s)).values())).ravel() for s in x])


def _feed(model: Any, sample: Array) -> dict[str, Array]:
    return {model.inputs[0].name: sample[None]}


def interleaved(folders: Sequence[Path], sample: Array, seconds: float) -> list[list[float]]:
    """Seconds of a call of each artifact in each round, one thread; every other round in reverse.

    Args:
        folders: the artifacts, of networks with one input.
        sample: its samples, [count, ...].
        seconds: for all rounds, of which there are at least three.
    """
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "sample.npz"
        np.savez(path, x=sample)
        jobs = [Job("dlcc", "", str(folder), str(path), 1, ()) for folder in folders]
        engines = [open_engine(job) for job in jobs]
    batches = [batch_of(warm(engine.run)) for engine in engines]
    times: list[list[float]] = [[] for _ in folders]
    for number in range(max(3, round(seconds / (SLOT_SECONDS * len(folders))))):
        order = range(len(folders)) if number % 2 == 0 else reversed(range(len(folders)))
        for i in order:
            times[i].append(slot(engines[i].run, SLOT_SECONDS, 4, batches[i])["p20"])
    return times


def time_row(row: Row, folder: Path, results: Results, seconds: float) -> Result:
    """Time a row in turns with the dense networks."""
    rows = [Row(row.model, FLOAT), Row(row.model, INT8), *([] if row.dense else [row])]
    sample = load_split(entry_of(row.model.file), 1, 1).evaluation
    times = interleaved([folder / r.folder for r in rows], sample, seconds)
    own = times[rows.index(row)]
    result = results.found[row.key]
    result.seconds = float(np.percentile(own, 20))  # neighbours disturb whole slots
    result.over_float, result.over_int8 = (
        statistics.median(a / b for a, b in zip(dense, own, strict=True)) for dense in times[:2]
    )
    result.timed = tuple(fingerprint(folder, r) for r in rows)
    results.put(row, result)
    return result


def is_timed(row: Row, folder: Path, results: Results) -> bool:
    """Whether the times of a row are those of the artifacts that lie there."""
    rows = [Row(row.model, FLOAT), Row(row.model, INT8), *([] if row.dense else [row])]
    now = tuple(fingerprint(folder, r) for r in rows)
    return all(now) and results.found[row.key].timed == now


def build_all(rows: Sequence[Row], build: Build, most: int | None, again: bool) -> bool:
    """Build the rows that are missing, ``most`` of them; whether none was refused."""
    missing, good = [r for r in rows if again or not build.done(r)], True
    for row in missing[:most]:
        try:
            found = build.run(row)
        except DlccError as error:
            say(f"{row.key}: {error}")
            good = False
            continue
        say(
            f"{row.key}: top-1 {100 * found.top1:.1f} %, {found.bytes / 1000:.0f} kB, "
            f"{100 * found.macs / found.dense_macs:.0f} % of the MACs, "
            f"predicted {1e6 * found.predicted:.0f} us, {found.compile_seconds:.0f} s to compile"
        )
    return good


def time_all(
    rows: Sequence[Row], build: Build, most: int | None, again: bool, seconds: float
) -> None:
    """Time the built rows that were not timed yet, ``most`` of them."""
    ready = [r for r in rows if build.done(r)]
    models = [{r.pipeline for r in ready if r.model == row.model} for row in ready]
    ready = [r for r, m in zip(ready, models, strict=True) if {FLOAT, INT8} <= m]
    missing = [r for r in ready if again or not is_timed(r, build.folder, build.results)]
    for row in missing[:most]:
        found = time_row(row, build.folder, build.results, seconds)
        say(
            f"{row.key}: {1e6 * (found.seconds or 0):.4g} us, {found.over_float:.2f} times as fast "
            f"as fp32, {found.over_int8:.2f} as int8"
        )


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Build, time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verbs", nargs="*", metavar="build|time|table")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/compression"), help="of the artifacts"
    )
    parser.add_argument("--json", type=Path, help="of the results; FOLDER/results.json")
    parser.add_argument("--rows", type=Path, default=ROWS, help="TOML file that declares the rows")
    parser.add_argument("--only", default="*", help="pattern of the rows, 'NETWORK: PASSES'")
    parser.add_argument("--limit", type=int, help="most images to evaluate on")
    parser.add_argument("--most", type=int, help="rows to build or time, then stop")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the times of a row")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    args = parser.parse_args(words)
    if unknown := set(args.verbs) - {"build", "time", "table"}:
        parser.error(f"unknown verbs {sorted(unknown)}; known are build, time, table")
    if not DATA.is_dir():
        parser.error("the third-party data (../shared/data) is not here")
    verbs = args.verbs or ["build", "time", "table"]
    try:
        rows = select(read_rows(args.rows), args.only)
        results = Results(args.json or args.folder / "results.json", machine())
    except ValueError as error:
        parser.error(str(error))
    build = Build(args.folder, results, args.limit)
    good = True
    if "build" in verbs:
        good = build_all(rows, build, args.most, args.again)
    if "time" in verbs:
        time_all(rows, build, args.most, args.again, args.seconds)
    if "table" in verbs:
        print(markdown(rows, results))
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
