"""The networks of MLPerf Tiny, quantised once, and real inputs for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from dlcc.driver import CompileOptions, optimise
from dlcc.ir import Affine, Graph
from dlcc.ops.integer import quantise_real
from passes.pipelines import OPTIMISE

NETWORKS = {
    "kws": "mlperf_tiny_kws_dscnn",
    "resnet": "mlperf_tiny_resnet8_cifar10",
    "vww": "mlperf_tiny_vww_mobilenet025_96",
    "ad": "mlperf_tiny_ad_autoencoder",
}
"""Short names, and the names of the models."""


@cache
def quantised(data: Path, name: str, weights: int = 8) -> Graph:
    """The network after the default passes; its input is integers, channels last.

    Args:
        data: the folder of shared data.
        name: short name.
        weights: bits of the weights; activations have 8.
    """
    path = data / "models" / f"{NETWORKS[name]}.onnx"
    narrow = "" if weights == 8 else f" weights=*:{weights}"
    passes = f"{OPTIMISE},quantize{{bits=8{narrow}}},integer-inputs{{nhwc=true}}"
    return optimise(path, CompileOptions(passes=passes)).graph


def inputs(data: Path, name: str, count: int, encoding: Affine) -> np.ndarray:
    """Codes of inputs of the network's data set, channels last; of noise where there is none."""
    real = _inputs(data, name, count)
    codes = quantise_real(real, encoding)
    return np.ascontiguousarray(codes.transpose(0, 2, 3, 1) if codes.ndim == 4 else codes)


def _inputs(data: Path, name: str, count: int) -> np.ndarray:
    if name == "kws":
        with np.load(data / "kws01_mlperf_tiny.npz") as file:
            codes = next(file[key] for key in file.files if file[key].dtype == np.int8)
        features = (codes[:count].astype(np.float32) - 83) * np.float32(0.5847029)
        return features.reshape(count, 1, 49, 10)
    rng = np.random.default_rng(0)
    if name == "ad":
        return (20 * rng.normal(size=(count, 640)) - 30).astype(np.float32)
    with np.load(data / "cifar10.npz") as file:
        images = file["x_test"][:count].astype(np.float32).transpose(0, 3, 1, 2)
    if name == "resnet":
        return np.ascontiguousarray(images)
    return np.repeat(np.repeat(images / 255, 3, axis=2), 3, axis=3)
