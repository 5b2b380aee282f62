"""Products of few rows by scattered weights on GPUs, against numpy and by the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.cuda.cubin import read_cubin
from dlcc.driver import CompileOptions
from dlcc.lowering.choice import choose
from dlcc.lowering.report import layer_report
from passes.pipelines import OPTIMISE
from targets import get_target
from targets.kernels.grid_sparse_rows import (
    LANES,
    grid_scattered,
    packed_entries,
    scattered_cost,
)
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_sparse import AMPERE
from tests.passes.conftest import Net
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short

SPEC = ConvSpec(1, 1, 3, 203, 50, in_zero_point=7, epilogue=Epilogue("u8", 3, 250, 10, "u8", 5))


def scattered(weights: np.ndarray) -> np.ndarray:
    """A fifth of ``weights`` [oc, c, 1, 1], and an output without any."""
    kept = np.random.default_rng(9).random(weights.shape) < 0.2
    kept[7] = False
    return (weights * kept).astype(weights.dtype)


def test_scattered_codes():
    rng = np.random.default_rng(0)
    weights = scattered(rng.integers(-128, 128, (50, 203, 1, 1)).astype(np.int8))
    x = rng.integers(0, 256, (1, 1, 3, 203), dtype=np.uint8)
    bias = rng.integers(-3000, 3000, 50).astype(np.int32)
    acc = conv_accumulators(x, weights, SPEC)
    factor = (rng.uniform(0.5, 1.5, 50) * 60 / acc.std()).astype(np.float32)
    ratio = rng.uniform(1, 40, 50).astype(np.float32)
    residual = rng.integers(0, 256, acc.shape, dtype=np.uint8)
    want = finish(acc, SPEC.epilogue, bias, factor, ratio, residual)
    parts = weights, bias, factor, ratio, AMPERE
    plans = [grid_scattered(SPEC, *parts, lanes) for lanes in LANES]
    runner = GridRunner(plans)
    for plan in plans:
        got = runner.run(plan, [x, residual], np.zeros_like(want))
        np.testing.assert_array_equal(got, want)
    assert not any(kernel.local_bytes for kernel in read_cubin(runner.cubin).kernels.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_scattered_floats(dtype):
    rng = np.random.default_rng(1)
    weights = scattered(rng.standard_normal((50, 203, 1, 1)).astype(np.float32) / 6)
    x = rng.standard_normal((1, 1, 3, 203)).astype(np.float32)
    bias = rng.standard_normal(50).astype(np.float32)
    short = dtype != "f32"
    real = (rounded(x, dtype), rounded(weights, dtype)) if short else (x, weights)
    spec = replace(SPEC, in_dtype=dtype, stored="f32", epilogue=Epilogue(dtype, -1.5, 2.5))
    want = finish(conv_accumulators(*real, spec), spec.epilogue, bias)
    given = bits(weights, dtype) if short else weights
    plan = grid_scattered(spec, given, bias, None, None, AMPERE)
    got = GridRunner([plan]).run(plan, [x], np.zeros(want.shape, NUMPY[dtype]))
    if short:
        check_short(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_only_entries_are_stored():
    weights = np.zeros((3, 100, 1, 1), np.int8)
    weights[0, [3, 99], 0, 0], weights[2, 10:50, 0, 0] = (5, -6), 1
    made = packed_entries(weights, 8)
    assert made["starts"].tolist() == [0, 1, 1, 3]
    assert made["columns"][:4].tolist() == [3, 99, 99, 99]
    assert made["values"][:4].tolist() == [5, -6, 0, 0]
    assert made["columns"][32:72].tolist() == list(range(10, 50))
    assert (made["values"][72:] == 0).all()


def chosen(rows: int):
    """The choice for a pruned layer of so many rows."""
    target, net = get_target("cuda:sm_80"), Net()
    graph = net.done(net.linear(net.input(rows, 1024), 512))
    options = CompileOptions(passes=f"{OPTIMISE},prune{{sparsity=0.95}}")
    (node,) = dlcc.optimise(graph, options, target=target).graph.nodes
    return choose(node, target)


def test_scattered_weights_of_few_rows_and_of_many():
    one, many = chosen(1), chosen(64)
    assert one.row.name == "grid-gemv-csr"
    assert "predicted" in one.rejected["grid-gemv"]
    assert sum(a.nbytes for a in one.plan.constants.values()) < 0.2 * 4 * 1024 * 512
    assert many.row.name == "grid-gemm"
    assert layer_report(many, [])["weights"] == "decoded"
    assert "64 rows of activations" in many.rejected["grid-gemv-csr"]


def test_dense_is_faster_where_half_is_left():
    weights = np.ones((1024, 1024, 1, 1), np.int8)
    weights[:, ::2] = 0
    spec = ConvSpec(1, 1, 1, 1024, 1024)
    few = weights.copy()
    few[:, 64:] = 0
    half, little = (scattered_cost(spec, w, AMPERE) for w in (weights, few))
    assert little < 0.8 * half
