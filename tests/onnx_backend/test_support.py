"""docs/support.md says what is read and refused today."""

from __future__ import annotations

import re

import onnx
import pytest

from tests.onnx_backend.cases import node_cases
from tests.onnx_backend.runtime import passes, record
from tests.onnx_backend.support import PAGE, page


def test_the_page_is_not_stale() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made_with = re.search(r"^onnx ([\d.]+)", text, re.MULTILINE)
    assert made_with
    if made_with[1] != onnx.__version__:
        pytest.skip(f"the page is that of onnx {made_with[1]}, this is {onnx.__version__}")
    assert text == page(), "run python -m tests.onnx_backend.support"


@pytest.mark.slow
def test_the_record_of_onnx_runtime_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    runtime = pytest.importorskip("onnxruntime")
    taken = record()
    if (taken["onnxruntime"], taken["onnx"]) != (runtime.__version__, onnx.__version__):
        pytest.skip(f"the record is that of {taken['onnxruntime']} and onnx {taken['onnx']}")
    missed = sorted(name for name, case in node_cases().items() if not passes(case))
    assert missed == taken["not_passed"]
