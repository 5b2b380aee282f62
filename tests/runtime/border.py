"""Random calls of a library's C functions, the runtime compiled with gcc's sanitizers.

``python -m tests.runtime.border [--rounds N] [--seed S] [--threads T]`` makes them with each
sanitizer and each kind of weights; see border.c.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dlcc.artifact import packed
from dlcc.artifact.csource import (
    header_source,
    model_source,
    runtime_source,
    unpack_source,
    weights_assembly,
)
from dlcc.artifact.runtime import RuntimeKind
from dlcc.artifact.toolchain import Toolchain
from dlcc.artifact.weights import weights_image
from dlcc.program import Arg, Program, Step, TensorInfo, WeightEntry
from tests.runtime.programs import COLUMNS, HERE, ROWS, RUNTIME, TRIPLE, compile_kernels, floats

SANITIZERS = ("address,undefined", "thread")
KINDS = ("mapped", "packed", "embedded")
ITEMS = 37
MARK = 5


class Missing(Exception):
    """There is no gcc, or it lacks the sanitizer, or that cannot work here."""


def program(kernels: bytes) -> Program:
    """y = relu(x + bias) and m = n + 1; a third input has no elements."""
    bias = np.arange(COLUMNS, dtype=np.float32) - 5
    steps = (
        Step("bias", "add_row", (Arg("input"), Arg("weights", 64), Arg("arena", 128)), ROWS),
        Step("act", "relu", (Arg("arena", 128), Arg("output")), ROWS * COLUMNS),
        Step("count", "count", (Arg("input", index=1), Arg("output", index=1)), ITEMS),
    )
    return Program(
        name="border",
        inputs=(floats(ROWS, COLUMNS), TensorInfo("n", "int32", (ITEMS,)), floats(0, name="z")),
        outputs=(floats(ROWS, COLUMNS, name="y"), TensorInfo("m", "int32", (ITEMS,))),
        steps=steps,
        arena_bytes=128 + 4 * ROWS * COLUMNS,
        weights=bytes(64) + bias.tobytes() + bytes(640),
        weight_entries=(WeightEntry("bias", "b", 64, bias.nbytes, "dense<f32>", 4),),
        object_code=kernels,
        triple=TRIPLE,
        features=("sse2",),
        threads=4,
        variant="base",
    )


def build(folder: Path, sanitizer: str, kind: str) -> Path:
    """The program border.c for weights of ``kind``, in ``folder`` beside its weights file.

    Raises:
        Missing: no gcc that can.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise Missing("no gcc")
    whole = program(compile_kernels(folder))
    small = packed.pack(whole, MARK) if kind == "packed" else None
    image = small.image if small else weights_image(whole.weights, MARK)
    runtime = RuntimeKind(kind == "embedded", small is not None, parts=False, single=False)
    sources = {
        "border.h": header_source(whole, "border"),
        "runtime.c": runtime_source("border", runtime.defines)[1],
        "model.c": model_source(
            whole, "border", {s.function: s.function for s in whole.steps}, fingerprint=MARK,
            weights_bytes=len(image), embed=kind == "embedded",
            work_bytes=small.work_bytes if small else None,
        ),
    }  # fmt: skip
    files = ["model.c", "runtime.c", str(HERE / "kernels.c"), str(HERE / "border.c")]
    (folder / "border.weights").write_bytes(image)
    if kind == "embedded":
        sources["weights.S"] = weights_assembly("border", "border.weights")
        files.append("weights.S")
    if small:
        (folder / "unpack.zig").write_text(unpack_source("border"))
        Toolchain(TRIPLE, folder).compile_zig("unpack.zig", "unpack.o")
        files.append("unpack.o")
    for name, text in sources.items():
        (folder / name).write_text(text)
    command = [gcc, "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-Wall", "-Wextra"]
    command += ["-Werror", "-D_GNU_SOURCE", "-I", str(RUNTIME), "-I", ".", *files, "-pthread"]
    built = subprocess.run([*command, "-o", "border"], cwd=folder, capture_output=True, text=True)
    if "cannot find" in built.stderr:
        raise Missing(f"gcc has no {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr
    return folder / "border"


def call(driver: Path, seed: int, rounds: int, threads: int) -> tuple[int, int]:
    """Make the calls; how many were taken and refused.

    Raises:
        AssertionError: a wrong answer, or what a sanitizer saw.
        Missing: the sanitizer cannot work with this kernel's address layout.
    """
    done = subprocess.run(
        [str(driver), str(seed), str(rounds), str(threads)],
        cwd=driver.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unexpected memory mapping" in done.stderr:
        raise Missing("the sanitizer cannot work with this kernel's address layout")
    assert (done.stderr, done.returncode) == ("", 0), done.stdout + done.stderr[-6000:]
    taken, refused = (int(word) for word in done.stdout.split() if word.isdigit())
    return taken, refused


def main() -> int:
    """Every sanitizer with every kind of weights."""
    parser = argparse.ArgumentParser(prog="python -m tests.runtime.border")
    parser.add_argument("--rounds", type=int, default=20_000, help="calls of each thread")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=3)
    given = parser.parse_args()
    for sanitizer in SANITIZERS:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                driver, start = build(Path(folder), sanitizer, kind), time.perf_counter()
                taken, refused = call(driver, given.seed, given.rounds, given.threads)
            seconds = time.perf_counter() - start
            print(f"{sanitizer}, {kind}: {taken} taken, {refused} refused, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
