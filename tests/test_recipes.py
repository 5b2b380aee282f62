"""Recipes compiled: a different method for each layer of one network, equal to the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.driver import CompileOptions
from dlcc.errors import DlccError
from dlcc.ir import Affine, Graph, TensorType
from dlcc.lowering.lower import prepare
from dlcc.ops import build
from targets.cpu.levels import LEVELS
from targets.isa import host_flags, supports
from tests.lowering.graphs import conv

ROOT = Path(__file__).parent.parent
LEVELS_TO_RUN = [
    name for name in ("sse4", "avx2", "avx512vnni", "amx") if supports(LEVELS[name], host_flags())
]

RECIPE = """
[quantize]

[[layers]]
match = "pruned"
prune = { sparsity = 0.75, pattern = "block4x4" }
quantize = { weights = 6 }

[[layers]]
match = "factorised*"
factorize = { ratio = 0.25, gain = 0 }

[[layers]]
match = "ternary*"
ternarize = { scales = "symmetric" }

[[layers]]
match = "binary*"
binarize = true

[[layers]]
match = "four*"
quantize = { weights = 4, inputs = 5 }

[[layers]]
match = "three"
quantize-weights = { bits = 3 }

[[layers]]
match = "sparse ternary"
prune = { sparsity = 0.9 }
ternarize = { scales = "symmetric" }

[[layers]]
match = "codes"
quantize = false
share-weights = { values = 16 }

[[layers]]
match = "float"
quantize = false
"""


def mixed() -> Graph:
    """Convolutions and linear layers; two heads in integers, one in float."""
    graph = Graph("mixed")
    value = graph.add_input("image", TensorType((1, 8, 12, 12)))
    for loc, channels in (
        ("pruned", 16),
        ("factorised", 48),
        ("ternary", 16),
        ("binary", 16),
        ("four", 16),
    ):
        value = conv(graph, value, channels, loc=loc, pads=(1, 1, 1, 1))
        value = build(graph, "relu", [value], loc=f"{loc} relu").output
    value = build(graph, "max_pool2d", [value], {"kernel": (2, 2), "strides": (2, 2)}).output
    value = build(graph, "reshape", [value], {"shape": (1, 16 * 36)}).output
    rng = np.random.default_rng(3)

    def linear(x, loc: str, outputs: int):
        weight = rng.standard_normal((outputs, x.type.shape[-1])).astype(np.float32)
        bias = graph.add_constant(rng.standard_normal(outputs).astype(np.float32))
        operands = [x, graph.add_constant(weight), bias]
        return build(graph, "linear", operands, loc=loc).output

    for loc in ("ternary 2", "four 2", "three", "sparse ternary", "binary 2"):
        value = build(graph, "relu", [linear(value, loc, 64)], loc=f"{loc} relu").output
    whole = linear(value, "eight", 10)
    real = linear(linear(value, "codes", 32), "float", 10)
    graph.set_outputs([whole, real], ["whole", "real"])
    return graph


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(8)
    return [{"image": rng.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("target", LEVELS_TO_RUN)
def test_a_method_for_each_layer(tmp_path: Path, target: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    options = CompileOptions(
        target=f"cpu:{target}", recipe=path, calibration=lambda: iter(feeds(16)), threads=2
    )
    result = dlcc.compile(mixed(), tmp_path / "out", options=options)
    graph = result.optimised.graph
    kinds = {n.loc: n.input(1).type.encoding for n in graph.nodes if n.op in ("conv2d", "linear")}
    names = {loc: encoding.name for loc, encoding in kinds.items()}
    factors = {loc for loc in names if loc.startswith("factorised.")}
    assert {names.pop(loc) for loc in factors} == {"affine"}
    assert len(factors) > 1
    assert names == {
        "pruned": "sparse", "ternary": "ternary", "binary": "binary", "four": "affine",
        "ternary 2": "ternary", "four 2": "affine", "three": "affine", "sparse ternary": "sparse",
        "binary 2": "binary", "eight": "affine", "codes": "codebook", "float": "dense",
    }  # fmt: skip
    bits = {loc: e.bits for loc, e in kinds.items() if isinstance(e, Affine) and "." not in loc}
    assert bits == {"four": 4, "four 2": 4, "three": 3, "eight": 8}
    prepared = prepare(graph)
    with dlcc.load(tmp_path / "out", threads=2) as library:
        for feed in feeds(3):
            got, want = library.run(feed), dlcc.execute(prepared, feed)
            assert got["whole"].tobytes() == want["whole"].tobytes()
            np.testing.assert_allclose(
                got["real"], want["real"], rtol=0, atol=1e-4 * np.abs(want["real"]).max()
            )


def test_the_manifest_has_the_recipe(tmp_path: Path) -> None:
    graph = Graph("small")
    value = conv(graph, graph.add_input("image", TensorType((1, 8, 4, 4))), 8, loc="first")
    graph.set_outputs([conv(graph, value, 8, loc="last", kernel=1)], ["y"])
    recipe = dlcc.passes.Recipe.parse('[quantize]\n[[layers]]\nmatch = "last"\nquantize = false\n')
    result = dlcc.compile(graph, tmp_path / "out", recipe=recipe)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"] == recipe.text
    assert manifest["pipeline"] == result.optimised.pipeline
    assert manifest["pipeline"].endswith("quantize{exclude=[last]}")
    again = dlcc.compile(graph, tmp_path / "again", passes=manifest["pipeline"])
    assert again.program.weights == result.program.weights
    assert "recipe" not in json.loads((tmp_path / "again" / "manifest.json").read_text())


def test_a_recipe_and_passes_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(DlccError, match="a recipe and passes are given"):
        dlcc.compile(mixed(), tmp_path / "out", recipe="r.toml", passes="quantize")
    assert not (tmp_path / "out").exists()


def test_the_example(tmp_path: Path) -> None:
    digits = ROOT / "examples" / "digits"
    images = np.random.default_rng(0).random((16, 1, 1, 8, 8)).astype(np.float32)
    options = CompileOptions(
        recipe=digits / "recipe.toml",
        shapes={"N": 1},
        calibration=lambda: ({"image": image} for image in images),
    )
    optimised = dlcc.optimise(digits / "digits.onnx", options)
    kinds = [n.input(1).type.encoding.name for n in optimised.graph.nodes if n.op == "conv2d"]
    assert {"sparse", "affine", "ternary"} <= set(kinds)


def test_certificates_name_the_width_of_the_kernels(tmp_path: Path) -> None:
    graph = Graph("narrow")
    x = graph.add_input("image", TensorType((1, 16, 8, 8)))
    graph.set_outputs([conv(graph, conv(graph, x, 16, loc="a"), 16, loc="b")], ["y"])
    rng = np.random.default_rng(0)
    images = [{"image": rng.standard_normal((1, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    for target, width in (("cpu:avx2", 16), ("cpu:avx512vnni", 32)):
        dlcc.compile(
            graph,
            tmp_path / "out",
            passes="assign-bitwidths{accumulator=16}",
            target=target,
            calibration=lambda: iter(images),
        )
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        found = manifest["certificates"]
        assert [c["accumulator"] for c in found] == [width, width]
        assert all(c["bits"] <= 16 and c["assigned"]["accumulator"] == 16 for c in found)
