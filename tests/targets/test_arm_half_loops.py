"""The inner loops of half precision on ARM: multiply-accumulates per instruction, as documented.

``python -m tests.targets.test_arm_half_loops`` writes them into the page.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from dlcc import tir
from targets.arm import LEVELS
from targets.kernels.conv import conv2d
from targets.kernels.spec import ConvSpec, Epilogue
from tests.targets.running import llvm_target
from tests.targets.test_arm_loops import PAGE, innermost, multiplied

LOOPS = {
    "fmla, half precision": ("dotprod", "f16", 4, 16),
    "fmla, half precision, one pixel": ("dotprod", "f16", 1, 32),
    "fmla, widened halves": ("neon", "f16", 9, 8),
    "fmla, float32": ("neon", "f32", 7, 12),
}
"""Level, dtype, and pixels by channels of the block."""

SHOWN = "fmla, half precision"


@cache
def emitted(name: str) -> tuple[str, ...]:
    """The instructions of a loop, for a layer that the block divides."""
    level, dtype, pixels, channels = LOOPS[name]
    isa = LEVELS[level]
    columns = 4 * pixels if pixels > 1 else 1
    spec = ConvSpec(
        1, 1, columns, 512, 4 * channels, in_dtype=dtype, epilogue=Epilogue(dtype, 0.0, 6.0)
    )
    weights = np.ones((spec.oc, spec.c, 1, 1), np.float16 if dtype == "f16" else np.float32)
    vector = 8 if isa.float16 == "multiply" else 4
    block = (1, pixels, channels // vector)
    step = conv2d(spec, isa, weights, np.zeros(spec.oc, np.float32), block=block).steps[-1]
    text = tir.assembly({step.name_key: step.build()}, llvm_target(isa))
    return tuple(innermost(text))


def row(name: str) -> str:
    """Its row of the page's table."""
    _, _, pixels, channels = LOOPS[name]
    code = emitted(name)
    macs = multiplied([*code])
    return f"| {name} | {pixels} x {channels} | {macs} in {len(code)} | {macs / len(code):.2f} |"


def section() -> str:
    """The listing as the page has it."""
    return "\n".join([f"### {SHOWN}", "", "```asm", *emitted(SHOWN), "```", ""])


@pytest.mark.parametrize("name", LOOPS)
def test_loop(name):
    page = PAGE.read_text("utf-8")
    assert row(name) in page
    assert name != SHOWN or section() in page


def test_half_precision_takes_far_fewer_instructions():
    each = {name: multiplied([*emitted(name)]) / len(emitted(name)) for name in LOOPS}
    assert each["fmla, half precision"] > 1.6 * each["fmla, float32"]


def write() -> None:
    """Brings the page's table and listing up to date."""
    page = PAGE.read_text("utf-8")
    for name in LOOPS:
        page = re.sub(rf"(?m)^\| {re.escape(name)} \| \d+ x .*$", row(name), page)
    page = re.sub(rf"(?s)### {re.escape(SHOWN)}\n\n```asm\n.*?```\n", section(), page)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    write()
