"""Worker processes: starting, asking, stopping, and how much else the machine did meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Job
from benchmarks.peers.setup import REPOSITORY

LOAD_SECONDS = 300.0
SLOT_SECONDS = 90.0
REALTIME_PRIORITY = 50


class WorkerFailed(Exception):
    """A worker crashed, hung or refused; its text is the reason."""


class Worker:
    """One engine in a process of its own, stopped (SIGSTOP) whenever it is not asked.

    Args:
        python: the engine's interpreter.
        job: what it runs.
        log: where its standard error goes.

    Raises:
        WorkerFailed: by :meth:`start` and :meth:`slot`; the process is gone then.
    """

    def __init__(self, python: Path, job: Job, log: Path) -> None:
        self.facts: dict[str, Any] = {}
        self._log = log
        self._cpus = job.cpus
        count = str(job.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.peers.worker", job.to_text()],
                cwd=REPOSITORY,
                env={**environment, **dict.fromkeys(names, count)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def start(self) -> dict[str, Any]:
        """Wait until the engine is loaded and warm; what it says of itself."""
        self.facts = self._answer(LOAD_SECONDS)
        self._signal(signal.SIGSTOP)
        return self.facts

    def slot(self, seconds: float, realtime: bool = False) -> dict[str, Any]:
        """One slot.

        Adds to the worker's answer what other processes did meanwhile: "foreign", CPUs' worth of
        time that they used on the worker's CPUs, and "elsewhere", the same on the other CPUs.
        """
        least = 4 if self.facts["call_seconds"] < 0.5 else 2
        if realtime:
            self._schedule(os.SCHED_FIFO, REALTIME_PRIORITY)
        self._signal(signal.SIGCONT)
        before, start = busy_seconds(), time.perf_counter()
        try:
            assert self._process.stdin is not None
            request = json.dumps({"seconds": seconds, "least": least}) + "\n"
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except OSError:
            raise self._failed("its process is gone") from None
        answer = self._answer(SLOT_SECONDS)
        passed = time.perf_counter() - start
        self._signal(signal.SIGSTOP)
        if realtime:
            self._schedule(os.SCHED_OTHER, 0)
        after = busy_seconds()
        spent = {cpu: after[cpu] - before.get(cpu, 0.0) for cpu in after}
        here = sum(spent.pop(cpu, 0.0) for cpu in self._cpus)
        answer["foreign"] = max(0.0, (here - answer["cpu"]) / passed)
        answer["elsewhere"] = sum(spent.values()) / passed
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _schedule(self, policy: int, priority: int) -> None:
        """For all threads of the process: the policy of one is not inherited by those it has."""
        with contextlib.suppress(FileNotFoundError):
            for thread in os.listdir(f"/proc/{self._process.pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    def _answer(self, seconds: float) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        end, data = time.monotonic() + seconds, b""
        while not data.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise self._failed(f"no answer in {seconds:.0f} s")
            piece = os.read(pipe.fileno(), 65536)
            if not piece:
                raise self._failed(self._death())
            data += piece
        answer: dict[str, Any] = json.loads(data)
        if "failed" in answer:
            raise self._failed(str(answer["failed"]))
        return answer

    def _death(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        words = self._log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with {how}" + (f": {words[-1][:200]}" if words else "")

    def _failed(self, reason: str) -> WorkerFailed:
        self.close()
        return WorkerFailed(reason)


def busy_seconds(text: str = "") -> dict[int, float]:
    """Seconds that each CPU was busy or taken by the hypervisor, waiting for disks left out.

    Args:
        text: what /proc/stat says, if not now.
    """
    busy = {}
    for line in (text or Path("/proc/stat").read_text()).splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _waiting, *rest = map(int, ticks[:8])
            total = user + nice + system + sum(rest)
            busy[int(name.removeprefix("cpu"))] = total / os.sysconf("SC_CLK_TCK")
    return busy


class Slices:
    """A lock file held while timing, and given up for a moment at latest every ``seconds``.

    Args:
        path: the file; None for no lock.
        seconds: longest time to hold it.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._file = None if path is None else path.open("a")
        self._since = 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def breathe(self) -> None:
        """Between two slots: let others have it if it was held for long."""
        if self._file is not None and time.monotonic() - self._since > self._seconds:
            self._give()
            time.sleep(0.2)
            self._take()

    def _take(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()

    def _give(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
