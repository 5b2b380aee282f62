"""Hostile files are refused in words or compiled right: no traceback, no hang, nothing left over.

By default every file is read and a few are compiled; ``-m slow`` compiles them all, each in a
process of its own that may take 60 s and 4 GB.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dlcc.artifact.toolchain import _cache_dir
from dlcc.bounds import bounded
from dlcc.cli import main
from dlcc.errors import DlccError, ExitCode
from tests.hostile import probe
from tests.hostile.case import Case
from tests.hostile.corpus import corpus

CASES = corpus()
READ = [c for c in CASES if not c.slow]
MEMORY = 4 << 30
SECONDS = 60
OTHERS = {".cache", ".ses"}
"""What ONNX Runtime leaves in the home and in the temporary folder."""

ROOT = Path(__file__).parents[2]

COMPILED = (
    "external/valid", "names/include", "names/clash", "text/pair", "borders/input-also-output",
    "borders/constant-output", "indices/slice-back",
)  # fmt: skip
"""Files that the default run compiles."""


def test_corpus_is_large_and_the_same_for_a_seed() -> None:
    names = [c.name for c in CASES]
    assert len(names) >= 600
    assert len(set(names)) == len(names)
    assert [(c.name, c.contents) for c in corpus()] == [(c.name, c.contents) for c in CASES]
    assert [c.contents for c in corpus(1)] != [c.contents for c in CASES]


@pytest.mark.parametrize("family", sorted({c.name.split("/")[0] for c in READ}))
def test_read(family: str) -> None:
    for case in READ:
        if case.name.startswith(f"{family}/"):
            with probe.place() as folder:
                taken = probe.imported(case, folder)
            assert case.compiles in (None, taken), case.name


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    (case,) = (c for c in CASES if c.name == name)
    with probe.place() as folder:
        assert probe.compiled(case, folder)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("start", range(0, len(CASES), 16))
def test_each_within_limits(start: int, bits: int, tmp_path: Path) -> None:
    """A process works through 16 files at most, where nothing else may be written or left.

    Each may take 60 s by the clock: a machine that is busy with other things gives false alarms.
    """
    for index, group in enumerate(_groups(CASES[start : start + 16])):
        folder = tmp_path / str(index)
        done = _worked_through(group, bits, folder)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Traceback" not in done.stderr, done.stderr[-4000:]
        left = [p for p in folder.glob("*/**/*") if not OTHERS & set(p.parts)]
        assert not left
        results = json.loads(done.stdout.splitlines()[-1])
        assert results["peak"] <= MEMORY
        for case in group:
            seconds, taken = results["files"][case.name]
            assert seconds < SECONDS, case.name
            if bits == 32:
                assert case.compiles in (None, taken), case.name


def _worked_through(group: list[Case], bits: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """A run over ``group`` with a home, a working and a temporary folder of its own."""
    places = [folder / name for name in ("home", "here", "tmp")]
    for place in places:
        place.mkdir(parents=True)
    home, here, tmp = map(str, places)
    environment = {
        **os.environ, "HOME": home, "TMPDIR": tmp, "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1", "ZIG_GLOBAL_CACHE_DIR": str(_cache_dir()),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "tests.hostile.run", str(bits), *[c.name for c in group]],
        capture_output=True, text=True, timeout=SECONDS * max(len(group), 8), check=False,
        env=environment, cwd=here, preexec_fn=_limits,
    )  # fmt: skip


def _groups(cases: list[Case]) -> list[list[Case]]:
    """Slow ones alone, the others together."""
    together = [c for c in cases if not c.slow]
    return [[c] for c in cases if c.slow] + ([together] if together else [])


# -- limits of the command line ------------------------------------------------------------------


def _dlcc(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlcc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _case(name: str, folder: Path) -> Path:
    (case,) = (c for c in CASES if c.name == name)
    return case.write(folder / "in")


def test_timeout_stops_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    path = _case("nesting/loop-endless", tmp_path)
    done = _dlcc("compile", path, "-o", tmp_path / "out", "-q", "--timeout", "0.5")
    assert done.returncode == ExitCode.LIMIT, done.stderr
    assert "took longer than 0.5 s" in done.stderr
    assert "--timeout" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_memory_limit_names_both_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _case("sizes/tile", tmp_path)
    assert main(["compile", str(path), "-o", str(tmp_path / "out"), "-q"]) == ExitCode.LIMIT
    text = capsys.readouterr().err
    assert "16.0 TiB are more than 4.0 GiB" in text
    assert "--max-memory" in text
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_within_limits_the_artifact_is_written(tmp_path: Path) -> None:
    path = _case("text/pair", tmp_path)
    limits = ["--timeout", "60", "--max-memory", "2G"]
    done = _dlcc("compile", path, "-o", tmp_path / "out", "-q", "--bits", "32", *limits)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-memory", "lots"), ("--max-memory", "0"), ("--timeout", "-1"), ("--timeout", "nan")],
)
def test_limits_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    path = _case("text/pair", tmp_path)
    out = tmp_path / "out"
    assert main(["compile", str(path), "-o", str(out), "-q", option, value]) == ExitCode.USAGE
    assert option in capsys.readouterr().err
    assert not out.exists()


def test_memory_that_the_system_does_not_give_is_a_limit() -> None:
    with (
        pytest.raises(DlccError, match="not enough memory") as caught,
        bounded(lambda _phase, _fraction: None),
    ):
        raise MemoryError
    assert caught.value.code == ExitCode.LIMIT
