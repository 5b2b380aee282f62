"""Kernels of GPUs for pruned weights, against numpy and by the emulator."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.driver import CompileOptions
from dlcc.ir import Graph
from dlcc.ir.text import graphs_equal, load, save
from dlcc.lowering.choice import choose
from passes.pipelines import OPTIMISE
from targets import get_target
from targets.kernels.grid_gemm import best_tile, predicted
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_sparse import (
    SPARSE_TILES,
    best_sparse_tile,
    grid_sparse,
    packed_sparse,
    sparse_refusal,
)
from targets.kernels.grid_sparse_code import SparseTile, places_bytes
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.cuda.emulator import compiled_for_cpu, emulator
from tests.cuda.running import GridRunner
from tests.passes.conftest import Net
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short

AMPERE = Machine(108, 1.4e9, mma=True, shared_bytes=163 << 10, memory=1.5e12)
PASCAL = Machine(28, 1.5e9, mma=False, shared_bytes=48 << 10)
RAGGED = ConvSpec(
    *(1, 9, 7, 48, 72, 3, 3),
    pads=(1, 1, 1, 1),
    in_zero_point=7,
    epilogue=Epilogue("u8", 3, 250, 10, "u8", 5),
)
"""Neither its pixels nor its channels fill a tile, nor its depth a slice."""

NARROW = ConvSpec(1, 1, 5, 68, 33, in_zero_point=9, epilogue=Epilogue("f32"))
"""Its pixels are no multiple of 16 bytes."""

NARROW_F32 = replace(NARROW, in_dtype="f32")


def two_of_four(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """``weights`` [oc, c, kh, kw] of which at most 2 of every 4 neighbouring channels are left."""
    fours = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(-1, 4)
    kept = np.argsort(rng.random(fours.shape), axis=1) < 2
    kept[::7] &= rng.random(kept[::7].shape) < 0.5  # fewer, too
    oc, c, kh, kw = weights.shape
    return np.ascontiguousarray((fours * kept).reshape(oc, kh, kw, c).transpose(0, 3, 1, 2))


class CodesCase:
    """Random codes for a spec, its plan and its reference output."""

    def __init__(self, spec: ConvSpec, tile: SparseTile | None = None) -> None:
        rng = np.random.default_rng(spec.oc)
        shape, kernel = (spec.n, spec.h, spec.w, spec.c), (spec.oc, spec.c, spec.kh, spec.kw)
        self.weights = two_of_four(rng, rng.integers(-128, 128, kernel).astype(np.int8))
        self.inputs = [rng.integers(0, 256, shape, dtype=np.uint8)]
        bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
        acc = conv_accumulators(self.inputs[0], self.weights, spec)
        factor = (rng.uniform(0.5, 1.5, spec.oc) * 60 / acc.std()).astype(np.float32)
        ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
        if spec.epilogue.residual:
            self.inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        given = self.inputs[1] if spec.epilogue.residual else None
        self.want = finish(acc, spec.epilogue, bias, factor, ratio, given)
        parts = self.weights, bias, factor, ratio if spec.epilogue.residual else None
        assert not sparse_refusal(spec, self.weights, AMPERE)
        self.plan = grid_sparse(spec, *parts, AMPERE, tile)


def check(cases: dict[object, CodesCase]) -> None:
    runner = GridRunner([case.plan for case in cases.values()])
    for name, case in cases.items():
        for reverse in (False, True):
            got = runner.run(case.plan, case.inputs, np.zeros_like(case.want), reverse=reverse)
            np.testing.assert_array_equal(got, case.want, err_msg=f"{name}, reverse={reverse}")


def test_two_of_four_codes():
    cut = SparseTile(64, 64, (2, 2), splits=3)
    check({"cut": CodesCase(RAGGED, cut), "narrow": CodesCase(NARROW)})


@pytest.mark.slow
def test_every_sparse_tile_of_codes():
    tiles = [replace(tile, splits=splits) for tile in SPARSE_TILES for splits in (1, 3)]
    check({tile: CodesCase(RAGGED, tile) for tile in tiles})


@pytest.mark.parametrize("dtype", ["f16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_two_of_four_short_floats(dtype):
    rng, jobs = np.random.default_rng(3), []
    for stored, out, tile in ((dtype, dtype, (16, 64, (1, 2))), ("f32", "f32", (32, 64, (2, 2)))):
        spec = ConvSpec(
            *(1, 5, 6, 20, 70, 3, 2), pads=(1, 0, 1, 1), in_dtype=dtype, stored=stored,
            epilogue=Epilogue(out, -1.5, 2.5),
        )  # fmt: skip
        x = rng.standard_normal((1, 5, 6, 20)).astype(np.float32)
        w = two_of_four(rng, rng.standard_normal((70, 20, 3, 2)).astype(np.float32) / 8)
        bias = rng.standard_normal(spec.oc).astype(np.float32)
        assert not sparse_refusal(spec, bits(-w, dtype), AMPERE)  # -0.0 counts as a zero
        acc = conv_accumulators(rounded(x, dtype), rounded(w, dtype), spec)
        cut = SparseTile(*tile, places=places_bytes(dtype))
        plan = grid_sparse(spec, bits(w, dtype), bias, None, None, AMPERE, cut)
        jobs.append((plan, bits(x, dtype) if stored == dtype else x, acc, bias, spec.epilogue))
    runner = GridRunner([plan for plan, *_ in jobs])
    for plan, x, acc, bias, epilogue in jobs:
        want = finish(acc, epilogue, bias)
        check_short(runner.run(plan, [x], np.zeros(want.shape, NUMPY[epilogue.out])), want)


@pytest.mark.parametrize(("dtype", "size", "kept"), [("int8", 64, 40), ("float16", 32, 36)])
def test_half_of_the_weights_is_stored(dtype, size, kept):
    """A slice of 64 bytes: 32 bytes of weights, and 4 bits for every four elements."""
    weights = two_of_four(np.random.default_rng(0), np.ones((64, 4 * size, 1, 1), dtype))
    tile = SparseTile(64, 64, (2, 2), places=kept - 32)
    assert packed_sparse(weights, 4, tile).nbytes == 64 * 4 * kept


def test_sparse_refusals():
    dense = np.ones((RAGGED.oc, RAGGED.c, 3, 3), np.int8)
    assert "4 of some 4" in sparse_refusal(RAGGED, dense, AMPERE)
    for spec, machine in ((RAGGED, PASCAL), (NARROW_F32, replace(AMPERE, tf32=True))):
        assert "no sparse tensor cores" in sparse_refusal(spec, dense, machine)
    grouped = replace(RAGGED, groups=2)
    assert "2 groups" in sparse_refusal(grouped, dense[:, :24], AMPERE)


def test_predicted_gains():
    """Large products gain, by less than the published factor of 2; what waits for memory less."""
    large = ConvSpec(64, 14, 14, 512, 512, 3, 3, pads=(1, 1, 1, 1))
    for spec, least in ((large, 1.2), (replace(large, n=1), 1.0)):
        dense = predicted(spec, best_tile(spec, AMPERE), AMPERE)
        assert least <= dense / predicted(spec, best_sparse_tile(spec, AMPERE), AMPERE) <= 1.6


def small() -> Graph:
    """Two layers that the pattern 2:4 fits."""
    net = Net()
    y = net.conv(net.input(1, 16, 5, 5), 48, pads=(1, 1, 1, 1), act_min=0.0, loc="first")
    return net.done(net.conv(y, 72, loc="second"))


@pytest.mark.parametrize(
    "lossy", ["quantize", pytest.param("round-to-float16", marks=pytest.mark.slow)]
)
def test_a_pruned_network(lossy, tmp_path):
    """The pass's option is the CPU's; results are the reference's, codes byte by byte."""
    emulator()
    options = {"passes": f"{OPTIMISE},prune{{pattern=2:4}},{lossy}"}
    with compiled_for_cpu():
        dlcc.compile(small(), tmp_path / "gpu", target="cuda:sm_80", **options)
    rows = json.loads((tmp_path / "gpu" / "report.json").read_text("utf-8"))["layers"]
    rows = [row for row in rows if row["op"] == "conv2d"]
    assert [row["kernel"] for row in rows] == ["grid-gemm-2:4"] * 2
    assert [row["weights"] for row in rows] == ["compressed"] * 2
    x = np.random.default_rng(2).standard_normal((1, 16, 5, 5)).astype(np.float32)
    (got,) = dlcc.load(tmp_path / "gpu").run({"x": x}).values()
    target = get_target("cuda:sm_80")
    graph = dlcc.optimise(small(), CompileOptions(**options), target=target).graph
    (want,) = dlcc.execute(graph, {"x": x}).values()
    room = 0 if lossy == "quantize" else 2e-3 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=room)


@pytest.mark.parametrize(
    "lossy",
    ["quantize", "round-to-float16", pytest.param("round-to-bfloat16", marks=pytest.mark.slow)],
)
def test_pruned_layers_are_smaller_and_faster(lossy):
    target, net = get_target("cuda:sm_80"), Net()
    graph = net.done(net.conv(net.input(1, 128, 5, 5), 128, pads=(1, 1, 1, 1)))
    options = CompileOptions(passes=f"{OPTIMISE},prune{{pattern=2:4}},{lossy}")
    made = dlcc.optimise(graph, options, target=target).graph.nodes
    (node,) = (node for node in made if node.op == "conv2d")
    whole, pruned = choose(node, target.without(["grid-gemm-2:4"])), choose(node, target)
    sizes = [sum(a.nbytes for a in choice.plan.constants.values()) for choice in (whole, pruned)]
    assert (pruned.row.name, whole.row.name) == ("grid-gemm-2:4", "grid-gemm")
    assert pruned.seconds < whole.seconds
    assert sizes[1] < 0.65 * sizes[0]


def test_pruned_weights_in_16_bits(tmp_path):
    """Targets whose kernels of sparse weights know float32 alone keep such layers in float32."""
    options = CompileOptions(passes=f"{OPTIMISE},prune{{pattern=2:4}},round-to-float16")
    gpu, cpu = (
        dlcc.optimise(small(), options, target=get_target(name)).graph
        for name in ("cuda:sm_80", "cpu:avx2")
    )
    encodings = [
        [str(node.input(1).type.encoding.inner.name) for node in graph.nodes if node.op == "conv2d"]
        for graph in (gpu, cpu)
    ]
    assert encodings == [["float16"] * 2, ["dense"] * 2]
    save(gpu, tmp_path / "net.dlir")
    assert graphs_equal(load(tmp_path / "net.dlir"), gpu)
    x = np.random.default_rng(1).standard_normal((1, 16, 5, 5)).astype(np.float32)
    got, want = (next(iter(dlcc.execute(graph, {"x": x}).values())) for graph in (gpu, cpu))
    assert 0 < np.abs(got - want).max() < 3e-3 * np.abs(want).max()
