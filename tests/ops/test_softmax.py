"""Softmax: importers of both meanings, the integer form, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import build, op_of
from tests.ops.onnx_nodes import agrees, floats
from tests.ops.tir_harness import affine, case, check, f32, reference, u8


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [7, 11, 12, 13, 17])
def test_importers_agree_with_onnx_runtime(op_type, opset):
    x = floats(2, 3, 4, 5)
    agrees(op_type, x, opset=opset)
    for axis in (1, 2, 3):
        agrees(op_type, x, opset=opset, axis=axis)


def test_large_numbers_do_not_overflow():
    made = case("softmax", [f32(3, 4, scale=300.0)])
    (y,) = reference(made)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("length", [2, 40, 1000])
def test_integer_softmax_is_within_one_code_of_the_real_one(length):
    made = case("softmax", [u8(7, length, scale=0.04)], out=affine(1 / 256, 0))
    (got,) = reference(made)
    real = affine(0.04, 117).dequantise(made.arrays[0]).astype(np.float64)
    powers = np.exp(real - real.max(axis=1, keepdims=True))
    want = np.clip(np.rint(powers / powers.sum(axis=1, keepdims=True) * 256), 0, 255)
    assert np.abs(got - want).max() <= 1
    assert (got == want).mean() > 0.98


def test_integer_sums_fit_int32():
    made = case("softmax", [u8(1, 5000)], out=affine(1 / 256, 0))
    table = op_of(made.node).powers(made.node)
    assert int(table.max()) * 5000 < 1 << 31


def test_what_does_not_fit_is_refused():
    graph = Graph("g")
    x = graph.add_input("x", TensorType((2, 3)))
    with pytest.raises(DlccError, match="does not fit rank 2"):
        build(graph, "softmax", [x], {"axis": 2})
    wide = case("softmax", [u8(2, 3)], out=affine(1 / 256, 0))
    value = wide.node.input(0)
    value.type = value.type.with_(encoding=Affine.per_tensor(16, False, 0.1, 0))
    with pytest.raises(DlccError, match="8-bit codes"):
        reference(wide)


def tir_cases():
    cases = []
    for layout in ("", "nhwc"):
        for axis in (1, 2, 3):
            attrs = {"axis": axis}
            x = f32(2, 5, 9, 7, layout=layout)
            q = u8(2, 5, 9, 7, layout=layout)
            cases += [
                case("softmax", [x], attrs, layout=layout),
                case("softmax", [q], attrs, out=affine(1 / 256, 0), layout=layout),
            ]
        cases.append(case("log_softmax", [x], {"axis": 1}, layout=layout))
    cases += [
        case("softmax", [u8(3, 40)], out=DENSE, tolerance=0.0),
        case("softmax", [u8(3, 40)], out=affine(0.003, 4)),
        case("softmax", [f32(1, 21, 200, 200)], {"axis": 1}),
        case("log_softmax", [f32(3, 11, scale=20.0)]),
    ]
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
