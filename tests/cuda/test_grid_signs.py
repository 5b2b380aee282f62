"""Layers of binary activations on the emulated GPU, to the bit, and their machine code."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.codegen import device_source
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.driver import build_object
from dlcc.lowering.lower import lower
from targets import get_target
from targets.cuda.table import machine_of
from targets.kernels.grid_gemm_code import Tile
from targets.kernels.grid_xnor import grid_xnor
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.xnor import BinaryLayer
from tests.cuda.emulator import Emulator, compiled_for_cpu
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_code import instructions
from tests.targets.test_sign_rows import CONV, LINEAR, binary_layer

WIDE = ("conv2d", (1, 128, 5, 5), (40, 128, 3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)})
MANY = ("linear", (19, 300), (45, 300), {})


def check(emulator: Emulator, graph, architecture: str, folder) -> dict[str, dict]:
    """The library against the reference, to the bit; the report's lines by layer."""
    number = architecture.removeprefix("sm_")
    with compiled_for_cpu(), emulator.devices(f"{number[:-1]}.{number[-1]}"):
        program = lower(graph, get_target(f"cuda:{architecture}"), build_object)
        write_artifact(program, folder)
        rng = np.random.default_rng(2)
        inputs = {
            v.name: np.round(rng.standard_normal(v.type.shape), 1).astype(np.float32)
            for v in graph.inputs
        }
        want = dlcc.execute(graph, inputs)["y"]
        with dlcc.load(folder) as model:
            np.testing.assert_array_equal(model(*inputs.values()), want)
    return {row["layer"]: row for row in reversed(program.report["layers"])}


@pytest.mark.parametrize(
    ("layer", "out", "architecture"),
    [
        (CONV, True, "sm_80"),
        pytest.param(WIDE, False, "sm_90", marks=pytest.mark.slow),
        pytest.param(WIDE, True, "sm_61", marks=pytest.mark.slow),
        pytest.param(MANY, True, "sm_80", marks=pytest.mark.slow),
        pytest.param(LINEAR, True, "sm_75", marks=pytest.mark.slow),
        pytest.param(LINEAR, False, "sm_90", marks=pytest.mark.slow),
    ],
)
def test_layers_of_signs_are_exact(emulator, layer, out, architecture, tmp_path):
    rows = check(emulator, binary_layer(layer, out=out), architecture, tmp_path / "net")
    assert rows["signs"]["kernel"] == "grid-signs"
    assert (rows["layer"]["kernel"], rows["layer"]["weights"]) == ("grid-xnor", "compressed")
    words = -(-layer[2][1] // 32) * 4 * np.prod(layer[2][2:], dtype=int)
    assert rows["layer"]["weight_bytes"] <= 64 * (words + 63) + 16 * 64 + 4096


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["binary", "dead"])
def test_residuals_and_dead_channels(emulator, weight, tmp_path):
    graph = binary_layer(CONV, residual=True, weight=weight)
    check(emulator, graph, "sm_80", tmp_path / "net")


GROUPS = ("conv2d", (1, 40, 7, 6), (8, 20, 3, 3), {"pads": (1, 1, 1, 1), "groups": 2})


@pytest.mark.parametrize(
    ("layer", "weight", "out"),
    [
        (GROUPS, "binary", False),
        pytest.param(GROUPS, "int4", True, marks=pytest.mark.slow),
        pytest.param(CONV, "int4", True, marks=pytest.mark.slow),
        pytest.param(LINEAR, "int4", False, marks=pytest.mark.slow),
    ],
)
def test_other_weights_and_groups(emulator, layer, weight, out, tmp_path):
    graph = binary_layer(layer, weight=weight, out=out)
    rows = check(emulator, graph, "sm_80", tmp_path / "net")
    assert rows["layer"]["kernel"] == "grid-sign-bytes"


def some_layer(pixels: int, channels: int, signs: bool = True) -> BinaryLayer:
    rng = np.random.default_rng(7)
    spec = ConvSpec(1, 1, pixels, channels, 40, epilogue=Epilogue("f32"))
    negative = rng.random((40, channels, 1, 1)) < 0.5
    return BinaryLayer(spec, negative, np.ones(40, np.float32), np.zeros(40, np.float32), signs)


@pytest.mark.parametrize("tile", [None, Tile(32, 32, (2, 2)), Tile(16, 32, (1, 2), splits=2)])
def test_products_of_signs(tile):
    """Few rows, and blocks with and without a cut depth."""
    layer = some_layer(5, 1536, signs=False)
    plan = grid_xnor(layer, machine_of(ARCHITECTURES["sm_80"]), tile)
    x = np.random.default_rng(8).random((5, 1536)) < 0.5
    words = np.packbits(x, axis=1, bitorder="little")
    want = (1 - 2 * x.astype(int)) @ (1 - 2 * layer.negative[:, :, 0, 0].astype(int)).T
    runner = GridRunner([plan])
    for reverse in (False, True):
        got = runner.run(plan, [words], np.zeros((5, 40), np.float32), reverse=reverse)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("architecture", "pixels", "wanted"),
    [
        ("sm_80", 4096, ("BMMA.168256.XOR.POPC", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128")),
        pytest.param("sm_90", 4096, ("BMMA.168256.AND.POPC",), marks=pytest.mark.slow),
        pytest.param("sm_75", 4096, ("POPC", "LDS.U.128"), marks=pytest.mark.slow),
        ("sm_90", 1, ("POPC", "LOP3.LUT", "LDG.E.NA.128.CONSTANT")),
    ],
)
def test_instructions(architecture, pixels, wanted, tmp_path):
    plan = grid_xnor(some_layer(pixels, 4096), machine_of(ARCHITECTURES[architecture]))
    product, _ = plan.steps
    cubin = compile_cubin(device_source({product.name_key: product.build()}), architecture)
    found = instructions(cubin, tmp_path)
    for name in wanted:
        assert any(known.startswith(name) for known in found), (name, found.most_common())
    assert not any(name.startswith(("LDL", "STL")) for name in found)
    assert read_cubin(cubin).kernels[product.name_key].local_bytes == 0
