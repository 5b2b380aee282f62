"""The same network for another batch size."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.analysis.verify import verify
from dlcc.ir import F32, Graph, TensorType
from dlcc.ops import build


def network(reshape: tuple[int, ...]) -> Graph:
    rng = np.random.default_rng(0)
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4, 6), F32))
    weight = graph.add_constant(rng.standard_normal((6, 6)).astype(np.float32))
    y = build(graph, "linear", [x, weight]).output
    y = build(graph, "reshape", [y], {"shape": reshape}).output
    y = build(graph, "relu", [y]).output
    graph.set_outputs([y], ["y"])
    return graph


@pytest.mark.parametrize("reshape", [(1, 24), (1, 2, 12), (4, 6)])
def test_every_sample_gives_what_it_gave_alone(reshape: tuple[int, ...]) -> None:
    graph = network(reshape)
    many = rebatched(graph, 5)
    assert many is not None
    verify(many)
    x = np.random.default_rng(1).standard_normal((5, 4, 6)).astype(np.float32)
    together = execute(many, {"x": x})["y"]
    alone = np.concatenate([execute(graph, {"x": x[i : i + 1]})["y"] for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_the_original_is_left_alone() -> None:
    graph = network((1, 24))
    text = str(graph)
    rebatched(graph, 3)
    assert str(graph) == text


def test_refuses_where_samples_mix() -> None:
    graph = network((1, 24))
    total = build(graph, "reduce_sum", [graph.outputs[0]], {"axes": (0,), "keepdims": True})
    graph.set_outputs([total.output], ["y"])
    assert rebatched(graph, 3) is None


def test_refuses_inputs_without_a_common_batch() -> None:
    graph = network((1, 24))
    graph.add_input("other", TensorType((2, 3), F32))
    assert rebatched(graph, 3) is None
