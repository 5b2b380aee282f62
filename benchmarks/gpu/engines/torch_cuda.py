"""The benchmark networks in torch, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.engines import Job, Opened, sample_of
from benchmarks.peers.networks import build

Runner = Callable[[torch.nn.Module, torch.Tensor], Callable[[], torch.Tensor]]


def open_torch(job: Job, runner: Runner) -> Opened:
    """The network ``job.model`` at "fp32", "tf32" or "fp16", images with channels last.

    Args:
        job: what to run.
        runner: what makes a module and its input the fastest call.

    Raises:
        RuntimeError: this torch has no CUDA.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("this torch has no CUDA, or finds no GPU")
    allowed = job.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True
    module, _ = build(Path(job.model).name)
    x = torch.from_numpy(sample_of(job))
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    dtype = torch.float16 if job.precision == "fp16" else torch.float32
    module = module.to(device="cuda", dtype=dtype).to(memory_format=layout)
    x = x.to(device="cuda", dtype=dtype).contiguous(memory_format=layout)
    with torch.inference_mode():
        run = runner(module, x)

    def inference() -> torch.Tensor:
        with torch.inference_mode():
            return run()

    def output() -> np.ndarray:
        return np.asarray(inference().float().cpu().numpy())

    return Opened(torch.__version__, inference, output, (module, x), torch.cuda.synchronize)
