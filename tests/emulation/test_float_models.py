"""Real networks in float32 and 16-bit floats on ARM machines, against the float32 reference."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.driver import compile as compile_network
from tests.emulation.machine import run_network
from tests.emulation.test_models import LARGE, SMALL
from tests.emulation.test_networks import on_machines

pytestmark = pytest.mark.data
MACHINES = ("cortex-a72", "armv7")
QUICK = ("mlperf_tiny_kws_dscnn", "mlperf_tiny_ad_autoencoder")
OTHERS = [name for name in (*SMALL, "cifar10_resnet56", *LARGE) if name not in QUICK]
BOUND = {"32": 1e-4, "16": 5e-3, "16 armv7": 4e-2}
"""By bits: largest difference, in units of the largest output; bfloat16 on ARMv7."""


def check(model, bits, machine, target, folder):
    graph = dlcc.load_graph(model)
    rng = np.random.default_rng(3)
    feeds = [
        {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
        for _ in range(2)
    ]
    want = [y for feed in feeds for y in dlcc.execute(graph, feed).values()]
    compile_network(model, folder, target=target, bits=bits)
    made = run_network(folder, machine, [list(feed.values()) for feed in feeds], 2)
    got = np.frombuffer(made, np.float32)
    flat = np.concatenate([np.asarray(y, np.float32).reshape(-1) for y in want])
    assert np.abs(flat).max() > 0
    bound = BOUND.get(f"{bits} {target}", BOUND[str(bits)])
    assert np.abs(got - flat).max() <= bound * np.abs(flat).max()
    return sum(path.stat().st_size for path in folder.glob("*.weights"))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(("machine", "target"), on_machines(*MACHINES))
def test_quick_networks(models_dir, tmp_path, machine, target, name):
    size = {
        bits: check(models_dir / f"{name}.onnx", bits, machine, target, tmp_path / f"net{bits}")
        for bits in (32, 16)
    }
    assert size[16] < 0.6 * size[32]


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a76"))
def test_quick_networks_by_half_arithmetic(models_dir, tmp_path, machine, target, name):
    check(models_dir / f"{name}.onnx", 16, machine, target, tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in (*SMALL, "cifar10_resnet56", *LARGE) if n not in QUICK]
)
@pytest.mark.parametrize(("machine", "target"), on_machines(*MACHINES))
def test_other_networks(models_dir, tmp_path, machine, target, name):
    check(models_dir / f"{name}.onnx", 32, machine, target, tmp_path / "net")
