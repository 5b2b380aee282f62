"""Float32 GEMMs that look their weights up by codes, against the dense kernel on decoded ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.driver import build_object
from dlcc.ir import Affine, Codebook, Encoding, Graph
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cpu.levels import AVX2, AVX512VNNI
from targets.kernels.coded_gemm import CodedGemm
from targets.kernels.conv import conv2d, conv_cost, geometry
from targets.kernels.real_panel import RealCodes
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.looked_up import _outline, real_codes
from tests.lowering.graphs import typed
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES
from tests.targets.test_packed_rows import packed_layer
from tests.targets.test_sparse_rows import check, lowered

KINDS = ("book1", "book2", "book4", "scaled1", "scaled4", "signed2")


def codes_of(kind: str, channels: int, rng: np.random.Generator) -> RealCodes:
    """What random codes may stand for: books, integers times factors, two factors."""
    bits = int(kind[-1])
    if kind.startswith("book"):
        return RealCodes(bits, rng.standard_normal((1, 1 << bits)).astype(np.float32))
    if kind == "signed2":
        tables = np.array([[0, 0, 1, 0], [-1, 0, 0, 0]], np.float32)
        return RealCodes(2, tables, rng.random((2, channels)).astype(np.float32))
    tables = (np.arange(1 << bits) - (1 << (bits - 1)))[None].astype(np.float32)
    return RealCodes(bits, tables, rng.random((1, channels)).astype(np.float32))


def decoded(u: np.ndarray, codes: RealCodes) -> np.ndarray:
    """The weights that codes [channels, ...] stand for."""
    parts = [table[u] for table in codes.tables]
    if codes.factors is not None:
        shape = (-1, *[1] * (u.ndim - 1))
        parts = [p * f.reshape(shape) for p, f in zip(parts, codes.factors, strict=True)]
    return np.sum(parts, axis=0, dtype=np.float32)


def compare(specs: dict[str, ConvSpec], isa, seed: int = 0) -> None:
    """The packed kernel's bytes are those of the dense one on what decoding gives."""
    rng, plans, inputs = np.random.default_rng(seed), {}, {}
    for i, (name, spec) in enumerate(specs.items()):
        codes = codes_of(KINDS[(i + seed) % len(KINDS)], spec.oc, rng)
        shape = (spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
        u = rng.integers(0, 1 << codes.bits, shape, dtype=np.uint8)
        if codes.bits == 2 and codes.factors is not None:
            u %= 3
        bias = rng.standard_normal(spec.oc).astype(np.float32)
        packed = conv2d(spec, isa, u, bias, codes=codes)
        plans[name] = (packed, conv2d(spec, isa, decoded(u, codes), bias))
        x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
        out = np.full((spec.n, spec.oh, spec.ow, spec.oc), 77, np.float32)
        residual = [out * 0 + 1] if spec.epilogue.residual else []
        inputs[name] = ([x, *residual], out)
        assert packed.compressed
    runner = Runner([plan for pair in plans.values() for plan in pair], isa)
    for name, (packed, dense) in plans.items():
        for cuts in (1, 3):
            got, want = (runner.run(plan, *inputs[name], cuts) for plan in (packed, dense))
            assert got.std() > 0
            assert got.tobytes() == want.tobytes(), name


FLOATS = {
    name: replace(spec, in_dtype="f32", epilogue=Epilogue("f32", -2.5, 2.5, residual=residual))
    for name, spec in CASES.items()
    if not name.startswith("grouped-small")
    for residual in ["f32" if spec.epilogue.residual else None]
}


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512", "amx"))
def test_every_shape_equals_the_dense_kernel_to_the_bit(isa):
    compare(FLOATS, isa)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_shape_equals_the_dense_kernel_to_the_bit(isa, data):
    draw = data.draw
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    spec = ConvSpec(
        draw(st.integers(1, 2)),
        draw(st.integers(kh, 8)),
        draw(st.integers(kw, 8)),
        draw(st.integers(1, 50)),
        draw(st.integers(2, 70)),
        kh,
        kw,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        pads=(draw(st.integers(0, 1)), draw(st.integers(0, 1)), draw(st.integers(0, 1)), 0),
        in_dtype="f32",
    )
    compare({"drawn": spec}, isa, draw(st.integers(0, 99)))


@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI])
def test_a_code_takes_its_bits(isa):
    spec = ConvSpec(1, 4, 4, 64, 64, 3, 3, in_dtype="f32")
    for kind in KINDS:
        codes = codes_of(kind, 64, np.random.default_rng(0))
        plan = conv2d(spec, isa, np.zeros((64, 64, 3, 3), np.uint8), np.zeros(64), codes=codes)
        assert plan.constants["weight"].nbytes == 64 * 64 * 9 * codes.bits // 8
        geo = geometry(spec, isa)
        assert (
            CodedGemm.of(geo.gemm, geo.unit, codes, isa).stored_bytes == 64 * 576 * codes.bits / 8
        )
        assert conv_cost(spec, isa, codes=codes) > conv_cost(spec, isa)
    rows = ConvSpec(1, 1, 4, 9216, 4096, in_dtype="f32")
    assert conv_cost(rows, isa, codes=codes) < conv_cost(rows, isa) / 1.3


@pytest.mark.parametrize("kind", ["int2", "int3", "int4", "ternary", "asymmetric", "binary"])
def test_codes_and_factors_decode_to_the_weights(kind):
    weight = packed_layer(kind, "linear", (3, 40), (12, 40), integer=False).nodes[0].input(1)
    u, codes = real_codes(weight)
    assert u.max() < 1 << codes.bits
    outline = _outline(weight)
    assert (outline.bits, outline.tables.shape) == (codes.bits, codes.tables.shape)
    assert outline.factors.shape == codes.factors.shape
    np.testing.assert_array_equal(decoded(u, codes), weight.decoded())


def float_layer(op: str, shape: tuple, weight: tuple, encoding: Encoding | None = None) -> Graph:
    """A layer with a codebook (or another encoding) and no bias."""
    graph, rng = Graph("net"), np.random.default_rng(1)
    x = graph.add_input("x", typed(shape, None))
    real = rng.standard_normal(weight).astype(np.float32)
    w = graph.add_constant(real, encoding=encoding or Codebook(4), name="w")
    graph.set_outputs([build(graph, op, [x, w], {}, loc="layer").output], ["y"])
    return graph


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
def test_few_rows_look_their_weights_up(isa, tmp_path):
    graph = float_layer("linear", (4, 1024), (512, 1024))
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("lookup-gemm", "compressed")
    assert row["weight_bytes"] < 1024 * 512 // 2 + 4 * 512 + 1024
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@pytest.mark.parametrize("kind", ["book", "int3", "asymmetric", "binary"])
def test_convolutions_look_their_weights_up(isa, kind, tmp_path):
    """With the dense kernels left out."""
    target = get_target(f"cpu:{isa.name}")
    dense = {r.name for r in target.rows if r.name.startswith(("implicit-gemm", "winograd"))}
    shapes = ((1, 32, 9, 9), (40, 32, 3, 3))
    graph = float_layer("conv2d", *shapes) if kind == "book" else None
    graph = graph or packed_layer(kind, "conv2d", *shapes, integer=False)
    program = lower(graph, target.without(dense), build_object, threads=2)
    row = next(row for row in program.report["layers"] if row["layer"] == "layer")
    assert (row["kernel"], row["weights"]) == ("lookup-gemm", "compressed")
    check(graph, program, tmp_path / "net")


def test_what_cannot_be_looked_up_is_refused_and_decoded():
    real = np.random.default_rng(1).standard_normal((16, 40)).astype(np.float32)
    scales, zeros = (0.1,) * 16, tuple(i % 3 for i in range(16))
    for level, encoding, why in (
        ("sse4", Codebook(4), "does not permute"),
        ("avx2", Codebook(6), "codes of 6 bits exceed"),
        ("avx2", Affine.symmetric(4, np.full(40, 0.3), 1), "belong to columns"),
        ("avx2", Affine(4, True, scales, zeros, 0), "zero points differ"),
    ):
        _, row = lowered(float_layer("linear", (3, 40), real.shape, encoding), level)
        assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
        assert why in row["rejected"]["lookup-gemm"]
    graph = packed_layer("int4", "linear", (5, 40), (16, 40))
    _, row = lowered(graph, "avx2")
    assert row["rejected"]["lookup-gemm"] == "the activations are not float32"
