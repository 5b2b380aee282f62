"""torch, operator by operator."""

from __future__ import annotations

from benchmarks.gpu.engines.torch_cuda import open_torch
from benchmarks.peers.engines import Job, Opened


def open_engine(job: Job) -> Opened:
    """The network, not compiled."""
    return open_torch(job, lambda module, x: lambda: module(x))
