from __future__ import annotations

import pytest

from dlcc.artifact import Artifact, write_artifact
from tests.cuda import emulator as emulators
from tests.cuda.programs import rows_program


@pytest.fixture(scope="session")
def emulator() -> emulators.Emulator:
    """The emulated driver, which every library of this process finds."""
    return emulators.emulator()


@pytest.fixture(scope="session")
def rows(emulator: emulators.Emulator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The row program for two architectures, with every kind of library. Not to be changed."""
    folder = tmp_path_factory.mktemp("cuda") / "rows"
    return write_artifact(rows_program("sm_80", "sm_90"), folder, emit=("so", "a", "o"))
