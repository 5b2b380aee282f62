from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlcc.artifact import Artifact, write_artifact
from dlcc.remote import build_server
from tests.remote.serving import Server, bad_program
from tests.runtime.programs import TRIPLE, compile_kernels, row_program, zig_cc

BAD = ("illegal", "endless", "refusing")


@pytest.fixture(scope="session")
def server_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("server") / "dlcc-server"
    build_server(TRIPLE, program)
    return program


@pytest.fixture(scope="module")
def server(server_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file, which gives up on a network after two seconds."""
    folder = tmp_path_factory.mktemp("serving")
    with Server([str(server_program)], folder, "--seconds", "2", "--megabytes", "50") as running:
        yield running
        assert running.process.poll() is None
        assert running.complaints == ""
    assert running.process.returncode == 0
    assert list(running.folder.iterdir()) == []


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """y = relu(x + bias) in two steps."""
    folder = tmp_path_factory.mktemp("rows")
    return write_artifact(row_program(compile_kernels(folder)), folder / "rows")


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Networks of one bad kernel each, which behave well while their input is 0."""
    folder = tmp_path_factory.mktemp("bad")
    zig_cc("-O2", "-fPIC", "-c", Path(__file__).with_name("kernels.c"), "-o", folder / "k.o")
    code = (folder / "k.o").read_bytes()
    return {name: write_artifact(bad_program(name, code), folder / name) for name in BAD}
