"""The verbs with --remote, on this machine and on emulated boards."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact import write_artifact
from dlcc.cli import main
from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.tuning import TuningDatabase
from dlcc.remote import RemoteNetwork
from targets import get_target
from tests.cli import models
from tests.emulation.machine import ARMV7, CORTEX_A72, Machine, run_network
from tests.remote.serving import TOKEN, Server, bad_program


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.residual_cnn(tmp_path_factory.mktemp("model") / "cnn.onnx")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.data(tmp_path_factory.mktemp("data") / "samples.npz")


def compiled(cnn: Path, folder: Path, bits: int, target: str = "cpu") -> Path:
    place = folder / f"{target.partition(':')[0]}-{bits}"
    options = ["-o", str(place), "--bits", str(bits), "--target", target, "-q"]
    assert main(["compile", str(cnn), *options]) == 0
    return place


@pytest.fixture(scope="module")
def artifacts(cnn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return compiled(cnn, folder, 8), compiled(cnn, folder, 32)


@pytest.fixture
def remote(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DLCC_TOKEN", TOKEN)
    return ["--remote", server.place]


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bench_of_two_artifacts(artifacts, remote, capsys):
    options = ["-q", "--rounds", 2, "--layers", *remote]
    result = told(capsys, "bench", *artifacts, *options)
    assert [Path(row["network"]).name for row in result["engines"]] == ["cpu-8", "cpu-32"]
    assert [row["precision"] for row in result["engines"]] == ["int8", "fp32"]
    assert all(len(row["rounds"]) == 2 and min(row["rounds"]) > 0 for row in result["engines"])
    assert result["engines"][0]["ratio"] == 1.0
    assert result["board"]["architecture"] == platform.machine()
    timed = {row["network"] for row in result["layers"] if row["seconds"] is not None}
    assert timed == set(map(str, artifacts))
    assert all(row["limit_seconds"] is None for row in result["layers"])
    assert main(["bench", *map(str, [*artifacts, *options])]) == 0
    shown = capsys.readouterr().out
    assert "time / first" in shown
    assert "of limit" not in shown
    assert f"{platform.machine()}, Linux" in shown


def test_run_and_compare_give_the_same_bytes(cnn, artifacts, samples, remote, tmp_path, capsys):
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    for artifact in artifacts:
        assert main(["run", str(artifact), "-i", str(samples), "-o", str(here)]) == 0
        assert main(["run", str(artifact), "-i", str(samples), "-o", str(there), *remote]) == 0
        assert np.load(here)["y"].tobytes() == np.load(there)["y"].tobytes()
    result = told(capsys, "compare", cnn, artifacts[1], "-i", samples, *remote)
    assert result["outputs"]["y"]["sqnr_db"] > 100


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--against", "onnxruntime", "--model", "m.onnx"], "--against cannot be used"),
        (["--limits", "limits.json"], "--limits cannot be used"),
        (["--token", ""], "needs a token"),
    ],
)
def test_options_that_do_not_go_together(artifacts, remote, capsys, options, phrase):
    assert main(["bench", str(artifacts[0]), *remote, *options, "-q"]) == ExitCode.USAGE
    assert phrase in capsys.readouterr().err


def test_a_model_does_not_run_on_a_board(cnn, samples, remote, tmp_path, capsys):
    arguments = ["run", cnn, "-i", samples, "-o", tmp_path / "o.npz", *remote]
    assert main([*map(str, arguments)]) == ExitCode.USAGE
    assert "only an artifact" in capsys.readouterr().err


def test_the_server_is_the_same_each_time(tmp_path, capsys):
    sizes = [told(capsys, "server", "-o", tmp_path / name)["bytes"] for name in "ab"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sizes[0] == (tmp_path / "a").stat().st_size < 64_000
    assert (tmp_path / "a").stat().st_mode & 0o111
    assert main(["server", "-o", str(tmp_path / "none" / "a")]) == ExitCode.OUTPUT
    arguments = ["server", "-o", str(tmp_path / "c"), "--target", "cortex-m4"]
    assert main(arguments) == ExitCode.TARGET
    assert "a program for Linux" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


# -- emulated boards ---------------------------------------------------------------------------


def emulated(machine: Machine, target: str, folder: Path) -> Server:
    program = folder / "dlcc-server"
    assert main(["server", "--target", target, "-o", str(program)]) == 0
    qemu = [machine.qemu, "-L", machine.sysroot, "-cpu", machine.cpu, str(program)]
    return Server(qemu, folder)


@pytest.mark.parametrize(
    ("machine", "target", "architecture"),
    [
        pytest.param(CORTEX_A72, "arm", "aarch64", id="aarch64", marks=CORTEX_A72.missing),
        pytest.param(ARMV7, "armv7", "armv7", id="armv7", marks=ARMV7.missing),
    ],
)
def test_an_emulated_board(
    cnn, samples, artifacts, tmp_path, monkeypatch, capsys, machine, target, architecture
):
    monkeypatch.setenv("DLCC_TOKEN", TOKEN)
    artifact = compiled(cnn, tmp_path, 32, target)
    with emulated(machine, target, tmp_path) as server:
        remote = ["--remote", server.place]
        result = told(capsys, "bench", artifact, *remote, "-q", "--rounds", 1, "--layers")
        assert result["board"]["architecture"] == architecture
        assert result["engines"][0]["seconds"] > 0
        output = tmp_path / "out.npz"
        assert main(["run", str(artifact), "-i", str(samples), "-o", str(output), *remote]) == 0
        feeds = [[x[None]] for x in np.load(samples)["x"]]
        assert np.load(output)["y"].tobytes() == run_network(artifact, machine, feeds)
        assert main(["bench", str(artifacts[0]), *remote, "-q"]) == ExitCode.ARTIFACT
        assert "for another machine" in capsys.readouterr().err
        assert server.complaints == ""


@CORTEX_A72.missing
def test_an_emulated_board_tunes(cnn, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DLCC_TOKEN", TOKEN)
    database = tmp_path / "tuning.json"
    options = ["-d", database, "--rounds", 1, "--candidates", 2, "--bits", 32, "-q"]
    with emulated(CORTEX_A72, "arm", tmp_path) as server:
        remote = ["--remote", server.place]
        result = told(capsys, "tune", cnn, "--target", "arm", *options, *remote)
        assert result["layers"]
        assert all(len(row["seconds"]) == 2 for row in result["layers"])
        known = TuningDatabase.load(database)
        assert {target for target, _ in known.entries} == {"arm:neon"}  # what this board runs
        for target, words in (("arm:dotprod", "asimddp"), ("cpu:avx2", "x86_64")):
            arguments = ["tune", cnn, "--target", target, *options, *remote]
            assert main([*map(str, arguments)]) == ExitCode.TARGET
            assert words in capsys.readouterr().err


@CORTEX_A72.missing
def test_an_emulated_board_without_a_feature(cnn, tmp_path):
    artifact = compiled(cnn, tmp_path, 32, "arm:i8mm")
    with emulated(CORTEX_A72, "arm", tmp_path) as server, server.board() as board:
        assert "asimd" in board.features
        assert "i8mm" not in board.features
        with pytest.raises(DlccError, match="the library needs") as caught:
            RemoteNetwork(board, artifact)
    assert caught.value.code == ExitCode.TARGET
    assert "--target arm:neon" in caught.value.fix


@CORTEX_A72.missing
def test_a_crash_on_an_emulated_board(tmp_path):
    source, code = Path(__file__).with_name("kernels.c"), tmp_path / "kernels.o"
    CORTEX_A72.compile("-O2", "-fPIC", "-c", source, "-o", code)
    program = bad_program("illegal", code.read_bytes(), get_target("arm").triple)
    write_artifact(program, tmp_path / "net")
    with emulated(CORTEX_A72, "arm", tmp_path) as server, server.board() as board:
        with RemoteNetwork(board, tmp_path / "net") as network:
            assert network.run({"x": np.zeros(4, np.int32)})["y"].max() == 0
            with pytest.raises(DlccError, match="ended by signal"):
                network.run({"x": np.ones(4, np.int32)})
        with RemoteNetwork(board, tmp_path / "net") as network:
            assert network.run({"x": np.zeros(4, np.int32)})["y"].max() == 0
