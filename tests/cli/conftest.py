"""Runs the command line in this process and gives back its code and both streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dlcc.cli import main
from tests.cli import models


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def dlcc(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.residual_cnn(tmp_path_factory.mktemp("models") / "cnn.onnx")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.data(tmp_path_factory.mktemp("data") / "samples.npz")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.data(tmp_path_factory.mktemp("data") / "labelled.npz", 20, labels=True)


@pytest.fixture(scope="session")
def artifact(cnn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network compiled at 32 bits."""
    folder = tmp_path_factory.mktemp("artifacts") / "cnn"
    assert main(["compile", str(cnn), "-o", str(folder), "--bits", "32", "-q"]) == 0
    return folder
