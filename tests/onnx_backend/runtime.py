"""Which of ONNX's cases ONNX Runtime passes, recorded, so that docs/support.md can say it.

    python -m tests.onnx_backend.runtime     runs ONNX Runtime and writes the record

The record stands in ``onnxruntime.json``; who makes the page needs no ONNX Runtime. It is asked
generously: for opsets newer than those that it supports as well, and models that onnx wrote in a
newer version of the file format are handed over in the one that it reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.onnx_backend.cases import Case, node_cases

RECORD = Path(__file__).with_name("onnxruntime.json")

_FORMAT = 13
"""The newest IR version that ONNX Runtime 1.31 reads."""

_CARRIERS = {1: np.uint8, 2: np.uint16}
"""What numbers of types that numpy does not have are handed over as, by bytes."""


def record() -> Mapping[str, Any]:
    """Versions of ``onnx`` and ``onnxruntime``, and the names of all cases ``not_passed``."""
    found: Mapping[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def passes(case: Case) -> bool:
    """Whether ONNX Runtime gives the outputs that ``case`` wants, on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = min(model.ir_version, _FORMAT)
    given = [np.asarray(a) if isinstance(a, np.generic) else a for a in case.inputs]
    feeds = {v.name: a for v, a in zip(model.graph.input, given, strict=True)}
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        if any(_is_foreign(v) for v in (*case.inputs, *case.wanted)):
            names = [v.name for v in model.graph.output]
            handed = {name: _handed(array) for name, array in feeds.items()}
            results = [v.numpy() for v in session.run_with_ort_values(names, handed)]
        else:
            results = session.run(None, feeds)
        return all(_agrees(case, a, b) for a, b in zip(results, case.wanted, strict=True))
    except Exception:  # its errors have many types; whatever the reason, the case is not passed
        return False


def _is_foreign(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "V"


def _handed(array: Any) -> Any:
    from onnxruntime import OrtValue

    if not _is_foreign(array):
        return OrtValue.ortvalue_from_numpy(array)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    carrier = array.view(_CARRIERS[array.itemsize])
    return OrtValue.ortvalue_from_numpy_with_onnx_type(carrier, kind)


def _agrees(case: Case, got: Any, want: Any) -> bool:
    if isinstance(want, list):
        return len(got) == len(want) and all(map(_agrees, [case] * len(want), got, want))
    if want is None:
        return got is None
    got, want = np.asarray(got), np.asarray(want)
    if want.dtype.kind in "OUST":
        return bool(got.astype(str).tolist() == want.astype(str).tolist())
    if _is_foreign(want):
        got = got.view(want.dtype)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    a, b = got.astype(np.float64), want.astype(np.float64)
    return np.allclose(a, b, rtol=case.rtol, atol=case.atol, equal_nan=True)


def _write() -> None:
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"
    import onnxruntime as ort

    missed = sorted(name for name, case in node_cases().items() if not passes(case))
    text = {"onnx": onnx.__version__, "onnxruntime": ort.__version__, "not_passed": missed}
    RECORD.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
