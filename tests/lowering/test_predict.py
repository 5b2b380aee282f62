"""Predicted times of layers as later passes will leave them."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.errors import DlccError
from dlcc.ir import Affine, Constant, Graph, Node, Sparse, TensorType
from dlcc.lowering.choice import choose
from dlcc.lowering.predict import CostModel, rounded
from dlcc.ops import build
from targets import get_target
from tests.lowering.graphs import conv

TARGET = get_target("cpu:avx512vnni")


def layer(residual: bool = False) -> Node:
    graph = Graph("one")
    x = graph.add_input("x", TensorType((1, 64, 14, 14)))
    x = build(graph, "relu", [x]).output
    attrs = {"pads": (1, 1, 1, 1), "act_min": 0.0}
    y = conv(graph, x, 64, residual=x if residual else None, **attrs)
    assert y.producer is not None
    return y.producer


def test_float_layers_cost_what_the_kernel_choice_says() -> None:
    node = layer()
    assert CostModel(TARGET)(node) == choose(node, TARGET).seconds
    assert rounded(node, 32) is node


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
def test_rounded_layers_have_the_types_that_the_passes_give(bits: int, residual: bool) -> None:
    twin = rounded(layer(residual), bits)
    types = [v.type for v in twin.inputs if v is not None]
    if bits == 16:
        assert all(t.is_bfloat16 for t in (types[0], types[1], twin.output.type))
        assert types[2].is_dense
    else:
        assert (types[0].affine.bits, types[0].affine.signed) == (8, False)
        assert (types[1].affine.bits, types[1].affine.axis) == (8, 0)
        assert types[2].affine.bits == 32
        assert twin.output.type.affine == types[0].affine
    assert len(types) == 3 + residual
    tiles = get_target("cpu:amx")
    assert CostModel(tiles, bits)(layer()) < CostModel(tiles)(layer())


def test_predictions_are_those_of_the_quantised_network() -> None:
    """The same layer out of the quantise pass costs the same."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 16, 10, 10)))
    first = conv(graph, x, 64, loc="a", act_min=0.0)
    second = conv(graph, first, 32, loc="b", act_min=0.0)
    graph.set_outputs([conv(graph, second, 8, loc="c")], ["y"])
    expected = CostModel(TARGET, 8)(graph.nodes[1])
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 16, 10, 10)).astype(np.float32)}]
    options = dlcc.CompileOptions(passes="quantize", calibration=lambda: iter(feeds))
    quantised = dlcc.optimise(graph, options).graph
    [found] = [n for n in quantised.nodes if n.loc == "b"]
    assert choose(found, TARGET).seconds == pytest.approx(expected)


def test_only_the_kept_elements_of_a_sparse_weight_are_quantised() -> None:
    node = layer()
    graph = Graph("sparse")
    sparse = graph.add_constant(node.input(1).decoded(), encoding=Sparse("2:4"))
    node.set_input(1, sparse)
    encoding = rounded(node, 8).input(1).type.encoding
    assert isinstance(encoding, Sparse)
    assert isinstance(encoding.inner, Affine)
    assert encoding.pattern == "2:4"


def test_ops_without_products_stay_what_they_are() -> None:
    graph = Graph("pool")
    x = graph.add_input("x", TensorType((1, 4, 8, 8)))
    node = build(graph, "max_pool2d", [x], {"kernel": (2, 2)})
    assert rounded(node, 8) is node


def test_a_layer_that_no_row_serves_is_an_error() -> None:
    with pytest.raises(DlccError, match="no kernel of target cpu:avx512vnni serves"):
        CostModel(TARGET.without([r.name for r in TARGET.rows]))(layer())


@pytest.mark.parametrize("groups", [1, 16])
def test_nothing_is_proven_of_weights_without_codes(groups: int) -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 16, 9, 9)))
    graph.set_outputs([conv(graph, x, 16, loc="a", groups=groups)], ["y"])
    target = get_target("cpu:avx2")
    layer = rounded(graph.nodes[0], 8)
    assert not choose(layer, target).row.name.endswith("-16")
    weight = layer.input(1)
    weight.constant = Constant({})
    assert CostModel(target, 8)(layer) > 0
