from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I64,
    U8,
    Affine,
    Graph,
    TensorType,
    Value,
    graphs_equal,
    parse_graph,
    print_graph,
)
from dlcc.ir.text import load, save

X = TensorType((1, 2))


def reread(graph: Graph) -> Graph:
    sidecar: dict[str, np.ndarray[Any, Any]] = {}
    text = print_graph(graph, sidecar)
    again = parse_graph(text, sidecar)
    assert print_graph(again) == text
    return again


def with_attribute(value: Any) -> Graph:
    graph = Graph("g")
    node = graph.add_node("op", [graph.add_input("x", X)], [X], attrs={"a": value})
    graph.set_outputs(node.outputs)
    return graph


def test_the_form_of_a_graph() -> None:
    graph = Graph('a "net"')
    x = graph.add_input("x", TensorType((1, 3, 4, 4), F32, layout="nhwc"))
    w = graph.add_constant(np.ones((2, 3), np.float32), name="w")
    q = Affine.per_tensor(8, False, 0.5, 3)
    node = graph.add_node(
        "conv2d",
        [x, None, w],
        [TensorType((1, 2), F32, q), TensorType((), I64)],
        attrs={"pads": (1, 1), "act_max": 6.0, "mode": "same", "ok": True},
        loc="layer/1",
        names=["y", "n"],
    )
    graph.set_outputs([node.outputs[0], w], ["logits:0", "weights"])
    assert w.constant is not None
    assert str(graph) == (
        'graph "a \\"net\\"" {\n'
        "  input %x: f32[1,3,4,4]@nhwc\n"
        f"  const @w: f32[2,3] = #{w.constant.digest}\n"
        "  %y: f32[1,2]!affine<bits=8, signed=false, scales=[0.5], zero_points=[3]>, %n: i64[] = "
        'conv2d(%x, _, @w) {act_max=6.0, mode="same", ok=true, pads=[1,1]} loc("layer/1")\n'
        '  output "logits:0" %y\n'
        '  output "weights" @w\n'
        "}\n"
    )
    again = reread(graph)
    assert graphs_equal(graph, again)
    assert again.nodes[0].inputs[1] is None
    assert again.output_names == ["logits:0", "weights"]
    assert again.outputs[0].type == node.outputs[0].type


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (-3, "-3"),
        (0.5, "0.5"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (float(np.float32(0.1)), "0.1f"),
        (float(np.float32(1e-5)), "1e-05f"),
        (1e300, "1e+300"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ((), "[]"),
        ((1, (2.0, "a b"), False), '[1,[2.0,"a b"],false]'),
        ("inf", '"inf"'),
        ('"\\\n', '"\\"\\\\\\n"'),
    ],
)
def test_attributes(value: Any, text: str) -> None:
    graph = with_attribute(value)
    assert "{a=" + text + "}" in print_graph(graph)
    again = reread(graph).nodes[0].attrs["a"]
    assert repr(again) == repr(value)


def test_nan_attribute() -> None:
    again = reread(with_attribute(math.nan)).nodes[0].attrs["a"]
    assert isinstance(again, float)
    assert math.isnan(again)


numbers = st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False) | st.booleans()
_names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))

attributes = st.recursive(
    numbers | _names, lambda inner: st.lists(inner, max_size=12).map(tuple), max_leaves=20
)


@settings(max_examples=200)
@given(attributes | st.lists(st.floats(allow_nan=False, width=32), min_size=9).map(tuple))
def test_every_attribute_survives(value: Any) -> None:
    assert repr(reread(with_attribute(value)).nodes[0].attrs["a"]) == repr(value)


@given(_names.filter(bool), _names, _names)
def test_every_name_survives(name: str, loc: str, output: str) -> None:
    graph = Graph(name)
    x = graph.add_input(name, X)
    node = graph.add_node("op", [x], [X], loc=loc)
    graph.set_outputs(node.outputs, [output])
    again = reread(graph)
    assert again.inputs[0].name == name
    assert again.nodes[0].loc == loc
    assert again.output_names == [output]


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64, I64, U8, BOOL])
def test_constants_of_every_type_survive_a_file(dtype: Any, tmp_path: Path) -> None:
    graph = Graph("g")
    values = np.array([[0, 1, 3]]).astype(dtype.numpy)
    scalar = np.array(1).astype(dtype.numpy)
    graph.set_outputs([graph.add_constant(values), graph.add_constant(scalar)])
    save(graph, tmp_path / "g.dlir")
    again = load(tmp_path / "g.dlir")
    assert graphs_equal(graph, again)
    for a, b in zip(graph.outputs, again.outputs, strict=True):
        assert a.decoded().dtype == b.decoded().dtype
        np.testing.assert_array_equal(a.decoded(), b.decoded())


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    graph = Graph("g")
    scales = np.linspace(0.1, 1, 20)
    encoding = Affine.symmetric(8, scales, 0)
    graph.set_outputs([graph.add_constant(np.ones((20, 3), np.float32), encoding=encoding)])
    for name in ("a", "b"):
        save(graph, tmp_path / f"{name}.dlir")
    assert (tmp_path / "a.dlir").read_bytes() == (tmp_path / "b.dlir").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert load(tmp_path / "a.dlir").outputs[0].type.encoding == encoding


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("input %x: f33[1]", "unknown dtype 'f33'"),
        ("input %x: f32[-1]", "-1 is not the length of an axis"),
        ("input %x: f32[1.5]", "1.5 is not the length"),
        ("input %x: f32[1]!wobbly<>", "unknown encoding 'wobbly'"),
        ("input %x: f32[1]!affine<bits=8>", "missing"),
        (
            "input %x: f32[1]!affine<bits=99, signed=true, scales=[1.0], zero_points=[0]>",
            "must be 2 to 32",
        ),
        ("input %x: f32[1]\n  input %x: f32[1]", "%x is defined twice"),
        ('input %x: f32[1]\n  input %"x": f32[1]', "defined twice"),
        ("%y: f32[1] = neg(%x)", "%x is used before it is defined"),
        ("%y: f32[1] = neg(%x", "used before"),
        ("const @w: f32[1] = #abc", "no parts of constant @w"),
        ("const @w: f32[1]!affine<bits=8, signed=true, scales=#abc, zero_points=#abc> = #abc",
         "no array 'abc/list'"),
        ('output "y" _', "an output needs a value"),
        ("input %x ; f32[1]", "unexpected '; f32[1]"),
        ("input %x: f32[1]\n  %y: f32[1] = neg(%x) {a=}", "expected word, found '}'"),
        ('input %x: f32[1]\n  %y: f32[1] = neg(%x) loc("\\q")', "not a JSON string"),
    ],
)  # fmt: skip
def test_mistakes_name_the_line(body: str, words: str) -> None:
    with pytest.raises(DlccError) as caught:
        parse_graph(f'graph "g" {{\n  {body}\n}}\n', {}, "net.dlir")
    assert caught.value.code is ExitCode.MODEL
    assert words in caught.value.why
    assert caught.value.where.startswith("net.dlir:")
    assert int(caught.value.where.rpartition(":")[2]) in range(2, 5)


def test_text_that_ends_early_or_late() -> None:
    with pytest.raises(DlccError, match="the end"):
        parse_graph('graph "g" {', {})
    with pytest.raises(DlccError, match="after the graph's closing brace"):
        parse_graph('graph "g" {\n}\ngraph', {})


def test_contents_that_do_not_match_the_hash() -> None:
    graph = Graph("g")
    graph.set_outputs([graph.add_constant(np.ones(3, np.float32))])
    sidecar: dict[str, Any] = {}
    text = print_graph(graph, sidecar)
    (key,) = sidecar
    with pytest.raises(DlccError, match="do not match the hash"):
        parse_graph(text, {key: np.zeros(3, np.float32)})


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 nonsense", b"text"])
def test_bad_sidecar_files(content: bytes | None, tmp_path: Path) -> None:
    graph = Graph("g")
    graph.set_outputs([graph.add_constant(np.ones(3, np.float32))])
    save(graph, tmp_path / "g.dlir")
    side = tmp_path / "g.npz"
    side.unlink() if content is None else side.write_bytes(content)
    with pytest.raises(DlccError) as caught:
        load(tmp_path / "g.dlir")
    assert caught.value.code is ExitCode.INPUT_FILE
    assert "side by side" in caught.value.fix


def test_a_damaged_sidecar_is_refused(tmp_path: Path) -> None:
    graph = Graph("g")
    graph.set_outputs([graph.add_constant(np.arange(5000, dtype=np.float32))])
    save(graph, tmp_path / "g.dlir")
    data = bytearray((tmp_path / "g.npz").read_bytes())
    data[9000] ^= 0xFF
    (tmp_path / "g.npz").write_bytes(data)
    with pytest.raises(DlccError):
        load(tmp_path / "g.dlir")


def test_an_attribute_without_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no text form"):
        print_graph(with_attribute({1: 2}))


def test_use_lists_of_a_read_graph() -> None:
    graph = Graph("g")
    x = graph.add_input("x", X)
    node = graph.add_node("add", [x, x], [X])
    graph.set_outputs([node.output, node.output], ["a", "b"])
    again = reread(graph)
    value: Value = again.inputs[0]
    assert [i for _, i in value.uses] == [0, 1]
    assert again.use_count(again.nodes[0].output) == 2
    assert again.unique_name("x") == "x_1"
