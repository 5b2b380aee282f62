"""Tuning a small network on this machine: real kernels, real clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.cli import main
from dlcc.driver import CompileOptions, optimise
from dlcc.errors import ExitCode
from dlcc.executable import random_feed
from dlcc.lowering.lower import prepare
from dlcc.lowering.tuning import TuningDatabase, layer_key
from targets.isa import host_flags
from tests.cli import models


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.residual_cnn(tmp_path_factory.mktemp("models") / "cnn.onnx")


@pytest.fixture(scope="module")
def tuned(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A database of the network at 8 and 32 bits, and what the second tuning printed."""
    path = tmp_path_factory.mktemp("tuning") / "tuning.json"
    arguments = ["--rounds", "1", "--candidates", "3", "-q", "--shape", "N=1", "-d", str(path)]
    assert main(["tune", str(network), "--bits", "32", *arguments]) == 0
    results = dlcc.tune(network, path, bits=8, shapes={"N": 1}, rounds=2, candidates=3)
    return path, results


def test_every_layer_with_a_choice_is_measured(tuned):
    path, results = tuned
    assert results
    database = TuningDatabase.load(path)
    for entry in results:
        assert 2 <= len(entry.seconds) <= 3
        assert entry.predicted in entry.seconds
        assert entry.saved >= 0
        assert any(key == entry.key for _, key in database.entries)
    types = {key.partition("(")[2][:2] for _, key in database.entries}
    assert types == {"f3", "u8"}  # both tunings are in the file


@pytest.mark.parametrize("bits", [8, 32])
def test_a_network_compiled_by_measurement_computes_the_same(network, tuned, tmp_path, bits):
    """Every measured candidate is forced in turn to be the fastest."""
    path, _ = tuned
    options = CompileOptions(bits=bits, shapes={"N": 1}, threads=2, tuning=tmp_path / "forced.json")
    graph = prepare(optimise(network, options).graph)
    own = {layer_key(node) for node in graph.nodes}
    entries = TuningDatabase.load(path).entries
    names = {n for (_, key), r in entries.items() if key in own for n in r["seconds"]}
    assert len(names) > 2
    taken = set()
    for number, name in enumerate(sorted(names)):
        database = TuningDatabase.load(path)
        for record in database.entries.values():
            if name in record["seconds"]:
                record["seconds"][name] = 1e-12
        database.save(tmp_path / "forced.json")
        result = dlcc.compile(network, tmp_path / str(number), options=options)
        taken |= {layer.get("tuned", "") for layer in result.program.report["layers"]}
        with dlcc.load(tmp_path / str(number)) as model:
            feed = random_feed(model.inputs)
            expected = dlcc.execute(graph, feed)
            for output, value in model.run(feed).items():
                if bits == 8:
                    np.testing.assert_array_equal(value, expected[output])
                else:
                    np.testing.assert_allclose(value, expected[output], rtol=1e-4, atol=1e-5)
    assert names <= taken


def test_tune_prints_what_it_found(network, tmp_path, capsys):
    path = tmp_path / "t.json"
    arguments = ["--rounds", "1", "--candidates", "2", "--shape", "N=1", "--json", "-d", str(path)]
    assert main(["tune", str(network), "--bits", "32", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["database"] == str(path)
    assert all(layer["predicted"] in layer["seconds"] for layer in told["layers"])


def test_mistakes_are_told_before_the_work(network, tmp_path, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert main(["tune", str(network), "-d", str(bad)]) == 6
    assert "no tuning database" in capsys.readouterr().err
    assert bad.read_text() == "{}"
    assert main(["tune", str(network), "-d", str(tmp_path / "no" / "t.json")]) == 10
    out = tmp_path / "out"
    assert main(["compile", str(network), "-o", str(out), "--tuning", str(tmp_path / "x")]) == 6
    assert not out.exists()


def test_another_machine_is_not_measured(network, tmp_path, capsys):
    path = tmp_path / "tuning.json"
    command = ["tune", str(network), "--target", "arm", "-d", str(path), "--shape", "N=1"]
    assert main(command) == ExitCode.TARGET
    assert "nothing of target arm can be measured here" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.skipif("avx2" not in host_flags(), reason="this CPU has no AVX2")
def test_each_variant_is_measured(network, tmp_path):
    options = {"target": "cpu:sse4+avx2", "shapes": {"N": 1}}
    results = dlcc.tune(network, tmp_path / "t.json", **options, rounds=1, candidates=2)
    assert [r.target for r in results] == sorted((r.target for r in results), reverse=True)
    assert {r.target for r in results} == {"cpu:sse4", "cpu:avx2"}
    made = dlcc.compile(network, tmp_path / "net", **options, tuning=tmp_path / "t.json")
    for program in made.program.variants:
        assert any("tuned" in layer for layer in program.report["layers"])
