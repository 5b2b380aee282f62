"""Sequences and optionals as inputs and outputs of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.helper import make_node

import dlcc
from dlcc.cli.common import parse_constants
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import model, tensor

FLOAT = TensorProto.FLOAT


def sequence(name: str, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    element = helper.make_tensor_type_proto(FLOAT, shape)
    return helper.make_value_info(name, helper.make_sequence_type_proto(element))


def optional(name: str) -> onnx.ValueInfoProto:
    held = helper.make_tensor_type_proto(FLOAT, [3])
    return helper.make_value_info(name, helper.make_optional_type_proto(held))


def doubled(*shape: int | str) -> onnx.ModelProto:
    """Every element of a sequence times two, and the sequence with its last element in front."""
    inner = helper.make_graph(
        [make_node("Add", ["e", "e"], ["f"])], "twice",
        [tensor("e", None)], [tensor("f", None)],
    )  # fmt: skip
    nodes = [
        make_node("SequenceMap", ["s"], ["t"], body=inner),
        make_node("SequenceAt", ["s", "last"], ["e"]),
        make_node("SequenceInsert", ["s", "e", "first"], ["u"]),
    ]
    constants = {"last": np.int64(-1), "first": np.int64(0)}
    inputs = [sequence("s", list(shape) or None)]
    return model(nodes, inputs, [sequence("t"), sequence("u")], constants)


def test_a_sequence_is_one_tensor_for_each_element(tmp_path: Path) -> None:
    graph = import_onnx(doubled(), shapes={"s[0]": (2, 3), "s[1]": (4,)})
    assert [v.name for v in graph.inputs] == ["s[0]", "s[1]"]
    assert graph.output_names == ["t[0]", "t[1]", "u[0]", "u[1]", "u[2]"]
    dlcc.compile(graph, tmp_path, bits=32)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    results = dlcc.load(tmp_path).run({"s[0]": a, "s[1]": b})
    for name, want in zip(graph.output_names, (2 * a, 2 * b, b, a, b), strict=True):
        np.testing.assert_array_equal(results[name], want)


def test_elements_have_the_shape_that_the_model_says() -> None:
    graph = import_onnx(doubled(2, "K"), shapes={"s": 3, "K": 5})
    assert [v.type.shape for v in graph.inputs] == [(2, 5)] * 3
    graph = import_onnx(doubled(2, "K"), shapes={"s": 2, "s[1]": (2, 7), "K": 5})
    assert [v.type.shape for v in graph.inputs] == [(2, 5), (2, 7)]


def has() -> onnx.ModelProto:
    nodes = [
        make_node("OptionalHasElement", ["o"], ["has"]),
        make_node("If", ["has"], ["y"], then_branch=_branch("o"), else_branch=_branch("")),
    ]
    return model(nodes, [optional("o"), tensor("x", (3,))], ["y"], opset=18)


def _branch(name: str) -> onnx.GraphProto:
    operands = ["held", "x"] if name else ["x", "x"]
    nodes = [make_node("OptionalGetElement", [name], ["held"])] if name else []
    nodes.append(make_node("Sub", operands, ["z"]))
    return helper.make_graph(nodes, "branch", [], [tensor("z", None)])


def test_an_optional_is_what_it_holds_or_nothing() -> None:
    x, held = np.float32([1, 2, 3]), np.float32([5, 7, 9])
    graph = import_onnx(has())
    np.testing.assert_array_equal(dlcc.execute(graph, {"o": held, "x": x})["y"], held - x)
    graph = import_onnx(has(), constants=parse_constants(["o=none"]))
    assert [v.name for v in graph.inputs] == ["x"]
    np.testing.assert_array_equal(dlcc.execute(graph, {"x": x})["y"], x - x)


@pytest.mark.parametrize(
    ("given", "code", "why"),
    [
        ({}, ExitCode.MODEL, r"number of elements of the sequence 's' is not known(?s:.*)s=2"),
        ({"shapes": {"s": 2}}, ExitCode.MODEL, r"shape of input 's\[0\]' is not known"),
        ({"shapes": {"s": (2, 3)}}, ExitCode.USAGE, "a number of elements from 0 to 10000"),
        ({"shapes": {"s": 10_001}}, ExitCode.USAGE, "a number of elements from 0 to 10000"),
        ({"shapes": {"s": 1, "s[1]": (2,)}}, ExitCode.USAGE, r"--shape names 's\[1\]'"),
        ({"constants": {"s": None}}, ExitCode.UNSUPPORTED, "outside a sequence of 0 elements"),
        ({"shapes": {"s": 1}, "constants": {"s": 4}}, ExitCode.USAGE, "'s' is a sequence"),
    ],
)
def test_sequences_that_cannot_be_taken_apart(
    given: dict[str, Any], code: ExitCode, why: str
) -> None:
    with pytest.raises(DlccError, match=why) as error:
        import_onnx(doubled(), **given)
    assert error.value.code == code


def test_a_tensor_always_holds_something() -> None:
    with pytest.raises(DlccError, match="'x' is a tensor, which always holds something"):
        import_onnx(has(), constants={"x": None})


def test_an_output_that_holds_nothing_is_refused() -> None:
    nodes = [make_node("Identity", ["o"], ["y"])]
    source = model(nodes, [optional("o"), tensor("x", (1,))], [optional("y")], opset=18)
    with pytest.raises(DlccError, match=r"(?s)'y' is not a tensor.*holds nothing"):
        import_onnx(source, constants={"o": None})


def test_elements_do_not_hide_other_inputs() -> None:
    source = model(
        [make_node("SequenceAt", ["s", "k"], ["y"])],
        [sequence("s", [2]), tensor("s[0]", (2,))], ["y"], {"k": np.int64(0)},
    )  # fmt: skip
    with pytest.raises(DlccError, match=r"the input 's\[0\]' is listed twice"):
        import_onnx(source, shapes={"s": 1})
