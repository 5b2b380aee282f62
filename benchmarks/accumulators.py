"""Accumulators of 16 bits against 32 bits: accuracy, exactness and speed of the same networks.

    python -m benchmarks.accumulators [--folder DIR] [--models resnet20,mobilenet_v1]

Compiles each network for a CPU without dot products of bytes (``--target``): int8 with sums of 32
bits alone, int8 with the kernels that are proven to hold in 16 bits, and networks that
``assign-bitwidths`` has fitted to a 16-bit accumulator. Every library is compared with the numpy
reference, bit for bit, counts its right answers on the evaluation split, and is timed in turns with
the others (batch 1, one thread, 20th percentile; ratios within each round). What is built already
is not built again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import dlcc
from benchmarks.compression import interleaved, outputs
from benchmarks.ptq import DATA, ROWS, Split, entry_of, load_split
from dlcc.evaluate import fidelity, top_k
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from passes.pipelines import OPTIMISE

INT8 = "quantize{bits=8}"
WIDE = "int8, sums of 32 bits"
NARROW_ROWS = ("implicit-gemm-16", "depthwise-16")
"""Rows of the kernel table that sum in 16 bits."""

EXACT = 3
"""Samples that are compared with the reference."""


@dataclass(frozen=True)
class Way:
    """How a network is made integer; ``without``: rows of the kernel table that are not used."""

    name: str
    passes: str
    without: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its artifact."""
        return "".join(c if c.isalnum() else "-" for c in self.name)


WAYS = (
    Way("fp32", ""),
    Way(WIDE, INT8, NARROW_ROWS),
    Way("int8", INT8),
    *(
        Way(options, f"assign-bitwidths{{{options}}}")
        for options in (
            "accumulator=16 tile=4",
            "accumulator=16 tile=16",
            "accumulator=17",
            "accumulator=16",
        )
    ),
)


@dataclass
class Result:
    """Of one network made in one way.

    Attributes:
        top1: share of right answers; ``agreement``: of those that the float network gives, too.
        kernels: report's name of each kernel and how many layers it computes.
        narrow: layers whose kernels sum in 16 bits.
        seconds: of a call, ``speedup``: against sums of 32 bits; None before they are timed.
    """

    images: int
    top1: float
    agreement: float
    kernels: dict[str, int] = field(default_factory=dict)
    narrow: int = 0
    seconds: float | None = None
    speedup: float | None = None


class Bench:
    """One network in all ways."""

    def __init__(self, name: str, folder: Path, target: str, samples: int, images: int) -> None:
        self.name, self.folder, self.target = name, folder / name, target
        self.samples, self.images = samples, images
        self.file = self.folder / "results.json"
        known = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.results = {way: Result(**entry) for way, entry in known.items()}
        self.graphs: dict[str, Graph] = {}

    def build(self) -> None:
        """Compile, compare and evaluate what is missing.

        Raises:
            SystemExit: a library is not exact.
        """
        split = load_split(entry_of(ROWS[self.name].file), self.samples, self.images)
        for way in WAYS:
            if way.name in self.results and (self.folder / way.folder).is_dir():
                continue
            self.results[way.name] = found = self._built(way, split)
            print(f"{self.name}: {way.name}: {found}", file=sys.stderr, flush=True)
            self._save()

    def _graph(self, passes: str, split: Split) -> Graph:
        """The network after its passes."""
        if passes not in self.graphs:
            path = DATA / "models" / f"{ROWS[self.name].file}.onnx"
            source = dlcc.load_graph(path, shapes={"N": 1})
            name = source.inputs[0].name

            def batches() -> Iterator[dict[str, Array]]:
                return ({name: x[None]} for x in split.calibration)

            text = ",".join(filter(None, (OPTIMISE, passes)))
            options = dlcc.CompileOptions(passes=text, calibration=batches, target=self.target)
            self.graphs[passes] = dlcc.optimise(source, options).graph
        return self.graphs[passes]

    def _built(self, way: Way, split: Split) -> Result:
        graph, folder = self._graph(way.passes, split), self.folder / way.folder
        made = dlcc.compile(
            graph, folder, passes=(), target=self.target, threads=1, without=way.without
        )
        found = outputs(folder, split.evaluation)
        if way.passes:
            for x, got in zip(split.evaluation[:EXACT], found, strict=False):
                wanted = next(iter(dlcc.execute(graph, {graph.inputs[0].name: x[None]}).values()))
                if not np.array_equal(wanted.reshape(-1), got):
                    raise SystemExit(f"{self.name}: {way.name}: the library is not exact")
        float_folder = self.folder / WAYS[0].folder
        dense = found if not way.passes else outputs(float_folder, split.evaluation)
        layers = made.program.report["layers"]
        kernels = [str(row["kernel"]) for row in layers]
        return Result(
            len(split.labels),
            top_k(found, split.labels),
            fidelity(dense, found).agreement,
            {kernel: kernels.count(kernel) for kernel in sorted(set(kernels))},
            sum(row["sum_bits"] == 16 for row in layers),
        )

    def time(self, seconds: float) -> None:
        """Time all ways in turns."""
        sample = load_split(entry_of(ROWS[self.name].file), 1, 1).evaluation
        times = interleaved([self.folder / way.folder for way in WAYS], sample, seconds)
        wide = times[[way.name for way in WAYS].index(WIDE)]
        for way, own in zip(WAYS, times, strict=True):
            result = self.results[way.name]
            result.seconds = statistics.median(own)
            result.speedup = statistics.median(a / b for a, b in zip(wide, own, strict=True))
        self._save()

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({k: asdict(r) for k, r in self.results.items()}, indent=1))

    def lines(self) -> Iterator[str]:
        """Lines of the table."""
        for way in WAYS:
            if (r := self.results.get(way.name)) is None:
                continue
            time = "" if r.seconds is None else f"{1e6 * r.seconds:.0f}"
            ratio = "" if r.speedup is None else f"{r.speedup:.2f}"
            yield (
                f"| {self.name} | {way.name} | {100 * r.top1:.2f} | {100 * r.agreement:.2f} "
                f"| {r.narrow} | {time} | {ratio} |"
            )


def table(benches: Sequence[Bench]) -> str:
    """All networks as Markdown."""
    head = "| network | | top-1, % | agrees with fp32, % | layers in 16 bits | us | times as fast |"
    return "\n".join(
        [head, "|---|---|---|---|---|---|---|", *(line for b in benches for line in b.lines())]
    )


def main(words: Sequence[str] | None = None) -> None:
    """Build, time and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accumulators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("out/accumulators"))
    parser.add_argument("--models", default="resnet20,mobilenet_v1", help="comma-separated names")
    parser.add_argument("--target", default="cpu:avx2", help="of all libraries")
    parser.add_argument("--samples", type=int, default=100, help="to calibrate on")
    parser.add_argument("--images", type=int, default=800, help="to evaluate on, at most")
    parser.add_argument("--seconds", type=float, default=8.0, help="for the times of a network")
    parser.add_argument("--no-time", action="store_true", help="build and evaluate only")
    args = parser.parse_args(words)
    names = args.models.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"unknown models {sorted(unknown)}; known are {', '.join(ROWS)}")
    if not DATA.is_dir():
        parser.error("the third-party data (../shared/data) is not here")
    benches = [Bench(n, args.folder, args.target, args.samples, args.images) for n in names]
    for bench in benches:
        bench.build()
        if not args.no_time:
            bench.time(args.seconds)
    print(table(benches))


if __name__ == "__main__":
    main()
