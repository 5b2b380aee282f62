"""Ranks of all layers together: the allocation, and the speed-up of a network."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.errors import DlccError
from dlcc.ir import Graph, Node
from dlcc.ops.base import op_of
from passes import PassContext, PassManager, PipelineResult
from passes.factorization.allocate import Offer, allocate, supported, total
from tests.passes.conftest import Net
from tests.passes.test_factorize_with_data import error_of, feeds

OFFER = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 10.0))


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(st.lists(OFFER, min_size=1, max_size=4), min_size=1, max_size=4),
    share=st.floats(0.0, 1.2),
)
def test_the_allocation_is_on_the_hull_of_the_best_ones(layers: Any, share: float) -> None:
    offers = {
        str(i): [Offer("svd", (j,), kept, seconds) for j, (kept, seconds) in enumerate(given)]
        for i, given in enumerate(layers)
    }
    fastest = sum(min(o.seconds for o in g) for g in offers.values())
    slowest = sum(max(o.seconds for o in g) for g in offers.values())
    budget = fastest * 0.99 + share * (slowest - fastest * 0.99)
    chosen, spent = supported(offers, budget), allocate(offers, budget)
    if budget < fastest:
        assert chosen is spent is None
        return
    assert chosen is not None
    assert spent is not None

    def loss(choice: Any) -> float:
        return sum(o.loss for o in choice)

    assert total(chosen) <= budget
    assert total(spent) <= budget + 1e-9
    assert loss(spent.values()) <= loss(chosen.values())
    for combination in product(*offers.values()):
        cheap = sum(o.seconds for o in combination) <= total(chosen) * (1 - 1e-9)
        assert not (cheap and loss(combination) < loss(chosen.values()) - 1e-9)
    for name, given_ in offers.items():
        for offer in given_:
            left = budget - total(spent) + spent[name].seconds
            assert offer.loss >= spent[name].loss or offer.seconds > left - 1e-9


def test_a_layer_that_loses_more_keeps_more() -> None:
    def layer(decay: float) -> list[Offer]:
        ranks = range(1, 11)
        return [Offer("svd", (r,), 1 - decay**r, r / 10) for r in ranks]

    chosen = allocate({"flat": layer(0.9), "steep": layer(0.3)}, 1.2)
    assert chosen is not None
    assert chosen["flat"].ranks > chosen["steep"].ranks
    assert sum(o.seconds for o in chosen.values()) > 1.0, "the budget is used"


def macs(node: Node) -> float:
    return float(op_of(node).macs(node))


def factorise(graph: Graph, options: str, data: Any = None) -> PipelineResult:
    calibration = None if data is None else lambda: iter(data)
    context = PassContext(calibration=calibration, cost=macs)
    return PassManager(f"factorize{{{options}}}").run(graph, context)


def network(net: Net) -> Graph:
    """A layer of low rank but for noise, one of full rank, and one that cannot be factorised."""
    x = net.input(1, 16, 9, 9)
    pads = (1, 1, 1, 1)
    signal = np.einsum(
        "os,sikl->oikl", *(net.rng.standard_normal(s) for s in ((32, 3), (3, 16, 3, 3)))
    )
    w = net.const(signal + 0.02 * net.rng.standard_normal(signal.shape), "w")
    a = net.op("conv2d", x, w, net.random(32), loc="low", pads=pads, act_min=0.0)
    b = net.conv(a, 32, loc="full", pads=pads, act_min=0.0)
    return net.done(net.conv(b, 32, groups=32, loc="depthwise"))


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("speedup", [1.3, 2.0, 3.0])
def test_the_network_reaches_the_speedup(net: Any, speedup: float, with_data: bool) -> None:
    graph = network(net)
    before = sum(map(macs, graph.nodes))
    data = feeds(graph, 16) if with_data else None
    result = factorise(graph, f"speedup={speedup} scope=network", data)
    after = sum(map(macs, graph.nodes))
    assert before / speedup * 0.85 < after <= before / speedup
    assert result.modified
    assert ("samples" in result.records[0].statistics) == with_data


def test_distribution_is_better_than_one_speedup_for_all(net: Any) -> None:
    graph = network(net)
    even, shared = graph.copy(), graph.copy()
    data, unseen = feeds(graph, 24), feeds(graph, 12, seed=1)
    factorise(even, "speedup=2", data)
    total = sum(map(macs, graph.nodes)) / sum(map(macs, even.nodes))
    factorise(shared, f"speedup={total} scope=network", data)
    assert error_of(graph, shared, unseen) < error_of(graph, even, unseen)


def test_layers_that_stay_are_named(net: Any) -> None:
    graph = network(net)
    result = factorise(graph, "speedup=1.2 scope=network")
    found = {r.loc: r.message for r in result.remarks if r.kind == "refused"}
    assert found["full"] == "other layers lose less for the same time"


def test_too_much_is_refused(net: Any) -> None:
    with pytest.raises(DlccError, match="cannot become 1000 times as fast: its layers take"):
        factorise(network(net), "speedup=1000 scope=network")
    with pytest.raises(DlccError, match="scope=network distributes a speedup"):
        factorise(network(Net()), "energy=0.9 scope=network")
    assert math.isfinite(Offer("svd", (1,), 0.0, 1.0).loss)
