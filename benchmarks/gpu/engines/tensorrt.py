"""TensorRT (10 or newer): an engine built from the ONNX file, run by one CUDA stream."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import tensorrt as trt

from benchmarks.peers.engines import Job, Opened, sample_of
from dlcc.cuda.driver import driver
from dlcc.runtime.device import DeviceArray

FLAGS = {
    "fp32": (),
    "tf32": (trt.BuilderFlag.TF32,),
    "fp16": (trt.BuilderFlag.FP16, trt.BuilderFlag.TF32),
    "int8": (trt.BuilderFlag.INT8, trt.BuilderFlag.FP16, trt.BuilderFlag.TF32),
}


class Calibrator(trt.IInt8EntropyCalibrator2):
    """Shows TensorRT the calibration samples, a batch at a time."""

    def __init__(self, samples: np.ndarray, batch: int) -> None:
        super().__init__()
        self._batches = [samples[i : i + batch] for i in range(0, len(samples), batch)]
        self._size, self._held = batch, None

    def get_batch_size(self) -> int:
        """Samples of a batch."""
        return self._size

    def get_batch(self, names: list[str]) -> list[int] | None:
        """The next one; None at the end."""
        del names
        if not self._batches:
            return None
        self._held = DeviceArray.copy_of(self._batches.pop(0))
        return [self._held.address]

    def read_calibration_cache(self) -> bytes | None:
        """There is none."""
        return None

    def write_calibration_cache(self, cache: bytes) -> None:
        """It is not kept."""


def _engine(job: Job, x: np.ndarray) -> trt.ICudaEngine:
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.model):
        raise RuntimeError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in FLAGS[job.precision]:
        config.set_flag(flag)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", x.shape, x.shape, x.shape)
    config.add_optimization_profile(profile)
    if job.precision == "int8":
        with np.load(job.samples) as arrays:
            samples = arrays["calib"]
        count = -(-len(samples) // len(x)) * len(x)
        samples = np.ascontiguousarray(samples[np.arange(count) % len(samples)])
        config.int8_calibrator = Calibrator(samples, len(x))
        config.set_calibration_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT builds no engine")
    return trt.Runtime(log).deserialize_cuda_engine(plan)


def open_engine(job: Job) -> Opened:
    """Build the engine, which takes minutes for large networks.

    Raises:
        RuntimeError: TensorRT refuses the model.
    """
    x = sample_of(job)
    with driver().on(0):
        engine = _engine(job, x)
        context = engine.create_execution_context()
        context.set_input_shape("x", x.shape)
        given = DeviceArray.copy_of(x)
        result = DeviceArray(np.dtype(np.float32), tuple(context.get_tensor_shape("y")), 0)
        context.set_tensor_address("x", given.address)
        context.set_tensor_address("y", result.address)
        stream = ctypes.c_void_p()
        driver()("cuStreamCreate", ctypes.byref(stream), 1)
    run = partial(context.execute_async_v3, stream.value)

    def finish() -> None:
        with driver().on(0):
            driver()("cuStreamSynchronize", stream)

    def output() -> np.ndarray:
        run()
        finish()
        return result.numpy()

    return Opened(trt.__version__, run, output, (engine, context, given, result), finish)
