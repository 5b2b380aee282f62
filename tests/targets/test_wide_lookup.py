"""Kernels for large and for several codebooks against decode-then-dense, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.ir import Codebook, Encoding, Graph, ProductCodebook, ResidualCodebook, TensorType
from dlcc.ir.packing import pack_bits
from targets.cpu.levels import AVX2, AVX512, LEVELS, SSE4
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.wide_lookup import refusal, wide_lookup_cost, width_of
from targets.rows.codebooks import WideLookupRow
from tests.targets.float_rows import check_row, compare, float_layer
from tests.targets.running import Runner, isa_params
from tests.targets.test_sparse_rows import check, lowered

BOOKS = {f"book{bits}": Codebook(bits) for bits in (5, 6, 7, 8)}
RUNS = {
    "product5": ProductCodebook(5, 3),
    "product8": ProductCodebook(8, 2),
    "shared6": ProductCodebook(6, 2, shared=True),
    "residual1": ResidualCodebook(1, 2, 3),
    "residual4": ResidualCodebook(4, 6, 2),
    "residual5": ResidualCodebook(5, 2, 1),
    "residual8": ResidualCodebook(8, 3, 2),
}


def layer(encoding: Encoding, k: int, n: int, *, residual: bool = False) -> Graph:
    """A float layer whose codes and codebook are drawn at random: all of them, not those found."""
    rng, graph = np.random.default_rng(k + n), Graph("net")
    assert isinstance(encoding, Codebook | ProductCodebook | ResidualCodebook)
    length, stages = getattr(encoding, "length", 1), getattr(encoding, "stages", 1)
    books = 1 if getattr(encoding, "shared", False) else k // length
    books = stages if isinstance(encoding, ResidualCodebook) else books
    entries = (1 << encoding.bits) - (encoding.bits > 4)  # not all that there could be
    codes = rng.integers(0, entries, stages * n * k // length)
    book = (entries,) if isinstance(encoding, Codebook) else (books, entries, length)
    parts = {
        "values": pack_bits(codes, encoding.bits),
        "codebook": rng.standard_normal(book).astype(np.float32),
    }
    w = graph.add_stored(parts, TensorType((n, k), encoding=encoding), name="w")
    return float_layer(graph, w, rng, residual=residual)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512", "amx", "neon"))
def test_gemv_against_numpy(isa):
    nodes = [
        layer(encoding, k, n, residual=residual).nodes[0]
        for encoding in (BOOKS | RUNS).values()
        for k, n, residual in ((96, 64, False), (42, 77, True), (6, 5, False))
    ]
    check_row(WideLookupRow(isa), nodes, isa)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemv_of_any_shape(isa, data):
    encoding = (BOOKS | RUNS)[data.draw(st.sampled_from([*BOOKS, *RUNS]))]
    k = getattr(encoding, "length", 1) * data.draw(st.integers(1, 40))
    node = layer(encoding, k, data.draw(st.integers(1, 150))).nodes[0]
    plan = WideLookupRow(isa).plan(node)
    compare(node, plan, Runner([plan], isa), 2)


@pytest.mark.parametrize(("bits", "each"), [(5, 32 / 6), (6, 32 / 5), (7, 8), (8, 8)])
def test_a_weight_takes_its_share_of_a_word(bits, each):
    node = layer(Codebook(bits), 960, 64).nodes[0]
    weight = WideLookupRow(AVX512).plan(node).constants["weight"]
    assert weight.nbytes == 960 * 64 * each / 8
    assert width_of(bits) == int(each)


@pytest.mark.parametrize("isa", isa_params("avx2", "amx"))
def test_a_layer_runs_from_its_codes(isa, tmp_path):
    graph = layer(ResidualCodebook(4, 8, 2), 2304, 512)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("wide-lookup-gemv", "compressed")
    assert "predicted" in row["rejected"]["implicit-gemm"]
    assert row["weight_bytes"] < 2304 * 512 / 8 + 4 * 2 * 16 * 8 + 4 * 512 + 1024
    check(graph, program, tmp_path / "net")


def test_where_look_ups_cost_more_the_weights_are_decoded(tmp_path):
    graph = layer(Codebook(8), 256, 64)
    program, row = lowered(graph, "avx2")
    assert row["weights"] == "decoded"
    assert "predicted" in row["rejected"]["wide-lookup-gemv"]
    check(graph, program, tmp_path / "net")


def test_what_is_refused():
    row, graph = WideLookupRow(AVX2), layer(Codebook(5), 32, 16)
    node = graph.nodes[0]
    real = node.input(1).decoded()
    for encoding, why in (
        (Codebook(9), "codes of 9 bits"),
        (ProductCodebook(5, 1), "runs of one column"),
        (ResidualCodebook(5, 4, 2, "output"), "along the outputs"),
    ):
        node.set_input(1, graph.add_constant(real, encoding=encoding, name="other"))
        assert why in row.refuses(node)
    node.set_input(1, graph.add_constant(real, encoding=Codebook(4), name="few"))
    assert not row.serves(node)
    spec = ConvSpec(1, 1, 1, 32, 16, in_dtype="f32", epilogue=Epilogue("f32"))
    assert "neither permutes nor gathers" in refusal(spec, SSE4)
    assert "no product of one row" in refusal(ConvSpec(1, 1, 2, 32, 16, in_dtype="f32"), AVX2)
    assert "not float32" in refusal(ConvSpec(1, 1, 1, 32, 16), AVX2)


@pytest.mark.parametrize("level", [name for name in LEVELS if name != "sse4"])
def test_cost_grows_with_the_bits(level):
    spec = ConvSpec(1, 1, 1, 9216, 4096, in_dtype="f32", epilogue=Epilogue("f32"))
    costs = [wide_lookup_cost(spec, LEVELS[level], 1, 1, 1, bits) for bits in (5, 6, 7, 8)]
    assert costs == sorted(costs)
    stages = [wide_lookup_cost(spec, LEVELS[level], 8, s, s, 8) for s in (1, 2, 3)]
    assert stages == sorted(stages)
