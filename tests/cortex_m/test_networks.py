"""The networks of MLPerf Tiny as firmware: the bytes of every other target and of numpy."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from tests.cortex_m.board import BOARDS, QEMU, run
from tests.cortex_m.networks import NETWORKS, inputs, quantised

pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")

SAMPLES = 3


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, data_dir, tmp_path_factory):
    """Name, graph, samples, and what x86-64 and numpy make of them."""
    graph = quantised(data_dir, request.param)
    (source,) = graph.inputs
    samples = inputs(data_dir, request.param, SAMPLES, source.type.affine)
    folder = tmp_path_factory.mktemp("x86")
    dlcc.compile(graph, folder / "net", passes=(), target="cpu:sse4")
    (output,) = graph.output_names
    with dlcc.load(folder / "net", threads=1) as model:
        results = np.stack([np.asarray(model(x[None])) for x in samples])
    reference = dlcc.execute(graph, {source.name: samples[:1]})[output]
    np.testing.assert_array_equal(results[0], reference)
    return request.param, graph, samples, results


@pytest.mark.parametrize("core", BOARDS)
def test_same_bytes_on_a_board(network, core, tmp_path):
    name, graph, samples, expected = network
    artifact = tmp_path / "artifact"
    dlcc.compile(graph, artifact, passes=(), target=core, emit=("a",))
    made = run(BOARDS[core], artifact, NETWORKS[name], samples, tmp_path / "work")
    assert made.outputs.tobytes() == expected.tobytes()
    assert made.writable == 0
