"""Size, compile time and latency of networks at 32 and 8 bits beside other engines in fp32.

    python benchmarks/size_speed.py MODEL.onnx [...] [--threads 1] [--rounds 7]

Prints a markdown table. Latencies are medians over interleaved rounds, one process per engine, the
same random input for all; every engine runs the original fp32 model but the last column, so the
int8 column is a saving over fp32 engines, not a comparison with their int8. Without calibration
data: speed and size do not depend on it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import dlcc
from dlcc.bench import Contender, bench, cpu_description, installed


def compiled(path: Path, bits: int, folder: Path, threads: int) -> tuple[Path, float, int]:
    """The artifact of ``path``, seconds it took, and bytes of the files that a product ships."""
    out = folder / f"{path.stem}-{bits}"
    start = time.perf_counter()
    dlcc.compile(path, out, bits=bits, threads=threads)
    seconds = time.perf_counter() - start
    return out, seconds, shipped_bytes(out)


def shipped_bytes(folder: Path) -> int:
    """Bytes of the library and the weights of an artifact."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".so", ".weights"))


def row(path: Path, args: argparse.Namespace) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as name:
        full, _, full_bytes = compiled(path, 32, Path(name), args.threads)
        small, seconds, small_bytes = compiled(path, 8, Path(name), args.threads)
        peers = [Contender("dlcc", full, "fp32")]
        engines = [e for e in ("onnxruntime", "openvino") if installed(e)]
        peers += [Contender(engine, path, "fp32") for engine in engines]
        result = bench(small, peers, threads=args.threads, rounds=args.rounds)
    int8, fp32, *others = [f"{e.seconds * 1e3:.3f}" for e in result.times]
    cells = [
        path.stem,
        f"{full_bytes / 1024:.0f}",
        f"{small_bytes / 1024:.0f}",
        f"{seconds:.1f}",
        *(others or ["-"]),
        fp32,
        int8,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    name, features = cpu_description()
    print(f"{name} ({', '.join(features)}), {args.threads} thread(s), ms per inference\n")
    engines = [e for e in ("onnxruntime", "openvino") if installed(e)]
    heads = ["network", "fp32 kB", "int8 kB", "int8 compile s"]
    heads += [f"{e} fp32 ms" for e in engines or ["no other engine"]]
    heads += ["dlcc fp32 ms", "dlcc int8 ms"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for path in args.models:
        print(row(path, args), flush=True)


if __name__ == "__main__":
    main()
