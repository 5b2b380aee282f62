"""Kernels of GPUs against numpy, run by the emulator from the source that cubins are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcc.ir import Affine
from dlcc.ir.encodings import DENSE
from targets.kernels.grid_direct import grid_conv2d, grid_conv2d_transpose
from targets.kernels.grid_gemm import (
    MMA_TILES,
    SIMT_TILES,
    best_tile,
    gemm_refusal,
    grid_gemm,
)
from targets.kernels.grid_gemm_code import Tile
from targets.kernels.grid_items import on_grid
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_matmul import grid_matmul
from targets.kernels.spec import NUMPY, ConvSpec, ConvTransposeSpec, Epilogue, MatmulSpec
from targets.rows.grid_rows import GridNormRow, GridSoftmaxRow
from tests.cuda.running import GridRunner
from tests.ops.tir_harness import affine, case, constant, f32, reference, u8
from tests.targets import test_matmul_kernels as matmul_cases
from tests.targets.reference import conv_accumulators, finish, transposed_accumulators
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short
from tests.targets.test_direct_kernels import ALL
from tests.targets.test_gemm_kernels import Case, typed
from tests.targets.test_softmax_kernels import softmax_cases

AMPERE = Machine(108, 1.4e9, mma=True, shared_bytes=163 << 10)
PASCAL = Machine(28, 1.5e9, mma=False, shared_bytes=48 << 10)
RAGGED = ConvSpec(1, 9, 7, 48, 72, 3, 3, pads=(1, 1, 1, 1), epilogue=Epilogue("u8", 3, 250, 10))
"""Neither its pixels nor its channels fill a tile, nor its depth a slice."""

SHORT = {
    name: ALL[name]
    for name in ("linear-m1", "stem", "pixels-and-channels-uneven", "depthwise-strided", "wide")
}


def by_gemm(machine: Machine, tile: Tile | None = None):
    def plan(spec, _isa, *constants):
        return grid_gemm(spec, *constants, machine, tile)

    return plan


def directly(spec, _isa, *constants):
    return on_grid(grid_conv2d(spec, *constants))


def check(cases: dict[object, Case], architecture: str = "sm_80") -> None:
    runner = GridRunner([layer.plan for layer in cases.values()], architecture)
    for name, layer in cases.items():
        for reverse in (False, True):
            got = runner.run(layer.plan, layer.inputs, layer.out, reverse=reverse)
            try:
                layer.check(got)
            except AssertionError as error:
                raise AssertionError(f"{name}, reverse={reverse}: {error}") from error


@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_a_thread_for_each_result(dtype):
    check({name: Case(typed(spec, dtype), None, plan=directly) for name, spec in ALL.items()})


@pytest.mark.parametrize(("machine", "architecture"), [(AMPERE, "sm_80"), (PASCAL, "sm_61")])
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_blocked_products(dtype, machine, architecture):
    specs = {name: typed(spec, dtype) for name, spec in ALL.items()}
    made = {
        name: Case(spec, None, plan=by_gemm(machine))
        for name, spec in specs.items()
        if not gemm_refusal(spec)
    }
    assert len(made) > 8
    check(made, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_every_tile(dtype):
    made = {}
    for machine, tiles in ((AMPERE, MMA_TILES), (PASCAL, SIMT_TILES)):
        if machine.unit(dtype) == "mma" or machine is PASCAL:
            for tile in tiles:
                for splits in (1, 3):
                    cut = replace(tile, splits=splits)
                    spec = typed(RAGGED, dtype)
                    made[cut] = Case(spec, None, plan=by_gemm(machine, cut))
    assert len(made) > 10
    check(made)


@pytest.mark.parametrize(
    ("plan", "architecture"),
    [(directly, "sm_80"), (by_gemm(AMPERE), "sm_90"), (by_gemm(PASCAL), "sm_70")],
)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_short_floats(dtype, plan, architecture):
    rng = np.random.default_rng(2)
    jobs = []
    for given_spec in SHORT.values():
        for stored_as, out in ((dtype, dtype), ("f32", "f32")):
            spec = replace(
                given_spec,
                in_dtype=dtype,
                stored=stored_as,
                epilogue=Epilogue(out, -1.5, 2.5),
            )
            if spec.groups > 1 and plan is not directly:
                continue
            x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
            shape = (spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
            w = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
            bias = rng.standard_normal(spec.oc).astype(np.float32)
            short = rounded(x, dtype), rounded(w, dtype)
            want = finish(conv_accumulators(*short, spec), spec.epilogue, bias)
            made = plan(spec, None, bits(w, dtype), bias, None, None)
            jobs.append((made, bits(x, dtype) if stored_as == dtype else x, want, out))
    runner = GridRunner([made for made, *_ in jobs], architecture)
    for made, x, want, out in jobs:
        check_short(runner.run(made, [x], np.zeros(want.shape, NUMPY[out])), want)


@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_transposed(dtype):
    jobs = []
    for groups in (1, 2):
        out = Epilogue("u8", 3, 250, 10) if dtype == "u8" else Epilogue("f32", -1.0, 90.0)
        spec = ConvTransposeSpec(
            2, 5, 6, 8, 12, 3, 4, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0), groups, dtype, 11, out
        )
        rng = np.random.default_rng(3)
        x = rng.integers(0, 256, (2, 5, 6, 8), dtype=np.uint8)
        w = rng.integers(-127, 128, (8, 12 // groups, 3, 4), dtype=np.int8)
        bias = rng.integers(-500, 500, 12).astype(np.int32)
        factor = rng.uniform(2e-3, 4e-3, 12).astype(np.float32) if dtype == "u8" else None
        if dtype == "f32":
            x, w, bias = (
                x.astype(np.float32) / 64,
                w.astype(np.float32) / 64,
                bias / np.float32(500),
            )
        acc = transposed_accumulators(x.astype(np.int64) - 11 if dtype == "u8" else x, w, spec)
        want = finish(acc, spec.epilogue, bias, factor)
        plan = on_grid(grid_conv2d_transpose(spec, w, bias, factor))
        jobs.append((plan, x, want))
    runner = GridRunner([plan for plan, *_ in jobs])
    for plan, x, want in jobs:
        got = runner.run(plan, [x], np.zeros_like(want))
        tolerance = 0 if dtype == "u8" else 2e-5
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("machine", "architecture"), [(AMPERE, "sm_80"), (PASCAL, "sm_61")])
def test_products_of_activations(machine, architecture):
    made = {
        name: matmul_cases.Case(spec, machine, plan=grid_matmul)
        for name, spec in matmul_cases.CASES.items()
    }
    runner = GridRunner([layer.plan for layer in made.values()], architecture)
    for name, layer in made.items():
        got = runner.run(layer.plan, layer.inputs, layer.out)
        room = 0 if layer.exact else 4e-5
        np.testing.assert_allclose(got, layer.want, rtol=room, atol=room, err_msg=name)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_short_products_of_activations(dtype):
    jobs = []
    for transposed, stored_as in ((False, dtype), (True, "f32"), (True, dtype)):
        spec = MatmulSpec(
            3, 17, 40, 43, dtype, transpose_b=transposed, a_stored=stored_as, b_stored=stored_as
        )
        rng = np.random.default_rng(6)
        a = rng.standard_normal((3, 17, 40)).astype(np.float32)
        b = rng.standard_normal((3, 40, 43)).astype(np.float32) / 8
        want = rounded(a, dtype) @ rounded(b, dtype)
        b = np.ascontiguousarray(b.transpose(0, 2, 1)) if transposed else b
        inputs = [bits(x, dtype) if stored_as == dtype else x for x in (a, b)]
        jobs.append((grid_matmul(spec, AMPERE), inputs, want))
    runner = GridRunner([plan for plan, *_ in jobs])
    for plan, inputs, want in jobs:
        check_short(runner.run(plan, inputs, np.zeros_like(want)), want)


def norm_cases():
    """Layer and RMS norms of floats and of codes, with and without scale and bias."""
    made = {}
    for n in (5, 32, 197, 768):
        x, codes = f32(2, 3, n, seed=n), u8(2, 3, n, seed=n, scale=0.04)
        scale, bias = (constant(f32(n, seed=seed).array) for seed in (1, 2))
        made[f"layer-{n}"] = case("layer_norm", [x, scale, bias], {"epsilon": 1e-3})
        made[f"layer-bare-{n}"] = case("layer_norm", [x, None, None], {"axis": 1})
        made[f"rms-{n}"] = case("rms_norm", [x, scale])
        for out in (affine(0.03, 120), Affine.per_tensor(8, True, 0.05, -4), DENSE):
            made[f"codes-{out}-{n}"] = case("layer_norm", [codes, scale, bias], out=out)
    return made


@pytest.mark.parametrize(
    ("row", "cases"), [(GridSoftmaxRow, softmax_cases), (GridNormRow, norm_cases)]
)
def test_rows(row, cases):
    cases, row = cases(), row(AMPERE)
    assert not any(row.refuses(made.node) for made in cases.values())
    plans = [row.plan(made.node) for made in cases.values()]
    runner = GridRunner(plans)
    for (name, made), plan in zip(cases.items(), plans, strict=True):
        (want,) = reference(made)
        results = [
            runner.run(plan, [made.arrays[0]], np.zeros_like(want), reverse=reverse)
            for reverse in (False, True)
        ]
        np.testing.assert_array_equal(*results, err_msg=name)
        if made.arrays[0].dtype == np.float32:
            np.testing.assert_allclose(results[0], want, rtol=2e-5, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(results[0], want, err_msg=name)


def test_large_tensors_are_refused():
    spec = ConvSpec(64, 1024, 1024, 16, 64, 3, 3, pads=(1, 1, 1, 1))
    assert "2 GiB" in gemm_refusal(spec)
    assert not gemm_refusal(replace(spec, n=1, w=512))


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32"])
def test_tiles_fill_the_machine(dtype):
    """One image is cut until its blocks occupy at least half of the multiprocessors."""
    spec = ConvSpec(1, 7, 7, 512, 512, 3, 3, pads=(1, 1, 1, 1), in_dtype=dtype)
    tile = best_tile(spec, AMPERE)
    blocks = -(-49 // tile.rows) * -(-512 // tile.columns) * tile.splits
    assert blocks >= AMPERE.multiprocessors // 2
    many = best_tile(replace(spec, n=64, h=56, w=56, c=64, oc=256), AMPERE)
    assert (many.splits, many.rows * many.columns >= 64 * 64) == (1, True)
