"""DeepSparse."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import deepsparse
import numpy as np

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open fp32 or QDQ int8 models."""
    engine = deepsparse.Engine(job.model, batch_size=1, num_cores=job.threads)
    feed = [sample_of(job)]
    last: list[Any] = []

    def run() -> None:
        last[:] = engine.run(feed, val_inp=False)

    def output() -> np.ndarray:
        return np.array(last[0])

    return Opened(version("deepsparse"), run, output)
