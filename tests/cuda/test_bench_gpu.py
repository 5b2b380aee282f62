"""The comparison on a GPU: both halves, with one small network on the emulated one; tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import dlcc
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bundle import Bundle, NoBundle
from benchmarks.gpu.catalogue import CONTENDERS
from benchmarks.gpu.kernels import products_of_round
from benchmarks.gpu.prepare import peak_cubin, prepare
from benchmarks.gpu.tables import report
from benchmarks.peers.results import Cell, Group, Results, load_results
from benchmarks.peers.setup import Cache
from dlcc.cuda.cubin import read_cubin
from tests.cuda import emulator as emulators
from tests.cuda.emulator import Emulator, compiled_for_cpu

BATCHES = (1, 3)


def _network(path: Path, rng: np.random.Generator) -> None:
    """A convolution, pooling and a linear layer, for a batch of any size."""
    weights = {
        "w": rng.standard_normal((16, 3, 3, 3)).astype(np.float32) / 5,
        "v": rng.standard_normal((5, 16)).astype(np.float32) / 4,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], "fc", transB=1),
    ]
    border = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", (3, 8, 8)), ("y", (5,)))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "small", border[:1], border[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``prepare`` makes of one network, compiled for the emulator."""
    emulators.emulator()
    folder = tmp_path_factory.mktemp("bench")
    cache = Cache(folder / "cache")
    cache.models.mkdir(parents=True)
    rng = np.random.default_rng(3)
    source = cache.model("{}.batches.onnx", "small")
    _network(source, rng)
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    y = dlcc.execute(dlcc.import_onnx(source, shapes={"N": 2}), {"x": x})["y"]
    np.savez(cache.model("{}.batches.npz", "small"), x=x, y=y)
    np.savez(cache.samples("small"), x=x[:1], y=y[:1], calib=x)
    with compiled_for_cpu():
        options: dict[str, Any] = {"target": "cuda:sm_80", "shapes": {"N": BATCHES}}
        dlcc.compile(source, folder / "made" / "small-8", bits=8, **options)
        failed = prepare(
            cache, folder / "bundle", ["small"], [32, 8], BATCHES, ["sm_80"], print,
            given=folder / "made",
        )  # fmt: skip
    assert failed == 1  # of 32 bits none was given
    return folder / "bundle"


def test_run_with_nothing_but_numpy(bundle: Path, emulator: Emulator, tmp_path: Path) -> None:
    """``./run`` by an interpreter that finds numpy and the folder, then the tables."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "numpy").symlink_to(Path(np.__file__).parent)
    libraries = Path(np.__file__).parent.with_name("numpy.libs")
    if libraries.exists():
        (alone / "numpy.libs").symlink_to(libraries)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={alone} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, **emulators.environment(), "PYTHON": str(python)}
    command = [str(bundle / "run"), "--rounds", "2", "--slot", "0.01", "--kernels", "small"]
    done = subprocess.run(
        [*command, "--peak-rounds", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = load_results([bundle / "results.json"])
    for batch in BATCHES:
        row = results.cells[Group("small", 1, True, batch)]
        assert set(row) == set(CONTENDERS)
        ours = row["dlcc:int8"]
        assert (ours.failed, len(ours.rounds)) == ("", 2)
        assert 0 < ours.error < 0.1
        assert row["dlcc:fp32"].failed == "there is no small-32 among the given artifacts"
        assert row["torch_eager:fp16"].failed == "torch is not installed"
        assert row["tensorrt:int8"].failed == "tensorrt is not installed"
    kernels = json.loads((bundle / "kernels.json").read_text())
    assert all(rate > 0 for rate in kernels["peaks"].values())
    assert [layer["layer"] for layer in kernels["layers"]["int8"]] == ["conv", "fc"]
    assert [layer["macs"] for layer in kernels["layers"]["int8"]] == [3 * 64 * 16 * 27, 3 * 80]
    table = report(results, kernels)
    assert "Emulated GPU 0 (sm_80, driver for CUDA 12.4)" in table
    assert "### dlcc int8, batch 3 (throughput)" in table
    assert "torch_eager:fp16 | torch is not installed" in table
    assert "| 1 | f32[16,3,3,3] | f32[3,16,8,8] | grid-" in table


def _cell(*seconds: float, error: float = 0.0) -> Cell:
    rounds = {f"r.{i}": {"p20": value, "foreign": 0.0} for i, value in enumerate(seconds)}
    return Cell(facts={"error": error}, rounds=rounds)


def test_tables() -> None:
    row = {
        "dlcc:int8": _cell(1e-3, 1.1e-3),
        "torch_graphs:fp16": _cell(2e-3, 2.2e-3),
        "torch_eager:fp32": Cell(failed="torch is not installed"),
        "tensorrt:int8": _cell(0.1e-3, error=9.0),
    }
    machine = {"gpu": "G", "capability": 90, "driver": "CUDA 12.8", "cpu": "C", "system": "S"}
    results = Results({**machine, "date": "today"}, {Group("resnet50", 1, True, 64): row})
    layer = {"layer": "a", "kernel": "grid-gemm", "weights": "f32[8,8]", "output": "f32[64,8]"}
    layers = [{**layer, "macs": 8 * 10**9, "seconds": 1e-4}, {**layer, "macs": 0, "seconds": 0.0}]
    found = {"machine": machine, "network": "resnet50", "batch": 64, "peaks": {"int8": 1e14}}
    lines = report(results, {**found, "layers": {"int8": layers}}).splitlines()
    assert lines[0].startswith("G (sm_90, driver for CUDA 12.8), C, S, today.")
    assert (
        "| resnet50 | torch_graphs:fp16 | 2.1 | 9.5 % | 0.0e+00 | 1.05 | 9.5 % | 0.0e+00 "
        in (lines[6])
    )
    assert lines[6].endswith("| 6.095e+04 | 2.00 | met |")
    assert "not counted: its output is wrong (error 9)" in "".join(lines)
    assert "| 2 | f32[8,8] | f32[64,8] | grid-gemm | 50 | 80.0 % | met |" in lines


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (None, "was not prepared"),
        ("{}", "is not a file of this version"),
        ('{"format": "dlcc-gpu-bench-1"}', "there is no NVIDIA GPU, or no driver for it"),
    ],
)
def test_runs_that_cannot_be(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: Any, text: str
) -> None:
    if facts:
        (tmp_path / "bundle.json").write_text(facts)
    with emulator.devices(""):
        assert main(["run", str(tmp_path)]) == 1
    assert text in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path)
    absent = CONTENDERS["onnxruntime_cuda:fp16"]
    assert bundle.missing(absent, "resnet50") in (
        "onnxruntime is not installed",
        "resnet50.batches.fp16.onnx was not prepared",
    )


def test_only_what_was_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(NoBundle, match="was not prepared"):
        prepare(Cache(tmp_path), tmp_path, [], [], [], [], print)
    assert (tmp_path / "mine").exists()


def test_peaks_of_hopper_are_those_of_warpgroups() -> None:
    found = read_cubin(peak_cubin("sm_90"))
    assert found.architecture.exact
    names = {"int8", "fp16", "bf16"}
    assert {f"peak_group_{name}" for name in names} < set(found.kernels)
    assert all(kernel.local_bytes == 0 for kernel in found.kernels.values())
    assert products_of_round("fp16", groups=True) == 2 * 8 * 64 * 256 * 16
