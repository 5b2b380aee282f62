"""OpenVINO's CPU plugin, one stream, synchronous requests."""

from __future__ import annotations

import numpy as np
import openvino as ov

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open ONNX or IR models; precision "bf16" lets the plugin compute in bfloat16."""
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if job.precision == "bf16" else "f32",
    }
    compiled = ov.Core().compile_model(job.model, "CPU", settings)
    request = compiled.create_infer_request()
    tensor = ov.Tensor(sample_of(job))
    request.set_input_tensor(tensor)

    def output() -> np.ndarray:
        return np.array(request.get_output_tensor().data)

    version = str(ov.__version__).split("-")[0]
    return Opened(version, request.infer, output, kept=(tensor, compiled))
