"""ONNX Runtime, CPU provider, input and output bound."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open fp32 or QDQ int8 models."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(sample_of(job))
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y")

    def run() -> None:
        session.run_with_iobinding(binding)

    def output() -> np.ndarray:
        return np.asarray(binding.get_outputs()[0].numpy())

    return Opened(ort.__version__, run, output, kept=value)
