"""Nodes with attributes of the wrong kind, operands of the wrong type, and scales that are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontends.models import model, tensor
from tests.hostile.case import Case, case, one_node

_IMAGE = [(1, 2, 4, 4)]


def attributes(_rng: np.random.Generator) -> Iterator[Case]:
    """The right names with the wrong contents."""
    values: dict[str, Any] = {
        "string": "3", "float": 0.5, "floats": [0.5, 1.5], "huge": (1 << 63) - 1,
        "lowest": -(1 << 63),
        "strings": ["a", "b"], "ints": [1, 2, 3, 4, 5],
        "tensor": helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]),
    }  # fmt: skip
    asked: list[tuple[str, str, list[Any], str]] = [
        ("Softmax", "axis", [(1, 4)], ""),
        ("Concat", "axis", [(1, 4), (1, 4)], ""),
        ("Transpose", "perm", [(1, 4)], ""),
        ("MaxPool", "kernel_shape", _IMAGE, ""),
        ("LeakyRelu", "alpha", [(1, 4)], ""),
        ("Cast", "to", [(1, 4)], ""),
        ("Einsum", "equation", [(1, 4), (1, 4)], ""),
    ]
    for op, attribute, shapes, _ in asked:
        for kind, value in values.items():
            made = one_node(kind, op, shapes, **{attribute: value})
            yield case(f"attributes/{op}-{kind}", made)
    for equation in ("", "->", "ij,jk", "ii->ij", "...", "i" * 500, "ij->ijk", "a b , c -> ,"):
        made = one_node("e", "Einsum", [(1, 4)], equation=equation)
        yield case(f"attributes/einsum-{len(equation)}-{equation[:8]!r}", made)
    made = one_node("r", "LeakyRelu", alpha=0.5)
    kind = made.SerializeToString().replace(b"\xa0\x01\x01", b"\xa0\x01\x63")  # type = 99
    yield Case("attributes/kind-99", kind)
    made = one_node("r", "LeakyRelu")
    for value in (0.5, 0.25):
        made.graph.node[0].attribute.append(helper.make_attribute("alpha", value))
    yield case("attributes/twice", made)
    made = one_node("r", "LeakyRelu")
    made.graph.node[0].attribute.add(name="alpha", ref_attr_name="alpha")
    yield case("attributes/reference-outside", made)
    for alpha in (np.nan, np.inf, -np.inf):
        yield case(f"attributes/alpha-{alpha}", one_node("r", "LeakyRelu", alpha=alpha))
    eps = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32), "m": np.zeros(2, np.float32),
           "v": np.full(2, -1, np.float32)}  # fmt: skip
    yield case("attributes/variance-minus", one_node("n", "BatchNormalization", _IMAGE, eps))
    few = {k: v[:1] for k, v in eps.items()}
    yield case("attributes/batch-norm-few", one_node("n", "BatchNormalization", _IMAGE, few))
    for kind in (0, 8, 14, 99, -1, 1 << 40):
        yield case(f"attributes/cast-{kind}", one_node("c", "Cast", to=kind), compiles=False)


def types(_rng: np.random.Generator) -> Iterator[Case]:
    """Operands of types that the ops do not take."""
    for op in ("Conv", "MatMul", "Sigmoid", "Add", "And", "BitShift", "Gather", "Where"):
        for kind in (TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT64, TensorProto.DOUBLE):
            count = {"Sigmoid": 1, "Where": 3}.get(op, 2)
            shapes = [(1, 1, 4, 4)] * count
            attrs = {"direction": "LEFT"} if op == "BitShift" else {}
            made = one_node(op, op, shapes, kind=kind, **attrs)
            yield case(f"types/{op}-{TensorProto.DataType.Name(kind)}", made)
    mixed = [tensor("x0", (1, 4)), tensor("x1", (1, 4), TensorProto.INT32)]
    for op in ("Add", "MatMul", "Concat", "Max", "Pow"):
        node = helper.make_node(op, ["x0", "x1"], ["y"], **({"axis": 0} if op == "Concat" else {}))
        yield case(f"types/mixed-{op}", model([node], mixed, ["y"]))


def _quantised(scale: Any, zero: Any, **attrs: Any) -> onnx.ModelProto:
    constants = {"s": np.asarray(scale, np.float32), "z": np.asarray(zero)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["h"], **attrs),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    return model(nodes, [tensor("x", (1, 4))], ["y"], constants, opset=19)


def scales(_rng: np.random.Generator) -> Iterator[Case]:
    """Quantisation with scales of 0, of NaN, of the wrong count, and zero points outside."""
    u8 = np.uint8(3)
    for name, scale in (("zero", 0.0), ("nan", np.nan), ("inf", np.inf), ("minus", -0.5),
                        ("tiny", 1e-45), ("huge", 3e38)):  # fmt: skip
        yield case(f"scales/{name}", _quantised(scale, u8))
        yield case(f"scales/channel-{name}", _quantised([scale, 1, 1, 1], np.zeros(4, np.int8)))
    yield case("scales/few", _quantised([1, 1], np.zeros(2, np.int8)))
    yield case("scales/none", _quantised([], np.zeros(0, np.int8)))
    yield case("scales/counts-differ", _quantised([1, 1, 1, 1], np.zeros(3, np.int8)))
    yield case("scales/axis", _quantised([1, 1, 1, 1], np.zeros(4, np.int8), axis=12))
    yield case("scales/float-zero-point", _quantised(0.1, np.float32(1)))
    yield case("scales/int64-zero-point", _quantised(0.1, np.int64(1)))
    names = ("a", "sa", "za", "w", "sw", "zw", "sy", "zy")
    for name, place, value in (
        ("qlinear-nan", 1, np.float32(np.nan)), ("qlinear-zero", 6, np.float32(0)),
        ("qlinear-weight-nan", 4, np.full(2, np.nan, np.float32)),
        ("qlinear-scales-count", 4, np.ones(7, np.float32)),
        ("qlinear-zeros-type", 5, np.float32(0)), ("qlinear-missing", 7, None),
    ):  # fmt: skip
        given: list[Any] = [
            None, np.float32(0.1), np.uint8(3), np.ones((2, 2, 3, 3), np.int8), np.float32(0.1),
            np.int8(0), np.float32(0.1), np.uint8(1),
        ]  # fmt: skip
        given[place] = value
        constants = {n: np.asarray(v) for n, v in zip(names, given, strict=True) if v is not None}
        operands = ["a", *(n for n in names[1:] if n in constants)]
        node = helper.make_node("QLinearConv", operands, ["y"])
        made = model([node], [tensor("a", (1, 2, 4, 4), TensorProto.UINT8)], ["y"], constants)
        yield case(f"scales/{name}", made)
