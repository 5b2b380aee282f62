"""Networks for several architectures, and large ones: the reference's bytes at 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.emulator import Emulator, compiled_for_cpu
from tests.test_end_to_end import LARGE, check, small_net


def _check(emulator: Emulator, model: object, out: Path, target: str, bits: int) -> None:
    number = target.removeprefix("cuda:sm_")
    with compiled_for_cpu(), emulator.devices(f"{number[:-1]}.{number[-1]}"):
        check(model, out, bits=bits, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda:sm_61", "cuda:sm_75", "cuda:sm_90"])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_small_net_everywhere(emulator: Emulator, tmp_path: Path, target: str, bits: int) -> None:
    _check(emulator, small_net(), tmp_path / "out", target, bits)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", LARGE)
def test_large_models(emulator: Emulator, models_dir: Path, tmp_path: Path, name: str) -> None:
    _check(emulator, models_dir / f"{name}.onnx", tmp_path / "out", "cuda:sm_80", 8)
