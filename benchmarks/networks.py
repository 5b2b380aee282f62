"""Compile networks at 32 and 8 bits, run them, and check the results.

For each ONNX file: float results against ONNX Runtime (relative to the largest output), integer
results against the numpy reference of the quantised graph (bytes), compile time, sizes and latency.

    python benchmarks/networks.py MODEL.onnx [...] [--bits 32 8] [--target cpu] [--threads 1]

Inputs are seeded noise scaled by ``--scale`` (0..255 networks want 255).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dlcc
from dlcc.driver import CompileOptions
from dlcc.lowering.lower import prepare

COLUMNS = (
    "network",
    "bits",
    "check",
    "compile s",
    "weights kB",
    "library kB",
    "arena kB",
    "ms",
    "peak MB",
)


def feed_for(graph: dlcc.Graph, seed: int, scale: float) -> dict[str, np.ndarray]:
    """Seeded inputs of the network's shapes."""
    rng = np.random.default_rng(seed)
    return {
        v.name: (rng.standard_normal(v.type.shape) * scale).astype(v.type.storage.numpy)
        for v in graph.inputs
    }


def onnxruntime_outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def latency(model: object, feed: dict[str, np.ndarray], budget: float = 0.3) -> float:
    """Median seconds of a call."""
    times: list[float] = []
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        model.run(feed)  # type: ignore[attr-defined]
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def check(path: Path, bits: int, args: argparse.Namespace) -> list[str]:
    """One row of the table."""
    options = CompileOptions(target=args.target, bits=bits, threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = dlcc.compile(path, Path(folder) / "out", options=options)
        seconds = time.perf_counter() - start
        feed = feed_for(result.optimised.graph, 1, args.scale)
        with dlcc.load(Path(folder) / "out", threads=args.threads) as model:
            got = list(model.run(feed).values())
            call = latency(model, feed)
        library = sum(f.stat().st_size for f in (Path(folder) / "out").glob("*.so"))
    if bits == 32:
        want = onnxruntime_outputs(path, feed)
        worst = max(
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
            for a, b in zip(got, want, strict=True)
        )
        verdict = f"{worst:.1e}" + ("" if worst <= 1e-4 else " WRONG")
    else:
        want = list(dlcc.execute(prepare(result.optimised.graph), feed).values())
        equal = all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        verdict = "bit-exact" if equal else "WRONG"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        path.stem,
        str(bits),
        verdict,
        f"{seconds:.1f}",
        f"{len(result.program.weights) / 1024:.0f}",
        f"{library / 1024:.0f}",
        f"{result.program.arena_bytes / 1024:.0f}",
        f"{call * 1e3:.3f}",
        f"{peak:.0f}",
    ]


def main() -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--bits", nargs="+", type=int, default=[32, 8])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    table = Table(*COLUMNS)
    failed = False
    for path in args.models:
        for bits in args.bits:
            try:
                row = check(path, bits, args)
            except dlcc.DlccError as error:
                row = [path.stem, str(bits), f"REFUSED {error}", *[""] * 6]
            failed |= any("WRONG" in cell or "REFUSED" in cell for cell in row)
            table.add_row(*row)
            print(" | ".join(row), flush=True)
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
