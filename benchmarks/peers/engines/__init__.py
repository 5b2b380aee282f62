"""One adapter per engine, each a module with ``open_engine(job) -> Opened``.

An adapter binds the input once and offers the engine's fastest call from Python; the result stays
in the engine's own buffer. Its module imports the engine, so importing it is part of loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """What a worker is to run.

    Attributes:
        engine: full name of the engine's module.
        precision: what the engine computes in, as :mod:`benchmarks.peers.catalogue` names it.
        model: the model file, or the artifact folder of dlcc.
        samples: .npz file with a sample ``x`` and its fp32 output ``y``.
        threads: threads to run on.
        cpus: CPUs to run on.
        hide_amx: make the system refuse AMX to the engine.
        batch: samples of an inference.
        queue: inferences between two waits for an engine that works beside the CPU; 0: as many as
            the clock needs to be read rarely.
    """

    engine: str
    precision: str
    model: str
    samples: str
    threads: int
    cpus: tuple[int, ...]
    hide_amx: bool = False
    batch: int = 1
    queue: int = 0

    def to_text(self) -> str:
        """For the worker's command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Job:
        """What :meth:`to_text` wrote."""
        fields = json.loads(text)
        return Job(**{**fields, "cpus": tuple(fields["cpus"])})


@dataclass(frozen=True)
class Opened:
    """An engine with its model loaded and its input bound.

    Attributes:
        version: of the engine.
        run: one inference.
        output: the result of the last :attr:`run`, fp32.
        kept: what must live as long as the engine runs, such as bound arrays.
        finish: waits for what :attr:`run` has only started.
    """

    version: str
    run: Callable[[], Any]
    output: Callable[[], np.ndarray]
    kept: object = None
    finish: Callable[[], Any] = lambda: None


def sample_of(job: Job) -> np.ndarray:
    """The input that every engine gets, [batch, ...] fp32."""
    return _batch_of(job, "x")


def reference_of(job: Job) -> np.ndarray:
    """What the fp32 network makes of it."""
    return _batch_of(job, "y")


def _batch_of(job: Job, name: str) -> np.ndarray:
    """The file's samples, over and over."""
    with np.load(job.samples) as arrays:
        found = arrays[name]
    return np.ascontiguousarray(found[np.arange(job.batch) % len(found)])
