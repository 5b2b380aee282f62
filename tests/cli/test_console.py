"""Tables, numbers and progress, as text and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from dlcc.cli import progress as progress_module
from dlcc.cli.console import Console, Table, bytes_text, count_text, jsonable, seconds_text
from dlcc.cli.progress import PhaseProgress
from dlcc.errors import DlccError, ExitCode


def test_plain_table():
    table = Table(("name", ">size", "why"), [("a", 12, ""), ("long name", 3.5, "x|y")], "title")
    assert table.plain().splitlines() == [
        "title",
        "name       size  why",
        "a            12",
        "long name   3.5  x|y",
    ]
    assert table.markdown().splitlines()[1:] == [
        "| --- | ---: | --- |",
        "| a | 12 |  |",
        "| long name | 3.5 | x\\|y |",
    ]


def test_numbers_for_people():
    assert [bytes_text(n) for n in (0, 9_999, 10_000, 4_458_000, 2_500_000_000)] == [
        "0 B", "9999 B", "10.0 kB", "4.46 MB", "2.50 GB",
    ]  # fmt: skip
    assert [count_text(n) for n in (999, 1_000, 568_700_000, 4_100_000_000)] == [
        "999", "1.0 k", "568.7 M", "4.1 G",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (2.5, 0.0123, 4.5e-6)] == ["2.50 s", "12.300 ms", "4.5 us"]


def test_json_has_only_what_json_knows(capsys):
    payload = {"a": np.float32(0.5), "b": (np.int64(3), float("inf")), "c": {1: float("nan")}}
    assert jsonable(payload) == {"a": 0.5, "b": [3, "inf"], "c": {"1": "nan"}}
    Console(as_json=True).json(payload)
    Console(as_json=True).line("not shown")
    Console(as_json=True).table(Table(("a",), [("not shown",)]))
    assert json.loads(capsys.readouterr().out)["b"] == [3, "inf"]


def test_an_error_in_words_and_as_json(capsys):
    error = DlccError(ExitCode.DATA, "it is bad", where="x.npz", why="5 is not 6", fix="make it 6")
    Console(as_json=True).error(error)
    streams = capsys.readouterr()
    assert streams.err == "error: x.npz: it is bad\n  why: 5 is not 6\n  fix: make it 6\n"
    assert json.loads(streams.out)["exit_code"] == 6


class Clock:
    """Stands for time.perf_counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "perf_counter", lambda: self.now)


def test_plain_progress(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    events = [
        ("import", 0.0, 0.1), ("import", 1.0, 0.2),
        ("quantize", 0.0, 0.0), ("quantize", 0.1, 2.0), ("quantize", 0.5, 4.0),
        ("quantize", 0.6, 1.0), ("quantize", 1.0, 3.0),
        ("import", 0.0, 0.0), ("import", 1.0, 0.5),
    ]  # fmt: skip
    with PhaseProgress() as progress:
        for phase, fraction, after in events:
            clock.now += after
            progress(phase, fraction)
    assert capsys.readouterr().err.splitlines() == [
        "import",
        "quantize",
        "quantize: 50 %",
        "quantize: done after 10.0 s",
        "import",
    ]
    assert progress.seconds == {"import": pytest.approx(0.8), "quantize": pytest.approx(10.0)}


def test_quiet_progress_measures_all_the_same(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with PhaseProgress(quiet=True) as progress:
        clock.now += 3.0
        progress("work", 1.0)
    assert progress.seconds == {"work": 3.0}
    assert capsys.readouterr().err == ""


def on_terminal(arguments: list[str], limit: float = 60) -> tuple[int, str]:
    """Code and output of a run whose streams are a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcc", *arguments], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        output += part
    os.close(ours)
    return process.wait(limit), output.decode()


def test_terminal(cnn, tmp_path):
    passes = "canonicalize,fold-batch-norm"
    out = tmp_path / "o.dlir"
    code, text = on_terminal(["opt", str(cnn), "--passes", passes, "-o", str(out)])
    assert code == 0, text
    assert "\x1b[" in text  # a bar was drawn
    assert "100%" in text
    assert "─" in text  # and the table has rules
    assert f"wrote {out}" in text
