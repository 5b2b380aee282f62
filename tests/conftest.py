"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Third-party models and data sets, which stand beside the project."""
    if not DATA.is_dir():
        pytest.skip("the third-party data (../shared/data) is not here")
    return DATA


@pytest.fixture(scope="session")
def models_dir(data_dir: Path) -> Path:
    """The third-party ONNX models."""
    return data_dir / "models"
