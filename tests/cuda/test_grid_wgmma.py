"""Products of Hopper's warpgroups: results by the emulator, machine code by the disassembler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcc.codegen import device_source
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.nvrtc import compile_logged
from dlcc.tir.cuda import cuda_source
from targets.cuda.table import machine_of
from targets.kernels.grid_gemm import GROUP_TILES, grid_gemm
from targets.kernels.grid_matmul import grid_matmul
from targets.kernels.grid_xnor import grid_xnor
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue, MatmulSpec
from targets.kernels.xnor import BinaryLayer
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_kernels import by_gemm, check
from tests.cuda.test_grid_signs import some_layer
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short
from tests.targets.test_gemm_kernels import Case, typed

HOPPER = machine_of(ARCHITECTURES["sm_90"])
CODE = str(ARCHITECTURES["sm_90"].code)
NARROW = GROUP_TILES[-1]
DEEP = ConvSpec(1, 5, 7, 112, 72, 3, 3, pads=(1, 1, 1, 1), epilogue=Epilogue("u8", 3, 250, 10))
"""More slices than there are stages; neither pixels nor channels nor depth fill what they could."""
LARGE = ConvSpec(64, 28, 28, 128, 256, 3, 3, pads=(1, 1, 1, 1))


def codes(tiles, splits=(1,)):
    """The bytes of numpy, threads forwards and backwards, copies and products late and early."""
    spec = typed(DEEP, "u8")
    cut = [replace(tile, splits=parts) for tile in tiles for parts in splits]
    check({tile: Case(spec, None, plan=by_gemm(HOPPER, tile)) for tile in cut}, CODE)


def short_floats(dtype, tiles):
    spec = ConvSpec(1, 9, 7, 40, 50, 3, 3, (2, 1), pads=(1, 1, 1, 1), in_dtype=dtype)
    spec = replace(spec, epilogue=Epilogue(dtype, -1.5, 2.5))
    rng = np.random.default_rng(2)
    x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
    w = rng.standard_normal((spec.oc, spec.c, 3, 3)).astype(np.float32) / 16
    bias = rng.standard_normal(spec.oc).astype(np.float32)
    sums = conv_accumulators(rounded(x, dtype), rounded(w, dtype), spec)
    want = finish(sums, spec.epilogue, bias)
    plans = [grid_gemm(spec, bits(w, dtype), bias, None, None, HOPPER, tile) for tile in tiles]
    runner = GridRunner(plans, CODE)
    for plan in plans:
        got = runner.run(plan, [bits(x, dtype)], np.zeros(want.shape, NUMPY[dtype]))
        check_short(got, want)


def test_codes():
    codes([NARROW], (1, 2))


def test_short_floats():
    short_floats("f16", [NARROW])


@pytest.mark.slow
def test_every_tile():
    codes(GROUP_TILES, (1, 3))
    for dtype in ("f16", "bf16"):
        short_floats(dtype, GROUP_TILES)


@pytest.mark.slow
def test_products_of_activations():
    spec = MatmulSpec(2, 130, 200, 300, "u8", 9, 140, epilogue=Epilogue("u8", 0, 255, 7))
    plan = grid_matmul(spec, replace(HOPPER, multiprocessors=1), 2e-4)
    assert plan.kernel.startswith("wgmma")
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 256, s, dtype=np.uint8) for s in ((2, 130, 200), (2, 200, 300)))
    sums = (a.astype(np.int64) - 9) @ (b.astype(np.int64) - 140)
    want = np.clip(np.rint(sums.astype(np.float32) * np.float32(2e-4)) + 7, 0, 255)
    runner = GridRunner([plan], CODE)
    for reverse in (False, True):
        got = runner.run(plan, [a, b], np.zeros(want.shape, np.uint8), reverse=reverse)
        np.testing.assert_array_equal(got, want)


def remarks(source: str) -> list[str]:
    """What the assembler says of products of warpgroups."""
    log = compile_logged(source, CODE)[1]
    return [line for line in log.splitlines() if "ptxas" in line and "C75" in line]


@pytest.mark.parametrize(
    "tile",
    [pytest.param(tile, marks=[pytest.mark.slow] * (i > 0)) for i, tile in enumerate(GROUP_TILES)],
)
@pytest.mark.parametrize("dtype", ["u8", "f16"])
def test_products_run_on_their_own(dtype, tile):
    """The assembler has nothing to remark: no waits of its own, nothing serialised."""
    spec = replace(LARGE, in_dtype=dtype, epilogue=Epilogue(dtype))
    weights = np.zeros((spec.oc, spec.c, 3, 3), "int8" if dtype == "u8" else NUMPY[dtype])
    factor = np.ones(spec.oc, np.float32) if dtype == "u8" else None
    (step,) = grid_gemm(spec, weights, np.zeros(spec.oc), factor, None, HOPPER, tile).steps
    assert remarks(device_source({step.name_key: step.build()})) == []


def test_the_assembler_remarks_on_products_that_wait():
    """What the test above looks for is what there is where registers are used too early."""
    text = """extern "C" __global__ void k(int *out) {
      extern __shared__ __align__(1024) uint8_t s[];
      int sum[32];
      for (int i = 0; i < 32; i++) sum[i] = i;
      dlcc_wgmma_begin();
      dlcc_wgmma_u8s8_64(sum, s, s + 8192);
      out[0] = sum[0];
      dlcc_wgmma_commit();
      dlcc_wgmma_wait_0();
      for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = sum[i];
    }"""
    assert remarks(device_source({}) + text) != []


def test_signs_have_no_such_products():
    layer = some_layer(20000, 8192, signs=False)
    factors = np.ones(400, np.float32)
    spec, negative = replace(layer.spec, oc=400), np.repeat(layer.negative, 10, axis=0)
    plan = grid_xnor(BinaryLayer(spec, negative, factors, factors, False), HOPPER)
    text = cuda_source({step.name_key: step.build() for step in plan.steps})
    assert "dlcc_mma_b1" in text
    assert "wgmma" not in text
