"""Altered artifacts are refused in words, or run right; nothing hangs, nothing is written."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest

import dlcc
from dlcc.cli import main
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import Feed, random_feed
from dlcc.inspection import inspect_artifact
from tests.fuzz.seeds import make_artifact
from tests.hostile.artifacts import Alteration, alterations

SECONDS = 20
"""What a hostile artifact may take to be refused; most take milliseconds."""

CODES = {ExitCode.ARTIFACT, ExitCode.TARGET}
_SLICES = 8


class Bench:
    """A good artifact, what it computes, and copies of it to alter."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.good = make_artifact(place / "good", keep_ir=True)
        outside = place / "outside"
        outside.mkdir()
        self.all = alterations(self.good, outside)
        with dlcc.load(self.good, threads=1) as model:
            self.feed: Feed = random_feed(model.inputs)
            self.wanted = list(model.run(self.feed).values())
        np.savez(place / "x.npz", **self.feed)
        self.number = 0

    @contextmanager
    def altered(self, change: Alteration) -> Iterator[Path]:
        """A copy that ``change`` was done to; nothing else may have changed at the end."""
        self.number += 1
        room = self.place / f"room{self.number}"
        folder = room / "bad"
        copytree(self.good, folder)
        change.apply(folder)
        before = listing(room)
        try:
            with within(SECONDS):
                yield folder
            assert listing(room) == before, change.name
        finally:
            rmtree(room)


def listing(room: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of everything below ``room``."""
    facts = [(str(p), p.lstat()) for p in sorted(room.rglob("*"))]
    return [(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise if the block takes longer, even where it waits for the system."""

    def stop(_signal: int, _frame: Any) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("artifacts"))


def _load(bench: Bench, folder: Path) -> bool:
    """Load and run; whether that went well."""
    try:
        model = dlcc.load(folder, threads=1)
    except DlccError as error:
        _check_message(error)
        return False
    with model:
        feed = dict(zip((t.name for t in model.inputs), bench.feed.values(), strict=True))
        for found, wanted in zip(model.run(feed).values(), bench.wanted, strict=True):
            np.testing.assert_array_equal(found, wanted)
    return True


def _check_message(error: DlccError) -> None:
    assert error.code in CODES, error
    assert error.what
    assert error.why or error.fix


def _loaded(bench: Bench, changes: list[Alteration]) -> int:
    """Load and inspect each; how many load."""
    taken = 0
    for change in changes:
        with bench.altered(change) as folder:
            try:
                runs = _load(bench, folder)
                inspect_artifact(folder)
            except DlccError as error:
                _check_message(error)
            except BaseException as error:
                error.add_note(change.name)
                raise
            assert not (runs and change.refused), change.name
            taken += runs
    return taken


def _verbs(bench: Bench, folder: Path) -> list[list[object]]:
    arrays, out = bench.place / "x.npz", folder.parent / "out.npz"
    inspections = ([], ["--json", "--bytes"], ["--recipe"], ["--verify"], ["--profile"])
    return [
        *(["inspect", folder, *options] for options in inspections),
        ["run", folder, "-i", arrays, "-o", out, "--threads", 1],
        ["compare", bench.good, folder, "-i", arrays],
    ]


def _commanded(
    bench: Bench, changes: list[Alteration], capfd: pytest.CaptureFixture[str], verbs: slice
) -> None:
    """Give each to the verbs that read artifacts."""
    for change in changes:
        with bench.altered(change) as folder:
            for verb in _verbs(bench, folder)[verbs]:
                told = f"{change.name}: {' '.join(map(str, verb))}"
                start = time.monotonic()
                code = main([str(word) for word in verb])
                out, err = capfd.readouterr()
                assert time.monotonic() - start < SECONDS, told
                assert code != ExitCode.INTERNAL, f"{told}\n{err}"
                assert "Traceback" not in out + err, told
                assert err.count("error: ") == (code != 0), f"{told}\n{err}"
                (folder.parent / "out.npz").unlink(missing_ok=True)


def test_a_sample_of_alterations(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    rng = Random(1)
    plain = [c for c in bench.all if not c.name.startswith(("field/", "report/"))]
    fields = [c for c in bench.all if c.name.startswith(("field/", "report/"))]
    assert len(plain) > 150
    assert len(fields) > 2000
    assert len({c.name for c in bench.all}) == len(bench.all)
    _loaded(bench, rng.sample(plain, 60))
    assert _loaded(bench, rng.sample(fields, 60)) > 3
    _commanded(bench, rng.sample(plain, 4), capfd, slice(0, 3))


@pytest.mark.slow
def test_damage(bench: Bench) -> None:
    changes = [c for c in bench.all if not c.name.startswith(("field/", "report/"))]
    assert _loaded(bench, changes) > 3


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_SLICES))
def test_fields(bench: Bench, part: int) -> None:
    changes = [c for c in bench.all if c.name.startswith(("field/", "report/"))]
    assert _loaded(bench, changes[part::_SLICES]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_SLICES))
def test_verbs(bench: Bench, part: int, capfd: pytest.CaptureFixture[str]) -> None:
    plain = [c for c in bench.all if not c.name.startswith(("field/", "report/"))]
    fields = [c for c in bench.all if c.name.startswith(("field/", "report/"))]
    _commanded(bench, [*plain[part::_SLICES], *fields[part :: 8 * _SLICES]], capfd, slice(None))
