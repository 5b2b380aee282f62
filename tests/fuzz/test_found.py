"""The smallest forms of random graphs that once were compiled into wrong numbers, all in one."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from tests.fuzz.check import Findings, compare_compiled, imported
from tests.fuzz.graphs import Sample

FOUND = {
    "a remainder of a shifted index, of loops that are one": """
        <ir_version: 10, opset_import: ["": 19]>
        g (float[3,4,1] x) => (float[4,8,1] y) <int64[6] p = {0,2,0,1,2,0}>
        { y = Pad <mode = "wrap"> (x, p) }""",
    "the magnitude of unsigned numbers": """
        <ir_version: 10, opset_import: ["": 13]>
        g (uint8[4,4,2] x) => (uint8[4,4,2] y) { y = Abs(x) }""",
    "codes with a scale for each row, taken for plain integers": """
        <ir_version: 10, opset_import: ["": 21]>
        g (float[1,2,2,3] x) => (uint8[1,2,2,6] y)
        <float[3] s = {0.5,0.25,0.5}, uint8[3] z = {1,2,3}>
        { q = QuantizeLinear <axis = 3> (x, s, z) y = Concat <axis = -1> (q, q) }""",
    "bits of codes": """
        <ir_version: 10, opset_import: ["": 21]>
        g (float[1,2,2,3] x) => (uint8[1,2,2,3] y) <float s = {0.5}, uint8 z = {9}>
        { q = QuantizeLinear (x, s, z) y = BitwiseNot (q) }""",
    "the largest of several axes, taken as one": """
        <ir_version: 8, opset_import: ["": 11]>
        g (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax <axis = 1> (x) }""",
    "a quotient before a rounding, made a product": """
        <ir_version: 8, opset_import: ["": 15]>
        g (float[9,9] x) => (float[9,9] y) <float c = {0.24}>
        { q = Div (x, c) y = Round (q) }""",
    "codes that a cast makes floats, taken for integers by a layer": """
        <ir_version: 10, opset_import: ["": 15]>
        g (float[1,2,3,3] x) => (float[1,2,3,3] y)
        <float s = {0.25}, int8 z = {3}, float[2,2,1,1] w = {0.5,2.5,-3.5,4.0}>
        { q = QuantizeLinear (x, s, z) f = Cast <to = 1> (q) y = Conv (f, w) }""",
    "a name for an operand of a maximum, twice in one expression": """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[1,2,4,4] x, float[1,3,3,2] t) => (float[1,2,3,3] y)
        { y = GridSample <padding_mode = "reflection", align_corners = 0> (x, t) }""",
}


def _sample(number: int, text: str) -> Sample:
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
    errors = {v.name: 0.0 for v in model.graph.output}
    return Sample(number, model, feeds, errors)


@pytest.mark.parametrize("bits", [32, 8])
def test_found_graphs_stay_right(bits: int) -> None:
    findings = Findings()
    samples = [_sample(number, text) for number, text in enumerate(FOUND.values())]
    cases = [imported(sample, bits, findings) for sample in samples]
    compare_compiled([case for case in cases if case is not None], bits, findings)
    names = list(FOUND)
    assert {names[number]: why for number, why in findings.wrong.items()} == {}
    assert findings.count["graphs"] == len(FOUND)
