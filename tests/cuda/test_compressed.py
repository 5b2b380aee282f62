"""Compressed networks on the emulated GPU: each row of packed or pruned weights, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.compressed import COMPRESSED, Compressed
from tests.cuda.emulator import compiled_for_cpu


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("made", COMPRESSED, ids=lambda made: made.passes)
def test_gives_the_reference(made: Compressed, tmp_path: Path) -> None:
    with compiled_for_cpu():
        made.check("cuda:sm_80", tmp_path / "out")
