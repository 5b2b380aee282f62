"""LiteRT (TensorFlow Lite) with XNNPACK, its default on CPUs."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from ai_edge_litert import interpreter as litert

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open .tflite models, channels last; quantised ones take and give int8 codes."""
    interpreter = litert.Interpreter(job.model, num_threads=job.threads)
    interpreter.allocate_tensors()
    border = interpreter.get_input_details()[0]
    x = sample_of(job)
    if border["dtype"] is np.int8:
        scale, zero = border["quantization"]
        x = np.clip(np.round(x / scale + zero), -128, 127).astype(np.int8)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    interpreter.set_tensor(border["index"], x)

    def output() -> np.ndarray:
        end = interpreter.get_output_details()[0]
        y = interpreter.get_tensor(end["index"])
        if end["dtype"] is not np.int8:
            return np.array(y)
        scale, zero = end["quantization"]
        return np.asarray((y.astype(np.float32) - zero) * scale)

    return Opened(version("ai-edge-litert"), interpreter.invoke, output)
