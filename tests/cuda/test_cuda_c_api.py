"""Networks for GPUs in C programs, with the emulated driver and without any."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dlcc.artifact import Artifact, write_artifact
from tests.cuda import emulator as emulators
from tests.cuda.programs import rows_program
from tests.runtime.programs import zig_cc

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def caller(rows: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The program, and the weights files that it takes."""
    folder = tmp_path_factory.mktemp("caller")
    other = write_artifact(rows_program(name="other"), folder / "other", emit=("a",))
    libraries = [rows.folder / "librows.a", other.folder / "libother.a", "-lpthread", "-ldl"]
    paths = ["-I", rows.folder, "-I", other.folder]
    zig_cc(HERE / "caller.c", *paths, *libraries, "-o", folder / "caller")
    weights = [str(rows.folder / "rows.weights"), str(other.folder / "other.weights")]
    return [str(folder / "caller"), *weights]


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    return done.stdout


def test_two_networks_in_one_program(caller: list[str]) -> None:
    assert _run(caller, emulators.environment()) == "ok\n"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"DLCC_CUDA_EMULATION_VERSION": "11040"}, "it is for CUDA 11.4, 12.0 or newer is needed"),
        ({"DLCC_CUDA_EMULATION_DEVICES": ""}, "the NVIDIA driver finds no GPU"),
        ({"DLCC_CUDA_EMULATION_DEVICES": "7.5"}, "is sm_75; compile with --target cuda:sm_75"),
    ],
)
def test_drivers_that_will_not_do(caller: list[str], settings: dict[str, str], text: str) -> None:
    assert text in _run([*caller, "none"], emulators.environment(settings))


def test_no_driver(caller: list[str], tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")  # also where there is a real one
    told = _run([*caller, "none"], {"LD_LIBRARY_PATH": str(tmp_path)})
    assert told.startswith("there is no NVIDIA driver: ")
    assert "libcuda.so.1" in told
