"""Small programs for GPUs, whose kernels are written by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from dlcc import codegen
from dlcc.program import Arg, Launch, Program, Step, TensorInfo, WeightEntry
from tests.cuda.emulator import compiled_for_cpu

SOURCE = Path(__file__).with_name("kernels.cu").read_text("utf-8")
TRIPLE = "x86_64-unknown-linux-gnu"
ROWS, COLUMNS = 4, 128
BIAS = np.arange(COLUMNS, dtype=np.float32)
SHARED = 60000
"""Bytes that a step asks for: more than a block has without asking."""


@cache
def cubin(architecture: str) -> bytes:
    """The kernels, for GPUs and for the emulator."""
    with compiled_for_cpu():
        return codegen.compile_cubin(SOURCE, architecture)


def rows_program(architecture: str = "sm_80", *better: str, name: str = "rows") -> Program:
    """An input, the arena, weights, an output; static and dynamic shared memory."""
    one = (ROWS, 1, 1)
    block = (COLUMNS, 1, 1)
    biased, turned = Arg("arena", 256), Arg("arena", 4096)
    return Program(
        name=name,
        inputs=(TensorInfo("x", "float32", (ROWS, COLUMNS)),),
        outputs=(TensorInfo("y", "float32", (ROWS, COLUMNS)),),
        steps=(
            Step(
                "bias", "add_bias", (Arg("input"), Arg("weights"), biased), 4, 0, Launch(one, block)
            ),
            Step("turn", "reverse", (biased, turned), 4, 0, Launch(one, block), after=(0,)),
            Step(
                "fold",
                "double_all",
                (turned, Arg("output"), Arg("weights", 512)),
                1,
                0,
                Launch((1, 1, 1), block, SHARED),
                after=(1,),
            ),
        ),
        arena_bytes=8192,
        weights=BIAS.tobytes() + np.int32(ROWS).tobytes(),
        weight_entries=(
            WeightEntry("bias", "b", 0, 512, "dense<f32>"),
            WeightEntry("fold", "rows", 512, 4, "dense<s32>"),
        ),
        object_code=cubin(architecture),
        triple=TRIPLE,
        features=(architecture,),
        variant=architecture,
        better=tuple(rows_program(other, name=name) for other in better),
        alignment=256,
        device="cuda",
    )


def two_shapes(architecture: str = "sm_80") -> Program:
    """The bias alone, for four rows or one."""

    def of(rows: int) -> Program:
        whole = rows_program(architecture)
        step = Step(
            "bias", "add_bias", (Arg("input"), Arg("weights"), Arg("output")), rows, 0,
            Launch((rows, 1, 1), (COLUMNS, 1, 1)),
        )  # fmt: skip
        border = [TensorInfo(name, "float32", (rows, COLUMNS)) for name in "xy"]
        return replace(whole, inputs=(border[0],), outputs=(border[1],), steps=(step,))

    return replace(of(4), more_shapes=(of(1),))


def rows_reference(x: np.ndarray) -> np.ndarray:
    turned = (x + BIAS)[:, ::-1]
    return (turned.reshape(-1)[::-1] + turned.reshape(-1)).reshape(x.shape)


def some_rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((ROWS, COLUMNS), np.float32)
