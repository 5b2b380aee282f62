"""ONNX's own test cases of single nodes, against the importer and the references.

A case whose model takes a shape, an axis or a bound as a run-time input is tried again with its
inputs after the first as initialisers, which is how real models hold them.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.registry import IMPORTERS, importer_for

EXPECTED = {
    r"has element type (string|float8\w*|float4\w*|u?int[24])": "not a type of the border",
    r"element type (FLOAT8\w*|FLOAT4\w*|U?INT[24]|STRING)\b": "not a type of the IR",
    r"holds strings|attribute \S+ of kind": "not numbers",
    r"is not a tensor": "sequences and optionals",
    r"opset 1 is not supported": "older than opset 7",
    r"is declared with size 0": "no numbers at all",
    r"loops that run a data-dependent number of times": "no static graph",
    r"function body needs": "the body is refused for a reason that stands here too",
    r"training.mode": "inference only",
    r"\d-D \w+: only 1-D and 2-D are supported": "volumes",
    r"output \d \('\w+'\) is used": "by-products: Mean, Var, Indices of a pooling, a mask",
    r"zero-size array": "the largest of no numbers",
    r"a diagonal": "Einsum of a repeated letter",
    r"must be known at compile time": "its shape depends on the data, even as a second input",
    r"mode tf_crop_and_resize|antialias|axes|keep_aspect_ratio": "Resize beyond images",
    r"parts \[0, 0, 0\] do not add up": "no numbers at all: an axis of size 0",
    r"elements do not fit shape": "the shape's first entry is a run-time size",
}
"""Refusals of ops that have an importer, and why they are right."""

DIFFERENT = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
"""Cases whose data takes the output's size before it is rounded down; ONNX Runtime, which skips
them, and torch take the whole size, and so does dlcc."""


def _cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def _arrays(values: list[Any]) -> list[Any]:
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]


def _with_constants(model: onnx.ModelProto, inputs: list[Any]) -> tuple[onnx.ModelProto, list[Any]]:
    """The model with those inputs as initialisers that real models hold as such."""
    fixed, kept = onnx.ModelProto(), []
    fixed.CopyFrom(model)
    for k, (proto, array) in enumerate(zip(model.graph.input, inputs, strict=True)):
        small = array.dtype == np.int64 or array.ndim <= 1
        if (k and small) or len(inputs) == 1 or array.dtype == np.bool_:
            fixed.graph.initializer.append(numpy_helper.from_array(array, proto.name))
        else:
            kept.append(array)
    return fixed, kept


def _differs(case: Any) -> str:
    """Why the case's outputs are not what its data says; "" if they are.

    Raises:
        DlccError: the model is refused.
    """
    inputs, wanted = (_arrays(part) for part in case.data_sets[0])
    try:
        graph = import_onnx(case.model)
    except DlccError as error:
        if not re.search("must be known at compile time|declared with size 0", str(error)):
            raise
        model, inputs = _with_constants(case.model, inputs)
        graph = import_onnx(model)
    feeds = {v.name: a for v, a in zip(graph.inputs, inputs, strict=True)}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = execute(graph, feeds)
    for got, want in zip(results.values(), wanted, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
        # bfloat16 models are computed in float32, which the cases' data is not
        rtol, atol = (2**-7, 2**-7) if str(want.dtype) == "bfloat16" else (case.rtol, case.atol)
        a, b = (np.asarray(v, np.float64) for v in (got, want))
        if not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
            return f"differs by {np.nanmax(np.abs(a - b))}"
    return ""


def _has_importers(model: onnx.ModelProto) -> bool:
    versions = {o.domain: o.version for o in model.opset_import}
    return all(
        importer_for(n.domain, n.op_type, versions.get(n.domain, 1)) for n in model.graph.node
    )


def test_every_case_agrees_or_is_refused_for_a_known_reason() -> None:
    wrong: list[str] = []
    count: Counter[str] = Counter()
    for case in _cases():
        if case.model is None or case.data_sets is None:
            count["without data"] += 1
            continue
        try:
            why = _differs(case)
        except DlccError as error:
            count["refused"] += 1
            known = any(re.search(p, str(error)) for p in EXPECTED)
            known = known or not _has_importers(case.model)
            if not known or error.code not in (ExitCode.UNSUPPORTED, ExitCode.MODEL):
                wrong.append(f"{case.name}: {error}")
            continue
        count["agrees"] += 1
        if why and case.name not in DIFFERENT:
            wrong.append(f"{case.name}: {why}")
    assert not wrong, "\n".join(wrong)
    assert count["agrees"] > 1300, count


def test_importers_are_for_ops_that_onnx_has() -> None:
    """A misspelt op type would never be met."""
    for (domain, op_type), versions in IMPORTERS.items():
        if domain == "" and op_type != "SimplifiedLayerNormalization":
            assert onnx.defs.has(op_type), op_type
            assert versions[0][0] <= onnx.defs.onnx_opset_version()
