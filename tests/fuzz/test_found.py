"""The smallest forms of random graphs that once were compiled into wrong numbers, all in one."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from dlcc.frontends.onnx import import_onnx
from tests.fuzz.check import Case, Findings, compare_compiled
from tests.fuzz.graphs import Sample

FOUND = {
    "a remainder of a shifted index, of loops that are one": """
        <ir_version: 10, opset_import: ["": 19]>
        g (float[3,4,1] x) => (float[4,8,1] y) <int64[6] p = {0,2,0,1,2,0}>
        { y = Pad <mode = "wrap"> (x, p) }""",
    "the magnitude of unsigned numbers": """
        <ir_version: 10, opset_import: ["": 13]>
        g (uint8[4,4,2] x) => (uint8[4,4,2] y) { y = Abs(x) }""",
}


def _case(number: int, text: str) -> Case:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    rng, feeds = np.random.default_rng(number), {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        low = 0 if dtype.kind == "u" else -20
        feeds[value.name] = rng.integers(low, 21, [d.dim_value for d in kind.shape.dim]).astype(
            dtype
        )
    exact = frozenset(v.name for v in model.graph.output)
    return Case(Sample(number, model, feeds, exact), import_onnx(model))


@pytest.mark.parametrize("bits", [32, 8])
def test_found_graphs_stay_right(bits: int) -> None:
    findings = Findings()
    compare_compiled(
        [_case(number, text) for number, text in enumerate(FOUND.values())], bits, findings
    )
    names = list(FOUND)
    assert {names[number]: why for number, why in findings.wrong.items()} == {}
    assert findings.count["exact"] == len(FOUND)
