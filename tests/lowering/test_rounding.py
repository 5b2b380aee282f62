"""Tensors that are rounded to 16 bits while they move, and those that must not be."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.ir import BFLOAT16, FLOAT16, Encoding, Graph, Value
from dlcc.lowering.lower import lower, prepare
from dlcc.ops import build
from targets import get_target
from tests.lowering.graphs import conv, typed


def network(
    *, channels: int = 3, narrow: bool = True, encoding: Encoding = BFLOAT16
) -> tuple[Graph, Value, Value]:
    """A convolution of a float32 image, by weights of 16 bits if ``narrow``; (graph, x, y)."""
    graph = Graph("net")
    x = graph.add_input("x", typed((1, channels, 6, 7)))
    y = conv(graph, x, 4, loc="a")
    if narrow:
        node = y.producer
        assert node is not None
        weights = graph.add_constant(node.input(1).decoded(), encoding=encoding, name="w16")
        node.set_input(1, weights)
    return graph, x, y


def moved(graph: Graph) -> list[bool]:
    """For each relayout of the prepared graph, in order: whether it rounds."""
    ready = prepare(graph)
    rng = np.random.default_rng(2)
    feed = {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}
    before, after = execute(graph, feed), execute(ready, feed)
    for name, want in before.items():
        np.testing.assert_array_equal(after[name], want)
    return [n.output.type.short_float is not None for n in ready.nodes if n.op == "relayout"]


def test_an_operand_of_bfloat16_products_is_rounded_as_it_moves():
    graph, _, y = network()
    graph.set_outputs([y], ["y"])
    assert moved(graph) == [True, False]  # the result goes to the caller, as float32


def test_float32_products_read_float32():
    graph, _, y = network(narrow=False)
    graph.set_outputs([y], ["y"])
    assert moved(graph) == [False, False]


def test_another_reader_needs_every_bit():
    graph, x, y = network()
    pooled = build(graph, "max_pool2d", [x], {"kernel": (2, 2)}, loc="pool").output
    graph.set_outputs([y, pooled], ["y", "pooled"])
    assert True not in moved(graph)


def test_an_addend_is_not_rounded():
    graph, x, y = network()
    node = y.producer
    assert node is not None
    other = graph.add_input("r", typed(y.type.shape))
    made = build(graph, "conv2d", [x, *node.inputs[1:3], other], {}, loc="b").output
    graph.set_outputs([made], ["y"])
    assert sorted(moved(graph)) == [False, False, True]


def test_what_shares_its_bytes_is_left_alone():
    graph, _, y = network(channels=1)
    graph.set_outputs([y], ["y"])
    assert True not in moved(graph)


def test_half_precision_is_rounded_alike_and_refused_where_no_instruction_widens_it():
    graph, _, y = network(encoding=FLOAT16)
    graph.set_outputs([y], ["y"])
    assert moved(graph) == [True, False]
    for name in ("cpu:sse4", "armv7", "c"):
        with pytest.raises(DlccError, match=f"{name} has no instructions for float16") as caught:
            lower(graph, get_target(name), lambda _funcs, _target: b"")
        assert "round-to-bfloat16" in caught.value.fix
    for name, first in (("cpu:avx2", "bfloat16"), ("arm", "float16"), ("arm:neon", "float16")):
        assert get_target(name).short_floats[0] == first
        assert set(get_target(name).short_floats) == {"bfloat16", "float16"}
