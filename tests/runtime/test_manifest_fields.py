"""Manifests that are not dlcc's though their checksum fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlcc.artifact import Artifact
from dlcc.artifact.manifest import checksum, dump_json
from dlcc.errors import DlccError, ExitCode
from tests.fuzz.hostile import make_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("manifest") / "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", {"../x": {"size": 1, "sha256": "0" * 64}}),
        ("files", {"x": {"size": -1, "sha256": "0" * 64}}),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [-1]}]),
        ("outputs", [{"name": "y", "dtype": "float32", "shape": [3], "bytes": 8}]),
        ("outputs", [{"name": "y", "dtype": "float31", "shape": [3]}]),
        ("symbol", "x; rm"),
        ("fingerprint", 5),
        ("steps", None),
        ("weights", {}),
        ("threads", True),
    ],
)
def test_wrong_fields_are_refused(folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest[key] = value
    manifest["checksum"] = checksum(manifest)
    (tmp_path / "manifest.json").write_bytes(dump_json(manifest))
    with pytest.raises(DlccError, match=f"the field '{key}'") as caught:
        Artifact.open(tmp_path)
    assert caught.value.code == ExitCode.ARTIFACT


def test_missing_fields_are_refused(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["triple"]
    manifest["checksum"] = checksum(manifest)
    (tmp_path / "manifest.json").write_bytes(dump_json(manifest))
    with pytest.raises(DlccError, match="'triple' is missing"):
        Artifact.open(tmp_path)
