"""The protocol between the runner and the processes of engines, with an engine made up for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import session
from benchmarks.peers.artifacts import Artifacts, NoArtifact
from benchmarks.peers.engines import Job
from benchmarks.peers.session import Slices, Worker, WorkerFailed, busy_seconds
from benchmarks.peers.setup import REPOSITORY, Cache
from benchmarks.peers.worker import batch_of, relative_error, slot

Open = Callable[..., Worker]


@pytest.fixture
def open_worker(tmp_path: Path) -> Iterator[Open]:
    workers = []
    x = np.arange(1.0, 9.0, dtype=np.float32)[None]
    np.savez(tmp_path / "samples.npz", x=x, y=2 * x)

    def make(model: str, hide_amx: bool = False) -> Worker:
        cpu = min(os.sched_getaffinity(0))
        samples = str(tmp_path / "samples.npz")
        job = Job("tests.benchmarks.fake_engine", "fp32", model, samples, 1, (cpu,), hide_amx)
        workers.append(Worker(Path(sys.executable), job, tmp_path / "log"))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_job_survives_the_command_line() -> None:
    job = Job("an.openvino", "bf16", "a b.onnx", "s.npz", 2, (3, 1), True, 64, 8)
    assert Job.from_text(job.to_text()) == job


@pytest.mark.parametrize("hide_amx", [False, True])
def test_facts_and_slots(open_worker: Open, hide_amx: bool) -> None:
    worker = open_worker("right", hide_amx)
    facts = worker.start()
    assert facts["version"] == "1.2"
    assert facts["error"] == 0
    assert facts["call_seconds"] >= 0.002
    assert 0 < facts["base_kb"] <= facts["peak_kb"]
    for _ in range(2):  # stopped in between, and goes on
        times = worker.slot(0.02)
        assert 0.002 <= times["min"] <= times["p20"] <= times["median"]
        assert times["batches"] >= 4
        assert times["batch"] == 1
        assert times["foreign"] >= 0


@pytest.mark.parametrize(
    ("model", "error"), [("wrong", 8**0.5 / np.linalg.norm(2.0 * np.arange(1, 9))),
                         ("other shape", float("inf"))]
)  # fmt: skip
def test_error_of_the_output(open_worker: Open, model: str, error: float) -> None:
    assert open_worker(model).start()["error"] == pytest.approx(error)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("refuse", "^RuntimeError: no such model$"),
        ("die", "^its process ended with signal SIGABRT: last words$"),
    ],
)
def test_engine_that_does_not_start(open_worker: Open, model: str, reason: str) -> None:
    with pytest.raises(WorkerFailed, match=reason):
        open_worker(model).start()


def test_engine_that_hangs(open_worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = open_worker("hang later")
    worker.start()
    monkeypatch.setattr(session, "SLOT_SECONDS", 0.5)
    with pytest.raises(WorkerFailed, match=r"^no answer in 0 s$|^no answer in 1 s$"):
        worker.slot(30.0)


def test_short_calls_are_timed_in_batches() -> None:
    assert batch_of(1e-6) == 50
    assert batch_of(1.0) == 1
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    times = slot(run, 0.001, 7, 5)
    assert times["batches"] >= 7
    assert calls == 5 * times["batches"]
    assert 0 < times["min"] <= times["p20"]


def test_relative_error_of_reshaped_output() -> None:
    y = np.array([[3.0, 4.0]])
    assert relative_error(np.array([3.0, 4.5]), y) == pytest.approx(0.1)


def test_busy_seconds_leave_waiting_out() -> None:
    text = (
        "cpu  9 9 9 9 9 9 9 9\ncpu0 100 20 30 999 777 1 2 3 0 0\ncpu12 0 0 7 1 1 0 0 0 0 0\nx 1\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(text) == {0: 156 / ticks, 12: 7 / ticks}


def test_one_process_at_a_time_uses_a_cache(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.peers.setup import Cache\n"
        "with Cache(Path(sys.argv[1])).alone(lambda text: print(text, flush=True)): print('in')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Cache(tmp_path).alone(print):
        other = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline().startswith("waiting for the process that uses")
    assert other.communicate(timeout=30)[0] == "in\n"


def test_lock_is_given_up_in_slices(tmp_path: Path) -> None:
    import fcntl

    def free() -> bool:
        with (tmp_path / "lock").open("a") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    slices = Slices(tmp_path / "lock", 3600.0)
    with slices.held():
        assert not free()
        slices.breathe()
        assert not free()
    assert free()
    with Slices(None, 0.0).held():
        pass


def test_network_that_is_not_set_up_has_no_artifact(tmp_path: Path) -> None:
    models = Artifacts(Cache(tmp_path))
    for precision in ("int8", "fp32"):
        with pytest.raises(NoArtifact, match="not set up"):
            models.ready("lenet5", precision)
