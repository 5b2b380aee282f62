"""Odd command lines end with a code and one message, and leave nothing half done."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from dlcc.cli import main
from dlcc.errors import ExitCode
from tests.cli import models
from tests.hostile.commands import BASES, lines
from tests.hostile.test_artifacts import listing, within

SECONDS = 60
KEPT = 20
_SLICES = 10


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files, which every command line gets a copy of."""
    folder = tmp_path_factory.mktemp("commands") / "filled"
    folder.mkdir()
    models.residual_cnn(folder / "cnn.onnx")
    models.data(folder / "samples.npz")
    models.data(folder / "labelled.npz", 20, labels=True)
    for command in (
        ["compile", "cnn.onnx", "-o", "artifact", "-q", "--keep-ir", "--threads", "1"],
        ["opt", "cnn.onnx", "-o", "graph.dlir", "-q", "--passes", "canonicalize"],
    ):
        places = [str(folder / w) if "." in w or w == "artifact" else w for w in command]
        assert main(places) == 0
    (folder / "folder").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "letter").write_text("dear all")
    (folder / "empty").touch()
    (folder / "text").write_text("not a model\n" * 50)
    (folder / "loop").symlink_to("loop")
    return folder


def _run_all(
    seed: int,
    count: int,
    filled: Path,
    patch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> dict[int, int]:
    """Run ``count`` command lines; how often each code came."""
    room = filled.with_name(f"room{seed}")
    codes: dict[int, int] = {}
    patch.setenv("XDG_CACHE_HOME", str(filled.parent / "cache"))
    patch.setenv("HOME", str(filled.parent / "home"))
    for line in itertools.islice(lines(seed), count):
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(filled, room, symlinks=True)
        os.mkfifo(room / "pipe")
        patch.chdir(room)
        before = listing(room.parent)
        capfd.readouterr()
        try:
            with within(SECONDS):
                code = main(line)
        except BaseException as error:
            error.add_note(repr(line))
            raise
        out, err = capfd.readouterr()
        told = f"{line}\n{out}\n{err}"
        assert code in set(ExitCode) - {ExitCode.INTERNAL}, told
        assert "Traceback" not in out + err, told
        assert err.count("error: ") == (code != 0 and "Usage:" not in out), told
        if code not in (0, ExitCode.VERIFICATION):
            assert listing(room.parent) == before, told
        codes[code] = codes.get(code, 0) + 1
    return codes


def test_the_lines_that_are_changed_work(
    filled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path / "room", symlinks=True)
    monkeypatch.chdir(tmp_path / "room")
    for verb, words in BASES.items():
        if verb not in ("bench", "tune", "sensitivity", "compile"):  # they take a while
            assert main([verb, *words]) == 0, verb


def test_some_odd_lines(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes = _run_all(0, KEPT, filled, monkeypatch, capfd)
    assert len(codes) > 4


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_SLICES))
def test_many_odd_lines(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], part: int
) -> None:
    codes = _run_all(1000 + part, 200, filled, monkeypatch, capfd)
    assert len(codes) > 6
