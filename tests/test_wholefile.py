"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dlcc.wholefile import write_whole


def test_new_and_old_files_are_written_and_links_followed(tmp_path: Path) -> None:
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.write_bytes(b"before")
    old.chmod(0o600)
    link.symlink_to("old")
    write_whole({new: b"1", link: b"2"})
    assert (new.read_bytes(), old.read_bytes(), link.is_symlink()) == (b"1", b"2", True)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert stat.S_IMODE(new.stat().st_mode) & 0o600 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link", "new", "old"]


def test_nothing_changes_where_one_cannot_be_written(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "no" / "second"
    first.write_bytes(b"before")
    with pytest.raises(FileNotFoundError):
        write_whole({first: b"after", second: b"x"})
    assert first.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["first"]


def test_devices_are_written_to_and_stay(tmp_path: Path) -> None:
    write_whole({Path(os.devnull): b"x"})
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):  # nobody reads it
        write_whole({tmp_path / "pipe": b"x"})
    assert os.listdir(tmp_path) == ["pipe"]
