"""Pruned weights of few values against decode-then-dense, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.ir import Affine, Binary, Codebook, Encoding, Graph, Sparse, Ternary
from dlcc.ops import build
from targets.cpu.levels import AVX2, AVX512, LEVELS
from targets.kernels.sparse_codes import code_bits, refusal, sparse_codes_cost
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.sparse_codes import SparseCodesRow
from tests.lowering.graphs import affine, typed
from tests.targets.float_rows import check_row, compare
from tests.targets.running import Runner, isa_params
from tests.targets.test_sparse_rows import check, lowered

KINDS = ["ternary", "asymmetric", "rows", "binary", "scales", "book2", "book5", "book8"]


def inner_of(kind: str, real: np.ndarray) -> Encoding:
    """An encoding of few values."""
    if kind.startswith("book"):
        return Codebook(int(kind[4:]))
    return {
        "ternary": Ternary((0.5,), (0.5,)),
        "asymmetric": Ternary((0.4,), (0.9,)),
        "rows": Ternary.fit(real, 0),
        "binary": Binary((0.75,)),
        "scales": Binary.fit(real, 0),
    }[kind]


def layer(
    kind: str,
    k: int,
    n: int,
    density: float,
    *,
    pattern: str = "unstructured",
    residual: bool = False,
    integer: bool = False,
) -> Graph:
    """A layer whose weights are pruned to ``density``, and then of few values."""
    rng, graph = np.random.default_rng(k + n), Graph("net")
    x = graph.add_input("x", typed((1, k), affine() if integer else None))
    real = rng.standard_normal((n, k)).astype(np.float32)
    real *= rng.random((n, k)) < density
    if n > 2:
        real[1] = 0
    encoding = Sparse(pattern, inner_of(kind, real))
    w = graph.add_constant(real, encoding=encoding, name="w")
    bias = rng.standard_normal(n).astype(np.float32)
    uniform = encoding.uniform
    wide = None
    if integer:
        assert uniform is not None
        scales = 0.02 * np.broadcast_to(np.asarray(uniform.scales), (n,))
        wide = Affine.symmetric(32, scales, 0)
    b = graph.add_constant(bias, **({"encoding": wide} if wide else {}), name="b")
    more = [graph.add_input("r", typed((1, n)))] if residual else []
    node = build(graph, "linear", [x, w, b, *more], {"act_min": -30.0}, loc="layer")
    if integer:
        node.output.type = node.output.type.with_(encoding=affine(0.3, 120))
    graph.set_outputs([node.output], ["y"])
    return graph


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512", "amx"))
def test_gemv_against_numpy(isa):
    nodes = [
        layer(kind, k, n, density, residual=n == 20).nodes[0]
        for kind in KINDS
        for k, n, density in ((600, 37, 0.1), (64, 20, 0.9), (3000, 5, 0.002), (10, 3, 0.0))
        if density or kind in ("ternary", "book2")
    ]
    check_row(SparseCodesRow(isa), nodes, isa)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemv_of_any_shape(isa, data):
    k, n = data.draw(st.integers(2, 300)), data.draw(st.integers(2, 60))
    kind, density = data.draw(st.sampled_from(KINDS)), data.draw(st.floats(0.01, 1))
    node = layer(kind, k, n, density).nodes[0]
    plan = SparseCodesRow(isa).plan(node)
    compare(node, plan, Runner([plan], isa), 2)


@pytest.mark.parametrize(("kind", "most"), [("rows", 1.25), ("scales", 1.25), ("book5", 2.3)])
def test_a_weight_takes_a_record(kind, most):
    node = layer(kind, 4096, 64, 0.1).nodes[0]
    kept = np.count_nonzero(node.input(1).decoded())
    plan = SparseCodesRow(AVX512).plan(node)
    assert plan.constants["records"].nbytes < most * kept * 1.1  # groups of unequal rows


def test_codes_leave_room_for_zero():
    assert [code_bits(n) for n in (0, 1, 2, 3, 31, 32, 256)] == [1, 1, 2, 2, 5, 6, 9]


@pytest.mark.parametrize("isa", isa_params("avx2", "amx"))
@pytest.mark.parametrize("kind", ["book5", "rows"])
@pytest.mark.parametrize("pattern", ["unstructured", "1:8"])
def test_a_pruned_layer_runs_from_its_codes(isa, kind, pattern, tmp_path):
    graph = layer(kind, 2048, 300, 0.05, pattern=pattern)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("sparse-codes", "compressed")
    assert "predicted" in row["rejected"]["implicit-gemm"]
    assert "the stored weights are" in row["rejected"]["sparse-gather"]
    check(graph, program, tmp_path / "net")


def test_nearly_dense_weights_are_decoded(tmp_path):
    graph = layer("book5", 64, 48, 1.0)
    program, row = lowered(graph, "avx2")
    assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
    assert "predicted" in row["rejected"]["sparse-codes"]
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@pytest.mark.parametrize("kind", ["ternary", "scales"])
def test_codes_of_integer_layers_are_sparse_codes_too(isa, kind, tmp_path):
    graph = layer(kind, 4096, 96, 0.01, integer=True)
    program, row = lowered(graph, isa.name)
    assert row["weights"] == "compressed"
    assert row["kernel"] in ("sparse-gemv", "sparse-gather")
    check(graph, program, tmp_path / "net")


def test_what_is_refused():
    row = SparseCodesRow(AVX2)
    node = layer("book5", 32, 16, 0.5).nodes[0]
    graph_real = node.input(1).decoded()
    graph = layer("book5", 32, 16, 0.5)
    node = graph.nodes[0]
    for inner, why in (
        (Codebook(9), "codes of 9 bits"),
        (Ternary((0.5,) * 32, (0.5,) * 32, 1), "scales belong to columns"),
    ):
        encoding = Sparse("unstructured", inner)
        node.set_input(1, graph.add_constant(graph_real, encoding=encoding, name="other"))
        assert why in row.refuses(node)
    node.set_input(1, graph.add_constant(graph_real, encoding=Sparse("unstructured"), name="d"))
    assert not row.serves(node)
    spec = ConvSpec(1, 1, 1, 32, 16, in_dtype="f32", epilogue=Epilogue("f32"))
    assert "cannot gather" in refusal(spec, LEVELS["sse4"])
    assert "not float32" in refusal(ConvSpec(1, 1, 1, 32, 16), AVX2)


def test_cost_falls_with_the_weights():
    spec = ConvSpec(1, 1, 1, 512, 256, in_dtype="f32", epilogue=Epilogue("f32"))
    rng = np.random.default_rng(0)
    for bits, pairs in ((2, True), (5, False), (9, False)):
        costs = [
            sparse_codes_cost(spec, AVX2, rng.random((256, 512)) < density, bits, pairs)
            for density in (0.5, 0.2, 0.05)
        ]
        assert costs == sorted(costs, reverse=True)
