"""torch.compile, kernels chosen by its default rules."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.engines.torch_cuda import open_torch
from benchmarks.peers.engines import Job, Opened


def open_engine(job: Job) -> Opened:
    """The network, compiled for its shape."""

    def runner(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        compiled = torch.compile(module, dynamic=False)
        return lambda: compiled(x)

    return open_torch(job, runner)
