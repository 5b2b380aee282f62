"""Networks packed for size: the same results as mapped ones, for every encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from dlcc.artifact import Artifact, write_artifact
from dlcc.driver import CompileOptions
from dlcc.errors import DlccError
from dlcc.inspection import inspect_artifact
from dlcc.ir import Graph, TensorType
from dlcc.ops import build
from passes.pipelines import OPTIMISE
from targets.cpu.levels import LEVELS
from targets.isa import host_flags, supports
from tests.lowering.graphs import conv

_LEVELS = [n for n in ("sse4", "avx2", "avx512vnni", "amx") if supports(LEVELS[n], host_flags())]
LEVELS_TO_RUN = sorted({_LEVELS[0], _LEVELS[-1]})
CONVOLUTIONS = ("first", "pruned", "shared", "blocks", "last")
MATRICES = ("sparse", "ternary", "binary", "codes", "products", "residuals", "three", "plain")

PIPELINES = {
    "float": "prune{sparsity=0.8 only=[pruned,sparse]},prune{sparsity=0.8 pattern=block4x4 "
    "only=blocks},share-weights{values=16 only=[shared,codes]},share-weights{values=9 only=pruned},"
    "ternarize{only=ternary},binarize{only=binary},product-quantize{only=products},"
    "residual-quantize{only=residuals},quantize-weights{bits=3 only=three}",
    "integers": "prune{sparsity=0.8 only=[pruned,sparse]},prune{sparsity=0.8 pattern=block4x4 "
    "only=blocks},ternarize{scales=symmetric only=ternary},binarize{only=binary},"
    "quantize{weights=[three:3,codes:5,shared:4]}",
    "bfloat16": "round-to-bfloat16",
}


def network() -> Graph:
    """Five convolutions, one of them depthwise, and eight linear layers of one row."""
    graph = Graph("layers")
    value = graph.add_input("image", TensorType((1, 8, 14, 14)))
    for loc in CONVOLUTIONS:
        groups = 16 if loc == "last" else 1
        value = conv(graph, value, 16, loc=loc, pads=(1, 1, 1, 1), groups=groups)
        value = build(graph, "relu", [value], loc=f"{loc} relu").output
    value = build(graph, "max_pool2d", [value], {"kernel": (2, 2), "strides": (2, 2)}).output
    value = build(graph, "reshape", [value], {"shape": (1, 16 * 49)}).output
    rng = np.random.default_rng(1)
    for loc in MATRICES:
        weight = rng.standard_normal((128, value.type.shape[-1])).astype(np.float32) / 16
        bias = graph.add_constant(rng.standard_normal(128).astype(np.float32))
        value = build(graph, "linear", [value, graph.add_constant(weight), bias], loc=loc).output
        value = build(graph, "relu", [value], loc=f"{loc} relu").output
    graph.set_outputs([value], ["scores"])
    return graph


def both_packs(model: Graph | Path, folder: Path, options: CompileOptions) -> tuple[int, int]:
    """Bytes of the mapped and of the packed weights file of one program, of equal results."""
    result = dlcc.compile(model, folder / "speed", options=options)
    write_artifact(result.program, folder / "size", pack="size")
    rng = np.random.default_rng(7)
    with (
        dlcc.load(folder / "speed", threads=1) as mapped,
        dlcc.load(folder / "size", threads=1) as packed,
    ):
        for _ in range(2):
            feed = {
                t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in result.artifact.inputs
            }
            want, got = mapped.run(feed), packed.run(feed)
            assert {n: a.tobytes() for n, a in got.items()} == {
                n: a.tobytes() for n, a in want.items()
            }
    sizes = [file_bytes(folder / pack) for pack in ("speed", "size")]
    return sizes[0], sizes[1]


def file_bytes(folder: Path) -> int:
    path = Artifact.open(folder).path(".weights")
    assert path is not None
    return path.stat().st_size


@pytest.mark.parametrize("target", LEVELS_TO_RUN)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_results_are_the_same_to_the_bit(pipeline: str, target: str, tmp_path: Path) -> None:
    passes = f"{OPTIMISE},{PIPELINES[pipeline]}"
    options = CompileOptions(target=f"cpu:{target}", passes=passes, threads=1)
    mapped, packed = both_packs(network(), tmp_path, options)
    assert packed < 0.97 * mapped


def test_what_compile_is_told_stands_in_the_artifact(tmp_path: Path) -> None:
    result = dlcc.compile(network(), tmp_path / "out", bits=32, pack="size", threads=1)
    assert result.artifact.manifest["weights"]["pack"] == "size"
    assert not (tmp_path / "out" / "layers.weights").read_bytes()[64:].startswith(b"\0")
    with pytest.raises(DlccError, match="cannot pack for nothing"):
        dlcc.compile(network(), tmp_path / "x", pack="")  # type: ignore[arg-type]


def test_zeros_and_shared_numbers_are_found_in_dense_weights(tmp_path: Path) -> None:
    """A network that was pruned and clustered elsewhere is as small as one with encodings."""
    rng = np.random.default_rng(0)
    graph, elements = Graph("found"), 0
    value = graph.add_input("image", TensorType((1, 32, 14, 14)))
    for index in range(3):
        book = rng.standard_normal(16).astype(np.float32)
        shape = (32, 32, 3, 3)
        weight = np.where(rng.random(shape) < 0.25, rng.choice(book, shape), np.float32(0))
        elements += weight.size
        operands: list[Any] = [value, graph.add_constant(weight)]
        value = build(graph, "conv2d", operands, {"pads": (1, 1, 1, 1)}, loc=f"c{index}").output
    graph.set_outputs([value], ["y"])
    options = CompileOptions(bits=32, threads=1)
    mapped, packed = both_packs(graph, tmp_path, options)
    assert mapped >= 4 * elements
    entropy = elements * (0.25 * 4 - 0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)) / 8
    assert packed < 1.06 * entropy + 1200


@pytest.mark.slow
@pytest.mark.data
def test_squeezenet_is_smaller_than_its_authors_file(models_dir: Path, tmp_path: Path) -> None:
    path = models_dir / "squeezenet_v1.0_deepcompression.onnx"
    _, packed = both_packs(path, tmp_path, CompileOptions(bits=32, threads=1))
    assert packed < 535_000 < 675_763
    report = inspect_artifact(tmp_path / "size")
    assert report.facts["stored_weight_bytes"] == packed


@pytest.mark.slow
@pytest.mark.data
def test_pruned_keyword_spotting_in_codes(models_dir: Path, tmp_path: Path) -> None:
    path = models_dir / "mlperf_tiny_kws_dscnn.onnx"
    passes = f"{OPTIMISE},prune{{sparsity=0.8}},quantize"
    options = CompileOptions(passes=passes, shapes={"N": 1}, threads=1)
    _, pruned = both_packs(path, tmp_path / "pruned", options)
    dense, packed = both_packs(path, tmp_path / "dense", CompileOptions(shapes={"N": 1}))
    assert packed < dense
    assert pruned < packed / 2
