"""NETWORK.int8.tflite: static quantisation (8-bit weights and activations) for LiteRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert import interpreter
from ai_edge_quantizer import quantizer, recipe

from benchmarks.peers.prepare import run

SAMPLES = 8


def make(folder: Path, network: str) -> None:
    """Quantise NETWORK.tflite."""
    source = str(folder / f"{network}.tflite")
    with np.load(folder / f"{network}.npz") as arrays:
        calibration = arrays["calib"][:SAMPLES]
    if calibration.ndim == 4:
        calibration = calibration.transpose(0, 2, 3, 1)
    signatures = interpreter.Interpreter(source).get_signature_list()
    key = next(iter(signatures))
    name = signatures[key]["inputs"][0]
    work = quantizer.Quantizer(source)
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    feeds = [{name: np.ascontiguousarray(x[None])} for x in calibration]
    ranges = work.calibrate({key: feeds})
    work.quantize(ranges).export_model(str(folder / f"{network}.int8.tflite"))


if __name__ == "__main__":
    run(make)
