"""NETWORK.batches.fp16.onnx by ONNX Runtime's converter; inputs and outputs stay float32."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.peers.prepare import run


def make(folder: Path, network: str) -> None:
    """Convert all operators."""
    model = onnx.load(str(folder / f"{network}.batches.onnx"))
    half = convert_float_to_float16(model, keep_io_types=True)
    onnx.save(half, str(folder / f"{network}.batches.fp16.onnx"))


if __name__ == "__main__":
    run(make)
