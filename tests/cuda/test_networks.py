"""Networks compiled for GPUs: as the command makes them, run by the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import dlcc
from dlcc.driver import compile as compile_network
from tests.cuda.emulator import compiled_for_cpu, emulator

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
ROOM = {32: 1e-5, 16: 3e-2}
"""Largest difference over the largest output; at 16 bits of networks of two kinds of floats."""

SMALL = (
    "mlperf_tiny_ad_autoencoder",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_resnet8_cifar10",
    "mlperf_tiny_vww_mobilenet025_96",
    "mnist_cnn_ccexam",
    "cifar10_resnet20",
)


def check(model: Path, bits: int, folder: Path, **options: object) -> None:
    """A GPU's results are the CPU's: to the byte at 8 bits."""
    emulator()
    with compiled_for_cpu():
        compile_network(model, folder / "gpu", target="cuda", bits=bits, **options)
    compile_network(model, folder / "cpu", target="cpu:avx2", bits=bits, **options)
    gpu, cpu = dlcc.load(folder / "gpu"), dlcc.load(folder / "cpu")
    rng = np.random.default_rng(5)
    for _ in range(2):
        feed = {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in cpu.inputs}
        got, want = gpu.run(feed), cpu.run(feed)
        assert got.keys() == want.keys()
        for name, array in want.items():
            if bits == 8:
                np.testing.assert_array_equal(got[name], array)
            else:
                assert np.abs(got[name] - array).max() <= ROOM[bits] * np.abs(array).max()


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_digits(bits, tmp_path):
    check(DIGITS, bits, tmp_path, shapes={"N": 3})


@pytest.mark.usefixtures("emulator")
def test_shape_profiles(tmp_path):
    with compiled_for_cpu():
        dlcc.compile(DIGITS, tmp_path / "gpu", target="cuda", bits=8, shapes={"N": (1, 4)})
    dlcc.compile(DIGITS, tmp_path / "cpu", target="cpu:avx2", bits=8, shapes={"N": (1, 4)})
    gpu, cpu = dlcc.load(tmp_path / "gpu"), dlcc.load(tmp_path / "cpu")
    (info,) = cpu.inputs
    for count in (4, 1):
        x = np.random.default_rng(count).random((count, *info.shape[1:]), np.float32)
        (got,), (want,) = (m.run({info.name: x}).values() for m in (gpu, cpu))
        assert len(got) == count
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("name", SMALL)
def test_real_networks(name, bits, tmp_path, models_dir):
    model = models_dir / f"{name}.onnx"
    dims = [d for i in onnx.load(model).graph.input for d in i.type.tensor_type.shape.dim]
    check(model, bits, tmp_path, shapes={d.dim_param: 1 for d in dims if d.dim_param})
