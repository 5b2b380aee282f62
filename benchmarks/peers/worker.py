"""The resident process of one engine.

Started as ``python -m benchmarks.peers.worker JOB`` by the engine's own interpreter. It speaks JSON
objects, one a line. The first, unasked: {"version", "load_seconds", "first_seconds", "error",
"base_kb", "peak_kb", "call_seconds"}, or {"failed": reason}. Then each line of standard input,
{"seconds", "least"}, is answered with the times of one slot: see :func:`slot`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.engines import Job, Opened, reference_of
from benchmarks.peers.hide_amx import hide_amx

WARM_SECONDS, WARM_CALLS, WARM_MOST = 0.4, 3, 6.0
BATCH_SECONDS = 50e-6
"""Calls are timed in batches of at least this long: two clock reads take about 80 ns."""
MOST_BATCHES = 200_000


def main() -> None:
    """Serve one engine until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print things

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        job = Job.from_text(sys.argv[1])
        engine, facts = open_job(job)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ["no message"]
        say({"failed": f"{type(error).__name__}: {lines[0][:300]}"})
        return
    say(facts)
    for line in sys.stdin:
        request = json.loads(line)
        batch = job.queue or batch_of(facts["call_seconds"])
        say(slot(engine.run, request["seconds"], request["least"], batch, engine.finish))


def open_job(job: Job) -> tuple[Opened, dict[str, Any]]:
    """Load, run, check and warm an engine; it, and the first answer."""
    os.sched_setaffinity(0, job.cpus)
    if job.hide_amx:
        hide_amx()
    reference = reference_of(job)
    adapter = importlib.import_module(job.engine)
    base = resident_kb("VmRSS")
    start = time.perf_counter()
    engine = adapter.open_engine(job)
    loaded = time.perf_counter()
    _once(engine)
    first = time.perf_counter()
    error = relative_error(engine.output(), reference)
    facts = {
        "version": engine.version,
        "load_seconds": loaded - start,
        "first_seconds": first - loaded,
        "error": error,
        "base_kb": base,
        "call_seconds": warm(lambda: _once(engine)),
        "peak_kb": resident_kb("VmHWM"),
    }
    return engine, facts


def _once(engine: Opened) -> None:
    engine.run()
    engine.finish()


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference over the norm of the reference; infinite for another size."""
    if output.size != reference.size:
        return float("inf")
    difference = output.astype(np.float64).ravel() - reference.astype(np.float64).ravel()
    return float(np.linalg.norm(difference) / np.linalg.norm(reference.astype(np.float64)))


def warm(run: Callable[[], Any]) -> float:
    """Run until caches, clock and threads are warm; returns the mean seconds of a call."""
    start, calls = time.perf_counter(), 0
    while calls < WARM_CALLS or time.perf_counter() - start < WARM_SECONDS:
        run()
        calls += 1
        if time.perf_counter() - start > WARM_MOST:
            break
    return (time.perf_counter() - start) / calls


def batch_of(call_seconds: float) -> int:
    """Calls between two reads of the clock."""
    return max(1, int(BATCH_SECONDS / max(call_seconds, 1e-9)))


def slot(
    run: Callable[[], Any],
    seconds: float,
    least: int,
    batch: int,
    finish: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Time calls for ``seconds`` and at least ``least`` batches of ``batch`` calls.

    ``finish`` waits for what the calls of a batch have only started.

    Returns:
        "p20", "min" and "median" seconds of a call over the batches, without the first tenth of
        them; "batches"; "cpu", CPU seconds of the process over the slot.
    """
    times: list[float] = []
    clock, calls = time.perf_counter, range(batch)
    cpu = time.process_time()
    end = clock() + seconds
    while True:
        start = clock()
        for _ in calls:
            run()
        finish()
        stop = clock()
        times.append(stop - start)
        if (stop >= end and len(times) >= least) or len(times) >= MOST_BATCHES:
            break
    cpu = time.process_time() - cpu
    kept = sorted(times[max(1, len(times) // 10) :] or times)
    found = {"p20": kept[len(kept) // 5], "min": kept[0], "median": kept[len(kept) // 2]}
    answer: dict[str, Any] = {name: value / batch for name, value in found.items()}
    return {**answer, "batches": len(times), "batch": batch, "cpu": cpu}


def resident_kb(field: str) -> int:
    """A field of /proc/self/status in kB; the peak from the system's accounts elsewhere."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(field):
                    return int(line.split()[1])
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
