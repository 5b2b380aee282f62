"""recover-encodings: exact, the smallest of what fits, and reasons where nothing does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.ir import Codebook, Graph, Sparse
from passes import PassContext, PassManager, PipelineResult
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)


def _weight(kept: float, values: int, *shape: int) -> Array:
    """``kept`` of the weights are not 0, and of those ``values`` (0: all) are different."""
    dense = RNG.standard_normal(shape)
    if values:
        dense = RNG.choice(RNG.standard_normal(values), shape)
    return np.where(RNG.random(shape) < kept, dense, 0).astype(np.float32)


def _graph(net: Net, *weights: Array) -> Graph:
    value = net.input(1, weights[0].shape[1], 9, 9)
    for index, weight in enumerate(weights):
        value = net.op("conv2d", value, net.const(weight), loc=f"l{index}")
    return net.done(value)


def _run(graph: Graph, pipeline: str = "recover-encodings") -> PipelineResult:
    result = PassManager(pipeline, verify_numerics=0).run(graph, PassContext())
    verify(graph)
    return result


def test_each_layer_gets_the_encoding_that_suits_it(net: Net, golden: Any) -> None:
    weights = [
        _weight(0.1, 0, 16, 8, 3, 3),
        _weight(0.3, 16, 16, 16, 3, 3),
        _weight(1.0, 4, 16, 16, 1, 1),
        _weight(1.0, 0, 24, 16, 1, 1),
        _weight(0.99, 200, 24, 24, 3, 3),
    ]
    golden(_graph(net, *weights), "recover-encodings")


def test_results_are_the_same_to_the_bit(net: Net) -> None:
    graph = _graph(net, _weight(0.2, 30, 16, 8, 3, 3), _weight(0.2, 0, 8, 16, 3, 3))
    dense = graph.copy()
    result = _run(graph)
    assert result.records[0].statistics["worst_weight_error"] == 0
    feed = {"x": RNG.standard_normal((1, 8, 9, 9)).astype(np.float32)}
    assert execute(graph, feed)["y0"].tobytes() == execute(dense, feed)["y0"].tobytes()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 1), st.sampled_from([0, 1, 2, 3, 200, 256, 257, 300]), st.integers(4, 40))
def test_no_number_changes(kept: float, values: int, rows: int) -> None:
    weight = _weight(kept, values, rows, 24, 1, 1)
    graph = _graph(Net(), weight)
    _run(graph)
    value = graph.nodes[0].input(1)
    assert value.decoded().tobytes() == weight.tobytes()
    assert value.constant is not None
    assert value.type.encoding.stored_bytes(value.constant.parts) <= weight.nbytes


def test_zeros_of_either_sign_are_zeros(net: Net) -> None:
    weight = _weight(0.1, 3, 16, 16, 1, 1)
    weight[weight == 0] *= -1
    graph = _graph(net, weight)
    _run(graph)
    encoding = graph.nodes[0].input(1).type.encoding
    assert isinstance(encoding, Sparse)
    assert encoding.inner == Codebook(2)


def test_reasons(net: Net) -> None:
    whole = RNG.standard_normal((16, 16, 3, 3)).astype(np.float32)
    one_zero = whole.copy()
    one_zero[0, 0, 0, 0] = 0
    graph = _graph(net, whole, one_zero, _weight(0.1, 0, 16, 16, 3, 3))
    result = _run(graph, "prune{sparsity=0.9 only=l2},recover-encodings")
    told = {r.loc: r.message for r in result.remarks if r.kind == "refused"}
    assert "none of its weights is 0, and 2304 different ones exceed" in told["l0"]
    assert "would take" in told["l1"]
    assert "stored as sparse already" in told["l2"]


@pytest.mark.parametrize(("option", "done"), [("only=l1", {"l1"}), ("exclude=l1", {"l0", "l2"})])
def test_layers_are_chosen_by_name(net: Net, option: str, done: set[str]) -> None:
    graph = _graph(net, *(_weight(0.2, 9, 16, 16, 3, 3) for _ in range(3)))
    result = _run(graph, f"recover-encodings{{{option}}}")
    assert {r.loc for r in result.remarks if r.kind == "applied"} == done
