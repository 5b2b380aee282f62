"""What the importer makes of models: folding, function bodies, branches, idioms."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlcc.analysis.verify import verify
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph
from tests.frontends.models import assert_same, feed, model, ops, tensor

X = tensor("x", (2, 3, 8))


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attrs: object):
    return helper.make_node(op, inputs, outputs, name=name, **attrs)


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def checked(made: onnx.ModelProto, rtol: float = 1e-5) -> Graph:
    """Imported, verified, and equal to ONNX Runtime."""
    graph = import_onnx(made)
    verify(graph)
    assert_same(graph, made, feed(graph), rtol)
    return graph


# -- folding -----------------------------------------------------------------------------------


def test_shape_arithmetic_vanishes() -> None:
    """x.reshape(x.shape[0], -1), as torch exports it."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axis"], ["row"]),
        node("Concat", ["row", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axis": np.array([0]), "rest": np.array([-1])}
    made = model(nodes, [X], ["y"], {k: np.asarray(v, np.int64) for k, v in constants.items()})
    graph = checked(made)
    assert ops(graph) == ["reshape"]
    assert graph.outputs[0].type.shape == (2, 24)


def test_transposed_weight_becomes_linear() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    nodes = [
        node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        node("MatMul", ["x", "wt"], ["y"]),
    ]
    assert ops(checked(model(nodes, [X], ["y"], {"w": weight}))) == ["linear"]


def test_large_results_are_not_folded() -> None:
    """A megabyte-sized constant that the model makes of nothing stays computed."""
    nodes = [node("Expand", ["one", "shape"], ["big"]), node("Add", ["big", "x"], ["y"])]
    constants = {"one": scalar(1), "shape": np.array([1 << 18, 1, 8], np.int64)}
    graph = import_onnx(model(nodes, [tensor("x", (8,))], ["y"], constants))
    assert ops(graph) == ["expand", "add"]


def test_output_may_be_an_input_or_a_constant() -> None:
    nodes = [node("Identity", ["x"], ["y"]), node("Shape", ["x"], ["s"])]
    graph = checked(model(nodes, [X], ["y", tensor("s", (3,), TensorProto.INT64)]))
    assert ops(graph) == []
    assert graph.output_names == ["y", "s"]


def test_unused_nodes_vanish_and_locs_are_unique() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], "act"),
        node("Abs", ["x"], ["unused"], "act"),
        node("Relu", ["a"], ["b"]),
        node("Neg", ["b"], ["y"], "act"),
    ]
    graph = import_onnx(model(nodes, [X], ["y"]))
    assert [n.loc for n in graph.nodes] == ["act", "Relu_2", "act_2"]


# -- bodies ------------------------------------------------------------------------------------


def test_function_body_of_an_op_without_importer() -> None:
    nodes = [node("MeanVarianceNormalization", ["x"], ["y"], "mvn", axes=[2])]
    graph = checked(model(nodes, [X], ["y"]), 1e-4)
    assert all(n.loc.startswith("mvn/") for n in graph.nodes)


def test_local_functions_are_inlined() -> None:
    imports = [helper.make_opsetid("", 17)]
    body = [node("Mul", ["a", "a"], ["s"]), node("Relu", ["s"], ["b"])]
    function = helper.make_function("mine", "SquareRelu", ["a"], ["b"], body, imports)
    made = model(
        [node("SquareRelu", ["x"], ["y"], domain="mine")], [X], ["y"], functions=[function],
        imports=[helper.make_opsetid("mine", 1)],
    )  # fmt: skip
    assert ops(checked(made)) == ["mul", "relu"]


@pytest.mark.parametrize(("condition", "op"), [(True, "relu"), (False, "neg")])
def test_branch_with_a_known_condition_is_inlined(condition: bool, op: str) -> None:
    then = helper.make_graph([node("Relu", ["x"], ["t"])], "then", [], [tensor("t", None)])
    other = helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [tensor("e", None)])
    made = model(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other)], [X], ["y"],
        {"c": np.array(condition)},
    )  # fmt: skip
    assert ops(checked(made)) == [op]


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    """Ops whose attributes became inputs: Clip, Slice, Squeeze, Unsqueeze, Pad, Split."""
    c: dict[str, np.ndarray] = {}
    if opset < 11:
        clip = node("Clip", ["x"], ["a"], min=-0.5, max=0.5)
        pad = node("Pad", ["c"], ["d"], pads=[0, 0, 1, 0, 0, 2], value=1.5)
    else:
        clip, pad = node("Clip", ["x", "lo", "hi"], ["a"]), node("Pad", ["c", "p", "v"], ["d"])
        c |= {"lo": scalar(-0.5), "hi": scalar(0.5), "v": scalar(1.5)}
        c["p"] = np.array([0, 0, 1, 0, 0, 2])
    if opset < 10:
        cut = node("Slice", ["a"], ["b"], starts=[1], ends=[-1], axes=[2])
    else:
        cut = node("Slice", ["a", "s", "e", "ax"], ["b"])
        c |= {"s": np.array([1]), "e": np.array([-1]), "ax": np.array([2])}
    if opset < 13:
        lift, drop = node("Unsqueeze", ["b"], ["u"], axes=[0]), node("Squeeze", ["u"], ["c"])
        split = node("Split", ["d"], ["y", "z"], axis=2, split=[4, 5])
        lift_drop = [lift, node("Squeeze", ["u"], ["c"], axes=[0])]
    else:
        c |= {"zero": np.array([0]), "parts": np.array([4, 5])}
        lift, drop = node("Unsqueeze", ["b", "zero"], ["u"]), node("Squeeze", ["u", "zero"], ["c"])
        split = node("Split", ["d", "parts"], ["y", "z"], axis=2)
        lift_drop = [lift, drop]
    graph = checked(model([clip, cut, *lift_drop, pad, split], [X], ["y", "z"], c, opset))
    assert [v.type.shape for v in graph.outputs] == [(2, 3, 4), (2, 3, 5)]


# -- idioms ------------------------------------------------------------------------------------


def gelu(order: int) -> list[onnx.NodeProto]:
    """x/2 * (1 + erf(x/sqrt 2)) in three of its spellings."""
    scaled = [
        node("Div", ["x", "root"], ["q"]),
        node("Mul", ["x", "inverse"], ["q"]),
        node("Div", ["x", "root"], ["q"]),
    ][order]
    tail = [
        [node("Mul", ["x", "g"], ["m"]), node("Mul", ["m", "half"], ["y"])],
        [node("Mul", ["x", "half"], ["m"]), node("Mul", ["m", "g"], ["y"])],
        [node("Mul", ["half", "g"], ["m"]), node("Mul", ["m", "x"], ["y"])],
    ][order]
    return [scaled, node("Erf", ["q"], ["e"]), node("Add", ["e", "one"], ["g"]), *tail]


NUMBERS = {
    "root": scalar(math.sqrt(2)), "inverse": scalar(math.sqrt(0.5)), "half": scalar(0.5),
    "one": scalar(1), "three": scalar(3), "six": scalar(6), "zero": scalar(0),
    "cube": scalar(0.044715), "pi": scalar(math.sqrt(2 / math.pi)), "eps": scalar(1e-5),
    "two": scalar(2), "sixth": scalar(1 / 6),
}  # fmt: skip


def used(nodes: list[onnx.NodeProto]) -> dict[str, np.ndarray]:
    names = {i for n in nodes for i in n.input}
    return {k: v for k, v in NUMBERS.items() if k in names}


@pytest.mark.parametrize("order", range(3))
def test_gelu(order: int) -> None:
    nodes = gelu(order)
    assert ops(checked(model(nodes, [X], ["y"], used(nodes)))) == ["gelu"]


def test_gelu_with_another_constant_is_left_alone() -> None:
    nodes = gelu(0)
    constants = used(nodes) | {"half": scalar(0.6)}
    assert "erf" in ops(checked(model(nodes, [X], ["y"], constants)))


def test_inner_value_that_leaves_the_graph_is_kept() -> None:
    nodes = gelu(0)
    graph = checked(model(nodes, [X], ["y", "e"], used(nodes)))
    assert sorted(ops(graph)) == ["div", "erf", "gelu"]


@pytest.mark.parametrize("factored", [False, True])
def test_gelu_by_tanh(factored: bool) -> None:
    if factored:  # x * (1 + c * x * x)
        inner = [
            node("Mul", ["x", "x"], ["xx"]),
            node("Mul", ["xx", "cube"], ["c"]),
            node("Add", ["c", "one"], ["s"]),
            node("Mul", ["x", "s"], ["i"]),
        ]
    else:  # x + c * x^3
        inner = [
            node("Pow", ["x", "three"], ["xxx"]),
            node("Mul", ["xxx", "cube"], ["c"]),
            node("Add", ["x", "c"], ["i"]),
        ]
    nodes = [
        *inner,
        node("Mul", ["i", "pi"], ["a"]),
        node("Tanh", ["a"], ["t"]),
        node("Add", ["t", "one"], ["g"]),
        node("Mul", ["x", "g"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ]
    graph = checked(model(nodes, [X], ["y"], used(nodes)))
    assert ops(graph) == ["gelu"]
    assert graph.nodes[0].attrs == {"approximate": "tanh"}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_function_body_of_gelu_is_an_importer_away(approximate: str) -> None:
    nodes = [node("Gelu", ["x"], ["y"], approximate=approximate)]
    assert ops(checked(model(nodes, [X], ["y"], opset=20))) == ["gelu"]


def test_silu_and_mish() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        node("Mul", ["s", "x"], ["a"]),
        node("Softplus", ["a"], ["p"]),
        node("Tanh", ["p"], ["t"]),
        node("Mul", ["a", "t"], ["y"]),
    ]
    assert ops(checked(model(nodes, [X], ["y"]))) == ["silu", "mish"]


@pytest.mark.parametrize("division", [("Div", "six"), ("Mul", "sixth")])
@pytest.mark.parametrize("gated", [True, False])
def test_hard_swish_and_hard_sigmoid(division: tuple[str, str], gated: bool) -> None:
    nodes = [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["c"])]
    nodes.append(node(division[0], ["c", division[1]], ["h" if gated else "y"]))
    if gated:
        nodes.append(node("Mul", ["x", "h"], ["y"]))
    op = "hard_swish" if gated else "hard_sigmoid"
    assert ops(checked(model(nodes, [X], ["y"], used(nodes)))) == [op]


def test_hard_swish_of_hard_sigmoid() -> None:
    nodes = [
        node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5),
        node("Mul", ["x", "h"], ["y"]),
    ]
    assert ops(checked(model(nodes, [X], ["y"]))) == ["hard_swish"]


def norm(affine: bool, opset: int = 17) -> list[onnx.NodeProto]:
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", ["d", "two"], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=[-1]),
        node("Add", ["v", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["r"]),
        node("Div", ["d", "r"], ["n" if affine else "y"]),
    ]
    if affine:
        nodes += [node("Mul", ["n", "gamma"], ["g"]), node("Add", ["g", "beta"], ["y"])]
    return nodes


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine: bool) -> None:
    nodes = norm(affine)
    rng = np.random.default_rng(1)
    constants = used(nodes)
    if affine:
        constants["gamma"] = rng.standard_normal((1, 1, 8)).astype(np.float32)
        constants["beta"] = rng.standard_normal(8).astype(np.float32)
    graph = checked(model(nodes, [X], ["y"], constants))
    assert ops(graph) == ["layer_norm"]
    assert len(graph.nodes[0].inputs) == (3 if affine else 1)


def test_layer_norm_scaled_by_row_keeps_the_product() -> None:
    """A factor per row is no scale of the normalisation."""
    nodes = norm(True)
    constants = used(nodes) | {
        "gamma": np.ones((2, 3, 1), np.float32) * 2,
        "beta": np.ones(8, np.float32),
    }
    assert ops(checked(model(nodes, [X], ["y"], constants))) == ["layer_norm", "mul", "add"]


def test_rms_norm() -> None:
    nodes = [
        node("Mul", ["x", "x"], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=[2]),
        node("Add", ["v", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["r"]),
        node("Reciprocal", ["r"], ["i"]),
        node("Mul", ["x", "i"], ["n"]),
        node("Mul", ["n", "gamma"], ["y"]),
    ]
    constants = used(nodes) | {"gamma": np.linspace(1, 2, 8, dtype=np.float32)}
    assert ops(checked(model(nodes, [X], ["y"], constants))) == ["rms_norm"]


def test_slices_along_two_axes_are_one() -> None:
    nodes = [
        node("Slice", ["x", "s", "e", "one_"], ["a"]),
        node("Slice", ["a", "s", "big", "two_", "step"], ["y"]),
    ]
    constants = {"s": [1], "e": [3], "one_": [1], "big": [100], "two_": [2], "step": [2]}
    arrays = {k: np.asarray(v, np.int64) for k, v in constants.items()}
    graph = checked(model(nodes, [X], ["y"], arrays))
    assert ops(graph) == ["slice"]
    assert graph.nodes[0].attrs["axes"] == (1, 2)


@pytest.mark.parametrize(("length", "step"), [(5, 1), (7, 3), (-6, -2)])
def test_range_from_a_start_of_the_run_time(length: int, step: int) -> None:
    nodes = [
        node("Add", ["n", "start"], ["end"]),
        node("Range", ["start", "end", "step"], ["y"]),
    ]
    start = tensor("start", (), TensorProto.INT64)
    y = tensor("y", None, TensorProto.INT64)
    made = model(nodes, [start], [y], {"n": np.array(length), "step": np.array(step)})
    assert_same(import_onnx(made), made, {"start": np.array(11)}, 0)


def test_range_between_ends_of_the_run_time_is_refused() -> None:
    ends = [tensor(n, (), TensorProto.INT64) for n in ("start", "end")]
    made = model(
        [node("Range", ["start", "end", "step"], ["y"])], ends, ["y"], {"step": np.array(1)}
    )
    with pytest.raises(DlccError, match="must be known at compile time"):
        import_onnx(made)
