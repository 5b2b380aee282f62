"""Real int8 networks on real inputs: the same bytes on x86 and on every ARM machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from benchmarks.ptq import entry_of, jpegs, load_split, prepared
from dlcc.driver import compile as compile_network
from targets.cpu.levels import AVX2
from targets.isa import host_flags, supports
from tests.emulation.machine import NEWEST, run_network
from tests.emulation.test_networks import on_machines

CALIBRATION = 16
SAMPLES = 100 if os.environ.get("CI") else 10
"""CI takes its time; at a desk the tenth part finds nearly as much."""
SMALL = (
    "mnist_cnn_ccexam",
    "cifar10_resnet20",
    "mlperf_tiny_resnet8_cifar10",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_vww_mobilenet025_96",
    "mlperf_tiny_ad_autoencoder",
)
LARGE = (
    "mobilenet_v1_1.0_224",
    "mobilenet_v2_1.0_224_qatdequant",
    "efficientnet_lite0_224",
    "squeezenet_v1.0_deepcompression",
)

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not supports(AVX2, host_flags()), reason="no avx2 to compare with"),
]


def samples_of(name: str, data: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples to calibrate with and to run."""
    if name == "mlperf_tiny_ad_autoencoder":
        # the data set (ToyADMOS) is not here: log energies of keywords, five frames as one row
        x = load_split(entry_of("mlperf_tiny_kws_dscnn"), CALIBRATION, count)
        return tuple(np.resize(part, (len(part), 640)) for part in (x.calibration, x.evaluation))
    if name == "mlperf_tiny_vww_mobilenet025_96":
        with np.load(data / "imagenet_sample1000_256.npz") as z:
            images = jpegs(z["jpeg"], z["offsets"], range(CALIBRATION + count))
        x = prepared(images[:, 32:224:2, 32:224:2], entry_of(name)["pre"])
        return x[:CALIBRATION], x[CALIBRATION:]
    split = load_split(entry_of(name), CALIBRATION, count)
    return split.calibration, split.evaluation


@dataclass
class Compiled:
    """A network compiled for x86, and what it gives."""

    model: Path
    calibration: list[dict[str, np.ndarray]]
    samples: list[list[np.ndarray]]
    outputs: bytes

    def on(self, target: str, folder: Path) -> None:
        compile_network(
            self.model, folder, target=target, bits=8, calibration=lambda: iter(self.calibration)
        )


@pytest.fixture(scope="module")
def compiled(request: Any, models_dir: Path, data_dir: Path, tmp_path_factory: Any) -> Compiled:
    name, count = request.param
    calibration, samples = samples_of(name, data_dir, count)
    model = models_dir / f"{name}.onnx"
    graph = dlcc.load_graph(model)
    (info,) = graph.inputs
    shape = info.type.shape
    feeds = [{info.name: x.reshape(shape)} for x in calibration]
    made = Compiled(model, feeds, [[x.reshape(shape)] for x in samples], b"")
    folder = tmp_path_factory.mktemp("x86") / "net"
    made.on("cpu:avx2", folder)
    with dlcc.load(folder, threads=1) as network:
        outputs = [network.run({info.name: x}) for (x,) in made.samples]
    made.outputs = b"".join(y.tobytes() for out in outputs for y in out.values())
    assert len({y.tobytes() for out in outputs for y in out.values()}) > count // 2
    return made


def check(compiled: Compiled, machine: Any, target: str, folder: Path) -> None:
    compiled.on(target, folder)
    for threads in (1, 2):
        assert run_network(folder, machine, compiled.samples, threads) == compiled.outputs


@pytest.mark.parametrize("compiled", [(name, SAMPLES) for name in SMALL], indirect=True)
@pytest.mark.parametrize(("machine", "target"), on_machines())
def test_small_networks(compiled, tmp_path, machine, target):
    check(compiled, machine, target, tmp_path / "net")


@pytest.mark.slow
@NEWEST.missing
@pytest.mark.parametrize("compiled", [(name, SAMPLES) for name in SMALL], indirect=True)
def test_small_networks_of_macos(compiled, tmp_path):
    check(compiled, NEWEST, "arm:apple-m1", tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [("cifar10_resnet56", SAMPLES)], indirect=True)
@pytest.mark.parametrize(("machine", "target"), on_machines())
def test_deep_network(compiled, tmp_path, machine, target):
    check(compiled, machine, target, tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [(name, 2) for name in LARGE], indirect=True)
@pytest.mark.parametrize(("machine", "target"), on_machines())
def test_large_networks(compiled, tmp_path, machine, target):
    check(compiled, machine, target, tmp_path / "net")
