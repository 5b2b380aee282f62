"""Codes of runs of outputs: the kernel against decode-then-dense, from graph to library."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir import F32, Graph, ProductCodebook, ResidualCodebook, TensorType
from dlcc.ir.packing import pack_bits
from dlcc.ops import build
from targets.cpu.levels import AVX2, AVX512
from targets.kernels.output_runs import output_runs_cost
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.output_runs import InputRunsRow, OutputRunsRow
from tests.lowering.graphs import affine, typed
from tests.targets.float_rows import check_row, float_layer
from tests.targets.running import isa_params
from tests.targets.test_sparse_rows import check, lowered
from tests.targets.test_wide_lookup import layer as wide_layer

KINDS: dict[str, ProductCodebook | ResidualCodebook] = {
    "book each": ProductCodebook(3, 4, along="output"),
    "pairs of codes": ProductCodebook(4, 8, True, "output"),
    "bytes": ProductCodebook(6, 16, True, "output"),
    "words": ProductCodebook(9, 4, True, "output"),
    "long runs": ProductCodebook(4, 32, True, "output"),
    "longest runs": ProductCodebook(5, 64, True, "output"),
    "twelve": ProductCodebook(4, 12, True, "output"),
    "stages": ResidualCodebook(4, 8, 2, "output"),
    "many stages": ResidualCodebook(5, 4, 3, "output"),
}


Runs = ProductCodebook | ResidualCodebook


def coded(encoding: Runs, k: int, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random codes and books of a weight [n, k]."""
    stages = encoding.stages if isinstance(encoding, ResidualCodebook) else 1
    blocks = n // encoding.length
    books = stages
    if isinstance(encoding, ProductCodebook) and not encoding.shared:
        books = blocks
    entries = 1 << encoding.bits
    codes = rng.integers(0, entries, (stages, k, blocks))
    book = rng.standard_normal((books, entries, encoding.length)).astype(np.float32)
    return {"values": pack_bits(codes, encoding.bits), "codebook": book}


def layer(encoding: Runs, k: int, n: int, *, residual: bool = False) -> Graph:
    """A float layer of one row."""
    rng = np.random.default_rng(k + n)
    graph = Graph("net")
    type_ = TensorType((n, k), F32, encoding)
    w = graph.add_stored(coded(encoding, k, n, rng), type_, name="w")
    return float_layer(graph, w, rng, residual=residual)


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512", "amx", "neon", "armv7"))
def test_runs_against_numpy(isa):
    nodes = [
        layer(encoding, k, blocks * encoding.length, residual=residual).nodes[0]
        for encoding in KINDS.values()
        for k, blocks, residual in ((40, 12, False), (33, 7, True), (5, 1, False))
    ]
    check_row(OutputRunsRow(isa), nodes, isa, tight=True)


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_runs_of_inputs_against_numpy(isa):
    kinds = (
        ProductCodebook(8, 4),
        ProductCodebook(4, 8),
        ProductCodebook(6, 12, shared=True),
        ResidualCodebook(3, 4, 2),
        ResidualCodebook(8, 8, 3),
    )
    nodes = [
        wide_layer(encoding, runs * encoding.length, n, residual=residual).nodes[0]
        for encoding in kinds
        for runs, n, residual in ((9, 32, False), (5, 37, True), (1, 3, False))
    ]
    check_row(InputRunsRow(isa), nodes, isa)


@pytest.mark.parametrize(
    "encoding", [ProductCodebook(4, 8, True, "output"), ResidualCodebook(4, 8, 2, "output")]
)
@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512"))
def test_a_layer_runs_from_its_codes(isa, encoding, tmp_path):
    graph = layer(encoding, 1024, 512)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("output-runs", "compressed")
    stages = getattr(encoding, "stages", 1)
    codes = stages * 1024 * 512 // 8 // 2
    assert codes <= row["weight_bytes"] <= codes + 16 * 8 * 4 * stages + 8 * 512 + 1024
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        (ProductCodebook(4, 6, True, "output"), "runs of 6 outputs fill no vectors"),
        (ResidualCodebook(2, 2, 2, "output"), "runs of 2 outputs fill no vectors"),
    ],
)
def test_other_runs_are_decoded(encoding, why, tmp_path):
    graph = layer(encoding, 40, 36)
    program, row = lowered(graph, "avx2")
    assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
    assert why in row["rejected"]["output-runs"]
    check(graph, program, tmp_path / "net")


def test_other_layers_are_refused():
    row = OutputRunsRow(AVX2)
    encoding = ProductCodebook(4, 8, True, "output")
    real = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    graph = Graph("net")
    w = graph.add_constant(real, encoding=encoding, name="w")
    several = build(graph, "linear", [graph.add_input("x", typed((3, 64))), w])
    assert "no product of one row" in row.refuses(several)
    codes = build(graph, "linear", [graph.add_input("q", typed((1, 64), affine())), w])
    assert row.refuses(codes)
    plain = graph.add_constant(real, encoding=ProductCodebook(4, 8), name="p")
    assert not row.serves(build(graph, "linear", [graph.add_input("z", typed((1, 64))), plain]))


def test_longer_runs_cost_less():
    spec = ConvSpec(1, 1, 1, 4096, 4096, in_dtype="f32", epilogue=Epilogue("f32"))
    costs = [output_runs_cost(spec, AVX512, (length, 1, 256, True)) for length in (4, 8, 16)]
    assert costs == sorted(costs, reverse=True)
    assert output_runs_cost(spec, AVX512, (8, 2, 256, True)) > costs[1]
