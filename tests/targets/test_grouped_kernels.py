"""Weights with a scale per group of columns: the kernel against numpy, from graph to library."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir import Graph, Grouped
from dlcc.ops import build
from targets.cpu.levels import AVX2, AVX512, SSE4
from targets.kernels.lookup_groups import grouped_gemv_cost
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.grouped import GroupedGemvRow
from tests.lowering.graphs import affine, typed
from tests.targets.float_rows import check_row, float_layer
from tests.targets.running import isa_params
from tests.targets.test_sparse_rows import check, lowered

SHAPES = (
    # k, n, group, residual
    (256, 64, 32, False),
    (128, 77, 64, True),
    (300, 33, 128, False),  # the last group is shorter, and its last word too
    (70, 20, 32, False),
    (6, 5, 32, True),  # one group, shorter than a word
    (96, 40, 256, False),
)


def layer(bits: int, k: int, n: int, group: int, *, residual: bool = False) -> Graph:
    """A float layer of one row."""
    rng = np.random.default_rng(k + n)
    graph = Graph("net")
    real = rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-2, 1, (n, k))
    w = graph.add_constant(real.astype(np.float32), encoding=Grouped(bits, group), name="w")
    return float_layer(graph, w, rng, residual=residual)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512", "amx", "neon"))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_groups_against_numpy(isa, bits):
    nodes = [
        layer(bits, k, n, group, residual=residual).nodes[0] for k, n, group, residual in SHAPES
    ]
    check_row(GroupedGemvRow(isa), nodes, isa)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@pytest.mark.parametrize("bits", [2, 4])
def test_a_layer_runs_from_its_groups(isa, bits, tmp_path):
    graph = layer(bits, 2304, 256, 64)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("grouped-gemv", "compressed")
    stored = 2304 * 256 * bits // 8 + 256 * 2304 // 64 * 4
    assert stored <= row["weight_bytes"] <= stored + 8 * 256 + 1024
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize(
    ("bits", "group", "why"),
    [(6, 64, "codes of 6 bits"), (4, 12, "no multiple of 8"), (2, 48, "no multiple of 32")],
)
def test_other_groups_are_decoded(bits, group, why, tmp_path):
    graph = layer(bits, 70, 37, group)
    program, row = lowered(graph, "avx2")
    assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
    assert why in row["rejected"]["grouped-gemv"]
    check(graph, program, tmp_path / "net")


def test_levels_and_layers_without_the_kernel():
    assert "does not permute" in GroupedGemvRow(SSE4).refuses(layer(4, 64, 16, 32).nodes[0])
    graph = Graph("net")
    real = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    w = graph.add_constant(real, encoding=Grouped(4, 32), name="w")
    several = build(graph, "linear", [graph.add_input("x", typed((3, 64))), w])
    assert "no product of one row" in GroupedGemvRow(AVX2).refuses(several)
    codes = build(graph, "linear", [graph.add_input("q", typed((1, 64), affine())), w])
    assert GroupedGemvRow(AVX2).refuses(codes)


def test_smaller_groups_cost_more():
    spec = ConvSpec(1, 1, 1, 4096, 4096, in_dtype="f32", epilogue=Epilogue("f32"))
    costs = [grouped_gemv_cost(spec, AVX512, 1, 1, group) for group in (128, 64, 32)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
