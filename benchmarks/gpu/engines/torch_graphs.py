"""torch with CUDA graphs: one captured inference, replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.engines.torch_cuda import open_torch
from benchmarks.peers.engines import Job, Opened

WARM = 3
"""Runs before the capture, as torch's documentation asks for."""


def open_engine(job: Job) -> Opened:
    """The network, captured."""

    def runner(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                module(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)

        def replay() -> torch.Tensor:
            graph.replay()
            return y

        return replay

    return open_torch(job, runner)
