"""The table of compression passes: rows, results, resuming and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from benchmarks import compression as command
from benchmarks import ptq
from benchmarks.compression_table import FLOAT, INT8, Model, Result, Results, Row, read_rows, select
from dlcc.ir import Graph, Sparse, TensorType
from dlcc.ops import build as add_op
from passes.pipeline import parse_pipeline

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"
MODEL = Model("digits", "digits", 20, 30)
TEXT = """
[digits]
file = "digits"
calibration = 20
images = 30
pipelines = ["prune{sparsity=0.5}", "ternarize"]
"""


def result(**changes: Any) -> Result:
    known: dict[str, Any] = {
        "images": 30,
        "calibration": 20,
        "fingerprint": "a",
        "top1": 0.9,
        "agreement": 1.0,
        "bytes": 12_345,
        "packed_bytes": 6_789,
        "macs": 50,
        "dense_macs": 100,
        "predicted": 1e-6,
        "compile_seconds": 1.0,
        "kernels": {"gemm": 2},
        "statistics": {"prune{sparsity=0.5}": {"layers": 1}},
    }
    return Result(**{**known, **changes})


def rows_file(folder: Path, text: str = TEXT) -> Path:
    path = folder / "rows.toml"
    path.write_text(text)
    return path


def test_dense_rows_come_first(tmp_path: Path) -> None:
    rows = read_rows(rows_file(tmp_path))
    assert [r.pipeline for r in rows] == [FLOAT, INT8, "prune{sparsity=0.5}", "ternarize"]
    assert {r.model for r in rows} == {MODEL}
    assert [r.dense for r in rows] == [True, True, False, False]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("images = 30", "", "look at images"),
        ("images = 30", "images = 30\nepochs = 3", "look at epochs"),
        ("images = 30", 'images = "all"', "images of .digits. is no int"),
        ('"ternarize"', '"prune{sparsity=0.5}"', "stand there twice"),
        ('"ternarize"', '"quantize{bits=8}"', "stand there twice"),
    ],
)
def test_mistakes_in_rows(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_rows(rows_file(tmp_path, TEXT.replace(old, new)))


def test_the_rows_of_the_tree_are_pipelines_with_folders_of_their_own() -> None:
    rows = read_rows(command.ROWS)
    assert len({r.folder for r in rows}) == len(rows)
    for row in rows:
        parse_pipeline(row.pipeline)


def test_a_selection_keeps_the_dense_rows(tmp_path: Path) -> None:
    text = TEXT + TEXT.replace("[digits]", "[other]")
    rows = read_rows(rows_file(tmp_path, text))
    found = [r.key for r in select(rows, "digits: prune*")]
    assert found == ["digits: ", f"digits: {INT8}", "digits: prune{sparsity=0.5}"]
    assert select(rows, "*") == rows
    assert select(rows, "nothing") == []


def test_results_are_kept_with_the_machine_that_made_them(tmp_path: Path) -> None:
    path, row = tmp_path / "deep" / "results.json", Row(MODEL, "ternarize")
    Results(path, {"cpu": "one"}).put(row, result(timed=("a", "b"), seconds=1e-3))
    again = Results(path, {"cpu": "two"})
    assert again.machine == {"cpu": "one"}
    assert again.found == {"digits: ternarize": result(timed=("a", "b"), seconds=1e-3)}
    assert list(path.parent.iterdir()) == [path]
    path.write_text(json.dumps({"rows": {"x": {"seconds": 1}}}))
    with pytest.raises(ValueError, match="no file of results"):
        Results(path, {})


def test_a_result_counts_for_its_artifact_and_samples_alone(tmp_path: Path) -> None:
    results, row = Results(tmp_path / "r.json", {}), Row(MODEL, "ternarize")
    assert results.built(row, 30, "a") is None
    results.put(row, result())
    assert results.built(row, 30, "a") == result()
    assert results.built(row, 29, "a") is None
    assert results.built(row, 30, "b") is None
    assert results.built(Row(Model("digits", "digits", 21, 30), "ternarize"), 30, "a") is None


def test_table_has_a_line_for_each_result(tmp_path: Path) -> None:
    rows = read_rows(rows_file(tmp_path))
    results = Results(tmp_path / "r.json", {})
    results.put(rows[0], result(macs=100, seconds=2e-5, over_float=1.0, over_int8=0.25))
    results.put(rows[2], result())
    assert command.markdown(rows, results).splitlines()[2:] == [
        "| digits | none (fp32) | 90.0 | 12 | 7 | 100 % | 20 | 1.00 | 0.25 |",
        "|  | `prune{sparsity=0.5}` | 90.0 | 12 | 7 | 50 % |  |  |  |",
    ]


def test_pruned_weights_are_no_work() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4)))
    weight = np.array([[1, 0, 0, 0], [2, 0, 3, 0]], np.float32)
    sparse = graph.add_constant(weight, encoding=Sparse("unstructured"), name="s")
    dense = graph.add_constant(np.zeros((5, 2), np.float32), name="d")
    inner = add_op(graph, "linear", [x, sparse]).output
    graph.set_outputs([add_op(graph, "linear", [inner, dense]).output], ["y"])
    assert command.macs_left(graph) == 3 + 10


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command on the digits network with random labels; says which rows were compiled."""
    rng = np.random.default_rng(0)
    x = rng.random((50, *dlcc.load_graph(DIGITS, shapes={"N": 1}).inputs[0].type.shape[1:]))

    def split(_entry: object, calibration: int, evaluation: int) -> ptq.Split:
        images = x.astype(np.float32)
        labels = rng.integers(0, 10, evaluation)
        return ptq.Split(images[:calibration], images[20 : 20 + evaluation], labels)

    compiled: list[str] = []
    compile_row = command.Build.compile

    def compile_and_tell(self: command.Build, row: Row, folder: Path) -> Any:
        compiled.append(row.pipeline)
        return compile_row(self, row, folder)

    monkeypatch.setattr(command, "DATA", tmp_path)
    monkeypatch.setattr(command, "_model", lambda _row: DIGITS)
    monkeypatch.setattr(command, "entry_of", lambda _file: {})
    monkeypatch.setattr(command, "load_split", split)
    monkeypatch.setattr(command.Build, "compile", compile_and_tell)
    return compiled


def test_a_run_goes_on_where_it_ended(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", str(rows_file(tmp_path)), "--folder", str(tmp_path / "out"), "--limit", "10"]
    command.main(["build", "--most", "2", *words])
    assert digits == [FLOAT, INT8]
    command.main(["build", "time", "table", "--most", "1", "--seconds", "0", *words])
    assert digits == [FLOAT, INT8, "prune{sparsity=0.5}"]
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 3
    assert [line.split("|")[7].strip() != "" for line in table[2:]] == [True, False, False]

    results = Results(tmp_path / "out" / "results.json", {})
    dense, pruned = results.found["digits: "], results.found["digits: prune{sparsity=0.5}"]
    assert dense.agreement == 1.0
    assert pruned.packed_bytes < min(pruned.bytes, dense.packed_bytes)
    assert dense.macs == dense.dense_macs
    assert 0.45 < pruned.macs / dense.macs < 0.55
    assert (dense.images, dense.calibration) == (10, 20)
    assert pruned.statistics["prune{sparsity=0.5}"]["sparsity"] == pytest.approx(0.5, abs=0.01)

    command.main(["build", *words])
    command.main(["build", *words])
    assert digits == [FLOAT, INT8, "prune{sparsity=0.5}", "ternarize"]
    command.main(["build", *words, "--only", "digits: ternarize", "--again"])
    assert digits[4:] == [FLOAT, INT8, "ternarize"]


def test_a_refused_row_does_not_stop_the_others(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT.replace('"prune{sparsity=0.5}"', '"prune{sparsity=1.5}"')
    words = ["--rows", str(rows_file(tmp_path, text)), "--folder", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        command.main(["build", *words])
    assert ended.value.code == 1
    assert digits[2:] == ["prune{sparsity=1.5}", "ternarize"]
    assert "digits: prune{sparsity=1.5}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [(["weigh"], "unknown verbs"), (["table", "--rows", "rows.toml"], "look at images")],
)
def test_mistakes_on_the_command_line(
    digits: list[str],
    tmp_path: Path,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows_file(tmp_path, TEXT.replace("images = 30", ""))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command.main(words)
    assert told in capsys.readouterr().err


@pytest.mark.data
def test_splits_are_cut_to_what_is_wanted(data_dir: Path) -> None:
    pytest.importorskip("PIL")
    entry = ptq.entry_of("mlperf_tiny_kws_dscnn")
    split = ptq.load_split(entry, 7, 9)
    whole = ptq.load_split(entry)
    assert [len(split.calibration), len(split.evaluation), len(split.labels)] == [7, 9, 9]
    assert [len(whole.calibration), len(whole.evaluation)] == [200, 800]
    assert np.array_equal(split.evaluation, whole.evaluation[:9])
    assert np.array_equal(split.calibration, whole.calibration[:7])
    entry = ptq.entry_of("squeezenet_v1.0_deepcompression")
    images = ptq.load_split(entry, 3, 2)
    assert images.evaluation.shape == (2, 3, 227, 227)
    assert len(images.calibration) == 3
    raw = np.array([[[[10.0, 20.0, 30.0]]]])  # RGB in, blue first out, less the means
    assert ptq.prepared(raw, entry["pre"]).ravel().tolist() == [-74.0, -97.0, -113.0]
