"""Every mistake a user can make: one clear message, the documented code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dlcc.driver
from dlcc.cli import main
from dlcc.errors import ExitCode
from tests.cli import models


def check(outcome, code: ExitCode, *phrases: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("error: ") or "\nerror: " in outcome.err
    assert outcome.err.count("error: ") == 1
    assert "Traceback" not in outcome.err
    for phrase in phrases:
        assert phrase in outcome.err


@pytest.fixture
def files(tmp_path: Path, cnn: Path) -> Path:
    """A folder with everything that is wrong with a file."""
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("this is not a model, it is a sentence\n" * 20)
    (tmp_path / "cut.onnx").write_bytes(cnn.read_bytes()[: cnn.stat().st_size // 2])
    (tmp_path / "text.npz").write_text("1,2,3\n")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "lonely.dlir").write_text('graph "g" {\n}\n')
    (tmp_path / "torn.dlir").write_text('graph "g" {\n}\n')
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "garbage.dlir").write_text("%%%\n")
    np.savez(tmp_path / "garbage.npz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear all")
    np.savez(tmp_path / "cut.npz", x=np.ones((4, 3, 8, 8), np.float32))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.npz").write_bytes(whole[:200] + bytes(64) + whole[264:])
    np.savez(tmp_path / "shape.npz", x=np.zeros((4, 3, 9, 9), np.float32))
    np.savez(tmp_path / "dtype.npz", x=np.zeros((4, 3, 8, 8), np.float64))
    np.savez(tmp_path / "names.npz", p=np.zeros(3), q=np.zeros(3))
    np.savez(tmp_path / "words.npz", x=np.array(["a", "b"]))
    np.savez(tmp_path / "complex.npz", x=np.ones((4, 3, 8, 8), np.complex64))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3, 8, 8), np.float32))
    np.save(tmp_path / "single.npy", np.zeros(3))
    models.unsupported(tmp_path / "unsupported.onnx")
    return tmp_path


BAD_MODELS = [
    ("absent.onnx", ExitCode.INPUT_FILE, "no such file"),
    ("folder", ExitCode.INPUT_FILE, "folder"),
    ("empty.onnx", ExitCode.INPUT_FILE, "not an ONNX model"),
    ("text.onnx", ExitCode.INPUT_FILE, "not an ONNX model"),
    ("cut.onnx", ExitCode.INPUT_FILE, "not an ONNX model"),
    ("lonely.dlir", ExitCode.INPUT_FILE, "side by side"),
    ("torn.dlir", ExitCode.INPUT_FILE, "side by side"),
    ("garbage.dlir", ExitCode.MODEL, "garbage.dlir:1"),
    ("unsupported.onnx", ExitCode.UNSUPPORTED, "Frobnicate"),
]


@pytest.mark.parametrize(("name", "code", "phrase"), BAD_MODELS)
def test_models(dlcc, files, name, code, phrase):
    verbs = [
        ["compile", files / name, "-o", files / "out", "-q"],
        ["opt", files / name, "--passes", "", "-o", files / "o.dlir", "-q"],
        ["export", files / name, files / "o.onnx"],
    ]
    if name != "folder":  # a folder is taken for an artifact there
        verbs.append(["inspect", files / name])
    for verb in verbs:
        check(dlcc(*verb), code, phrase, *([name] if code != ExitCode.UNSUPPORTED else []))
    assert not (files / "out").exists()


def test_unsupported_nodes_are_listed_at_once(dlcc, files):
    outcome = dlcc("inspect", files / "unsupported.onnx")
    check(outcome, ExitCode.UNSUPPORTED, "Frobnicate", "frob", "ImageDecoder", "decode")


BAD_DATA = [
    ("absent.npz", "no such data file"),
    ("text.npz", "cannot read the data file"),
    ("empty.npz", "cannot read the data file"),
    ("single.npy", "single array"),
    ("cut.npz", "cannot read the data file"),
    ("damaged.npz", "x"),
    ("folder", "cannot read the data file"),
    ("shape.npz", "[4, 3, 9, 9] does not fit [1, 3, 8, 8]"),
    ("names.npz", "no data for input x"),
    ("words.npz", "input 'x'"),
    ("complex.npz", "complex64"),
    ("none.npz", "x"),
]


@pytest.mark.parametrize(("name", "phrase"), BAD_DATA)
def test_data(dlcc, files, cnn, name, phrase):
    out = files / "out"
    verbs = [
        ["compile", cnn, "-o", out, "--calib", files / name, "-q"],
        ["opt", cnn, "--passes", "", "--calib", files / name, "-o", files / "o.dlir", "-q"],
        ["run", cnn, "--inputs", files / name, "--outputs", files / "o.npz"],
        ["eval", cnn, "--data", files / name, "-q"],
        ["compare", cnn, cnn, "--inputs", files / name],
    ]
    for verb in verbs:
        check(dlcc(*verb), ExitCode.DATA, phrase, name)
    assert not out.exists()


def test_wrong_dtype(dlcc, files, cnn):
    outcome = dlcc("run", cnn, "--inputs", files / "dtype.npz", "--outputs", files / "o.npz")
    check(outcome, ExitCode.DATA, "float64", "float32", "astype")


def test_incomplete_batch(dlcc, files, cnn, samples):
    outcome = dlcc("run", cnn, "-i", samples, "-o", files / "o.npz", "--shape", "N=4")
    check(outcome, ExitCode.DATA, "6 samples", "4 at a time")


OPTIONS = [
    (["--bits", "7"], ExitCode.USAGE, ["7 bits"]),
    (["--bits", "many"], ExitCode.USAGE, ["--bits", "integer"]),
    (["--target", "toaster"], ExitCode.TARGET, ["toaster", "dlcc targets"]),
    (["--target", "cpu:z80"], ExitCode.TARGET, ["cpu:z80"]),
    (["--emit", "exe"], ExitCode.USAGE, ["--emit", "exe", "so, a, o"]),
    (["--emit", ""], ExitCode.USAGE, ["--emit"]),
    (["--without", "winnograd"], ExitCode.USAGE, ["winnograd", "--without", "winograd,"]),
    (["--threads", "-1"], ExitCode.USAGE, ["--threads"]),
    (["--passes", "fold-batch-nrom"], ExitCode.USAGE, ["fold-batch-nrom", "fold-batch-norm"]),
    (["--passes", "canonicalize{"], ExitCode.USAGE, ["pipeline, column 14"]),
    (["--passes", "canonicalize,,"], ExitCode.USAGE, ["column 14"]),
    (["--passes", "canonicalize{speed=9}"], ExitCode.USAGE, ["speed"]),
    (["--remarks", "no-such-pass"], ExitCode.USAGE, ["no-such-pass", "--remarks"]),
    (["--print-after", "no-such-pass"], ExitCode.USAGE, ["no-such-pass"]),
    (["--shape", "N"], ExitCode.USAGE, ["--shape N", "NAME=SIZE"]),
    (["--shape", "=3"], ExitCode.USAGE, ["NAME=SIZE"]),
    (["--shape", "N=0"], ExitCode.USAGE, ["at least 1"]),
    (["--shape", "N=-2"], ExitCode.USAGE, ["-2"]),
    (["--shape", "N=two"], ExitCode.USAGE, ["two"]),
    (["--shape", "N=1", "--shape", "N=2"], ExitCode.USAGE, ["twice"]),
    (["--shape", "M=1"], ExitCode.USAGE, ["'M'", "N"]),
    (["--shape", "x=1x3x8"], ExitCode.USAGE, ["x"]),
    (["--frobnicate"], ExitCode.USAGE, ["--frobnicate"]),
    (["surplus"], ExitCode.USAGE, ["surplus"]),
]


@pytest.mark.parametrize(("options", "code", "phrases"), OPTIONS)
def test_compile_options(dlcc, cnn, tmp_path, options, code, phrases):
    out = tmp_path / "out"
    check(dlcc("compile", cnn, "-o", out, "-q", *options), code, *phrases)
    assert not out.exists()


def test_outputs_that_cannot_be_written(dlcc, files, cnn, samples):
    inside = files / "text.npz" / "out"
    check(dlcc("compile", cnn, "-o", inside), ExitCode.OUTPUT, "is not a folder", "-o")
    check(dlcc("compile", cnn, "-o", files / "full"), ExitCode.OUTPUT, "not a dlcc artifact")
    check(dlcc("compile", cnn, "-o", files / "text.npz"), ExitCode.OUTPUT, "a file of that name")
    dump = ["--dump-dir", files / "text.npz"]
    check(dlcc("compile", cnn, "-o", files / "o", *dump), ExitCode.OUTPUT, "--dump-dir")
    assert (files / "full" / "letter.txt").read_text() == "dear all"
    absent = files / "absent" / "o.npz"
    check(dlcc("run", cnn, "-i", samples, "-o", absent), ExitCode.OUTPUT, "no folder")
    check(dlcc("run", cnn, "-i", samples, "-o", files / "folder"), ExitCode.OUTPUT, "is a folder")
    missing = files / "absent" / "o.dlir"
    check(dlcc("opt", cnn, "--passes", "", "-o", missing), ExitCode.OUTPUT, "no folder")
    check(dlcc("export", cnn, files / "absent" / "o.onnx"), ExitCode.OUTPUT, "no folder")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(dlcc, cnn, samples):
    check(dlcc("run", cnn, "-i", samples, "-o", "/dev/full"), ExitCode.OUTPUT, "No space left")
    check(dlcc("export", cnn, "/dev/full"), ExitCode.OUTPUT, "No space left")


def test_opt_does_not_replace_the_calibration_data(dlcc, cnn, tmp_path):
    calib = models.data(tmp_path / "net.npz")
    before = calib.read_bytes()
    outcome = dlcc("opt", cnn, "--passes", "", "--calib", calib, "-o", tmp_path / "net.dlir")
    check(outcome, ExitCode.OUTPUT, "calibration data", "net.npz")
    assert calib.read_bytes() == before


def test_opt_suffix_and_opset(dlcc, cnn, tmp_path):
    outcome = dlcc("opt", cnn, "--passes", "", "-o", tmp_path / "o.txt")
    check(outcome, ExitCode.USAGE, ".dlir or .onnx", "o.dlir")
    outcome = dlcc("export", cnn, tmp_path / "o.onnx", "--opset", "9")
    check(outcome, ExitCode.USAGE, "opset 9", "17")


def test_artifact_places(dlcc, files, samples, cnn):
    out = files / "o.npz"
    for verb in (
        ["inspect", files / "folder"],
        ["run", files / "folder", "-i", samples, "-o", out],
        ["eval", files / "folder", "--data", samples, "-q"],
        ["compare", cnn, files / "folder", "-i", samples],
        ["bench", files / "folder", "-q"],
        ["bench", cnn, "-q"],
    ):
        check(dlcc(*verb), ExitCode.ARTIFACT, "not a dlcc artifact")


def test_options_that_do_not_go_together(dlcc, cnn, samples, tmp_path):
    check(dlcc("inspect", cnn, "--profile"), ExitCode.USAGE, "--profile is for artifacts")
    check(dlcc("inspect", cnn, "--bytes"), ExitCode.USAGE, "--bytes is for artifacts")
    check(dlcc("inspect", tmp_path, "--shape", "N=1"), ExitCode.USAGE, "--shape is for models")
    check(dlcc("inspect", tmp_path, "--inputs", samples), ExitCode.USAGE, "add --profile")
    check(dlcc("bench", tmp_path, "--against", "onnxruntime"), ExitCode.USAGE, "--model")
    check(dlcc("bench", tmp_path, "--against", "caffe"), ExitCode.USAGE, "caffe", "openvino")
    check(dlcc("run", tmp_path, "--shape", "N=1", "-i", samples, "-o", tmp_path / "o.npz"),
          ExitCode.USAGE, "shapes cannot be set for an artifact")  # fmt: skip


def test_networks_that_cannot_be_compared(dlcc, cnn, samples, tmp_path):
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("Relu", ["x"], ["y"], name="r")]
    shape = [1, *models.INPUT_SHAPE[1:]]
    border = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    save(models.model(nodes, border[:1], border[1:]), tmp_path / "relu.onnx")
    outcome = dlcc("compare", cnn, tmp_path / "relu.onnx", "-i", samples)
    check(outcome, ExitCode.DATA, "different shapes", "[1, 10]", "[1, 3, 8, 8]")


def test_commands(dlcc):
    check(dlcc("compil"), ExitCode.USAGE, "compil", "compile")
    check(dlcc("compile"), ExitCode.USAGE, "missing", "dlcc compile --help")
    check(dlcc("passes", "fold-bn"), ExitCode.USAGE, "fold-bn", "fold-batch-norm")
    check(dlcc("--verison"), ExitCode.USAGE, "--verison")


def test_no_arguments_shows_help(dlcc):
    outcome = dlcc()
    assert outcome.code == ExitCode.USAGE
    assert "Commands:" in outcome.out


def test_json_errors(dlcc, files):
    outcome = dlcc("inspect", files / "absent.onnx", "--json")
    assert outcome.code == ExitCode.INPUT_FILE
    told = outcome.json()
    assert told["error"] == "input_file"
    assert told["exit_code"] == ExitCode.INPUT_FILE
    assert "absent.onnx" in told["where"]
    assert outcome.err.count("error: ") == 1


def test_unexpected_exceptions(dlcc, cnn, tmp_path, monkeypatch):
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("seven by nothing\nand more")

    monkeypatch.setattr(dlcc_driver(), "optimise", explode)
    monkeypatch.delenv("DLCC_TRACEBACK", raising=False)
    arguments = ("opt", cnn, "--passes", "", "-o", tmp_path / "o.dlir", "-q")
    outcome = dlcc(*arguments)
    check(outcome, ExitCode.INTERNAL, "ZeroDivisionError: seven by nothing", "DLCC_TRACEBACK=1")
    assert "and more" not in outcome.err
    monkeypatch.setenv("DLCC_TRACEBACK", "1")
    outcome = dlcc(*arguments)
    assert outcome.code == ExitCode.INTERNAL
    assert "Traceback" in outcome.err


def dlcc_driver():
    return dlcc.driver


def test_interruption(dlcc, cnn, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dlcc_driver(), "optimise", interrupt)
    outcome = dlcc("opt", cnn, "--passes", "", "-o", tmp_path / "o.dlir", "-q")
    assert outcome.code == 130
    assert outcome.err == "interrupted\n"


def test_closed_pipe(cnn):
    """``dlcc inspect ... | head``: quiet, whatever the reader does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcc", "inspect", str(cnn), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""


def test_module_entry_point(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dlcc", "inspect", str(tmp_path / "absent.onnx")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "DLCC_TRACEBACK": ""},
    )
    assert done.returncode == ExitCode.INPUT_FILE
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_main_takes_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dlcc", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("dlcc ")


def test_paths_that_the_system_does_not_take(dlcc, cnn: Path, tmp_path: Path) -> None:
    check(dlcc("inspect", "a" * 5000), ExitCode.USAGE, "a path cannot be used", "too long")
    recipe = ["--recipe", "/dev/zero"]
    outcome = dlcc("opt", cnn, "-o", tmp_path / "out.dlir", *recipe)
    assert outcome.code not in (ExitCode.OK, ExitCode.INTERNAL), outcome.err
    assert "not a regular file" in outcome.err
