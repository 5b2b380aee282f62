"""NETWORK.int8.onnx: static quantisation by ONNX Runtime, QDQ, u8 activations, s8 weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.prepare import run

SAMPLES = 16
FEWER_SAMPLES = {"vgg16": 8, "resnet50": 8}  # the calibrator keeps all activations in memory


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """Feeds of one sample each."""

    def __init__(self, arrays: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{"x": x[None]} for x in arrays])

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None at the end."""
        return next(self._feeds, None)


def make(folder: Path, network: str) -> None:
    """Quantise; of the transformer only matrix products, as ONNX Runtime advises."""
    prepared = folder / f"{network}.pp.onnx"
    quant_pre_process(str(folder / f"{network}.onnx"), str(prepared), skip_symbolic_shape=True)
    with np.load(folder / f"{network}.npz") as arrays:
        calibration = arrays["calib"][: FEWER_SAMPLES.get(network, SAMPLES)]
    ops = ["MatMul", "Gemm"] if network == "minilm6" else None
    quantize_static(
        str(prepared),
        str(folder / f"{network}.int8.onnx"),
        Samples(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=ops,
    )
    prepared.unlink()


if __name__ == "__main__":
    run(make)
