"""Layout assignment, views and buffers: same numbers, no needless copies."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.ir import Graph
from dlcc.lowering.layout import (
    ABSORBED_COST,
    NHWC_OPS,
    RELAYOUT_COST,
    ROW_MAJOR_OPS,
    apply_layouts,
)
from dlcc.lowering.lower import prepare
from dlcc.lowering.views import assign_buffers, is_aliased, is_view
from dlcc.ops import build
from tests.lowering.graphs import affine, conv, typed


def image_net(*, quantised: bool) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", typed((1, 3, 8, 8)))
    value = x
    if quantised:
        value = build(graph, "quantize", [x], loc="q", types=[typed((1, 3, 8, 8), affine())]).output
    out = affine(0.1, 100) if quantised else None
    value = conv(graph, value, 4, out=out, loc="a", pads=(1, 1, 1, 1))
    value = conv(graph, value, 4, out=out, loc="b", pads=(1, 1, 1, 1), strides=(2, 2))
    flat = build(graph, "reshape", [value], {"shape": (1, 64)}, loc="flat")
    if quantised:
        flat.output.type = flat.output.type.with_(encoding=value.type.encoding)
    graph.set_outputs([flat.output], ["y"])
    return graph


def feed(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        v.name: rng.integers(0, 50, v.type.shape).astype(v.type.storage.numpy) for v in graph.inputs
    }


def test_preparation_changes_no_number():
    for quantised in (False, True):
        graph = image_net(quantised=quantised)
        inputs = feed(graph)
        before, after = execute(graph, inputs), execute(prepare(graph), inputs)
        assert np.array_equal(before["y"], after["y"])


def test_convolutions_read_nhwc_and_quantize_absorbs_the_change():
    ready = prepare(image_net(quantised=True))
    ops = [node.op for node in ready.nodes]
    assert ops == ["quantize", "conv2d", "conv2d", "relayout", "reshape"]
    assert ready.nodes[0].output.type.layout == "nhwc"
    assert all(n.input(0).type.layout == "nhwc" for n in ready.nodes if n.op == "conv2d")


def test_float_input_is_converted_once():
    graph = Graph("two")
    x = graph.add_input("x", typed((1, 4, 6, 6)))
    a, b = conv(graph, x, 4, loc="a"), conv(graph, x, 4, loc="b")
    total = build(graph, "add", [a, b], loc="sum").output
    graph.set_outputs([total], ["y"])
    ready = prepare(graph)
    assert [n.op for n in ready.nodes] == ["relayout", "conv2d", "conv2d", "add", "relayout"]
    assert np.array_equal(execute(graph, feed(graph))["y"], execute(ready, feed(graph))["y"])


def test_what_moves_no_byte_is_a_view():
    graph = Graph("views")
    x = graph.add_input("x", typed((1, 5, 1, 1)))
    layout = typed((1, 5, 1, 1)).with_(layout="nhwc")
    same = build(graph, "relayout", [x], types=[layout])
    moved_input = graph.add_input("z", typed((1, 5, 2, 1)))
    moved = build(
        graph, "relayout", [moved_input], types=[typed((1, 5, 2, 1)).with_(layout="nhwc")]
    )
    swapped = build(graph, "transpose", [same.output], {"perm": (0, 2, 3, 1)})
    real = build(graph, "transpose", [moved_input], {"perm": (0, 2, 1, 3)})
    graph.set_outputs([swapped.output, moved.output, real.output])
    assert is_view(same)
    assert is_view(swapped)
    assert not is_view(moved)
    assert not is_view(real)


def test_every_output_owns_its_buffer():
    graph = Graph("outputs")
    x = graph.add_input("x", typed((2, 3)))
    constant = graph.add_constant(np.ones((2, 3), np.float32), name="one")
    y = build(graph, "add", [x, constant], loc="add").output
    again = build(graph, "reshape", [y], {"shape": (3, 2)}, loc="again").output
    graph.set_outputs([x, constant, y, again, y], ["a", "b", "c", "d", "e"])
    ready = prepare(graph)
    buffers = assign_buffers(ready)
    places = [(buffers[v].kind, buffers[v].index) for v in ready.outputs]
    assert places == [("output", i) for i in range(5)]
    inputs = feed(graph)
    want, got = execute(graph, inputs), execute(ready, inputs)
    assert all(np.array_equal(want[name], got[name]) for name in "abcde")


def test_views_share_their_source_s_buffer():
    graph = Graph("chain")
    x = graph.add_input("x", typed((2, 3)))
    y = build(graph, "relu", [x], loc="relu").output
    flat = build(graph, "reshape", [y], {"shape": (6,)}, loc="flat")
    z = build(graph, "relu", [flat.output], loc="relu2").output
    graph.set_outputs([z], ["z"])
    buffers = assign_buffers(graph)
    assert is_aliased(flat)
    assert buffers[flat.output] is buffers[y]
    assert buffers[z].kind == "output"


def test_an_op_between_the_layouts_writes_the_one_that_is_read():
    """The last op before a reshape reads NHWC and writes row-major: no pass of its own."""
    graph = Graph("between")
    x = graph.add_input("x", typed((1, 4, 6, 6)))
    value = conv(graph, x, 4, loc="a")
    value = build(graph, "sigmoid", [value], loc="s").output
    flat = build(graph, "reshape", [value], {"shape": (1, 64)}, loc="flat").output
    graph.set_outputs([flat], ["y"])
    ready = prepare(graph)
    ops = [n.op for n in ready.nodes]
    assert ops[:3] == ["relayout", "conv2d", "sigmoid"]
    assert ops.count("relayout") == 1
    assert ready.nodes[2].output.type.layout == ""
    assert np.array_equal(execute(graph, feed(graph))["y"], execute(ready, feed(graph))["y"])


def moved_elements(graph: Graph) -> int:
    """What the assignment minimises, counted on its result."""
    own = NHWC_OPS | ROW_MAJOR_OPS
    total = 0
    for node in graph.nodes:
        result = node.output.type.layout
        for value in dict.fromkeys(v for v in node.inputs if v is not None):
            if value.is_constant or value.type.rank != 4:
                continue
            if node.op == "relayout":
                total += RELAYOUT_COST * value.type.elements
            elif node.op not in own and value.type.layout != result:
                total += ABSORBED_COST * value.type.elements
    return total


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["conv", "sigmoid", "add", "transpose"]), min_size=2, max_size=7))
def test_no_other_assignment_moves_less(ops):
    """Against all assignments of the free ops, by brute force."""
    graph = Graph("random")
    values = [graph.add_input("x", typed((1, 4, 4, 4)))]
    for index, op in enumerate(ops):
        name = f"{op}{index}"
        if op == "conv":
            made = conv(graph, values[-1], 4, loc=name, pads=(1, 1, 1, 1))
        elif op == "sigmoid":
            made = build(graph, "sigmoid", [values[-1]], loc=name).output
        elif op == "add":
            made = build(graph, "add", [values[-1], values[len(values) // 2]], loc=name).output
        else:
            made = build(graph, "transpose", [values[-1]], {"perm": (0, 2, 1, 3)}, loc=name).output
        values.append(made)
    graph.set_outputs([values[-1]], ["y"])
    inputs = {v.name: np.random.default_rng(0).standard_normal(v.type.shape) for v in graph.inputs}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    ready = prepare(graph)
    np.testing.assert_allclose(execute(ready, inputs)["y"], execute(graph, inputs)["y"], rtol=1e-6)
    names = [n.loc for n in graph.nodes if n.op in ("sigmoid", "add")]
    best = min(
        moved_elements(_assigned(graph, {n for n, take in zip(names, picks, strict=True) if take}))
        for picks in product((False, True), repeat=len(names))
    )
    assert moved_elements(ready) <= best


def _assigned(graph: Graph, in_nhwc: set[str]) -> Graph:
    made = graph.copy()
    apply_layouts(made, {node for node in made.nodes if node.loc in in_nhwc})
    return made
