from __future__ import annotations

from collections.abc import Iterator

import pytest

from dlcc.artifact import Artifact, write_artifact
from tests.cuda import emulator as emulators
from tests.cuda.programs import rows_program


@pytest.fixture(autouse=True)
def devices_only_here() -> Iterator[None]:
    """Other tests of this process find a driver without a GPU."""
    emulators.show_devices("8.0")
    yield
    emulators.show_devices("")


@pytest.fixture(scope="session")
def emulator() -> emulators.Emulator:
    """The emulated driver, which every library of this process finds."""
    return emulators.emulator()


@pytest.fixture(scope="session")
def rows(emulator: emulators.Emulator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The row program for two architectures, with every kind of library. Not to be changed."""
    folder = tmp_path_factory.mktemp("cuda") / "rows"
    return write_artifact(rows_program("sm_80", "sm_90"), folder, emit=("so", "a", "o"))
