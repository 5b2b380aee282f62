"""The benchmark of 16-bit accumulators, on a small network: every way is built, exact and timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dlcc
from benchmarks import accumulators
from benchmarks.ptq import Split
from dlcc.ir import Graph
from tests.targets.running import isa_params

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def bench(monkeypatch, tmp_path) -> accumulators.Bench:
    """The digits network in three ways, with random images."""
    rng = np.random.default_rng(0)
    graph = dlcc.load_graph(DIGITS, shapes={"N": 1})
    images = rng.standard_normal((12, *graph.inputs[0].type.shape[1:])).astype(np.float32)
    split = Split(images[:6], images[6:], np.arange(6) % 10)
    monkeypatch.setattr(accumulators, "load_split", lambda *_: split)
    monkeypatch.setattr(accumulators, "entry_of", lambda _: {})
    monkeypatch.setattr(accumulators, "DATA", tmp_path)
    ways = [w for w in accumulators.WAYS if w.name in ("fp32", accumulators.WIDE)]
    ways.append(accumulators.WAYS[-1])
    monkeypatch.setattr(accumulators, "WAYS", tuple(ways))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "digits.onnx").symlink_to(DIGITS)
    row = accumulators.ROWS["mnist_cnn"]
    monkeypatch.setitem(accumulators.ROWS, "digits", type(row)("digits", 0.0))
    return accumulators.Bench("digits", tmp_path / "out", "cpu:avx2", 6, 6)


@isa_params("avx2")[0].marks[0]
@isa_params("avx2")[0].marks[1]
def test_every_way_is_built_once_and_timed(bench, tmp_path, capsys):
    bench.build()
    narrow = bench.results["accumulator=16"].kernels
    wide = bench.results[accumulators.WIDE].kernels
    assert set(accumulators.NARROW_ROWS) & set(narrow)
    assert not set(accumulators.NARROW_ROWS) & set(wide)
    assert bench.results["accumulator=16"].narrow >= 1
    assert bench.results[accumulators.WIDE].narrow == 0
    assert bench.results["fp32"].agreement == 1.0
    assert capsys.readouterr().err.count("digits: ") == 3
    bench.build()
    assert not capsys.readouterr().err
    bench.time(0.1)
    known = json.loads((tmp_path / "out" / "digits" / "results.json").read_text())
    assert known[accumulators.WIDE]["speedup"] == 1.0
    text = accumulators.table([bench])
    assert text.count("\n") == 4
    assert "| digits | accumulator=16 | " in text


@isa_params("avx2")[0].marks[0]
@isa_params("avx2")[0].marks[1]
def test_a_library_that_is_not_exact_ends_it(bench, monkeypatch):
    real = accumulators.dlcc.execute

    def off_by_one(graph: Graph, feed):
        return {name: y + 1 for name, y in real(graph, feed).items()}

    monkeypatch.setattr(accumulators.dlcc, "execute", off_by_one)
    with pytest.raises(SystemExit, match="the library is not exact"):
        bench.build()


def test_unknown_networks_are_named(capsys):
    with pytest.raises(SystemExit):
        accumulators.main(["--models", "resnet20,lenet"])
    assert "unknown models ['lenet']" in capsys.readouterr().err
