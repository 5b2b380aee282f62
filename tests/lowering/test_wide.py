"""Concats of hundreds of operands: trees of small ones, with the same numbers."""

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.ir import Affine, Graph
from dlcc.lowering.lower import prepare
from dlcc.lowering.wide import MOST_OPERANDS
from dlcc.ops import build
from tests.lowering.graphs import affine, typed


def _joined(count: int, encoding: Affine | None) -> Graph:
    """``count`` tensors, of one to three columns and a constant among them, along axis 1."""
    graph = Graph("net")
    parts = [graph.add_input(f"x{i}", typed((2, 1 + i % 3), encoding)) for i in range(count - 1)]
    if encoding is None:
        parts.insert(count // 2, graph.add_constant(np.full((2, 2), 7, np.float32)))
    graph.set_outputs([build(graph, "concat", parts, {"axis": 1}).output], ["y"])
    return graph


@pytest.mark.parametrize("count", [MOST_OPERANDS, 1 + MOST_OPERANDS, MOST_OPERANDS**2 + 1])
@pytest.mark.parametrize("encoding", [None, affine()])
def test_same_numbers_from_nodes_of_few_operands(count: int, encoding: Affine | None) -> None:
    graph = _joined(count, encoding)
    ready = prepare(graph)
    rng = np.random.default_rng(count)
    inputs = {v.name: rng.uniform(-2, 2, v.type.shape).astype(np.float32) for v in graph.inputs}
    if encoding is not None:
        inputs = {name: encoding.quantise(array) for name, array in inputs.items()}
    np.testing.assert_array_equal(execute(ready, inputs)["y"], execute(graph, inputs)["y"])
    concats = [node for node in ready.nodes if node.op == "concat"]
    assert max(len(node.inputs) for node in concats) <= MOST_OPERANDS
    assert min(len(node.inputs) for node in concats) > 1
    assert len(concats) <= 1 + -(-count // MOST_OPERANDS) + (count > MOST_OPERANDS**2)
    if count <= MOST_OPERANDS:
        assert len(concats) == 1
