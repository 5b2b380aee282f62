"""Gradients of the reference against finite differences of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.gradients import squared_weight_gradients
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F64, Affine, Graph, Node, TensorType, Value
from dlcc.ops import build

Array = np.ndarray[Any, Any]


class Net:
    """A float64 network of two samples under construction."""

    def __init__(self, *shape: int) -> None:
        self.rng = np.random.default_rng(5)
        self.graph = Graph("net")
        self.x = self.graph.add_input("x", TensorType((2, *shape), F64))

    def const(self, *shape: int) -> Value:
        return self.graph.add_constant(self.rng.standard_normal(shape))

    def op(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        return build(self.graph, name, inputs, attrs, loc=name).output

    def conv(self, x: Value, outputs: int, kernel: int = 3, **attrs: Any) -> Value:
        weight = self.const(outputs, x.type.shape[1] // attrs.get("groups", 1), kernel, kernel)
        return self.op("conv2d", x, weight, self.const(outputs), **attrs)


def check(net: Net, *ends: Value) -> None:
    """Squares of every sample's gradient of a random projection, for all layers."""
    graph = net.graph
    graph.set_outputs(ends, [f"y{i}" for i in range(len(ends))])
    feed = {"x": net.rng.standard_normal(net.x.type.shape)}
    live: dict[Value, Array] = {}
    execute(graph, feed, live.__setitem__)
    seeds = {v: net.rng.standard_normal(v.type.shape) for v in ends}
    layers = [n for n in graph.nodes if n.op in ("conv2d", "linear")]
    found = squared_weight_gradients(graph, live, seeds, layers)
    for node in layers:
        np.testing.assert_allclose(
            found[node], by_differences(graph, node, feed, seeds), rtol=1e-3, atol=1e-6
        )


def by_differences(
    graph: Graph, node: Node, feed: dict[str, Array], seeds: dict[Value, Array]
) -> Array:
    old = node.input(1)
    weight = old.decoded()
    out = np.zeros(weight.shape)

    def losses(values: Array) -> Array:
        node.set_input(1, graph.add_constant(values))
        results = execute(graph, feed)
        node.set_input(1, old)
        return sum(  # type: ignore[return-value]
            (results[name] * seeds[v]).reshape(2, -1).sum(axis=1)
            for name, v in zip(graph.output_names, graph.outputs, strict=True)
        )

    for place in np.ndindex(weight.shape):
        up, down = weight.copy(), weight.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        out[place] = np.square((losses(up) - losses(down)) / 2e-5).sum()
    return out


def test_convolutions() -> None:
    net = Net(4, 6, 5)
    y = net.conv(net.x, 4, pads=(1, 0, 2, 1), strides=(2, 1), act_min=0.0)
    y = net.conv(y, 8, 2, groups=4, dilations=(1, 2))
    net.graph.set_outputs([y])
    y = net.conv(y, 3, 1, act_min=-1.0, act_max=1.5)
    check(net, y)


def test_residual_with_and_without_bias() -> None:
    net = Net(4, 4, 4)
    a = net.conv(net.x, 4, pads=(1, 1, 1, 1))
    b = net.op("conv2d", a, net.const(4, 4, 1, 1), None, a, act_min=0.0)
    c = net.op("conv2d", b, net.const(4, 4, 1, 1), net.const(4), a)
    check(net, c)


def test_pools_and_reductions() -> None:
    net = Net(3, 7, 6)
    y = net.conv(net.x, 4, 2)
    y = net.op("max_pool2d", y, kernel=(3, 2), strides=(2, 1), pads=(1, 0, 0, 1))
    z = net.conv(y, 3, 1)
    p = net.op("avg_pool2d", z, kernel=(2, 2), pads=(1, 1, 0, 0))
    check(
        net,
        net.op("reduce_mean", p, axes=(2, 3), keepdims=False),
        net.op("reduce_sum", z, axes=(1,)),
    )


def test_moves() -> None:
    net = Net(4, 5, 5)
    y = net.conv(net.x, 4)
    s = net.op("slice", y, starts=(1, 0), ends=(4, 3), axes=(1, 2), steps=(2, 1))
    p = net.op("pad", s, pads=(0, 1, 0, 0, 0, 1, 0, 0), value=2.0)
    q = net.op("pad", y, pads=(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    c = net.op("concat", p, net.op("expand", s, shape=s.type.shape), axis=1)
    t = net.op("transpose", c, perm=(0, 2, 3, 1))
    flat = net.op("reshape", t, shape=(2, t.type.elements // 2))
    z = net.op("linear", flat, net.const(3, flat.type.shape[1]))
    check(net, z, q)


def test_slices_of_a_volume_are_one_sample() -> None:
    net = Net(4, 3, 5, 2)
    taps = net.op("unfold", net.x, axis=1, taps=3, stride=1, dilation=1, pads=(1, 1))
    images = net.op("reshape", taps, shape=(8, 3, 5, 6))
    y = net.conv(net.op("transpose", images, perm=(0, 3, 1, 2)), 2, 2)
    back = net.op("reshape", net.op("transpose", y, perm=(0, 2, 3, 1)), shape=(2, 4, 2, 4, 2))
    taps = net.op("unfold", back, axis=1, taps=2, stride=2, dilation=1, pads=(1, 0))
    flat = net.op("reshape", taps, shape=(4, 2, 4, 4))
    z = net.conv(net.op("transpose", flat, perm=(0, 3, 1, 2)), 3, 2)
    check(net, net.op("reshape", z, shape=(2, z.type.elements // 2)))


def test_elementwise_and_normalisation() -> None:
    net = Net(3, 4, 4)
    y = net.conv(net.x, 4, 2)
    spread = net.graph.add_constant(net.rng.random(4) + 0.5)
    n = net.op("batch_norm", y, net.const(4), net.const(4), net.const(4), spread)
    g = net.op("mul", n, net.op("sigmoid", n))
    m = net.op("mul", g, net.op("reduce_mean", g, axes=(2, 3)))
    a = net.op("add", net.op("sub", m, net.const(1, 4, 1, 1)), net.op("hard_swish", y), act_max=2.0)
    check(net, net.op("softmax", a, axis=1))


def test_linear_layers() -> None:
    net = Net(3, 6)
    y = net.op("linear", net.x, net.const(5, 6), net.const(5), act_min=0.0)
    flat = net.op("reshape", y, shape=(2, 15))
    z = net.op("linear", flat, net.const(4, 15), None, None)
    check(net, net.op("linear", z, net.const(4, 4), net.const(4), z))


def test_a_layer_that_no_output_needs_has_none() -> None:
    net = Net(2, 3, 3)
    unused = net.conv(net.x, 2, 1)
    y = net.conv(net.x, 2, 1)
    net.graph.set_outputs([y])
    feed = {"x": net.rng.standard_normal((2, 2, 3, 3))}
    live: dict[Value, Array] = {}
    execute(net.graph, feed, live.__setitem__)
    layer = unused.producer
    assert layer is not None
    found = squared_weight_gradients(net.graph, live, {y: live[y]}, [layer])
    assert not found[layer].any()


@pytest.mark.parametrize("op", ["cum_sum", "codes"])
def test_ops_without_gradient(op: str) -> None:
    net = Net(2, 3, 3)
    y = net.conv(net.x, 2, 1)
    if op == "codes":
        z = net.op("relu", y)
        z.type = z.type.with_(encoding=Affine.per_tensor(8, False, 0.1, 0))
    else:
        z = net.op("cum_sum", y, axis=1)
    layer = y.producer
    assert layer is not None
    live = {net.x: np.ones((2, 2, 3, 3)), y: np.ones((2, 2, 3, 3)), z: np.ones((2, 2, 3, 3))}
    with pytest.raises(DlccError, match="no gradient of") as error:
        squared_weight_gradients(net.graph, live, {z: live[z]}, [layer])
    assert error.value.code == ExitCode.UNSUPPORTED
