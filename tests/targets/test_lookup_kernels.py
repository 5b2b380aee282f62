"""Kernels that look weights or products up against decode-then-dense, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir import Affine, Codebook, Encoding, Graph, ProductCodebook, Ternary
from targets import get_target
from targets.cpu.levels import AVX2, AVX512, SSE4
from targets.kernels.lookup_gemv import lookup_gemv_cost, refusal
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.packed import LookupGemvRow
from tests.targets.float_rows import check_row, float_layer
from tests.targets.running import isa_params
from tests.targets.test_packed_rows import encoding_of

KINDS = ["int2", "int3", "int4", "uint4", "ternary", "asymmetric", "binary", "book", "product"]
KINDS += ["shared"]


def coding(kind: str, real: np.ndarray) -> Encoding:
    """An encoding of at most four bits."""
    made: dict[str, Encoding] = {
        "uint4": Affine(4, False, (0.4,), (7,)),
        "book": Codebook(4),
        "product": ProductCodebook(4, 3),
        "shared": ProductCodebook(3, 2, shared=True),
    }
    return made[kind] if kind in made else encoding_of(kind, real)


def layer(kind: str, k: int, n: int, *, residual: bool = False) -> Graph:
    """A float layer with compressed weights."""
    rng = np.random.default_rng(k + n)
    graph = Graph("net")
    real = rng.standard_normal((n, k)).astype(np.float32)
    w = graph.add_constant(real, encoding=coding(kind, real), name="w")
    return float_layer(graph, w, rng, residual=residual)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512", "amx", "neon"))
def test_gemv_against_numpy(isa):
    nodes = [
        layer(kind, k, n, residual=residual).nodes[0]
        for kind in KINDS
        for k, n, residual in ((96, 64, False), (42, 77, True), (6, 5, False), (300, 33, False))
    ]
    check_row(LookupGemvRow(isa), nodes, isa)


@pytest.mark.parametrize(
    ("kind", "bits"), [("int3", 3), ("int4", 4), ("asymmetric", 2), ("book", 4)]
)
def test_a_weight_takes_its_bits(kind, bits):
    node = layer(kind, 512, 64).nodes[0]
    assert LookupGemvRow(AVX512).plan(node).constants["weight"].nbytes == 512 * 64 * bits // 8


@pytest.mark.parametrize(("kind", "wins"), [("int4", False), ("ternary", True), ("binary", True)])
def test_on_arm_runs_of_signs_are_looked_up_and_single_weights_decoded(kind, wins):
    node = layer(kind, 4608, 512).nodes[0]
    rows = {row.name: row for row in get_target("arm:cortex-a72").rows}
    assert (rows["lookup-gemv"].cost(node) < rows["implicit-gemm"].cost(node)) == wins


def test_a_run_takes_four_bits():
    node = layer("product", 96, 64).nodes[0]
    assert LookupGemvRow(AVX2).plan(node).constants["weight"].nbytes == 32 * 64 // 2


def test_what_tables_of_16_numbers_do_not_hold_is_refused():
    row = LookupGemvRow(AVX2)
    graph = layer("int4", 32, 16)
    node = graph.nodes[0]
    real = node.input(1).decoded()
    for encoding, why in (
        (Codebook(5), "codes of 5 bits"),
        (Affine.symmetric(6, np.ones(16), 0), "codes of 6 bits"),
        (ProductCodebook(4, 1), "runs of one column"),
        (Ternary((0.5,) * 32, (0.5,) * 32, 1), "scales belong to columns"),
    ):
        node.set_input(1, graph.add_constant(real, encoding=encoding, name="other"))
        assert why in row.refuses(node)
    spec = ConvSpec(1, 1, 1, 32, 16, in_dtype="f32", epilogue=Epilogue("f32"))
    assert "does not permute" in refusal(spec, SSE4)
    assert "no product of one row" in refusal(ConvSpec(1, 1, 2, 32, 16, in_dtype="f32"), AVX2)
    assert "not float32" in refusal(ConvSpec(1, 1, 1, 32, 16), AVX2)


def test_cost_falls_with_the_codes():
    spec = ConvSpec(1, 1, 1, 9216, 4096, in_dtype="f32", epilogue=Epilogue("f32"))
    costs = [lookup_gemv_cost(spec, AVX512, 4, planes) for planes in (4, 2, 1)]
    assert costs == sorted(costs, reverse=True)
    assert lookup_gemv_cost(spec, AVX512, 8, 1) < costs[-1]
