"""Mutations in forked processes, so that what kills or stops one is caught and told by number.

A worker does thousands of mutations: forking for each would take longer than they do.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MEMORY = 4 << 30
"""Bytes of data that a worker may allocate beyond what it begins with."""

SECONDS = 60.0
"""A mutation that takes longer hangs."""

_TOLD = 256
"""Mutations between two reports of a worker."""


@dataclass
class Findings:
    """What became of mutations.

    Attributes:
        stages: how many by stage.
        faults: what went wrong, by number.
        slowest: seconds and number of the mutation that took longest.
        peak: bytes of the largest worker.
    """

    stages: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)
    peak: int = 0

    def add(self, line: str) -> None:
        """Take one report of a worker."""
        report = json.loads(line)
        self.stages.update(report["stages"])
        self.faults.update({int(k): v for k, v in report["faults"].items()})
        self.slowest = max(self.slowest, tuple(report["slowest"]))

    def add_all(self, other: Findings) -> None:
        """Take what ``other`` has."""
        self.stages += other.stages
        self.faults |= other.faults
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)


Attempt = Callable[[int], tuple[str, str]]


def run(
    numbers: Sequence[int], attempt: Attempt, *, size: int = 4000, seconds: float = SECONDS
) -> Findings:
    """``attempt`` for each number: stage and fault, in workers of ``size`` numbers each."""
    findings = Findings()
    at = 0
    while at < len(numbers):
        done = _Worker(numbers[at : at + size], attempt, findings, seconds).wait()
        at += done
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    findings.peak = usage.ru_maxrss * 1024
    return findings


class _Worker:
    """One forked process and what is shared with it: the place of the mutation it is at."""

    def __init__(
        self, numbers: Sequence[int], attempt: Attempt, findings: Findings, seconds: float
    ) -> None:
        self.numbers, self.findings, self.seconds = numbers, findings, seconds
        self.shared = mmap.mmap(-1, 8)
        self.reports, theirs = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            try:
                os.close(self.reports)
                _work(numbers, attempt, self.shared, theirs)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(theirs)

    @property
    def place(self) -> int:
        """Index of the mutation that the worker is at."""
        return int(struct.unpack("<q", self.shared[:])[0])

    def wait(self) -> int:
        """Take its reports until it ends; how many mutations are done with."""
        hung = self._read()
        _, status = os.waitpid(self.process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return len(self.numbers)
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        number = self.numbers[self.place]
        why = f"took longer than {self.seconds:g} s" if hung else f"ended by {ended}"
        self.findings.faults[number] = f"the process {why}\n"
        self.findings.stages["process ended"] += 1
        return self.place + 1

    def _read(self) -> bool:
        """Read until the worker ends or hangs; whether it does the latter."""
        text, last, since = b"", -1, time.monotonic()
        with open(self.reports, "rb", buffering=0) as pipe:
            while True:
                ready, _, _ = select.select([pipe], [], [], min(1.0, self.seconds / 4))
                if ready:
                    part = pipe.read(1 << 16)
                    if not part:
                        return False
                    *lines, text = (text + part).split(b"\n")
                    for line in lines:
                        self.findings.add(line.decode())
                if self.place != last:
                    last, since = self.place, time.monotonic()
                elif time.monotonic() - since > self.seconds:
                    os.kill(self.process, signal.SIGKILL)
                    return True


def _work(numbers: Sequence[int], attempt: Attempt, shared: mmap.mmap, reports: int) -> None:
    limit = _data_bytes() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stages, faults, slowest = Counter[str](), dict[int, str](), (0.0, 0)
    before = time.perf_counter()
    for index, number in enumerate(numbers):
        shared[:] = struct.pack("<q", index)
        stage, fault = attempt(number)
        stages[stage] += 1
        if fault:
            faults[number] = fault
        now = time.perf_counter()
        slowest, before = max(slowest, (now - before, number)), now
        if fault or index % _TOLD == _TOLD - 1 or index == len(numbers) - 1:
            report = {"stages": stages, "faults": faults, "slowest": slowest}
            os.write(reports, json.dumps(report).encode() + b"\n")
            stages.clear()
            faults.clear()


def _data_bytes() -> int:
    """Bytes of data of this process, as the limit counts them."""
    with open("/proc/self/status") as status:
        (line,) = (text for text in status if text.startswith("VmData:"))
    return int(line.split()[1]) << 10


__all__ = ["Findings", "run"]
