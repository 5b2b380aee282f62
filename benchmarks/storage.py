"""Bytes of weights files, mapped (--pack speed) and packed (--pack size), and times to load them.

    python -m benchmarks.storage [--models DIR] [--only 'squeezenet*']

Compiles each row once, writes its artifact both ways, checks that the results are the same to the
bit, and prints a markdown table. The pipeline of a row comes after the exact passes. Times are
medians of a few loads of an artifact whose files the system has in memory, SHA-256 of them
included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import dlcc
from benchmarks.ptq import DATA
from dlcc.artifact import Artifact, write_artifact
from dlcc.driver import CompileOptions
from passes.pipelines import OPTIMISE

LOADS = 5


@dataclass(frozen=True)
class Row:
    """A network and what is done to it."""

    model: str
    passes: str


ROWS = (
    Row("squeezenet_v1.0_deepcompression", ""),
    Row("squeezenet_v1.0_deepcompression", "quantize"),
    Row("cifar10_resnet20", "quantize"),
    Row("cifar10_resnet20", "prune{sparsity=0.8},quantize"),
    Row("cifar10_resnet20", "prune{sparsity=0.8},share-weights{values=17}"),
    Row("mlperf_tiny_kws_dscnn", "quantize"),
    Row("mlperf_tiny_vww_mobilenet025_96", "quantize"),
    Row("mnist_cnn_ccexam", "prune{sparsity=0.9},quantize"),
    Row("mobilenet_v1_1.0_224", "quantize"),
    Row("mobilenet_v1_1.0_224", "prune{sparsity=0.8},quantize"),
)


def weights_bytes(artifact: Artifact) -> int:
    """Bytes of the weights file."""
    path = artifact.path(".weights")
    assert path is not None
    return path.stat().st_size


def load_seconds(folder: Path) -> float:
    """Median seconds to load an artifact, one thread."""
    seconds = []
    for _ in range(LOADS):
        start = time.perf_counter()
        with dlcc.load(folder, threads=1):
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def outputs(artifact: Artifact) -> dict[str, bytes]:
    """What the network makes of fixed random inputs."""
    rng = np.random.default_rng(0)
    feed = {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in artifact.inputs}
    with dlcc.load(artifact.folder, threads=1) as model:
        return {name: array.tobytes() for name, array in model.run(feed).items()}


def measured(row: Row, models: Path, folder: Path) -> str:
    """One line of the table.

    Raises:
        RuntimeError: the results differ.
    """
    passes = ",".join(filter(None, (OPTIMISE, row.passes)))
    options = CompileOptions(passes=passes, shapes={"N": 1}, threads=1)
    result = dlcc.compile(models / f"{row.model}.onnx", folder / "speed", options=options)
    packed = write_artifact(result.program, folder / "size", pack="size")
    if outputs(result.artifact) != outputs(packed):
        raise RuntimeError(f"{row.model}: the results of both packs differ")
    mapped_bytes, packed_bytes = weights_bytes(result.artifact), weights_bytes(packed)
    cells = [
        f"`{row.model}`",
        f"`{row.passes}`" if row.passes else "",
        f"{mapped_bytes}",
        f"{packed_bytes}",
        f"{100 * packed_bytes / mapped_bytes:.1f}",
        f"{1e3 * load_seconds(folder / 'speed'):.0f}",
        f"{1e3 * load_seconds(folder / 'size'):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=DATA / "models")
    parser.add_argument("--only", default="*", help="pattern of 'MODEL: PASSES'")
    args = parser.parse_args()
    heads = ("network", "passes", "mapped bytes", "packed bytes", "%", "load ms", "unpacked ms")
    print("| " + " | ".join(heads) + " |")
    print("|---|---|" + "---:|" * (len(heads) - 2))
    for row in ROWS:
        if not fnmatchcase(f"{row.model}: {row.passes}", args.only):
            continue
        with TemporaryDirectory() as folder:
            print(measured(row, args.models, Path(folder)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
