"""``--constant``: how its text is read, and what it makes of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from dlcc.cli.common import parse_constants
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import load_graph


def test_parse() -> None:
    texts = ["sr=16000", "scale = 0.5, 2", "a=b=-3", "on=True", "v=1e-3,", "n=+7"]
    with pytest.raises(DlccError, match="neither a number"):
        parse_constants(texts)
    texts[4] = "v=1e-3"
    want = {"sr": 16000, "scale": [0.5, 2], "a=b": -3, "on": 1, "v": 1e-3, "n": 7}
    assert parse_constants(texts) == want


@pytest.mark.parametrize("text", ["16000", "=1", "x=", "x=1;2", "x=0x10"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(DlccError, match=f"--constant {text}") as error:
        parse_constants([text])
    assert error.value.code == ExitCode.USAGE


def test_given_twice() -> None:
    with pytest.raises(DlccError, match="given twice"):
        parse_constants(["x=1", "x=2"])


def scaled(folder: Path) -> Path:
    """x * k, where k is an integer input."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("k", TensorProto.INT64, []),
    ]
    nodes = [
        helper.make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "net", inputs, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


def test_opt_builds_it_in(dlcc, tmp_path) -> None:
    model = scaled(tmp_path)
    made = tmp_path / "m.dlir"
    given = ("--passes", "", "-q", "-o", made)
    assert dlcc("opt", model, "--constant", "k=3", *given).code == 0
    network = load_graph(made)
    assert [v.name for v in network.inputs] == ["x"]
    assert [v.decoded().reshape(-1).tolist() for v in network.constants()] == [[3.0]]
    outcome = dlcc("opt", made, "--constant", "k=3", "--passes", "", "-o", tmp_path / "n.dlir")
    assert outcome.code == ExitCode.USAGE
    assert "constants cannot be set for a .dlir file" in outcome.err


def test_run_and_inspect_bind_it(dlcc, tmp_path) -> None:
    model, given, results = scaled(tmp_path), tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(given, x=np.float32([1, 2]))
    outcome = dlcc("run", model, "-i", given, "-o", results, "--constant", "k=3")
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(np.load(results)["y"], np.float32([3, 6]))
    assert dlcc("inspect", model, "--constant", "k=3").code == 0
    (tmp_path / "artifact").mkdir()
    outcome = dlcc("run", tmp_path / "artifact", "-i", given, "-o", results, "--constant", "k=3")
    assert outcome.code == ExitCode.USAGE
    assert "constants cannot be set for an artifact" in outcome.err
