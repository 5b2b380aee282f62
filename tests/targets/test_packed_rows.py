"""Layers with weights of a few bits, from the graph to the library: kernels and results."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.driver import build_object
from dlcc.ir import Affine, Binary, Encoding, Graph, Ternary
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cpu.levels import LEVELS
from tests.lowering.graphs import affine, typed
from tests.targets.running import isa_params
from tests.targets.test_sparse_rows import check, lowered


def encoding_of(kind: str, real: np.ndarray) -> Encoding:
    """Scales per output that fit ``real``; ``kind``: int2 .. int7, ternary or binary."""
    rows = np.abs(real).reshape(len(real), -1)
    if kind == "ternary":
        scales = tuple(map(float, rows.mean(axis=1)))
        return Ternary(scales, scales, 0)
    if kind == "binary":
        return Binary.fit(real, 0)
    if kind == "asymmetric":
        return Ternary.fit(real, 0)
    bits = int(kind[3:])
    return Affine.symmetric(bits, rows.max(axis=1) / (2 ** (bits - 1) - 1), 0)


def packed_layer(
    kind: str,
    op: str,
    shape: tuple,
    weight: tuple,
    *,
    integer: bool = True,
    zeros: bool = False,
    attrs: dict | None = None,
) -> Graph:
    """One layer on codes (or in float); ``zeros``: all weights of output 1 are 0."""
    rng = np.random.default_rng(1)
    graph = Graph("net")
    x = graph.add_input("x", typed(shape, affine() if integer else None))
    real = rng.standard_normal(weight).astype(np.float32)
    real[1] *= not zeros
    encoding = encoding_of(kind, real)
    w = graph.add_constant(real, encoding=encoding, name="w")
    bias = rng.standard_normal(weight[0]).astype(np.float32)
    uniform = encoding.uniform
    wide = None
    if integer and uniform is not None:
        wide = Affine.symmetric(32, 0.02 * np.asarray(uniform.scales), 0)
    b = graph.add_constant(bias, **({"encoding": wide} if wide else {}), name="b")
    node = build(graph, op, [x, w, b], attrs or {}, loc="layer")
    if integer:
        node.output.type = node.output.type.with_(encoding=affine(0.3, 120))
    graph.set_outputs([node.output], ["y"])
    return graph


KINDS = {"int2": 2, "int3": 3, "int4": 4, "int5": 5, "int7": 7, "ternary": 2, "binary": 1}


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni", "amx"))
@pytest.mark.parametrize("kind", ["int4", "ternary", "binary"])
def test_a_linear_layer_runs_from_its_packed_codes(isa, kind, tmp_path):
    graph = packed_layer(kind, "linear", (1, 2304), (256, 2304))
    program, row = lowered(graph, isa.name)
    assert row["kernel"] == "packed-gemv"
    assert row["weights"] == "compressed"
    assert "predicted" in row["rejected"]["implicit-gemm"]
    codes = 2304 * 256 * KINDS[kind] // 8
    assert row["weight_bytes"] <= codes + 8 * 256 + 1024  # with the epilogue's constants
    assert len(program.weights) <= codes + 8 * 256 + 2048
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("kind", KINDS)
def test_any_width_is_computed_exactly_by_some_kernel(kind, tmp_path):
    for op, shape, weight in (
        ("linear", (1, 70), (37, 70)),
        ("linear", (3, 33), (20, 33)),
        ("conv2d", (1, 12, 5, 5), (20, 12, 3, 3)),
    ):
        graph = packed_layer(kind, op, shape, weight)
        program, row = lowered(graph, "avx2")
        assert row["weights"] in ("compressed", "decoded")
        check(graph, program, tmp_path / op / str(shape[0]))


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_an_output_without_weights(kind, tmp_path):
    graph = packed_layer(kind, "linear", (1, 2304), (256, 2304), zeros=True)
    if kind == "binary":
        assert set(graph.nodes[0].input(1).decoded()[1]) == {0.0}
    program, row = lowered(graph, "avx2")
    assert row["kernel"] == "packed-gemv"
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512"))
@pytest.mark.parametrize("kind", ["int4", "asymmetric", "binary"])
def test_a_float_layer_looks_its_products_up(isa, kind, tmp_path):
    graph = packed_layer(kind, "linear", (1, 2304), (256, 2304), integer=False)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("lookup-gemv", "compressed")
    assert row["rejected"]["packed-gemv"] == "the activations are not quantised"
    assert row["weight_bytes"] < 2304 * 256 * 4 // 8 + 24 * 256 + 1024
    check(graph, program, tmp_path / "net")


def test_a_float_layer_without_permutation_decodes_its_weights(tmp_path):
    graph = packed_layer("int4", "linear", (1, 70), (37, 70), integer=False)
    program, row = lowered(graph, "sse4")
    assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
    assert "does not permute" in row["rejected"]["lookup-gemv"]
    check(graph, program, tmp_path / "net")


def test_whole_bytes_do_not_hear_of_packed_kernels():
    _, row = lowered(packed_layer("int8", "linear", (1, 70), (37, 70)), "avx2")
    assert "weights" not in row
    assert "packed-gemv" not in row["rejected"]


def test_every_level_has_the_row():
    for level in LEVELS:
        names = {row.name for row in get_target(f"cpu:{level}").rows}
        assert {"packed-gemv", "packed-gemm"} <= names
        assert ("packed-gemm-amx" in names) == (level == "amx")


CONVS = (
    ("conv2d", (1, 64, 9, 9), (70, 64, 3, 3)),
    ("conv2d", (2, 48, 6, 5), (40, 48, 1, 1)),
    ("linear", (5, 130), (50, 130)),
)


@pytest.mark.parametrize("isa", isa_params())
@pytest.mark.parametrize("kind", ["int3", "int4", "ternary", "binary"])
def test_convolutions_and_several_rows_unpack_their_codes(isa, kind, tmp_path):
    """With the dense kernels left out, so that every level runs this one."""
    target = get_target(f"cpu:{isa.name}")
    dense = {row.name for row in target.rows if row.name.startswith("implicit-gemm")}
    for op, shape, weight in CONVS:
        graph = packed_layer(kind, op, shape, weight)
        program = lower(graph, target.without(dense), build_object, threads=2)
        row = next(row for row in program.report["layers"] if row["layer"] == "layer")
        assert row["kernel"].startswith("packed-gemm")
        assert row["weights"] == "compressed"
        check(graph, program, tmp_path / op / str(len(shape)) / str(shape[0]))


@pytest.mark.parametrize(
    ("op", "level", "unit"), [("conv2d", "amx", "-amx"), ("linear", "avx2", "-16")]
)
def test_decoded_weights_win_where_unpacking_takes_longer(op, level, unit):
    weight = (64, 64, 3, 3) if op == "conv2d" else (64, 64)
    _, row = lowered(packed_layer("int4", op, (8, 64, 9, 9)[: len(weight)], weight), level)
    assert (row["kernel"], row["weights"]) == (f"implicit-gemm{unit}", "decoded")
    assert "predicted" in row["rejected"]["packed-gemm"]


def test_groups_computed_together_and_floats_are_refused():
    graph = packed_layer("int4", "conv2d", (1, 8, 5, 5), (16, 2, 3, 3), attrs={"groups": 4})
    _, row = lowered(graph, "avx2")
    assert "4 groups are computed together" in row["rejected"]["packed-gemm"]
    graph = packed_layer("int4", "linear", (5, 40), (16, 40), integer=False)
    _, row = lowered(graph, "avx2")
    assert row["rejected"]["packed-gemm"] == "the activations are not quantised"
