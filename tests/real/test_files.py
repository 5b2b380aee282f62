"""Files in wheels of PyPI give ONNX Runtime's numbers.

``DLCC_WHEELS`` names a folder of wheels; packages that are installed are found without.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real.files import FILES, RealFile

NEAR = 1e-4
"""The largest difference from ONNX Runtime's output at 32 bits, relative to the largest number."""

_EACH = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def _path(file: RealFile, folder: Path) -> Path:
    wheels = os.environ.get("DLCC_WHEELS")
    found = file.find(Path(wheels) if wheels else None, folder)
    if found is None:
        pytest.skip(f"{file.package} {file.version} is neither in DLCC_WHEELS nor installed")
    return found


@pytest.mark.slow
@_EACH
def test_agrees_with_onnx_runtime(file: RealFile, tmp_path: Path) -> None:
    errors, _ = file.compare(_path(file, tmp_path), tmp_path / "fp32", 32)
    assert max(errors) <= NEAR, errors


@pytest.mark.slow
@_EACH
def test_quantises_to_8_bits(file: RealFile, tmp_path: Path) -> None:
    _, sqnr_db = file.compare(_path(file, tmp_path), tmp_path / "int8", 8)
    assert min(sqnr_db) >= file.least_sqnr_db, sqnr_db
