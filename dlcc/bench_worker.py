"""The process behind one engine of :mod:`dlcc.bench`.

Started as ``python -m dlcc.bench_worker JOB`` with JOB = {"engine", "network", "threads"}, and
"shape_profile" for an artifact. Answers each line of standard input: ``{}`` with {"version",
"threads", "load_seconds"} and ``{"slot_seconds": s}`` with {"seconds"}, the median time of one
inference in a slot of s seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError

LEAST_RUNS = 5
"""Of a slot."""

WARM_RUNS, WARM_SECONDS = 3, 0.2
"""Before the first slot: at least both."""

Engine = tuple[Callable[[], object], dict[str, Any]]
"""One inference on inputs bound beforehand, and facts about the engine."""


def _dlcc(network: Path, threads: int, shape_profile: int) -> Engine:
    import numpy as np

    from dlcc import __version__
    from dlcc.artifact import Artifact
    from dlcc.artifact.check import dtype_of
    from dlcc.executable import random_feed
    from dlcc.runtime.loader import load

    # An artifact has an upper bound on threads: take fewer rather than fail.
    artifact = Artifact.open(network)
    most, shapes = int(artifact.manifest["threads"]), artifact.shape_profile(shape_profile)
    start = time.perf_counter()
    model = load(network, threads=min(threads, most))
    facts = {"version": __version__, "load_seconds": time.perf_counter() - start}
    facts |= {"threads": model.threads, "precision": precision_of(network)}
    inputs = list(random_feed(shapes.inputs).values())
    outputs = [np.empty(t.shape, dtype_of(t)) for t in shapes.outputs]
    return lambda: model(*inputs, out=outputs), facts


def precision_of(network: Path) -> str:
    """What most of the work is computed in: "int8" or "fp32"."""
    from dlcc.inspection import inspect_artifact

    work = {"int8": 0, "fp32": 0}
    for layer in inspect_artifact(network).layers:
        quantised = layer.encoding.startswith(("u8", "s8"))
        work["int8" if quantised else "fp32"] += layer.macs + 1
    return max(work, key=lambda key: work[key])


def _onnxruntime(network: Path, threads: int, _: int) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    session = ort.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    facts = {"version": ort.__version__, "load_seconds": time.perf_counter() - start}
    binding = session.io_binding()
    kept = []
    for name, array in _onnx_feed(network).items():
        kept.append(ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_input(name, kept[-1])
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run(_kept: object = kept) -> None:
        session.run_with_iobinding(binding)

    return run, {**facts, "threads": threads}


def _openvino(network: Path, threads: int, _: int) -> Engine:
    import openvino as ov

    feed = _onnx_feed(network)
    start = time.perf_counter()
    core = ov.Core()
    model = core.read_model(str(network))
    model.reshape({name: list(array.shape) for name, array in feed.items()})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    facts = {"version": ov.__version__.split("-")[0], "load_seconds": time.perf_counter() - start}
    for name, array in feed.items():
        request.set_tensor(name, ov.Tensor(array))
    return request.infer, {**facts, "threads": threads}


def _onnx_feed(network: Path) -> dict[str, Any]:
    """Random arrays by the ONNX file's own input names; symbolic dimensions are taken as 1."""
    import numpy as np
    import onnx
    from onnx import helper

    from dlcc.executable import random_feed
    from dlcc.program import TensorInfo

    graph = onnx.load(network, load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    infos = []
    for value in graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = tuple(d.dim_value or 1 for d in tensor.shape.dim)
        infos.append(TensorInfo(value.name, str(dtype), shape))
    return random_feed(tuple(infos))


ENGINES: dict[str, Callable[[Path, int, int], Engine]] = {
    "dlcc": _dlcc,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _open(job: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    profile = int(job.get("shape_profile", 0))
    run, facts = ENGINES[job["engine"]](Path(job["network"]), int(job["threads"]), profile)
    warm = time.perf_counter() + WARM_SECONDS
    runs = 0
    while runs < WARM_RUNS or time.perf_counter() < warm:
        run()
        runs += 1
    return run, facts


def _slot(run: Callable[[], object], seconds: float) -> float:
    """Median seconds of one inference; the first one of the slot does not count."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Serve requests until standard input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # engines print things
    run: Callable[[], object] | None = None
    facts: dict[str, Any] = {}
    try:
        run, facts = _open(json.loads(sys.argv[1]))
    except DlccError as error:
        facts = {**error.to_json(), "error": error.what}
    except ModuleNotFoundError as error:
        facts = {"error": f"it is not installed ({error})"}
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    for line in sys.stdin:
        request = json.loads(line)
        slot = request.get("slot_seconds")
        answer = {"seconds": _slot(run, float(slot))} if run and slot else facts
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
