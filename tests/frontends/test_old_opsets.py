"""Opsets 1 to 6: what they spell otherwise than opset 7."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlcc
from dlcc.errors import DlccError
from dlcc.ir.encodings import Array

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
ROW = np.arange(1, 13, dtype=np.float32)


def result(op: str, opset: int, *constants: Array, x: Array = X, **attrs: Any) -> Array:
    """The node's result on ``x`` and constants."""
    names = [f"c{k}" for k in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], name="it", **attrs)],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(c, n) for n, c in zip(names, constants, strict=True)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return dlcc.execute(dlcc.import_onnx(made), {"x": x})["y"]


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize(
    ("op", "function"),
    [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Greater", np.greater)],
)
def test_the_second_operand_lies_along_an_axis(opset: int, op: str, function: Any) -> None:
    row = ROW[:3]
    got = result(op, opset, row, broadcast=1, axis=1)
    np.testing.assert_array_equal(got, function(X, row.reshape(3, 1, 1)))
    block = ROW.reshape(3, 4)
    got = result(op, opset, block, broadcast=1, axis=-3)
    np.testing.assert_array_equal(got, function(X, block[..., None]))
    got = result(op, opset, ROW[:5], broadcast=1)
    np.testing.assert_array_equal(got, function(X, ROW[:5]))


def test_parameters_that_became_operands_or_have_other_names() -> None:
    np.testing.assert_array_equal(result("Reshape", 1, shape=[6, -1]), X.reshape(6, 20))
    np.testing.assert_array_equal(result("Cast", 1, to="INT32"), X.astype(np.int32))
    padded = np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=2)
    got = result("Pad", 1, paddings=[0, 0, 1, 0, 0, 0, 0, 2], value=2.0)
    np.testing.assert_array_equal(got, padded)
    twice, axis = np.float32([2]), np.float32([3])
    np.testing.assert_array_equal(result("Tile", 1, twice, axis), np.tile(X, (1, 1, 1, 2)))
    np.testing.assert_array_equal(
        result("Tile", 6, np.array([1, 2, 1, 1])), np.tile(X, (1, 2, 1, 1))
    )
    got = result("Upsample", 1, height_scale=2.0, width_scale=3.0, mode="nearest")
    np.testing.assert_array_equal(got, X.repeat(2, 2).repeat(3, 3))
    slope = np.float32([0.5, 2, -1])
    expected = np.where(X < 0, X * slope.reshape(3, 1, 1), X)
    np.testing.assert_array_equal(result("PRelu", 6, slope), expected)
    np.testing.assert_array_equal(result("Concat", 1, X), np.concatenate([X, X], 1))
    np.testing.assert_array_equal(result("Dropout", 6, is_test=1), X)
    selu = 1.0507 * np.where(X > 0, X, 1.6732 * np.expm1(X))
    np.testing.assert_allclose(result("Selu", 1), selu, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "constants", "attrs", "why"),
    [
        ("Add", [ROW[:5]], {}, "different shapes, and broadcast is 0"),
        ("Add", [ROW[:4]], {"broadcast": 1, "axis": 3}, "do not broadcast"),
        ("Add", [ROW.reshape(3, 4)], {"broadcast": 1, "axis": 3}, "no place from axis 3"),
        ("Add", [ROW.reshape(1, 1, 1, 3, 4)], {"broadcast": 1}, "more axes than the first"),
        ("Dropout", [], {}, "training mode"),
        ("Cast", [], {"to": "QUATERNION"}, "element type 'QUATERNION'"),
    ],
)
def test_what_does_not_fit(
    op: str, constants: list[Array], attrs: dict[str, Any], why: str
) -> None:
    with pytest.raises(DlccError, match=why):
        result(op, 1, *constants, **attrs)
