"""The networks of MLPerf Tiny as firmware: the bytes of every other target and of numpy."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from tests.cortex_m.board import BOARDS, QEMU, run
from tests.cortex_m.networks import NETWORKS, inputs, quantised

pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")

SAMPLES = {"kws": 100, "resnet": 10, "vww": 3, "ad": 100}

RUNTIME = 16 << 10
TFLM_FLASH = {
    "kws": 53_760 + RUNTIME,
    "resnet": 98_304 + RUNTIME,
    "vww": 332_800 + RUNTIME,
    "ad": 276_480 + RUNTIME,
}
"""Bytes: the .tflite files (Banbury et al. 2021, "MLPerf Tiny Benchmark", KiB) and the core of
TensorFlow Lite Micro without its kernels, as its overview page tells."""

TFLM_RAM = {"kws": 16_000, "resnet": 49_152, "vww": 55_296, "ad": 8 << 10}
"""Bytes: the tensors that are live at once, as an interpreter that never overlaps them needs at
least; for ``ad`` the arena that MLonMCU's models call enough for the reference kernels."""


WIDTHS = [*((name, 8) for name in NETWORKS), ("kws", 4)]
WIDTHS += [pytest.param((name, 4), marks=pytest.mark.slow) for name in NETWORKS if name != "kws"]
WIDTHS += [pytest.param((name, 2), marks=pytest.mark.slow) for name in NETWORKS]
"""Networks, and bits of their weights."""


@pytest.fixture(scope="module", params=WIDTHS)
def network(request, data_dir, tmp_path_factory):
    """Name, graph, samples, and what x86-64 and numpy make of them."""
    name, bits = request.param
    graph = quantised(data_dir, name, bits)
    (source,) = graph.inputs
    count = SAMPLES[name] if bits == 8 else 2
    samples = inputs(data_dir, name, count, source.type.affine)
    folder = tmp_path_factory.mktemp("x86")
    dlcc.compile(graph, folder / "net", passes=(), target="cpu:sse4")
    (output,) = graph.output_names
    with dlcc.load(folder / "net", threads=1) as model:
        results = np.stack([np.asarray(model(x[None])) for x in samples])
    reference = dlcc.execute(graph, {source.name: samples[:1]})[output]
    np.testing.assert_array_equal(results[0], reference)
    return (name, bits), graph, samples, results


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_same_bytes_on_a_board(network, core, tmp_path):
    check(*network, core, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m7", "cortex-m33"])
def test_same_bytes_on_the_boards_of_like_cores(network, core, tmp_path):
    check(*network, core, tmp_path)


def check(which, graph, samples, expected, core, folder):
    """Outputs, and bytes of flash and memory."""
    name, bits = which
    artifact = folder / "artifact"
    result = dlcc.compile(graph, artifact, passes=(), target=core, emit=("a",))
    made = run(BOARDS[core], artifact, NETWORKS[name], samples, folder / "work")
    assert made.outputs.tobytes() == expected.tobytes()
    assert made.writable == 0
    layers = result.program.report["layers"]
    for layer in layers:
        assert (layer.get("weights") == "compressed") == ("packed" in layer["kernel"])
    assert bits == 8 or any(layer.get("weights") == "compressed" for layer in layers)
    assert made.flash < TFLM_FLASH[name]
    assert result.program.arena_bytes + made.stack < TFLM_RAM[name]
