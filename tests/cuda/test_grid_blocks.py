"""Kernels of GPUs that skip blocks of zeros, against numpy and by the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.driver import CompileOptions
from dlcc.lowering.choice import choose
from passes.pipelines import OPTIMISE
from targets import get_target
from targets.kernels.grid_sparse_blocks import (
    BlocksTile,
    best_blocks,
    blocks_refusal,
    grid_blocks,
    packed_blocks,
)
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_sparse import AMPERE, PASCAL, RAGGED
from tests.passes.conftest import Net
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short
from tests.targets.test_sparse_kernels import zeros_of

NARROW = ConvSpec(1, 1, 21, 44, 40)
"""Its pixels are no multiple of 16 bytes of codes."""


def in_blocks(spec: ConvSpec, block: tuple[int, int], density: float, weights) -> np.ndarray:
    """``weights`` [oc, kh, kw, c] with random blocks of zeros, as [oc, c, kh, kw]."""
    rng, depth = np.random.default_rng(4), spec.kh * spec.kw * spec.c
    kept = zeros_of(rng, spec.oc, depth, block, density)
    kept[: min(32, spec.oc // 2)] = 0  # a tile without any
    made = (weights.reshape(spec.oc, -1) * kept).astype(weights.dtype)
    return np.ascontiguousarray(made.reshape(weights.shape).transpose(0, 3, 1, 2))


def shapes(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (spec.n, spec.h, spec.w, spec.c), (spec.oc, spec.kh, spec.kw, spec.c)


def codes_case(spec: ConvSpec, block: tuple[int, int], machine, tile=None):
    """A plan for codes, its inputs and results."""
    rng, (image, kernel) = np.random.default_rng(spec.oc), shapes(spec)
    weights = in_blocks(spec, block, 0.3, rng.integers(-128, 128, kernel).astype(np.int8))
    inputs = [rng.integers(0, 256, image, dtype=np.uint8)]
    bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
    acc = conv_accumulators(inputs[0], weights, spec)
    factor = (rng.uniform(0.5, 1.5, spec.oc) * 60 / acc.std()).astype(np.float32)
    ratio = None
    if spec.epilogue.residual:
        inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
    want = finish(acc, spec.epilogue, bias, factor, ratio, inputs[1] if ratio is not None else None)
    assert not blocks_refusal(spec, weights, machine)
    return grid_blocks(spec, weights, bias, factor, ratio, machine, tile), inputs, want


def check_codes(jobs, architecture: str = "sm_80") -> None:
    runner = GridRunner([plan for plan, *_ in jobs], architecture)
    for plan, inputs, want in jobs:
        for reverse in (False, True):
            got = runner.run(plan, inputs, np.zeros_like(want), reverse=reverse)
            np.testing.assert_array_equal(got, want, err_msg=f"{plan.kernel}, {reverse}")


def test_blocks_of_codes():
    cut = BlocksTile(32, 32, (2, 2), splits=3)
    made = [
        codes_case(RAGGED, block, AMPERE, tile)
        for block, tile in (((16, 16), None), ((32, 32), cut))
    ]
    check_codes([*made, codes_case(replace(NARROW, in_zero_point=3), (16, 4), AMPERE)])


@pytest.mark.slow
def test_blocks_of_codes_by_threads():
    tiles = [None, BlocksTile(32, 32, (8, 1)), BlocksTile(16, 16, (8, 1), splits=3)]
    check_codes([codes_case(RAGGED, (32, 16), PASCAL, tile) for tile in tiles], "sm_61")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_blocks_of_floats(dtype):
    spec = replace(RAGGED, in_dtype=dtype, in_zero_point=0, epilogue=Epilogue(dtype, -1.5, 2.5))
    rng, (image, kernel) = np.random.default_rng(8), shapes(spec)
    x = rng.standard_normal(image).astype(np.float32)
    w = in_blocks(spec, (16, 8), 0.3, rng.standard_normal(kernel).astype(np.float32) / 8)
    bias = rng.standard_normal(spec.oc).astype(np.float32)
    given = (w, x) if dtype == "f32" else (bits(w, dtype), bits(x, dtype))
    real = (w, x) if dtype == "f32" else (rounded(w, dtype), rounded(x, dtype))
    assert not blocks_refusal(spec, given[0], AMPERE)
    plan = grid_blocks(spec, given[0], bias, None, None, AMPERE)
    want = finish(conv_accumulators(real[1], real[0], spec), spec.epilogue, bias)
    got = GridRunner([plan]).run(plan, [given[1]], np.zeros(want.shape, NUMPY[dtype]))
    if dtype == "f32":
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    else:
        check_short(got, want)


def test_only_present_parts_are_stored():
    rows = np.zeros((64, 128), np.uint8)
    rows[3, 37], rows[40, [5, 20, 64, 80, 127]] = 1, 2
    present = rows.reshape(2, 32, 8, 16).any(axis=(1, 3))
    made = packed_blocks(rows, present)
    assert made["starts"].tolist() == [0, 1, 3]
    assert made["parts"][:12].tolist() == [32, 32, 32, 32, 0, 16, 64, 80, 112, 112, 112, 112]
    assert made["weight"].shape == (3, 32, 64)
    assert made["weight"][0, 3, 5] == 1
    assert np.flatnonzero(made["weight"][1:, 8]).tolist() == [5, 20, 32, 48, 64 + 15]


def test_zeros_that_fill_no_block():
    spec = replace(NARROW, c=64)
    weights = np.tile(np.eye(2, dtype=np.int8), (20, 32))[:, :, None, None]
    assert "100 % of the blocks of 16 channels and 16 bytes" in blocks_refusal(
        spec, weights, AMPERE
    )
    grouped = replace(spec, groups=2)
    assert "2 groups" in blocks_refusal(grouped, weights[:, :32], AMPERE)


def test_the_widest_tile_that_the_blocks_fill():
    spec = ConvSpec(64, 28, 28, 128, 128, 3, 3, pads=(1, 1, 1, 1), epilogue=Epilogue("u8"))
    weights = in_blocks(spec, (64, 16), 0.2, np.ones(shapes(spec)[1], np.int8))
    (quarter, tile), (whole, _) = (best_blocks(spec, w, AMPERE) for w in (weights, weights | 1))
    assert tile.columns == 64
    assert quarter < 0.5 * whole


def test_pruned_blocks_are_smaller_and_faster():
    """The pass chooses the block by the target."""
    target, net = get_target("cuda:sm_80"), Net()
    graph = net.done(net.conv(net.input(1, 128, 5, 5), 128, pads=(1, 1, 1, 1)))
    options = CompileOptions(passes=f"{OPTIMISE},prune{{sparsity=0.75 pattern=block}},quantize")
    made = dlcc.optimise(graph, options, target=target).graph.nodes
    (node,) = (node for node in made if node.op == "conv2d")
    assert node.input(1).type.encoding.pattern == "block32x16"
    whole, pruned = choose(node, target.without(["grid-gemm-blocks"])), choose(node, target)
    sizes = [sum(a.nbytes for a in choice.plan.constants.values()) for choice in (whole, pruned)]
    assert (pruned.row.name, whole.row.name) == ("grid-gemm-blocks", "grid-gemm")
    assert pruned.seconds < 0.9 * whole.seconds
    assert sizes[1] < 0.3 * sizes[0]
