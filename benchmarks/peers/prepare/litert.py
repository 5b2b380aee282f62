"""NETWORK.tflite from torch, channels last at the border."""

from __future__ import annotations

from pathlib import Path

import litert_torch

from benchmarks.peers.networks import build, samples
from benchmarks.peers.prepare import run


def make(folder: Path, network: str) -> None:
    """Convert; LiteRT computes convolutions on channels-last arrays."""
    module, shape = build(network)
    x = samples(shape, 1, 99)
    if len(shape) == 3:
        module = litert_torch.to_channel_last_io(module, args=[0])
        x = x.permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(module, (x,)).export(str(folder / f"{network}.tflite"))


if __name__ == "__main__":
    run(make)
