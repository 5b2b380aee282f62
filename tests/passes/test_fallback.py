"""Operations that rounding to codes would spoil stay float, and are named."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir import Affine, Graph
from tests.passes.conftest import Net
from tests.passes.test_quantize import node, quantise, remarks, sqnr


def spectrum(net: Net, function: str) -> Graph:
    """Filters of very different gain, their power, a function of it, and layers behind."""
    x = net.input(1, 3, 16, 16)
    first = net.conv(x, 8)
    gains = net.const(np.logspace(-3, 0, 8).reshape(1, 8, 1, 1))
    seen = net.op("mul", first, gains, loc="gain")
    power = net.op("mul", seen, seen, loc="power")
    shifted = net.op("add", power, net.const(np.float32(1e-6)), loc="shift")
    loud = net.op(function, shifted, loc="loud")
    return net.done(net.conv(net.op("relu", net.conv(loud, 6, 1)), 4, 1))


@pytest.mark.parametrize("function", ["log", "sqrt"])
def test_functions_of_powers_stay_float(net: Net, function: str) -> None:
    graph = spectrum(net, function)
    before, without = graph.copy(), graph.copy()
    result = quantise(graph)
    quantise(without, "bits=8 fall-back=false")
    assert sqnr(before, graph) > sqnr(before, without) + 10
    assert sqnr(before, graph) > 15
    refused = remarks(result, "refused")
    for loc in ("gain", "power", "shift", "loud"):
        assert f"dB in {function} loud" in refused[loc]
    first, *others = [n for n in graph.nodes if n.op == "conv2d"]
    assert first.output.type.is_dense
    assert all(isinstance(n.input(0).type.encoding, Affine) for n in (first, *others))


def test_nothing_is_spoiled_in_an_ordinary_network(net: Net) -> None:
    x = net.input(1, 3, 12, 12)
    a = net.op("hard_swish", net.conv(x, 8))
    b = net.op("add", net.op("relu", net.conv(a, 8, 1)), a)
    graph = net.done(net.conv(net.op("max_pool2d", b, kernel=(2, 2), strides=(2, 2)), 4, 1))
    before = graph.copy()
    result = quantise(graph)
    assert not remarks(result, "refused")
    assert isinstance(node(graph, "hard_swish").output.type.encoding, Affine)
    assert sqnr(before, graph) > 25
