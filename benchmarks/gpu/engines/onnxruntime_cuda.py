"""ONNX Runtime's CUDA provider, input and output bound in the GPU's memory."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open a float model; "tf32" lets it round the operands of float32 products.

    Raises:
        RuntimeError: the provider is not in this build, or does not start.
    """
    name = "CUDAExecutionProvider"
    if name not in ort.get_available_providers():
        raise RuntimeError("this ONNX Runtime has no CUDA provider")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    settings = {"use_tf32": int(job.precision == "tf32"), "cudnn_conv_algo_search": "EXHAUSTIVE"}
    session = ort.InferenceSession(job.model, options, providers=[(name, settings)])
    if name not in session.get_providers():
        raise RuntimeError("the CUDA provider does not start")
    binding = session.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(sample_of(job), "cuda", 0)
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y", "cuda", 0)
    waits_not = ort.RunOptions()
    waits_not.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run() -> None:
        session.run_with_iobinding(binding, waits_not)

    def output() -> np.ndarray:
        session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    return Opened(ort.__version__, run, output, value, binding.synchronize_outputs)
