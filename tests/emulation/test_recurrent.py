"""LSTM, GRU and RNN on emulated ARM machines, and as portable C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.analysis.execute import execute
from dlcc.artifact import Artifact
from dlcc.ir import Graph
from tests.emulation import machine
from tests.portable.source import Network
from tests.targets.test_recurrent_kernels import CASES, add_layer, every_case, exact_names, feed

FEW = 5
"""Layers of one library: the program that runs it takes 16 outputs."""

pytestmark = pytest.mark.slow


def check_result(got: np.ndarray, want: np.ndarray, name: str, graph: Graph) -> None:
    if name in exact_names(graph):
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * scale, err_msg=name)


def check(target: str, device: machine.Machine, numbers: range, folder: Path) -> None:
    graph = Graph("some")
    graph.set_outputs([v for number in numbers for v in add_layer(graph, number)])
    dlcc.compile(graph, folder, bits=32, target=target, passes="")
    inputs = feed(graph)
    data = machine.run_network(folder, device, [[inputs[v.name] for v in graph.inputs]])
    at = 0
    for name, want in execute(graph, inputs).items():
        got = np.frombuffer(data, np.float32, want.size, at)
        check_result(got.reshape(want.shape), want, name, graph)
        at += want.nbytes
    assert at == len(data)


@pytest.mark.parametrize("first", range(0, len(CASES), FEW))
@pytest.mark.parametrize(
    ("target", "device"),
    [
        pytest.param(target, device, id=target, marks=device.missing)
        for target, device in (
            ("arm:neon", machine.CORTEX_A72),
            ("arm:sve256", machine.SVE256),
            ("armv7", machine.ARMV7),
        )
    ],
)
def test_on_arm(target: str, device: machine.Machine, first: int, tmp_path: Path) -> None:
    check(target, device, range(first, min(first + FEW, len(CASES))), tmp_path / "out")


def test_as_c(tmp_path: Path) -> None:
    graph = every_case()
    dlcc.compile(graph, tmp_path / "out", bits=32, target="c", emit=("c",), passes="")
    inputs = feed(graph)
    got = Network(Artifact.open(tmp_path / "out"))(inputs)
    for name, want in execute(graph, inputs).items():
        check_result(got[name], want, name, graph)
