"""Kernels in vectors of SVE: every register block, on vectors of 256 bits and longer ones."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dlcc.driver import CompileOptions, optimise
from dlcc.lowering.lower import prepare
from targets.arm.levels import SVE256
from targets.kernels.conv import conv2d, conv2d_transpose, geometry
from targets.kernels.gemm import Gemm, unit_for
from targets.kernels.spec import ConvSpec, ConvTransposeSpec, Epilogue
from targets.kernels.sve_blocks import shapes
from targets.kernels.sve_code import Reduction
from targets.rows.dense import SveConvRow
from tests.emulation.machine import NEWEST
from tests.targets.reference import finish, transposed_accumulators
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import Case, typed
from tests.test_end_to_end import small_net

CODES = Epilogue("u8", 3, 250, 100)
FLAT = ConvSpec(1, 1, 23, 37, 43, in_zero_point=7, epilogue=CODES)
DEEP = ConvSpec(2, 6, 7, 26, 21, 2, 3, pads=(1, 0, 0, 1), in_zero_point=9, epilogue=CODES)
SPECS = {
    "flat": (FLAT, [(1, 1, 3), (1, 2, 6), (1, 5, 4), (1, 8, 2), (1, 9, 1)]),
    "deep": (DEEP, [(2, 1, 3), (2, 2, 2), (2, 3, 3), (1, 6, 1)]),
    "dilated": (replace(DEEP, dilation=(1, 2), pads=(0, 0, 0, 0)), [(1, 3, 3)]),
    "grouped": (replace(DEEP, oc=26, groups=2, epilogue=replace(CODES, out="s8")), [(2, 3, 2)]),
    "floats": (replace(FLAT, epilogue=Epilogue("f32", -1e9, 1e9)), [(1, 4, 3)]),
    "residual": (replace(FLAT, epilogue=replace(CODES, residual="u8")), [(1, 6, 3)]),
    "long": (ConvSpec(1, 1, 2, 70000, 9, in_zero_point=128, epilogue=CODES), [(1, 2, 2)]),
}


def cases(dtype: str, isa) -> list[Case]:
    made = []
    for name, (spec, blocks) in SPECS.items():
        if dtype == "f32" and name in ("grouped", "floats"):
            continue
        for block in blocks:
            fitting = block if dtype == "u8" else (block[0], min(block[1], 7), min(block[2], 3))
            made.append(Case(typed(spec, dtype), isa, plan=partial(conv2d, block=fitting)))
    return made


@pytest.mark.parametrize("isa", isa_params("sve256"))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_blocks(isa, dtype):
    made = cases(dtype, isa)
    assert {one.plan.kernel for one in made} == {f"conv-{unit_for(isa, dtype).kind}"}
    assert all("sve256" in one.plan.features for one in made)
    runner = Runner([one.plan for one in made], isa)
    for machine in (runner.machine, NEWEST):
        runner.kernels.machine = machine
        results = runner.run_all([(one.plan, one.inputs, one.out) for one in made], 2)
        for one, got in zip(made, results, strict=True):
            one.check(got)


@pytest.mark.parametrize("isa", isa_params("sve256"))
def test_transposed(isa):
    spec = ConvTransposeSpec(
        1, 5, 4, 12, 10, 3, 2, stride=(2, 2), pads=(1, 0, 1, 0), in_zero_point=7, epilogue=CODES
    )
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (1, 5, 4, 12), dtype=np.uint8)
    w = rng.integers(-127, 128, (12, 10, 3, 2), dtype=np.int8)
    acc = transposed_accumulators(x.astype(np.int64) - 7, w, spec)
    bias, factor = np.zeros(10, np.int32), np.full(10, 60 / acc.std(), np.float32)
    plan = conv2d_transpose(spec, isa, w, bias, factor, amx=False)
    assert plan.kernel == "conv-sve_usmmla-t"
    got = Runner([plan], isa).run(plan, [x], np.zeros(acc.shape, np.uint8), 2)
    np.testing.assert_array_equal(got, finish(acc, CODES, bias, factor))


def test_blocks_keep_to_the_registers():
    """No sum shares its register with anything, whatever the block."""
    for dtype in ("u8", "f32"):
        unit = unit_for(SVE256, dtype)
        gemm: Gemm = geometry(typed(replace(FLAT, oc=64), dtype), SVE256).gemm
        seen = set()
        for height, width, blocks in shapes(gemm, unit):
            loop = Reduction(height * width, blocks, (), 45, dtype == "f32")
            seen.add((height * width, blocks))
            sums, others = set(), set()
            for line in loop.code():
                registers = [int(z) for z in re.findall(r"\bz(\d+)\.", line)]
                if line.startswith(("usmmla", "fmla")):
                    sums.add(registers[0])
                    others |= {*registers[1:]}
            assert not sums & others
            assert max(sums | others) < 32
            if dtype == "f32":
                assert max(int(z) for z in re.findall(r"z(\d+)\.s\[", str(loop.code()))) < 8
        assert (4, 6) in seen or dtype == "f32"


def test_distances_of_any_size_are_added():
    far = Reduction(1, 1, ((3, (1 << 24) + 5), (2, 4097)), 16, False).code()
    assert "add <x0>, <x0>, #1" in far
    assert "add <x0>, <x0>, #1, lsl #12" in far
    back = (1 << 24) + 5 - 2 * 4097
    assert f"add <x0>, <x0>, #{back & 0xFFF}" in far
    assert f"add <x0>, <x0>, #{back >> 12}, lsl #12" in far
    single = Reduction(1, 1, ((3, (1 << 24) + 5),), 16, False).code()
    assert single[single.index("movz <k>, #5") :][:5] == [
        "movz <k>, #5",
        "movk <k>, #256, lsl #16",
        "movk <k>, #0, lsl #32",
        "movk <k>, #0, lsl #48",
        "add <x0>, <x0>, <k>",
    ]


def test_neon_keeps_what_it_does_better():
    row = SveConvRow(SVE256)
    for bits, refused in (
        (32, {"the layer is depthwise"}),
        (16, {"the operands are floats of 16 bits"}),
    ):
        made = optimise(small_net(), CompileOptions(bits=bits, target="arm:sve256")).graph
        why = [row.refuses(node) for node in prepare(made).nodes if node.op in row.ops]
        assert set(why) - {""} == refused
        assert ("" in why) == (bits == 32)
