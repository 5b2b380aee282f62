"""Small programs whose kernels are plain C, and ways to compile C callers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from dlcc.program import Arg, Program, Step, TensorInfo, WeightEntry

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "dlcc" / "runtime" / "c"
TRIPLE = "x86_64-unknown-linux-gnu"
ROWS, COLUMNS = 24, 16
BIAS = np.linspace(-2, 2, COLUMNS, dtype=np.float32)


def zig(*arguments: str | Path, cwd: Path | None = None) -> None:
    """Runs zig; its messages are the assertion text."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def zig_cc(*arguments: str | Path) -> None:
    zig("cc", "-target", "x86_64-linux-gnu.2.17", "-O1", "-Wall", "-Werror", *arguments)


def compile_kernels(folder: Path) -> bytes:
    """The object code of kernels.c, with debug sections as TVM's has them."""
    output = folder / "kernels.o"
    zig_cc("-g", "-O2", "-fPIC", "-c", HERE / "kernels.c", "-o", output)
    return output.read_bytes()


def run_bare(program: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program with an empty environment."""
    return subprocess.run(
        [str(program), *map(str, arguments)],
        env={},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
    )


def floats(*shape: int, name: str = "x") -> TensorInfo:
    return TensorInfo(name, "float32", shape)


def row_program(kernels: bytes, name: str = "rows", *, threads: int = 4) -> Program:
    """y = relu(x + bias): an input, the arena, weights and an output."""
    size = ROWS * COLUMNS
    return Program(
        name=name,
        inputs=(floats(ROWS, COLUMNS),),
        outputs=(floats(ROWS, COLUMNS, name="y"),),
        steps=(
            Step("bias", "add_row", (Arg("input"), Arg("weights", 64), Arg("arena", 128)), ROWS),
            Step("activation", "relu", (Arg("arena", 128), Arg("output")), size),
        ),
        arena_bytes=128 + 4 * size,
        weights=bytes(64) + BIAS.tobytes() + b"\1\2\3",
        weight_entries=(
            WeightEntry("bias", "b", 64, 64, "dense<f32>"),
            WeightEntry("bias", "tail", 128, 3, "dense<u8>"),
        ),
        object_code=kernels,
        triple=TRIPLE,
        features=("sse2",),
        threads=threads,
        report={"layers": [{"kernel": "add_row", "macs": np.int64(384)}]},
    )


def row_reference(x: np.ndarray) -> np.ndarray:
    return np.maximum(x + BIAS, 0)


def scratch_program(kernels: bytes, *, items: int = 999, threads: int = 4) -> Program:
    """Per-thread scratch areas."""
    args = (Arg("input"), Arg("arena", 64, per_thread=256), Arg("output"))
    return Program(
        name="scratch",
        inputs=(floats(items),),
        outputs=(floats(items, name="y"),),
        steps=(Step("sum", "through_scratch", args, items),),
        arena_bytes=64 + 256 * threads,
        weights=b"",
        weight_entries=(),
        object_code=kernels,
        triple=TRIPLE,
        features=(),
        threads=threads,
    )


def chain_program(kernels: bytes, *, steps: int = 400, items: int = 37) -> Program:
    """x + steps, one addition a step: every item of every step exactly once or it shows."""
    places = [Arg("input"), *(Arg("arena", 192 * (i % 2)) for i in range(steps - 1)), Arg("output")]
    return Program(
        name="chain",
        inputs=(TensorInfo("x", "int32", (items,)),),
        outputs=(TensorInfo("y", "int32", (items,)),),
        steps=tuple(
            Step(f"s{i}", "count", (places[i], places[i + 1]), items, max_threads=i % 4)
            for i in range(steps)
        ),
        arena_bytes=384,
        weights=b"",
        weight_entries=(),
        object_code=kernels,
        triple=TRIPLE,
        features=(),
        threads=4,
    )


def sum_program(kernels: bytes, *, inputs: int = 40) -> Program:
    """The sum of many inputs, through the arena."""
    places = [Arg("input"), *(Arg("arena", 64 * (i % 2)) for i in range(inputs - 2)), Arg("output")]
    return Program(
        name="many inputs",
        inputs=tuple(floats(8, name=f"in.{i}") for i in range(inputs)),
        outputs=(floats(8, name="total"),),
        steps=tuple(
            Step(f"add{i}", "add", (places[i - 1], Arg("input", index=i), places[i]), 8)
            for i in range(1, inputs)
        ),
        arena_bytes=128,
        weights=b"",
        weight_entries=(),
        object_code=kernels,
        triple=TRIPLE,
        features=(),
    )


def missing_feature() -> str:
    """A feature the runtime knows and this CPU lacks; no CPU has both of these."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return next(f for f in ("fma4", "amx_fp16") if f not in flags)


def renamed(program: Program, name: str) -> Program:
    return replace(program, name=name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}
