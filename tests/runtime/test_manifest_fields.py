"""Manifests that are not dlcc's though their checksum fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dlcc
from dlcc.artifact import Artifact, account
from dlcc.artifact.manifest import checksum, dump_json, file_record
from dlcc.errors import DlccError, ExitCode
from dlcc.inspection import inspect_artifact
from tests.fuzz.seeds import make_artifact


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


_FIELDS: dict[str, Any] = {
    "content_bytes": 0, "embedded": False, "entries": [], "header_bytes": 64, "pack": "speed",
}  # fmt: skip
_ENTRY = {"layer": "a", "name": "w", "offset": 0, "size": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"header_bytes": None},
        {"header_bytes": -64},
        {"pack": "small"},
        {"entries": [{**_ENTRY, "offset": "0"}]},
        {"entries": [{**_ENTRY, "size": -4}]},
        {"entries": [{**_ENTRY, "variants": [5]}]},
        {"variants": [{"variant": "avx2"}]},
        {"pack": "size"},
        {"pack": "size", "table_bytes": 9, "streams": [{"kind": "gaps", "size": -9}]},
        {"pack": "size", "table_bytes": 9, "streams": [], "entries": [_ENTRY]},
    ],
)
def test_wrong_weights_are_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["weights"] = {**_FIELDS, **change}
    manifest["checksum"] = checksum(manifest)
    (tmp_path / "manifest.json").write_bytes(dump_json(manifest))
    with pytest.raises(DlccError, match="the field 'weights'"):
        Artifact.open(tmp_path)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _sealed(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_bytes(dump_json(manifest))


@pytest.mark.parametrize("change", ["fewer steps", "another layer", "another variant"])
def test_steps_that_are_not_the_librarys_are_refused(copied: Path, change: str) -> None:
    """``profile`` makes room for the manifest's steps, and the library writes its own."""
    manifest = json.loads((copied / "manifest.json").read_bytes())
    assert len(manifest["steps"]) > 1
    if change == "fewer steps":
        del manifest["steps"][1:]
    elif change == "another layer":
        manifest["steps"][0]["layer"] = "no such layer"
    else:
        manifest["variant"] = "sse1"
    _sealed(copied, manifest)
    with pytest.raises(DlccError, match="other variants or steps than the library") as caught:
        dlcc.load(copied)
    assert caught.value.code == ExitCode.ARTIFACT


@pytest.mark.parametrize("size", [b"-60", b"-1", b"99999999", b"x"])
def test_members_beyond_the_library_are_refused(copied: Path, size: bytes) -> None:
    """Going back to the file's start would go on for ever."""
    archive = b"!<arch>\n" + b"a/".ljust(16) + b"0".ljust(32) + size.ljust(10) + b"`\n"
    (copied / "libnet.a").write_bytes(archive)
    manifest = json.loads((copied / "manifest.json").read_bytes())
    manifest["files"]["libnet.a"] = file_record(archive)
    _sealed(copied, manifest)
    with pytest.raises(DlccError, match=r"cannot account for libnet\.a"):
        account(Artifact.open(copied))


@pytest.mark.parametrize(
    "report",
    [{"layers": [5]}, {"layers": {"a": 1}}, {"better": [{}]}, {"layers": [{"inputs": [3]}]}],
)
def test_reports_of_another_shape_are_refused(copied: Path, report: dict[str, Any]) -> None:
    contents = json.dumps(report).encode()
    (copied / "report.json").write_bytes(contents)
    manifest = json.loads((copied / "manifest.json").read_bytes())
    manifest["files"]["report.json"] = file_record(contents)
    _sealed(copied, manifest)
    with pytest.raises(DlccError, match=r"cannot read report\.json"):
        inspect_artifact(copied)
