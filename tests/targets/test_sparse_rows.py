"""Layers with sparse weights, from the graph to the library: choice of kernels and results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.inspection import inspect_artifact
from dlcc.ir import Affine, Codebook, Dense, Graph, Sparse, Ternary
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cpu.levels import LEVELS
from targets.isa import host_flags
from targets.kernels.sparse_tiles import refusal as tiles_refusal
from targets.kernels.spec import ConvSpec, Epilogue
from tests.lowering.graphs import affine, typed
from tests.targets.running import isa_params
from tests.targets.test_sparse_kernels import zeros_of


def sparse_layer(
    op: str, shape: tuple, weight: tuple, pattern: str, density: float, *, bits: int = 8, **attrs
) -> Graph:
    """One layer; ``bits`` 8: on codes, else in float."""
    rng = np.random.default_rng(1)
    graph, integer = Graph("net"), bits == 8
    x = graph.add_input("x", typed(shape, affine() if integer else None))
    r, c = map(int, pattern[5:].split("x")) if pattern.startswith("block") else (1, 1)
    columns = int(np.prod(weight[1:]))
    mask = zeros_of(rng, weight[0], columns, (r, c), density)
    mask = np.moveaxis(mask.reshape(weight[0], *weight[2:], weight[1]), -1, 1)
    real = (rng.standard_normal(weight) * mask).astype(np.float32)
    scales = np.maximum(np.abs(real).reshape(weight[0], -1).max(axis=1), 0.1) / 127
    inner = Affine.symmetric(8, scales, 0) if integer else Dense()
    w = graph.add_constant(real, encoding=Sparse(pattern, inner), name="w")
    bias = rng.standard_normal(weight[0]).astype(np.float32)
    wide = Affine.symmetric(32, 0.02 * scales, 0)
    b = graph.add_constant(bias, **({"encoding": wide} if integer else {}), name="b")
    node = build(graph, op, [x, w, b], attrs, loc="layer")
    if integer:
        node.output.type = node.output.type.with_(encoding=affine(0.3, 120))
    graph.set_outputs([node.output], ["y"])
    return graph


def lowered(graph: Graph, level: str):
    """The program and the report's line of the layer."""
    program = lower(graph, get_target(f"cpu:{level}"), build_object, threads=2)
    return program, next(row for row in program.report["layers"] if row["layer"] == "layer")


def feed(graph: Graph) -> np.ndarray:
    """Seeded input."""
    rng, type_ = np.random.default_rng(2), graph.inputs[0].type
    if isinstance(type_.encoding, Affine):
        return rng.integers(0, 256, type_.shape, dtype=np.uint8)
    return rng.standard_normal(type_.shape).astype(np.float32)


def check(graph: Graph, program, folder) -> None:
    """The library against the reference, at one and two threads."""
    write_artifact(program, folder)
    x = feed(graph)
    want = dlcc.execute(graph, {"x": x})["y"]
    for threads in (1, 2):
        with dlcc.load(folder, threads=threads) as model:
            got = model(x)
        if want.dtype == np.float32:
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni", "amx"))
@pytest.mark.parametrize("bits", [8, 32])
def test_a_sparse_linear_layer_runs_from_its_blocks(isa, bits, tmp_path):
    graph = sparse_layer("linear", (1, 512), (256, 512), "block16x4", 0.1, bits=bits)
    program, row = lowered(graph, isa.name)
    assert row["kernel"] == "sparse-gemv"
    assert row["weights"] == "compressed"
    assert "predicted" in row["rejected"]["implicit-gemm"]
    stored = graph.nodes[0].input(1)
    limit = stored.type.encoding.stored_bytes(stored.constant.parts)
    assert row["weight_bytes"] < 1.1 * limit + 9 * 256 + 1024  # with the epilogue's constants
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("bits", [8, 32])
def test_nearly_dense_weights_are_decoded_and_the_report_says_so(bits, tmp_path):
    graph = sparse_layer("linear", (1, 64), (48, 64), "block16x4", 1.0, bits=bits)
    program, row = lowered(graph, "avx2")
    assert row["kernel"] == {8: "implicit-gemm-16", 32: "implicit-gemm"}[bits]
    assert row["weights"] == "decoded"
    assert "predicted" in row["rejected"]["sparse-gemv"]
    check(graph, program, tmp_path / "net")
    layer = inspect_artifact(tmp_path / "net").layers[-1]
    assert "its compressed weights are decoded to dense ones" in layer.why


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attrs"),
    [
        ("conv2d", (1, 12, 7, 6), (20, 12, 3, 3), {"pads": (1, 1, 1, 1)}),
        ("conv2d", (2, 8, 5, 5), (12, 4, 1, 1), {"groups": 2}),
        ("conv2d", (1, 16, 6, 6), (16, 1, 3, 3), {"groups": 16}),
        ("linear", (7, 40), (24, 40), {}),
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block4x2"])
@pytest.mark.parametrize("bits", [8, 32])
def test_any_sparse_layer_has_a_kernel(op, shape, weight, attrs, pattern, bits, tmp_path):
    if pattern == "2:4" and weight[1] % 4:
        pytest.skip("groups of 4 do not divide the input channels")
    graph = sparse_layer(op, shape, weight, pattern, 0.4, bits=bits, **attrs)
    program, row = lowered(graph, "avx2")
    assert row["weights"] in ("compressed", "decoded")
    check(graph, program, tmp_path / "net")


def test_dense_layers_do_not_hear_of_sparse_kernels():
    graph = sparse_layer("linear", (1, 32), (16, 32), "unstructured", 0.5, bits=32)
    old = graph.nodes[0].input(1)
    graph.nodes[0].set_input(1, graph.add_constant(old.decoded(), name="dense"))
    _, row = lowered(graph, "avx2")
    assert "weights" not in row
    assert not [name for name in row["rejected"] if name.startswith("sparse")]


def test_other_encodings_of_a_float_layer_are_decoded():
    graph = sparse_layer("linear", (1, 32), (16, 32), "unstructured", 0.5, bits=32)
    real = graph.nodes[0].input(1).decoded()
    for encoding in (Codebook(9), Sparse("unstructured", Ternary((0.5,), (0.7,)))):
        graph.nodes[0].set_input(1, graph.add_constant(real, encoding=encoding, name="coded"))
        _, row = lowered(graph, "avx2")
        assert (row["kernel"], row["weights"]) == ("implicit-gemm", "decoded")
    assert row["rejected"]["sparse-gemv"] == "the stored weights are ternary"


def test_every_level_has_the_rows():
    for level in LEVELS:
        rows = {row.name for row in get_target(f"cpu:{level}").rows}
        assert "sparse-gemv" in rows


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@pytest.mark.parametrize("bits", [8, 32])
def test_a_block_sparse_convolution_runs_from_its_blocks(isa, bits, tmp_path):
    shapes = (1, 32, 9, 9), (64, 32, 3, 3)
    graph = sparse_layer("conv2d", *shapes, "block16x4", 0.1, bits=bits, pads=(1, 1, 1, 1))
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("sparse-gemm", "compressed")
    assert row["rejected"]["implicit-gemm"].startswith("predicted")
    check(graph, program, tmp_path / "net")


@pytest.mark.parametrize("pattern", ["unstructured", "1:4", "block1x4"])
@pytest.mark.parametrize("bits", [8, 32])
def test_scattered_weights_are_gathered(pattern, bits, tmp_path):
    graph = sparse_layer("linear", (1, 1024), (300, 1024), pattern, 0.05, bits=bits)
    program, row = lowered(graph, "avx2")
    assert (row["kernel"], row["weights"]) == ("sparse-gather", "compressed")
    check(graph, program, tmp_path / "net")
    assert lowered(graph, "sse4")[1]["rejected"]["sparse-gather"].endswith("cannot gather")


@pytest.mark.parametrize("isa", isa_params("amx"))
def test_blocks_are_gathered_into_tiles(isa, tmp_path):
    shapes = (1, 128, 28, 28), (128, 128, 3, 3)
    graph = sparse_layer("conv2d", *shapes, "block32x4", 0.1, pads=(1, 1, 1, 1))
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("sparse-gemm-amx", "compressed")
    check(graph, program, tmp_path / "net")
    graph = sparse_layer("conv2d", *shapes, "block32x4", 0.9, pads=(1, 1, 1, 1))
    assert lowered(graph, isa.name)[1]["weights"] == "decoded"


def test_tiles_need_whole_words_of_codes():
    spec = ConvSpec(1, 8, 8, 16, 32, 3, 3)
    assert not tiles_refusal(spec)
    assert "no multiple of 4" in tiles_refusal(replace(spec, c=18))
    assert "caller's input" in tiles_refusal(replace(spec, input_slack=False))
    assert "not 8-bit" in tiles_refusal(replace(spec, in_dtype="f32", epilogue=Epilogue()))


@pytest.mark.parametrize("pattern", ["unstructured", "block4x4"])
@pytest.mark.parametrize("bits", [8, 32])
def test_scattered_weights_of_convolutions_run_by_pixels(pattern, bits, tmp_path):
    level = "avx2" if bits == 32 else "avx512vnni"
    if bits == 8 and not set(LEVELS[level].flags) <= host_flags():
        pytest.skip("no AVX512-VNNI")
    shapes = (1, 64, 14, 14), (64, 64, 3, 3)
    density = 0.02 if pattern == "unstructured" else 0.1
    graph = sparse_layer("conv2d", *shapes, pattern, density, bits=bits, pads=(1, 1, 1, 1))
    program, row = lowered(graph, level)
    assert (row["kernel"], row["weights"]) == ("sparse-panel", "compressed")
    check(graph, program, tmp_path / "net")
