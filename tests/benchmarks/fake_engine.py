"""An engine whose model is the name of what it does."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    x = sample_of(job)
    print("engines print things")
    if job.model == "refuse":
        raise RuntimeError("no such model\nand more words")
    if job.model == "die":
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os.abort()
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002)
        if job.model == "hang later" and calls > 400:
            time.sleep(60)

    def output() -> np.ndarray:
        return x[:, :1] if job.model == "other shape" else 2 * x + (job.model == "wrong")

    return Opened("1.2", run, output)
