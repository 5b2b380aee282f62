"""Predicted cycles of whole networks."""

from __future__ import annotations

import shutil

import pytest

from dlcc.cycles.predict import memory_cycles, predict
from dlcc.lowering.target import Core
from targets import get_target
from tests.cli import models
from tests.cli.conftest import dlcc  # noqa: F401

needs_tools = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or shutil.which("llvm-mca") is None,
    reason="no qemu-aarch64 or no llvm-mca",
)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return models.residual_cnn(tmp_path_factory.mktemp("models") / "cnn.onnx")


@pytest.fixture(scope="module")
def artifact(cnn, tmp_path_factory):
    from dlcc.driver import compile

    folder = tmp_path_factory.mktemp("artifacts") / "cnn"
    target = "arm:cortex-a72"
    return compile(cnn, folder, target=target, bits=8, threads=1, emit=("a",)).artifact.folder


@needs_tools
def test_every_layer_has_its_instructions_and_cycles(artifact):
    target = get_target("arm:cortex-a72")
    prediction = predict(artifact, target.core)
    heavy = [layer for layer in prediction.layers if layer.macs > 500]
    assert heavy
    for layer in heavy:
        # a vector instruction does 16 of them at most, a core no more than four a cycle
        assert layer.macs / 16 < layer.instructions < 20 * layer.macs
        assert layer.instructions / 4 < layer.cycles < 10 * layer.instructions
    assert prediction.instructions > prediction.outside_instructions > 0
    assert prediction.seconds == pytest.approx(prediction.cycles / 1.8e9)
    assert prediction.model == "A57"
    assert predict(artifact, target.core) == prediction


@needs_tools
def test_the_core_decides_the_cycles_and_not_the_instructions(artifact):
    slow = predict(artifact, get_target("arm:cortex-a53").core)
    fast = predict(artifact, get_target("arm:cortex-a72").core)
    assert slow.instructions == fast.instructions
    assert slow.cycles > 1.3 * fast.cycles


@needs_tools
def test_inspect_predicts_for_a_model_and_for_an_artifact(dlcc, cnn, artifact):  # noqa: F811
    told = dlcc("inspect", artifact, "--target", "arm:cortex-a72", "--json").json()
    compiled = dlcc("inspect", cnn, "--target", "arm:cortex-a72", "--json").json()
    assert told["cycles"] == compiled["cycles"] > 0
    assert "not a measurement" in told["note"]
    text = dlcc("inspect", artifact, "--target", "arm:cortex-a72").out
    assert "This is a prediction, not a measurement" in text
    assert "outside the kernels" in text
    level = dlcc("inspect", artifact, "--target", "arm:neon", "--core", "cortex-a73", "--json")
    assert level.json()["seconds"] is None


@needs_tools
def test_a_microcontroller_has_the_instructions_of_its_board(dlcc, cnn, tmp_path):  # noqa: F811
    """Every kernel runs in the emulator of Linux, and the model knows all of their instructions."""
    out = tmp_path / "cnn"
    assert dlcc("compile", cnn, "-o", out, "--target", "cortex-m7", "--integer-inputs").code == 0
    told = dlcc("inspect", out, "--target", "cortex-m7", "--json").json()
    assert (told["model"], told["unknown"]) == ("M7", [])
    heavy = [layer for layer in told["layers"] if layer["macs"] > 500]
    assert heavy
    for layer in heavy:
        assert layer["macs"] / 2 < layer["instructions"] < 20 * layer["macs"]
        assert layer["instructions"] / 2 <= layer["cycles"] < 3 * layer["instructions"]
    assert "at 400 MHz" in dlcc("inspect", out, "--target", "cortex-m7").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cortex-m33"], "LLVM has no scheduling model of it"),
        (["--target", "cortex-m55"], "emulator does not run its vectors"),
        (["--target", "arm:neon"], "no core to predict for"),
        (["--target", "arm:cortex-a72", "--core", "cortex-a53"], "names a core already"),
        (["--target", "cpu:avx2", "--core", "haswell"], "the artifact is not for cpu:avx2"),
        (["--target", "arm:cortex-a72", "--bits", "8"], "--bits does not go with --target"),
        (["--target", "arm:cortex-a72", "--profile"], "--profile does not go with --target"),
        (["--core", "cortex-a72"], "--core is for --target"),
        (["--bits", "8"], "--bits is for --target"),
    ],
)
def test_mistakes_are_told(dlcc, artifact, arguments, message):  # noqa: F811
    outcome = dlcc("inspect", artifact, *arguments)
    assert outcome.code != 0
    assert message in outcome.err


@needs_tools
def test_an_artifact_needs_a_static_library(dlcc, cnn, tmp_path):  # noqa: F811
    assert dlcc("compile", cnn, "-o", tmp_path / "out", "--target", "arm:cortex-a72").code == 0
    outcome = dlcc("inspect", tmp_path / "out", "--target", "arm:cortex-a72")
    assert "no static library" in outcome.err
    assert "--emit so,a" in outcome.err


def test_bytes_are_read_from_where_they_fit():
    core = Core("x", 1e9, 32 << 10, 512 << 10, l2_read=8, memory=2e9)
    assert memory_cycles(core, 1000, 1000, 20_000) == 0
    assert memory_cycles(core, 8000, 1000, 100_000) == 1000
    assert memory_cycles(core, 8000, 80_000, 100_000) == 11_000
    assert memory_cycles(core, 8000, 1000, 1 << 20) == 4000
    assert memory_cycles(Core("x"), 8000, 1000, 1 << 20) is None
