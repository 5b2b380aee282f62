from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import BF16, F32, I8, U8, Affine, DType, Graph, Node, TensorType, Value, print_graph
from dlcc.ops import build

T = TensorType((2,))


def chain(*ops: str) -> Graph:
    graph = Graph("g")
    value = graph.add_input("x", T)
    for op in ops:
        value = build(graph, op, [value], loc=op).output
    graph.set_outputs([value], ["y"])
    return graph


def test_def_use_chains_follow_edits() -> None:
    graph = chain("exp", "neg")
    x, (first, second) = graph.inputs[0], graph.nodes
    assert x.uses == [(first, 0)]
    assert first.output.users == [second]
    graph.replace_all_uses(first.output, x)
    assert x.uses == [(first, 0), (second, 0)]
    assert first.output.uses == []
    graph.erase(first)
    assert x.uses == [(second, 0)]
    verify(graph)


def test_a_value_in_use_cannot_be_erased() -> None:
    graph = chain("exp", "neg")
    with pytest.raises(ValueError, match="still in use"):
        graph.erase(graph.nodes[0])
    with pytest.raises(ValueError, match="still in use"):
        graph.erase(graph.nodes[1])
    assert len(graph.nodes) == 2


def test_replacing_reaches_the_outputs() -> None:
    graph = chain("exp")
    graph.replace(graph.nodes[0], [graph.inputs[0]])
    assert graph.outputs == (graph.inputs[0],)
    assert graph.output_names == ["y"]
    assert graph.nodes == []


def test_operands_grow_and_shrink() -> None:
    graph = Graph("g")
    a, b = graph.add_input("a", T), graph.add_input("b", T)
    node = Node("op", {}, "")
    node.set_input(2, a)
    assert node.inputs == (None, None, a)
    with pytest.raises(ValueError, match="no operand 0"):
        node.input(0)
    node.set_inputs([b, a, None])
    assert node.inputs == (b, a)
    assert a.uses == [(node, 1)]
    assert node.optional_input(9) is None


def test_insertion_points() -> None:
    graph = chain("exp", "neg")
    first, second = graph.nodes
    a = graph.add_node("op", [graph.inputs[0]], [T], before=second)
    b = graph.add_node("op", [graph.inputs[0]], [T], after=second)
    assert graph.nodes == [first, a, second, b]


def test_names_are_unique_and_readable() -> None:
    graph = Graph("g")
    x = graph.add_input("in:0", T)
    assert x.name == "in:0"
    with pytest.raises(ValueError, match="is taken"):
        graph.add_input("in:0", T)
    assert graph.unique_name("in:0") == "in_0"
    assert graph.unique_name("in:0") == "in_0_1"
    assert graph.unique_name("") == "v"
    node = build(graph, "neg", [x], loc="layer/1")
    graph.rename(node.output, "logits")
    assert node.output.name == "logits"
    assert graph.unique_name("layer_1") == "layer_1"


def test_equal_constants_are_shared() -> None:
    graph = Graph("g")
    values = np.float32([1, 2])
    first = graph.add_constant(values)
    assert graph.add_constant(values.copy()) is first
    assert graph.add_constant(values.reshape(2, 1)) is not first
    assert graph.add_constant(values.astype(np.float64)) is not first
    q = Affine.per_tensor(8, True, 1.0, 0)
    assert graph.add_constant(values, encoding=q) is not first


def test_constants_are_private_and_read_only() -> None:
    graph, values = Graph("g"), np.float32([1, 2])
    value = graph.add_constant(values)
    values[0] = 9
    assert value.decoded().tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        value.stored()[0] = 5
    view = np.arange(6.0)[::2]
    strided = graph.add_constant(view)
    assert strided.stored().flags.c_contiguous
    assert graph.add_constant(np.float32(3)).type.shape == ()


def test_unused_constants_are_let_go() -> None:
    graph = Graph("g")
    values = np.zeros(3, np.float32)
    used = graph.add_constant(values, name="used")
    unused = graph.add_constant(values + 1, name="unused")
    node = graph.add_node("neg", [used], [used.type])
    graph.set_outputs(node.outputs)
    graph.forget_unused_constants()
    assert graph.add_constant(values) is used
    again = graph.add_constant(values + 1, name="unused")
    assert again is not unused
    assert again.name == "unused"


def test_what_is_not_constant_has_no_contents() -> None:
    graph = chain("exp")
    with pytest.raises(ValueError, match="not a constant"):
        graph.inputs[0].decoded()
    with pytest.raises(ValueError, match="not a constant"):
        graph.inputs[0].stored()


def test_sort_is_stable_and_finds_cycles() -> None:
    graph = chain("exp", "neg", "abs")
    a, b, c = graph.nodes
    graph.nodes = [c, b, a]
    graph.sort()
    assert graph.nodes == [a, b, c]
    a.set_input(0, c.output)
    with pytest.raises(ValueError, match="has a cycle"):
        graph.sort()


def test_networkx_has_every_edge() -> None:
    graph = Graph("g")
    x = graph.add_input("x", T)
    w = graph.add_constant(np.float32([1, 2]))
    a = build(graph, "add", [x, w], loc="a")
    b = build(graph, "mul", [a.output, a.output], loc="b")
    graph.set_outputs([b.output, a.output], ["y", "z"])
    net = graph.to_networkx()
    assert set(net.nodes) == {("input", 0), a, b, ("output", 0), ("output", 1)}
    assert net.number_of_edges(a, b) == 2
    assert net.edges[("input", 0), a, 0]["value"] is x
    assert net.nodes[b]["op"] == "mul"
    assert net.nodes[("output", 1)]["loc"] == "z"
    assert nx.is_directed_acyclic_graph(net)
    assert nx.ancestors(net, b) == {("input", 0), a}


def test_a_copy_is_independent() -> None:
    graph = chain("exp", "neg")
    twin = graph.copy()
    assert print_graph(twin) == print_graph(graph)
    twin.replace(twin.nodes[1], [twin.nodes[0].output])
    assert len(graph.nodes) == 2
    verify(graph)
    verify(twin)
    assert twin.unique_name("x") == "x_1"


def test_outputs_need_names() -> None:
    graph = chain("exp")
    with pytest.raises(ValueError, match="as many output names"):
        graph.set_outputs(graph.outputs, ["a", "b"])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4)), max_size=25))
def test_random_edits_keep_the_graph_sound(edits: list[tuple[int, int, int]]) -> None:
    graph = chain("exp", "neg", "abs")
    for place, source, kind in edits:
        values: list[Value] = [*graph.inputs, *(n.output for n in graph.nodes)]
        if kind <= 1 or not graph.nodes:
            value = values[source % len(values)]
            after = value.producer
            build(
                graph, "add", [value, value], after=after, before=None if after else _first(graph)
            )
        elif kind == 2:
            node = graph.nodes[place % len(graph.nodes)]
            earlier = [*graph.inputs, *(n.output for n in graph.nodes[: graph.nodes.index(node)])]
            graph.replace(node, [earlier[source % len(earlier)]])
        elif kind == 3:
            node = graph.nodes[place % len(graph.nodes)]
            earlier = [*graph.inputs, *(n.output for n in graph.nodes[: graph.nodes.index(node)])]
            node.set_input(0, earlier[source % len(earlier)])
        else:
            graph = graph.copy()
        verify(graph)


def _first(graph: Graph) -> Node | None:
    return graph.nodes[0] if graph.nodes else None


# -- verifier ----------------------------------------------------------------------------------


def broken(graph: Graph) -> DlccError:
    with pytest.raises(DlccError) as caught:
        verify(graph)
    return caught.value


def test_use_before_definition() -> None:
    graph = chain("exp", "neg")
    graph.nodes.reverse()
    error = broken(graph)
    assert error.code is ExitCode.INTERNAL
    assert "used before it is defined" in error.why
    assert error.where == "neg"


def test_missing_use() -> None:
    graph = chain("exp")
    graph.inputs[0].uses.clear()
    assert "misses operand 0" in broken(graph).why


def test_use_by_a_node_that_is_gone() -> None:
    graph = chain("exp", "neg")
    graph.replace_all_uses(graph.nodes[1].output, graph.nodes[0].output)
    graph.nodes.pop()
    assert "not in the graph" in broken(graph).why


def test_producer_that_is_not_the_producer() -> None:
    graph = chain("exp", "neg")
    graph.nodes[0].output.producer = graph.nodes[1]
    assert "does not know its producer" in broken(graph).why


def test_output_that_is_not_defined() -> None:
    graph = chain("exp")
    graph.set_outputs([chain("exp").outputs[0]])
    assert "not defined" in broken(graph).why


def test_names_twice() -> None:
    graph = chain("exp")
    graph.nodes[0].output.name = "x"
    assert "not unique: ['x']" in broken(graph).why


def test_wrong_shape_and_dtype() -> None:
    graph = chain("exp")
    graph.nodes[0].output.type = TensorType((3,))
    assert "must be f32[2]" in broken(graph).why
    graph.nodes[0].output.type = TensorType((2,), I8)
    assert broken(graph).code is ExitCode.MODEL


def test_wrong_number_of_operands() -> None:
    graph = chain("exp")
    graph.nodes[0].set_input(1, graph.inputs[0])
    assert "has 2" in broken(graph).why


def test_unknown_op() -> None:
    graph = chain("exp")
    graph.nodes[0].op = "frobnicate"
    assert "unknown op 'frobnicate'" in str(broken(graph))


def test_moving_ops_keep_the_encoding() -> None:
    graph, q = Graph("g"), Affine.per_tensor(8, False, 0.1, 3)
    x = graph.add_input("x", T.with_(encoding=q))
    node = build(graph, "reshape", [x], {"shape": (1, 2)})
    graph.set_outputs(node.outputs)
    verify(graph)
    node.output.type = node.output.type.with_(encoding=Affine.per_tensor(8, False, 0.2, 3))
    assert "one encoding" in broken(graph).why


# -- element types -----------------------------------------------------------------------------


def test_element_types() -> None:
    assert str(BF16) == "bf16"
    assert DType.parse("u8") == U8
    assert DType.of(np.zeros(1, np.int8)) == I8
    assert DType("int", 4).integer_range() == (-8, 7)
    assert DType("int", 4).bytes == 1
    assert U8.integer_range() == (0, 255)
    assert BF16.bytes == 2
    assert F32.is_float
    assert not F32.is_integer
    with pytest.raises(KeyError):
        DType.parse("f33")
    with pytest.raises(KeyError):
        DType.of(np.zeros(1, "U3"))


def test_tensor_types() -> None:
    t = TensorType((1, 3, 4, 5), layout="nhwc")
    assert t.physical_shape == (1, 4, 5, 3)
    assert t.elements == 60
    assert t.bytes == 240
    assert t.with_(shape=(2,), layout="") == TensorType((2,))
    some: Any = t.with_(dtype=U8)
    assert some.storage == U8
