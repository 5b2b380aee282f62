"""The recorded input of an artifact's example program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.analysis.sample import ROUNDED, SUMS, tolerances
from dlcc.driver import CompileOptions, optimise
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, TensorType
from dlcc.ops.base import build
from dlcc.recording import MOST_ELEMENTS, SEEDED, record_sample
from tests.runtime.programs import zig_cc


def network(size: int = 8) -> Graph:
    """A layer with a residual, then softmax beside it."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, size)))
    rng = np.random.default_rng(0)
    weight = graph.add_constant(rng.standard_normal((size, size)).astype(np.float32), name="w")
    value = build(graph, "linear", [x, weight], loc="fc").output
    value = build(graph, "add", [build(graph, "relu", [value]).output, x], loc="sum").output
    second = build(graph, "exp", [value], loc="exp").output
    graph.set_outputs([value, second], ["y", "e"])
    return graph


DATA = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)


def calibration():
    return iter({"x": row[None]} for row in DATA)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "real.npz", x=DATA)
    return tmp_path / "real.npz"


def test_only_what_every_target_computes_alike_is_exact() -> None:
    def after(bits: int) -> tuple[float, ...]:
        options = CompileOptions(bits=bits, calibration=calibration)
        return tolerances(optimise(network(), options).graph)

    assert after(32) == (SUMS, SUMS)
    assert after(16) == (ROUNDED, ROUNDED)
    exact, _ = after(8)
    assert exact == 0
    chosen = CompileOptions(passes="quantize-weights{bits=8}")  # float sums of codes
    assert tolerances(optimise(network(), chosen).graph) == (SUMS, SUMS)


def test_codes_made_of_float_sums_may_round_otherwise() -> None:
    graph = network()
    codes = build(graph, "argmax", [graph.outputs[0]], {"axis": 1, "keepdims": True}).output
    moved = build(graph, "reshape", [graph.inputs[0]], {"shape": (8, 1)}).output
    graph.set_outputs([codes, moved], ["top", "same"])
    assert tolerances(graph)[1] == 0
    assert tolerances(graph)[0] > 0


def test_sources_of_the_recorded_input(data: Path) -> None:
    graph = network()
    inputs = (dlcc.program.TensorInfo("x", "float32", (1, 8)),)
    feeds = [{"x": row[None]} for row in DATA]
    by_file, why = record_sample(graph, inputs, data, feeds[1:], "calibration")
    assert (by_file.source, why) == ("the first sample of real.npz", "")
    assert by_file.inputs == (DATA[:1].tobytes(),)
    want = dlcc.execute(graph, feeds[0])
    assert by_file.outputs == (want["y"].tobytes(), want["e"].tobytes())
    first, _ = record_sample(graph, inputs, None, iter(feeds[1:]), "the first of them")
    assert (first.inputs[0], first.source) == (DATA[1:2].tobytes(), "the first of them")
    seeded, _ = record_sample(graph, inputs, None, None, "")
    numbers = np.frombuffer(seeded.inputs[0], np.float32)
    assert seeded.source == SEEDED
    assert np.ptp(numbers) > 1
    assert (numbers * 64 == np.rint(numbers * 64)).all()
    assert record_sample(graph, inputs, "none", iter(feeds), "") == (None, "")


def test_too_much_is_recorded_only_when_asked(tmp_path: Path) -> None:
    graph = Graph("large")
    x = graph.add_input("x", TensorType((MOST_ELEMENTS,)))
    graph.set_outputs([build(graph, "relu", [x]).output], ["y"])
    inputs = (dlcc.program.TensorInfo("x", "float32", (MOST_ELEMENTS,)),)
    none, why = record_sample(graph, inputs, None, None, "")
    assert none is None
    assert "--sample FILE.npz" in why


def test_seeded_numbers_are_indices_too(tmp_path: Path) -> None:
    """Those outside the table stand for its ends, in the reference as in the kernel."""
    graph = Graph("lookup")
    index = graph.add_input("i", TensorType((64,), dlcc.ir.dtypes.I64))
    table = graph.add_constant(np.ones((2, 4), np.float32), name="t")
    graph.set_outputs([build(graph, "gather", [table, index], {"axis": 0}).output], ["y"])
    out = tmp_path / "out"
    dlcc.compile(graph, out, bits=32, emit=("a",), name="lookup")
    zig_cc(out / "example.c", out / "liblookup.a", "-lpthread", "-o", out / "example")
    done = subprocess.run(["./example"], cwd=out, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("array", [np.zeros((3, 7), np.float32), np.zeros((0, 8), np.float32)])
def test_a_sample_that_does_not_fit_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=array)
    with pytest.raises(DlccError) as caught:
        dlcc.compile(network(), tmp_path / "out", bits=32, sample=tmp_path / "bad.npz")
    assert caught.value.code == ExitCode.DATA
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_compiled_network_gives_its_recorded_output(bits: int, data: Path) -> None:
    out = data.parent / "out"
    dlcc.compile(network(), out, bits=bits, calibration=data, emit=("a",), name="chosen")
    zig_cc(out / "example.c", out / "libchosen.a", "-lpthread", "-o", out / "example")
    done = subprocess.run(["./example"], cwd=out, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the first sample of real.npz" in (out / "INTEGRATION.md").read_text()
