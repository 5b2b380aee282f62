"""NETWORK.onnx (opset 17, batch 1) and NETWORK.npz by torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.networks import build, samples
from benchmarks.peers.prepare import run

CALIBRATION_SAMPLES = 32


def make(folder: Path, network: str) -> None:
    """Export the network, with one sample, its output, and calibration samples."""
    module, shape = build(network)
    x = samples(shape, 1, 99)
    with torch.no_grad():
        y = module(x)
    names = {"input_names": ["x"], "output_names": ["y"]}
    file = folder / f"{network}.onnx"
    torch.onnx.export(module, (x,), str(file), opset_version=17, dynamo=False, **names)
    calibration = samples(shape, CALIBRATION_SAMPLES, 7).numpy()
    np.savez(folder / f"{network}.npz", x=x.numpy(), y=y.numpy(), calib=calibration)


if __name__ == "__main__":
    run(make)
