"""What is wrong with a model is said in words, with the right class and nothing left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import load_graph
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import feed, model, ops, runtime, tensor

X = tensor("x", (1, 4))


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attrs: object):
    return helper.make_node(op, inputs, outputs, name=name, **attrs)


def refusal(source: onnx.ModelProto | Path, **options: object) -> DlccError:
    read = load_graph if isinstance(source, Path) else import_onnx
    with pytest.raises(DlccError) as caught:
        read(source, **options)  # type: ignore[operator]
    return caught.value


# -- files -------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    error = refusal(tmp_path / "no.onnx")
    assert error.code == ExitCode.INPUT_FILE
    assert "no such file" in str(error)


def test_folder(tmp_path: Path) -> None:
    assert "it is a folder" in str(refusal(tmp_path))


@pytest.mark.parametrize("contents", [b"", b"hello, world", b"\x08\x07", bytes(range(256)) * 9])
def test_not_onnx(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(contents)
    error = refusal(path)
    assert error.code == ExitCode.INPUT_FILE
    assert "not an ONNX model" in error.what


def test_truncated_at_any_byte(tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float32)
    whole = model(
        [node("MatMul", ["x", "w"], ["y"])], [X], ["y"], {"w": weight}
    ).SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        code = refusal(path).code
        assert code in (ExitCode.INPUT_FILE, ExitCode.MODEL, ExitCode.UNSUPPORTED), size


def test_dlir_takes_no_shapes(tmp_path: Path) -> None:
    path = tmp_path / "m.dlir"
    path.write_text("graph")
    assert refusal(path, shapes={"N": 1}).code == ExitCode.USAGE


# -- external data -----------------------------------------------------------------------------


def external(folder: Path, location: str, length: int = 64) -> Path:
    weight = TensorProto()
    weight.name, weight.data_type = "w", TensorProto.FLOAT
    weight.dims.extend((4, 4))
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    made = model([node("MatMul", ["x", "w"], ["y"])], [X], ["y"])
    made.graph.initializer.append(weight)
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    path = external(tmp_path / "m", "w.bin")
    values = np.arange(16, dtype=np.float32)
    (tmp_path / "m" / "w.bin").write_bytes(values.tobytes())
    graph = load_graph(path)
    assert any(np.array_equal(np.sort(c.decoded(), None), values) for c in graph.constants())


def test_missing_external_data(tmp_path: Path) -> None:
    error = refusal(external(tmp_path / "m", "w.bin"))
    assert error.code == ExitCode.INPUT_FILE
    assert "external data of tensor 'w'" in str(error)


def test_short_external_data(tmp_path: Path) -> None:
    path = external(tmp_path / "m", "w.bin")
    (tmp_path / "m" / "w.bin").write_bytes(bytes(63))
    assert "beyond its 63 bytes" in str(refusal(path))


def test_external_data_of_the_wrong_size(tmp_path: Path) -> None:
    path = external(tmp_path / "m", "w.bin", length=60)
    (tmp_path / "m" / "w.bin").write_bytes(bytes(64))
    error = refusal(path)
    assert error.code == ExitCode.MODEL
    assert "do not fit its shape [4, 4]" in str(error)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", ""])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    error = refusal(external(tmp_path / "m", location))
    assert error.code == ExitCode.INPUT_FILE
    assert "is refused" in error.what


def test_external_data_by_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    path = external(tmp_path / "m", "w.bin")
    (tmp_path / "m" / "w.bin").symlink_to(tmp_path / "secret.bin")
    assert "link that leads out" in str(refusal(path))


def test_external_data_without_a_file(tmp_path: Path) -> None:
    made = onnx.load(str(external(tmp_path / "m", "w.bin")), load_external_data=False)
    assert "has no folder" in str(refusal(made))


# -- the graph ---------------------------------------------------------------------------------


def test_undefined_input() -> None:
    error = refusal(model([node("Relu", ["nope"], ["y"], "act")], [X], ["y"]))
    assert error.code == ExitCode.MODEL
    assert error.where == "act"
    assert "'nope'" in error.what


def test_name_defined_twice() -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"], "second")]
    error = refusal(model(nodes, [X], ["y"]))
    assert error.where == "second"
    assert "defined twice" in error.what


def test_cycle_is_named() -> None:
    nodes = [node("Add", ["x", "b"], ["a"], "first"), node("Relu", ["a"], ["b"], "second")]
    error = refusal(model(nodes, [X], ["b"]))
    assert "cycle" in error.what
    assert {"first", "second"} <= set(error.where.split(" -> "))


def test_nodes_out_of_order_are_sorted() -> None:
    nodes = [node("Abs", ["a"], ["y"]), node("Neg", ["x"], ["a"])]
    assert ops(import_onnx(model(nodes, [X], ["y"]))) == ["neg", "abs"]


def test_undefined_output() -> None:
    assert "'z'" in str(refusal(model([node("Relu", ["x"], ["y"])], [X], ["z"])))


def test_shapes_that_do_not_fit_name_the_node() -> None:
    constants = {"c": np.zeros(3, np.float32)}
    error = refusal(model([node("Add", ["x", "c"], ["y"], "sum")], [X], ["y"], constants))
    assert error.code == ExitCode.MODEL
    assert error.where == "sum"
    assert "do not broadcast" in error.why


def test_missing_attribute_is_a_malformed_node() -> None:
    error = refusal(model([node("Concat", ["x", "x"], ["y"], "cat")], [X], ["y"]))
    assert error.code == ExitCode.MODEL
    assert error.where == "cat"
    assert "malformed" in error.what


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    nodes = [
        node("ImageDecoder", ["x"], ["a"], "image"),
        node("Relu", ["a"], ["b"], "relu"),
        node("Mystery", ["b"], ["c"], "odd", domain="example.org"),
        node("Sum", ["c"], ["d"], "sum"),
        node("StringSplit", ["d"], ["y"]),
    ]
    made = model(nodes, [X], ["y"], imports=[helper.make_opsetid("example.org", 3)])
    error = refusal(made)
    assert error.code == ExitCode.UNSUPPORTED
    assert "3 nodes cannot be imported (ImageDecoder, Mystery, StringSplit)" in error.what
    assert "image: ImageDecoder (ai.onnx opset 17): no importer" in error.why
    assert "odd: Mystery (example.org opset 3): no importer" in error.why
    assert "StringSplit_4: StringSplit (ai.onnx opset 17)" in error.why
    assert "relu" not in error.why


def test_unknown_domain() -> None:
    error = refusal(model([node("Relu", ["x"], ["y"], domain="example.org")], [X], ["y"]))
    assert "imports no opset of domain 'example.org'" in error.why


@pytest.mark.parametrize("opset", [0, 999])
def test_opset_out_of_range(opset: int) -> None:
    error = refusal(model([node("Relu", ["x"], ["y"])], [X], ["y"], opset=opset))
    assert error.code == ExitCode.UNSUPPORTED
    assert f"opset {opset}" in error.what


def test_run_time_shape_is_refused() -> None:
    shape = tensor("shape", (2,), TensorProto.INT64)
    error = refusal(model([node("Reshape", ["x", "shape"], ["y"])], [X, shape], ["y"]))
    assert "the shape (input 1) must be known at compile time" in error.why


def test_loop_says_why() -> None:
    body = helper.make_graph([], "body", [], [])
    error = refusal(model([node("Loop", ["", ""], ["y"], body=body)], [X], ["y"]))
    assert "its body has 0 inputs and is given 2" in error.why


# -- shapes and types of the border --------------------------------------------------------------


def relu(*shape: int | str | None) -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", shape)], ["y"])


def test_batch_is_taken_as_one_with_a_remark() -> None:
    remarks: list[str] = []
    graph = import_onnx(relu("batch_size", 4), remarks=remarks)
    assert graph.inputs[0].type.shape == (1, 4)
    assert remarks == ["import: dimension 'batch_size' of input 'x' (axis 0) is taken as 1"]


def test_unnamed_first_dimension_is_taken_as_one() -> None:
    remarks: list[str] = []
    assert import_onnx(relu(None, 4), remarks=remarks).inputs[0].type.shape == (1, 4)
    assert "unnamed" in remarks[0]


def test_other_dimensions_must_be_given() -> None:
    error = refusal(relu("N", 3, "height", "width"))
    assert error.code == ExitCode.MODEL
    assert error.fix == "give it: --shape height=SIZE"
    graph = import_onnx(relu("N", 3, "height", "width"), shapes={"height": 5, "width": 6})
    assert graph.inputs[0].type.shape == (1, 3, 5, 6)


def test_whole_shape_by_input_name() -> None:
    graph = import_onnx(relu("N", 3, None), shapes={"x": (2, 3, 7)})
    assert graph.inputs[0].type.shape == (2, 3, 7)
    assert refusal(relu("N", 3, None), shapes={"x": (2, 4, 7)}).code == ExitCode.USAGE


def test_unknown_name_in_shapes() -> None:
    error = refusal(relu("N", 3), shapes={"M": 2})
    assert error.code == ExitCode.USAGE
    assert "['N']" in error.why


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_positive(size: int) -> None:
    assert refusal(relu("N", 3), shapes={"N": size}).code == ExitCode.USAGE


def test_string_input_is_refused() -> None:
    error = refusal(model([node("Identity", ["x"], ["y"])], [tensor("x", (1,), 8)], ["y"]))
    assert error.code == ExitCode.UNSUPPORTED
    assert "string" in error.what


def test_half_precision_is_computed_in_float32() -> None:
    remarks: list[str] = []
    half = TensorProto.FLOAT16
    weight = np.full((1, 4), 0.5, np.float16)
    made = model(
        [node("Mul", ["x", "w"], ["y"])], [tensor("x", (1, 4), half)], [tensor("y", (1, 4), half)],
        {"w": weight},
    )  # fmt: skip
    graph = import_onnx(made, remarks=remarks)
    assert remarks == ["import: float16 is computed in float32"]
    assert ops(graph) == ["cast", "mul", "cast"]
    inputs = feed(graph)
    from dlcc.analysis.execute import execute

    (result,) = execute(graph, inputs).values()
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, runtime(made, inputs)[0])


def test_names_of_inputs_and_outputs_are_kept() -> None:
    made = model([node("Relu", ["x:0"], ["y/0"])], [tensor("x:0", (1, 4))], ["y/0"])
    graph = import_onnx(made)
    assert graph.inputs[0].name == "x:0"
    assert graph.output_names == ["y/0"]


def test_input_listed_twice() -> None:
    error = refusal(model([node("Relu", ["x"], ["y"])], [X, X], ["y"]))
    assert error.code == ExitCode.MODEL
    assert "'x' is listed twice" in error.what


def test_half_precision_inputs_may_have_any_names() -> None:
    half = TensorProto.FLOAT16
    inputs = [tensor("x", (2,), half), tensor("x_f32", (2,), half)]
    graph = import_onnx(model([node("Add", ["x", "x_f32"], ["y"])], inputs, ["y"]))
    assert [v.name for v in graph.inputs] == ["x", "x_f32"]


def test_initialiser_listed_as_input_is_a_constant() -> None:
    made = model(
        [node("Add", ["x", "b"], ["y"])], [X, tensor("b", (4,))], ["y"],
        {"b": np.ones(4, np.float32)},
    )  # fmt: skip
    assert [v.name for v in import_onnx(made).inputs] == ["x"]


def test_damaged_tensor() -> None:
    made = model([node("Add", ["x", "b"], ["y"])], [X], ["y"], {"b": np.ones(4, np.float32)})
    made.graph.initializer[0].raw_data = b"123"
    assert "do not fit its shape [4]" in str(refusal(made))


@pytest.mark.parametrize("kind", [TensorProto.UNDEFINED, TensorProto.STRING, 99])
def test_an_output_that_is_a_constant_of_no_known_type(kind: int) -> None:
    made = model([node("Add", ["x", "x"], ["z"])], [X], ["b"], {"b": np.ones(4, np.float32)})
    made.graph.initializer[0].data_type = kind
    error = refusal(made)
    assert error.code == ExitCode.UNSUPPORTED
    assert "tensor 'b' " in str(error)


def test_sparse_initialiser() -> None:
    values = numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "b")
    places = numpy_helper.from_array(np.array([1, 3], np.int64), "places")
    made = model([node("Add", ["x", "b"], ["y"])], [X], ["y"])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    graph = import_onnx(made)
    (constant,) = graph.constants()
    np.testing.assert_array_equal(constant.decoded(), np.array([0, 5, 0, 7], np.float32))


def test_functions_that_double_are_counted_before_they_are_inlined() -> None:
    calls = [("a", "c"), ("c", "b")]
    bodies = [
        [helper.make_node(f"f{i + 1}", [a], [b], domain="own") for a, b in calls] for i in range(60)
    ]
    bodies.append([helper.make_node("Relu", ["a"], ["b"])])
    made = model([helper.make_node("f0", ["x"], ["y"], domain="own")], [X], ["y"])
    made.opset_import.append(helper.make_opsetid("own", 1))
    for index, nodes in enumerate(bodies):
        made.functions.append(
            helper.make_function("own", f"f{index}", ["a"], ["b"], nodes, made.opset_import)
        )
    error = refusal(made)
    assert error.code == ExitCode.LIMIT
    assert "2^60 or more" in error.why


@pytest.mark.parametrize(
    ("name", "value", "told"), [("w", np.inf, "weights"), ("b", np.nan, "biases")]
)
def test_weights_that_are_no_numbers(name, value, told):
    held = {"w": np.ones((3, 4), np.float32), "b": np.zeros(3, np.float32)}
    held[name].reshape(-1)[1] = value
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=1)
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
        for n, shape in (("x", (1, 4)), ("y", (1, 3)))
    )
    known = [numpy_helper.from_array(array, n) for n, array in held.items()]
    graph = helper.make_graph([node], "net", [x], [y], known)
    with pytest.raises(DlccError, match=f"the {told} '{name}' hold .*NaN") as caught:
        load_graph(helper.make_model(graph))
    assert "layer" in caught.value.where
    assert "1 of" in caught.value.why


def test_biases_may_mask():
    """Minus infinity is what a mask is made of, which a layer may add as its bias."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 2)) for n in ("x", "y"))
    held = {"w": np.eye(2, dtype=np.float32), "b": np.array([0, -np.inf], np.float32)}
    known = [numpy_helper.from_array(array, n) for n, array in held.items()]
    load_graph(helper.make_model(helper.make_graph([node], "net", [x], [y], known)))
