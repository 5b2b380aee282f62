"""NETWORK.batches.onnx (opset 17, a batch of any size N) and NETWORK.batches.npz by torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.networks import build, samples
from benchmarks.peers.prepare import run

SAMPLES = 4
"""With their outputs; batches repeat them."""


def make(folder: Path, network: str) -> None:
    """Export the network, with a few samples and their outputs."""
    module, shape = build(network)
    x = samples(shape, SAMPLES, 99)
    with torch.no_grad():
        y = module(x)
    names = {"input_names": ["x"], "output_names": ["y"]}
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    file = folder / f"{network}.batches.onnx"
    torch.onnx.export(
        module, (x,), str(file), opset_version=17, dynamo=False, dynamic_axes=axes, **names
    )
    np.savez(folder / f"{network}.batches.npz", x=x.numpy(), y=y.numpy())


if __name__ == "__main__":
    run(make)
