"""The inner loops of ARM's integer kernels: multiply-accumulates per instruction, as documented.

``python -m tests.targets.test_arm_loops`` writes the loops into the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dlcc import tir
from targets.arm import ARMV7, LEVELS
from targets.arm.cpus import AARCH64
from targets.isa import Isa
from targets.kernels.conv import conv2d
from targets.kernels.spec import ConvSpec, Epilogue
from tests.targets.running import llvm_target

PAGE = Path(__file__).parents[2] / "docs" / "arm-kernels.md"

MULTIPLIED = {"sdot|sudot|usdot": 16, r"usmmla v\d+": 32, "smull2?": 8, "smlal2?": 8}
MULTIPLIED |= {r"vmull\.s8": 8, r"vmlal\.s8": 8, r"usmmla z\d+": 64}
MULTIPLIED |= {r"fm(la|ul) v\d+\.8h": 8, r"fmla v\d+\.4s": 4}
"""Multiply-accumulates of an instruction."""

ISAS = {**LEVELS, "armv7": ARMV7, "cortex-a53": AARCH64["cortex-a53"].isa("cortex-a53")}
ISAS["cortex-a55"] = AARCH64["cortex-a55"].isa("cortex-a55")


@dataclass(frozen=True)
class Loop:
    """One kernel's inner loop, of a block of pixels by channels.

    ``rival``: multiply-accumulates and instructions of XNNPACK's, counted in its source.
    ``limit``: the largest weight. ``padded``: of a convolution with borders, whose input is staged.
    ``twice``: a pixel is multiplied as two.
    """

    level: str
    pixels: int
    channels: int
    rival: tuple[int, int]
    limit: int = 127
    padded: bool = False
    twice: bool = False

    @property
    def isa(self) -> Isa:
        """Its machine."""
        return ISAS[self.level]

    def code(self) -> list[str]:
        """The emitted instructions, for a layer that the block divides."""
        columns = 4 * self.pixels if self.pixels > 1 else 1
        codes = Epilogue("u8", 0, 255, 100)
        spec = ConvSpec(1, 1, columns, 512, 4 * self.channels, epilogue=codes)
        if self.padded:
            spec = replace(spec, c=128, kh=3, kw=3, pads=(1, 1, 1, 1))
        weights = np.full((spec.oc, spec.c, spec.kh, spec.kw), self.limit, np.int8)
        channels = (np.zeros(spec.oc, np.int32), np.ones(spec.oc, np.float32))
        block = (1, self.pixels, self.channels // self.isa.lanes)
        step = conv2d(spec, self.isa, weights, *channels, block=block).steps[-1]
        target = llvm_target(self.isa)
        if self.level.startswith("cortex"):
            target = tir.LLVMTarget(llvm_target(LEVELS["neon"]).triple, self.isa.mcpu)
        return innermost(tir.assembly({step.name_key: step.build()}, target))


def innermost(text: str) -> list[str]:
    """The shortest loop of an assembly text that multiplies."""
    lines = [line.strip() for line in text.splitlines()]
    labels: dict[str, int] = {}
    found: list[list[str]] = []
    for at, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = at
        branch = re.match(r"b\.?\w\w\s+(\.L\w+)", line)
        if branch and branch[1] in labels:
            body = [re.sub(r"\s+", " ", x) for x in lines[labels[branch[1]] + 1 : at + 1]]
            found.append([x for x in body if re.match(r"[a-z]", x)])
    return min((body for body in found if multiplied(body)), key=len)


def multiplied(code: list[str]) -> int:
    """Multiply-accumulates of all instructions."""
    return sum(n for x in code for which, n in MULTIPLIED.items() if re.match(rf"{which}(?!\w)", x))


LOOPS = {
    "sdot": Loop("dotprod", 5, 16, (1280, 95)),
    "sdot, padded": Loop("dotprod", 5, 16, (1280, 95), padded=True),
    "sdot, Cortex-A55": Loop("cortex-a55", 5, 16, (1024, 122)),
    "sdot, one pixel": Loop("dotprod", 1, 32, (256, 27)),
    "usmmla": Loop("i8mm", 4, 20, (1024, 51)),
    "usdot, one pixel": Loop("i8mm", 1, 32, (256, 27)),
    "usmmla, SVE": Loop("sve256", 6, 32, (1024, 51)),
    "usmmla, SVE, one pixel": Loop("sve256", 1, 64, (256, 27), twice=True),
    "smull": Loop("neon", 2, 8, (256, 61)),
    "smull, padded": Loop("neon", 2, 8, (256, 61), padded=True),
    "smull, Cortex-A53": Loop("cortex-a53", 2, 8, (256, 81)),
    "smull, sums of four": Loop("neon", 2, 8, (256, 61), 63),
    "smull, sums of six": Loop("neon", 2, 8, (256, 61), 42),
    "smull, sums of eight": Loop("neon", 2, 8, (256, 61), 31),
    "vmull": Loop("armv7", 2, 4, (256, 90)),
    "vmull, sums of four": Loop("armv7", 2, 4, (256, 90), 63),
}
SHOWN = ("sdot", "usmmla", "usmmla, SVE", "smull", "smull, sums of four", "vmull")
"""Loops whose instructions are on the page."""


@cache
def emitted(name: str) -> tuple[str, ...]:
    """The instructions of a loop."""
    return tuple(LOOPS[name].code())


def row(name: str) -> str:
    """Its row of the page's table, up to what XNNPACK has."""
    loop, code = LOOPS[name], emitted(name)
    macs, (theirs, taken) = multiplied([*code]) // (1 + loop.twice), loop.rival
    return (
        f"| {name} | {loop.pixels} x {loop.channels} | {macs} in {len(code)} | "
        f"{macs / len(code):.2f} | {theirs} in {taken} | {theirs / taken:.2f} |"
    )


def listing(name: str) -> str:
    """Its instructions as the page has them."""
    return "\n".join(["```asm", *emitted(name), "```"])


@pytest.mark.parametrize("name", LOOPS)
def test_loop(name):
    loop, code = LOOPS[name], emitted(name)
    theirs, taken = loop.rival
    assert not [line for line in code if "[sp" in line], "accumulators are kept in memory"
    assert multiplied([*code]) / (1 + loop.twice) / len(code) >= theirs / taken
    page = PAGE.read_text("utf-8")
    assert row(name) in page
    assert name not in SHOWN or f"### {name}\n\n{listing(name)}\n" in page


def write() -> None:
    """Brings the page's table and listings up to date."""
    page = PAGE.read_text("utf-8")
    for name in LOOPS:
        page = re.sub(rf"(?m)^\| {re.escape(name)} \| \d+ x .* \|(?= [^|]* \|$)", row(name), page)
    for name in SHOWN:
        page = re.sub(
            rf"(?s)(### {re.escape(name)}\n\n)```asm\n.*?```",
            lambda m, n=name: m[1] + listing(n),
            page,
        )
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    write()
