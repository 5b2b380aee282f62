from __future__ import annotations

from pathlib import Path

import pytest

from dlcc.artifact import Artifact, write_artifact
from tests.runtime.programs import compile_kernels, row_program


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def rows(kernels: bytes, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The row program with every kind of library. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("rows") / "out"
    return write_artifact(row_program(kernels), folder, emit=("so", "a", "o"))


@pytest.fixture
def copied(rows: Artifact, tmp_path: Path) -> Path:
    """A copy of the row artifact that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in rows.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
