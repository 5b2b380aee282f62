"""Loops of the run time on emulated ARM machines."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.frontends.onnx import import_onnx
from tests.emulation.machine import run_network
from tests.emulation.test_networks import compile_network, on_machines
from tests.frontends.test_run_time_loops import feeds, nested, with_convolutions


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72", "armv7"))
@pytest.mark.parametrize("build", [nested, with_convolutions])
def test_loops(tmp_path, machine, target, build):
    made = build()
    graph = import_onnx(made)
    compile_network(graph, tmp_path, target=target, bits=32)
    samples = [feeds(made, count=np.int64(count)) for count in (0, 1, 6)]
    ordered = [[sample[v.name] for v in graph.inputs] for sample in samples]
    got = np.frombuffer(run_network(tmp_path, machine, ordered, 2), np.float32)
    want = [execute(graph, sample)["y"].reshape(-1) for sample in samples]
    np.testing.assert_allclose(got, np.concatenate(want), rtol=1e-5, atol=1e-6)
