"""NETWORK.ov8.xml: static quantisation by NNCF for OpenVINO."""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import openvino as ov

from benchmarks.peers.prepare import run

SAMPLES = 16


def make(folder: Path, network: str) -> None:
    """Quantise with NNCF's defaults, and its transformer preset for the transformer."""
    model = ov.convert_model(str(folder / f"{network}.onnx"))
    with np.load(folder / f"{network}.npz") as arrays:
        calibration = [x[None] for x in arrays["calib"][:SAMPLES]]
    kind = nncf.ModelType.TRANSFORMER if network == "minilm6" else None
    quantised = nncf.quantize(
        model,
        nncf.Dataset(calibration),
        subset_size=SAMPLES,
        fast_bias_correction=True,
        model_type=kind,
    )
    ov.save_model(quantised, str(folder / f"{network}.ov8.xml"), compress_to_fp16=False)


if __name__ == "__main__":
    run(make)
