"""If, Loop, Scan, sequences and bound inputs: import, reference and compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlcc
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import control
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import assert_same, feed, model, ops, runtime, tensor

X = tensor("x", (2, 3))
FLAG = tensor("flag", (), TensorProto.BOOL)
COUNT = tensor("count", (), TensorProto.INT64)


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attrs: object):
    return helper.make_node(op, inputs, outputs, name=name, **attrs)


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: dict[str, Any] | None = None,
) -> onnx.GraphProto:
    """A branch or a loop's body; names beginning with ``i_`` are int64, with ``b_`` bool."""
    kinds = {"i_": TensorProto.INT64, "b_": TensorProto.BOOL}
    infos = [  # ONNX Runtime wants the shapes of counters and conditions
        [
            tensor(n, () if n[1:2] == "_" else None, kinds.get(n[:2], TensorProto.FLOAT))
            for n in names
        ]
        for names in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    return helper.make_graph(list(nodes), "body", *infos, tensors)


def halving(scan: bool = False) -> onnx.GraphProto:
    """A trip: v / 2 + x, until its largest magnitude is below 1."""
    nodes = [
        node("Mul", ["v", "half"], ["h"]),
        node("Add", ["h", "x"], ["w"]),
        node("ReduceMax", ["w"], ["m"], keepdims=0),
        node("Greater", ["m", "one"], ["b_on"]),
    ]
    outputs = ["b_on", "w", *(["m"] if scan else [])]
    return body(
        nodes, ["i_k", "b_c", "v"], outputs, {"half": np.float32(0.5), "one": np.float32(1)}
    )


def checked(made: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None) -> Any:
    graph = import_onnx(made)
    assert_same(graph, made, feed(graph) if inputs is None else inputs, 1e-6)
    return graph


# -- If ----------------------------------------------------------------------------------------


def branches() -> onnx.ModelProto:
    then = body([node("Log", ["x"], ["l"]), node("Add", ["l", "x"], ["t"])], [], ["t"])
    quotient = [
        node("Cast", ["x"], ["i_x"], to=TensorProto.INT64),
        node("Div", ["i_one", "i_x"], ["i_q"]),
        node("Cast", ["i_q"], ["e"], to=TensorProto.FLOAT),
    ]
    other = body(quotient, [], ["e"], {"i_one": np.int64(1)})
    made = node("If", ["flag"], ["y"], "if", then_branch=then, else_branch=other)
    return model([made], [X, FLAG], ["y"])


def test_if_on_a_run_time_condition_selects(tmp_path: Path) -> None:
    """What is not taken divides by zero, and takes logarithms of negative numbers."""
    made, remarks = branches(), []
    graph = import_onnx(made, remarks=remarks)
    assert ops(graph)[-1] == "where"
    assert any("both branches are computed" in line for line in remarks)
    dlcc.compile(graph, tmp_path / "out", bits=32)
    with dlcc.load(tmp_path / "out") as network:
        for flag, values in ((True, [0.0, 0.5, 1, 2, 3, 4]), (False, [-1.0, 1, -2, 2, 3, 5])):
            x = np.array(values, np.float32).reshape(2, 3)
            inputs = {"x": x, "flag": np.array(flag)}
            (want,) = runtime(made, inputs)
            np.testing.assert_array_equal(execute(graph, inputs)["y"], want)
            np.testing.assert_allclose(network(**inputs), want, rtol=1e-6)


def test_if_between_shapes_is_refused_unless_its_condition_is_bound() -> None:
    then = body([node("Flatten", ["x"], ["t"])], [], ["t"])
    other = body([node("ReduceSum", ["x"], ["e"])], [], ["e"])
    made = model(
        [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)], [X, FLAG], ["y"]
    )
    with pytest.raises(DlccError, match=r"f32\[2, 3\] and f32\[1, 1\].*--constant"):
        import_onnx(made)
    graph = import_onnx(made, constants={"flag": True})
    assert [v.name for v in graph.inputs] == ["x"]
    assert ops(graph) == []


# -- bound inputs ------------------------------------------------------------------------------


def test_bound_inputs() -> None:
    inputs = [X, tensor("s", ("N", 3)), COUNT]
    made = model(
        [node("Mul", ["x", "s"], ["y"]), node("Identity", ["count"], ["n"])], inputs, ["y", "n"]
    )
    graph = import_onnx(made, constants={"s": [[1, 2, 3.5]], "count": 7})
    assert [v.name for v in graph.inputs] == ["x"]
    x = feed(graph)["x"]
    got = execute(graph, {"x": x})
    np.testing.assert_array_equal(got["y"], x * np.array([1, 2, 3.5], np.float32))
    assert got["n"] == 7
    filled = import_onnx(made, constants={"s": 2}, shapes={"N": 2})
    assert {v.type.shape for v in filled.constants()} == {(2, 3)}
    for name, value, why in (
        ("z", 1, "is no input of the model"),
        ("count", 1.5, "without loss"),
        ("count", "a", "invalid literal"),
        ("s", [1, 2], "2 numbers do not fit"),
    ):
        with pytest.raises(DlccError, match=why) as error:
            import_onnx(made, constants={name: value})
        assert error.value.code == ExitCode.USAGE


# -- Loop and Scan -----------------------------------------------------------------------------


def test_loop_of_known_trips_is_unrolled_and_its_rows_stacked() -> None:
    nodes = [node("Loop", ["five", "", "x"], ["y", "rows"], "loop", body=sums())]
    graph = checked(model(nodes, [X], ["y", "rows"], {"five": np.int64(5)}))
    assert ops(graph).count("mul") == 5
    assert any(n.loc.startswith("loop/3/") for n in graph.nodes)


def sums() -> onnx.GraphProto:
    """A trip: v * k + x; the row is what comes in."""
    nodes = [
        node("Cast", ["i_k"], ["k"], to=TensorProto.FLOAT),
        node("Mul", ["v", "k"], ["p"]),
        node("Add", ["p", "x"], ["w"]),
        node("Identity", ["b_c"], ["b_o"]),
        node("Identity", ["v"], ["row"]),
    ]
    return body(nodes, ["i_k", "b_c", "v"], ["b_o", "w", "row"])


@pytest.mark.parametrize("first", [None, True, False])
def test_loop_that_the_run_time_ends_is_predicated(first: bool | None, tmp_path: Path) -> None:
    given = [] if first is None else [FLAG]
    flag = "" if first is None else "flag"
    nodes = [node("Loop", ["six", flag, "x"], ["y"], "loop", body=halving())]
    made = model(nodes, [X, *given], ["y"], {"six": np.int64(6)})
    graph = import_onnx(made)
    for scale in (0.1, 0.6, 3.0):
        inputs = {"x": np.full((2, 3), scale, np.float32)}
        if first is not None:
            inputs["flag"] = np.array(first)
        assert_same(graph, made, inputs, 1e-6)


def test_the_rows_of_a_loop_that_the_run_time_ends_are_counted(tmp_path: Path) -> None:
    """By its condition, by its trip count, and by both."""
    seven, most = {"seven": np.int64(7)}, ["trips", "", "x"]
    ends = node("Loop", ["seven", "", "x"], ["y", "rows"], "ends", body=halving(True))
    bound = node("Min", ["count", "seven"], ["trips"])
    both = [bound, node("Loop", most, ["y", "rows"], "both", body=halving(True))]
    counts = [bound, node("Loop", most, ["y", "rows"], "counts", body=sums())]
    for k, nodes in enumerate(([ends], both, counts)):
        made = model(nodes, [X, *([COUNT] if k else [])], ["y", "rows"], seven)
        graph = import_onnx(made)
        assert graph.output_names == ["y", "rows", "rows.count"]
        if k == 1:
            dlcc.compile(graph, tmp_path, bits=32)
        for scale, count in ((0.1, 5), (0.6, -1), (3.0, 9), (9.0, 2)):
            inputs = {"x": np.full((2, 3), scale, np.float32)}
            inputs |= {"count": np.array(count, np.int64)} if k else {}
            ways = [execute(graph, inputs)]
            if k == 1:
                ways.append(dlcc.load(tmp_path).run(inputs))
            y, rows = runtime(made, inputs)
            for results in ways:
                assert results["rows.count"] == len(rows)
                np.testing.assert_allclose(results["y"], y, rtol=1e-6)
                if rows.size:  # of no rows ONNX Runtime does not say the shape
                    np.testing.assert_allclose(results["rows"][: len(rows)], rows, rtol=1e-6)


def test_scan_cuts_and_stacks_along_any_axis() -> None:
    step = body(
        [node("Add", ["s", "a"], ["t"]), node("Mul", ["t", "b"], ["o"])],
        ["s", "a", "b"],
        ["t", "o"],
    )
    made = node(
        "Scan", ["s0", "a", "b"], ["s1", "rows"], "scan", body=step, num_scan_inputs=2,
        scan_input_axes=[0, -1], scan_input_directions=[0, 1], scan_output_axes=[1],
        scan_output_directions=[1],
    )  # fmt: skip
    inputs = [tensor("s0", (3,)), tensor("a", (4, 3)), tensor("b", (3, 4))]
    checked(model([made], inputs, ["s1", "rows"]))


@pytest.mark.parametrize(
    ("trips", "why"),
    [
        (None, "no maximal trip count is known.*each trip, and no maximal trip count"),
        (2**62, "data may end it, and it makes up to .* trips.*and at most .* trips"),
        ("count", "its trip count is known only at run time.*--constant"),
        (0, "it makes no trip"),
    ],
)
def test_loops_that_are_refused(trips: int | str | None, why: str) -> None:
    """Neither unrolled nor as loops of the run time (see test_run_time_loops.py)."""
    name = trips if isinstance(trips, str) else "most" if trips is not None else ""
    constants = {"most": np.int64(trips)} if isinstance(trips, int) else {}
    made = node("Loop", [name, "", "x"], ["y", "rows"], body=halving(True))
    with pytest.raises(DlccError, match=why) as error:
        import_onnx(model([made], [X, COUNT], ["y", "rows"], constants))
    assert error.value.code == ExitCode.UNSUPPORTED


def test_trips_that_are_folded_away_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is made as often at import, nor at run time by its number alone."""
    monkeypatch.setattr(control, "MOST_COPIED", 300)
    step = body([node("Identity", ["b_c"], ["b_o"])], ["i_k", "b_c", "v"], ["b_o", "v"])
    made = node("Loop", ["most", "", "x"], ["y"], body=step)
    with pytest.raises(DlccError, match=r"more than 300 nodes, each trip.*no condition ends it"):
        import_onnx(model([made], [X], ["y"], {"most": np.int64(2**62)}))


@pytest.mark.parametrize(
    "broken",
    [
        node("If", ["flag"], ["y"]),
        node("Loop", ["", "flag", "x"], ["y"]),
        node("Scan", ["x"], ["y"], num_scan_inputs=1),
        node("Scan", ["x"], ["y"], body=body([], ["a"], ["a"])),
        node("If", ["flag"], ["y"], then_branch=1, else_branch=2),
        node("Loop", ["", "flag", "x"], ["y"], body=body([], ["i_k", "b_c", "v"], [])),
    ],
)
def test_broken_nodes_are_errors_of_the_model(broken: onnx.NodeProto) -> None:
    with pytest.raises(DlccError) as error:
        import_onnx(model([broken], [X, FLAG], ["y"]))
    assert error.value.code in (ExitCode.MODEL, ExitCode.UNSUPPORTED)


def test_loop_with_a_bound_trip_count() -> None:
    nodes = [node("Loop", ["count", "", "x"], ["y", "rows"], "loop", body=sums())]
    made = model(nodes, [X, COUNT], ["y", "rows"])
    graph = import_onnx(made, constants={"count": 3})
    x = feed(graph)["x"]
    want = runtime(made, {"x": x, "count": np.array(3)})
    for got, expected in zip(execute(graph, {"x": x}).values(), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


# -- sequences ---------------------------------------------------------------------------------


def test_sequences_are_lists_of_the_import() -> None:
    nodes = [
        node("SplitToSequence", ["x"], ["q"], axis=1, keepdims=0),
        node("SequenceInsert", ["q", "row", "at"], ["r"]),
        node("SequenceErase", ["r", "minus"], ["s"]),
        node("SequenceAt", ["s", "minus"], ["last"]),
        node("SequenceLength", ["s"], ["n"]),
        node("ConcatFromSequence", ["s"], ["y"], axis=-1, new_axis=1),
        node("Optional", ["last"], ["maybe"]),
        node("OptionalHasElement", ["maybe"], ["b_has"]),
        node("Cast", ["b_has"], ["has"], to=TensorProto.INT64),
        node("OptionalGetElement", ["maybe"], ["z"]),
    ]
    constants = {
        "row": np.ones(2, np.float32), "at": np.int64(1), "minus": np.int64(-1)
    }  # fmt: skip
    has = tensor("has", (), TensorProto.INT64)
    graph = checked(
        model(nodes, [X], [tensor("n", (), TensorProto.INT64), "y", has, "z"], constants)
    )
    assert set(ops(graph)) <= {"slice", "reshape", "concat"}


def test_sequence_is_carried_through_a_loop() -> None:
    nodes = [
        node("Cast", ["i_k"], ["k"], to=TensorProto.FLOAT),
        node("Add", ["x", "k"], ["w"]),
        node("SequenceInsert", ["q", "w"], ["r"]),
        node("Identity", ["b_c"], ["b_o"]),
    ]
    step = body(nodes, ["i_k", "b_c", "q"], ["b_o", "r"])
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    for info in (step.input[2], step.output[1]):
        info.type.CopyFrom(kind)
    outer = [
        node("SequenceEmpty", [], ["q0"]),
        node("Loop", ["three", "", "q0"], ["q1"], body=step),
        node("ConcatFromSequence", ["q1"], ["y"], axis=0),
    ]
    checked(model(outer, [X], ["y"], {"three": np.int64(3)}))


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("SplitToSequence", ["x"], ["q"]), node("Relu", ["q"], ["y"])], "is a sequence"),
        ([node("SequenceLength", ["x"], ["y"])], "input 0 is no sequence"),
        (
            [node("SequenceConstruct", ["x"], ["q"]), node("SequenceAt", ["q", "two"], ["y"])],
            "position 2 is outside a sequence of 1",
        ),
        (
            [node("SequenceConstruct", ["x"], ["q"]), node("SequenceAt", ["q", "count"], ["y"])],
            "must be known at compile time",
        ),
    ],
)
def test_sequences_that_are_refused(nodes: list[onnx.NodeProto], why: str) -> None:
    with pytest.raises(DlccError, match=why) as error:
        import_onnx(model(nodes, [X, COUNT], ["y"], {"two": np.int64(2)}))
    assert error.value.code == ExitCode.UNSUPPORTED
