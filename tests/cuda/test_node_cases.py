"""ONNX's own test cases of single nodes on the emulated GPU: the standard's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.emulator import Emulator, compiled_for_cpu
from tests.onnx_backend.test_compiled import BATCHES, wrong_cases

RUN_TIME_LOOPS = "has no loops of the run time"
"""GPUs refuse them with these words."""


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_cases_on_a_gpu(emulator: Emulator, tmp_path: Path, batch: int) -> None:
    with compiled_for_cpu():
        wrong = wrong_cases(batch, tmp_path / "all", "cuda:sm_80")
    wrong = [text for text in wrong if RUN_TIME_LOOPS not in text]
    assert not wrong, "\n".join(wrong)
