"""Compiles a small network to int8 and to fp32 and shows what came of it.

    make demo
    python examples/digits/demo.py [--output FOLDER] [--rounds N]

The network reads handwritten digits; train.py beside this file made it. The demo compiles it twice,
counts the right answers on held-out images, builds a C program against the emitted header, runs it
with an empty environment, checks that it computes what Python does, and times all of them (and ONNX
Runtime, where that is installed) in interleaved rounds on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from data import CALIBRATION, Array, split
from rich.console import Console
from rich.table import Table

import dlcc

HERE = Path(__file__).parent
MODEL = HERE / "digits.onnx"
RUNS_PER_ROUND = 200

Runner = Callable[[Array], Array]


@dataclass
class Entry:
    """One row of the table.

    Attributes:
        name: what runs.
        run: float32[1, 1, 8, 8] -> logits float32[1, 10], from Python.
        model_bytes: the file that holds the weights.
        library_bytes: the native code that the run needs.
        program: the C program and its artifact, if there is one.
        python_us: times of a run from Python, one for each round, in microseconds.
        c_us: the same from C.
    """

    name: str
    run: Runner
    model_bytes: int
    library_bytes: int
    program: tuple[Path, Path] | None = None
    accuracy: float = 0.0
    python_us: list[float] = field(default_factory=list)
    c_us: list[float] = field(default_factory=list)


def compile_network(folder: Path, bits: int) -> Path:
    """Compile the network at a bit width; int8 sees some training images for its ranges."""
    images = split()[0][:CALIBRATION]

    def calibration() -> Iterator[dict[str, Array]]:
        return ({"image": image[None]} for image in images)

    dlcc.compile(
        MODEL,
        folder,
        bits=bits,
        calibration=calibration if bits == 8 else None,
        shapes={"N": 1},
        threads=1,
    )
    return folder


def build_program(artifact: Path, program: Path) -> Path:
    """Build main.c against the artifact's header and library, with the C compiler dlcc brings."""
    command = [sys.executable, "-m", "ziglang", "cc", "-O2", "-std=c11", "-Wall", "-Werror"]
    command += [str(HERE / "main.c"), f"-I{artifact}", f"-L{artifact}", "-ldigits"]
    command += [f"-Wl,-rpath,{artifact.resolve()}", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run_program(
    program: Path, artifact: Path, images: Array, repeats: int = 1
) -> tuple[Array, float]:
    """Run the C program with an empty environment; its logits and the microseconds of one run."""
    with tempfile.TemporaryDirectory() as work:
        source, result = Path(work, "images.f32"), Path(work, "logits.f32")
        images.tofile(source)
        command = [program, artifact / "digits.weights", source, result, str(repeats)]
        done = subprocess.run(command, env={}, check=True, capture_output=True, text=True)
        count, nanoseconds = done.stdout.split()
        logits = np.fromfile(result, np.float32).reshape(int(count), -1)
    return logits, int(nanoseconds) / 1000


def dlcc_entry(folder: Path, bits: int) -> Entry:
    """Compile, load, and build the C program."""
    name = "int8" if bits == 8 else "fp32"
    artifact = compile_network(folder / name, bits)
    model = dlcc.load(artifact, threads=1)
    program = build_program(artifact, folder / f"digits_{name}")
    weights, library = artifact / "digits.weights", artifact / "libdigits.so"
    sizes = weights.stat().st_size, library.stat().st_size
    return Entry(f"dlcc {name}", model, *sizes, (program, artifact))


def onnxruntime_entry() -> Entry:
    """The same ONNX file in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        MODEL, sess_options=options, providers=["CPUExecutionProvider"]
    )
    capi = Path(onnxruntime.__file__).parent / "capi"
    library = sum(file.stat().st_size for file in capi.glob("*.so*"))
    return Entry(
        "ONNX Runtime fp32",
        lambda image: session.run(None, {"image": image})[0],
        MODEL.stat().st_size,
        library,
    )


def measure(entries: list[Entry], images: Array, rounds: int) -> None:
    """Time every entry once in each round, so that all see the same state of the machine."""
    for _ in range(rounds):
        for entry in entries:
            times = []
            for image in images[:RUNS_PER_ROUND]:
                start = time.perf_counter_ns()
                entry.run(image[None])
                times.append(time.perf_counter_ns() - start)
            entry.python_us.append(median(times) / 1000)
            if entry.program:
                entry.c_us.append(run_program(*entry.program, images[:RUNS_PER_ROUND])[1])


def check_program(entry: Entry, images: Array, logits: Array) -> None:
    """The C program must compute the very bytes that Python got from the same library."""
    if entry.program is None:
        return
    from_c, _ = run_program(*entry.program, images)
    if from_c.tobytes() != logits.tobytes():
        different = int((from_c != logits).any(axis=1).sum())
        raise SystemExit(
            f"{entry.name}: C and Python differ on {different} of {len(logits)} images"
        )


def table(entries: list[Entry], images: Array) -> Table:
    """What came of it."""
    out = Table(title=f"handwritten digits: {len(images)} held-out images, one thread")
    out.add_column("")
    for column in ("accuracy", "weights, B", "library, B", "Python, us", "C, us"):
        out.add_column(column, justify="right")
    for entry in entries:
        out.add_row(
            entry.name,
            f"{entry.accuracy:.2%}",
            f"{entry.model_bytes:,}",
            f"{entry.library_bytes:,}",
            f"{median(entry.python_us):.1f}",
            f"{median(entry.c_us):.1f}" if entry.c_us else "-",
        )
    return out


def demo(folder: Path, rounds: int, console: Console) -> None:
    """Everything, in order."""
    _, _, images, labels = split()
    entries = []
    for bits in (32, 8):
        console.print(f"compiling {MODEL.name} at {bits} bits and building main.c against it ...")
        entries.append(dlcc_entry(folder, bits))
    if importlib.util.find_spec("onnxruntime"):
        entries.append(onnxruntime_entry())
    else:
        console.print("ONNX Runtime is not installed: it is left out of the table")
    for entry in entries:
        logits = np.concatenate([entry.run(image[None]) for image in images])
        entry.accuracy = float((logits.argmax(1) == labels).mean())
        check_program(entry, images, logits)
    console.print(f"timing {rounds} interleaved rounds ...")
    measure(entries, images, rounds)
    console.print(table(entries, images))
    console.print(
        "The C programs ran with an empty environment and gave the very bytes Python got."
    )
    console.print("Times are medians of one run, called from Python and from C.")


def main() -> None:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description="The demo of dlcc: handwritten digits.")
    parser.add_argument("-o", "--output", type=Path, help="keep the artifacts in this folder")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing")
    options = parser.parse_args()
    console = Console(soft_wrap=False)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        demo(options.output, options.rounds, console)
        return
    with tempfile.TemporaryDirectory(prefix="dlcc-demo-") as folder:
        demo(Path(folder), options.rounds, console)


if __name__ == "__main__":
    main()
