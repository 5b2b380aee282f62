"""Fixed point: scales that are powers of two, networks computed by integer shifts alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc import numerics
from dlcc.analysis.execute import execute
from dlcc.analysis.statistics import TensorStatistic
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ops.conv import window_of
from passes import PassContext, PassManager, PipelineResult
from passes.compression.rows import conv_rows, groups_of
from passes.pipelines import OPTIMISE
from passes.quantization.fixed_point import REACH, FixedPoint, network_scale
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def shifted(t: Array, k: int) -> Array:
    """``t`` / 2^k rounded half to even, by integer additions and shifts."""
    t = t.astype(np.int64)
    return t << -k if k <= 0 else (t + ((1 << (k - 1)) - 1) + ((t >> k) & 1)) >> k


# -- the shift is what kernels compute ---------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(-REACH, REACH), st.integers(-3, 30), st.integers(0, 255))
def test_multiplying_by_a_power_of_two_is_a_shift(acc: int, k: int, zero: int) -> None:
    out = Affine.per_tensor(8, False, 1.0, zero)
    array = np.array([acc], np.int64).astype(np.int32)
    got = numerics.requantise(array, np.array([2.0**-k], np.float32), out)
    assert int(got[0]) == int(np.clip(shifted(array, k) + zero, 0, 255)[0])


def test_every_small_accumulator_and_every_tie() -> None:
    out = Affine.per_tensor(8, False, 1.0, 128)
    for k in range(1, 18):
        ties = np.arange(-300, 300) * (1 << k) + (1 << (k - 1))
        acc = np.concatenate([np.arange(-5000, 5001), ties, ties - 1, ties + 1])
        acc = acc[np.abs(acc) <= REACH].astype(np.int32)
        got = numerics.requantise(acc, np.array([2.0**-k], np.float32), out)
        np.testing.assert_array_equal(got, np.clip(shifted(acc, k) + 128, 0, 255))


def test_beyond_24_bits_it_is_not() -> None:
    big = np.array([(100 << 19) + (1 << 18) + 1], np.int32)  # just above a tie
    assert big[0] > REACH
    out = Affine.per_tensor(8, False, 1.0, 0)
    got = numerics.requantise(big, np.array([2.0**-19], np.float32), out)
    assert int(got[0]) == 100  # 2^18 + 1 was rounded to 2^18 first, then half to even
    assert int(shifted(big, 19)[0]) == 101


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(-12, 12))
def test_residual_terms_are_shifts(code: int, zero: int, k: int) -> None:
    encoding = Affine.per_tensor(8, False, 1.0, zero)
    got = numerics.residual_term(np.array([code]), encoding, np.array([2.0**-k], np.float32))
    assert int(got[0]) == int(shifted(np.array([code - zero]), k)[0])


# -- a network by shifts alone -----------------------------------------------------------------


def network(net: Net) -> Graph:
    """Convolutions, a residual, an add of tensors, a linear layer."""
    x = net.input(1, 6, 8, 8)
    a = net.op("relu", net.conv(x, 16, pads=(1, 1, 1, 1), loc="a"))
    b = net.op("relu", net.conv(a, 16, pads=(1, 1, 1, 1), groups=4, loc="b"))
    c = net.op("relu", net.op("add", net.conv(b, 16, pads=(1, 1, 1, 1), loc="c"), a))
    d = net.conv(c, 12, 3, strides=(2, 2), loc="d")
    flat = net.op("reshape", d, shape=(1, 108))
    return net.done(net.linear(net.op("relu", net.linear(flat, 20, loc="e")), 7, loc="f"))


def samples(count: int = 16, seed: int = 0, mixed: int = 6) -> list[dict[str, Array]]:
    """Inputs whose channels are mixtures of so many."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((6, mixed)) if mixed < 6 else np.eye(6)
    shape = (1, mixed, 8, 8)
    return [
        {"x": np.einsum("cm,nmhw->nchw", mixing, rng.standard_normal(shape)).astype(np.float32)}
        for _ in range(count)
    ]


def quantise(graph: Graph, options: str, data: list[dict[str, Array]]) -> PipelineResult:
    def batches() -> Iterator[dict[str, Array]]:
        return iter(data)

    result = PassManager(f"{OPTIMISE},quantize{{{options}}}").run(
        graph, PassContext(calibration=batches)
    )
    verify(graph)
    return result


def exponent(scale: float) -> int:
    mantissa, power = math.frexp(scale)
    assert mantissa == 0.5, f"{scale} is no power of two"
    return power - 1


def by_shifts(graph: Graph, feed: dict[str, Array]) -> dict[str, Array]:
    """All codes of a network of layers, by integer arithmetic; the last results as sums."""
    env: dict[Value, Array] = {}
    for node in graph.nodes:
        x = node.inputs[0]
        assert x is not None
        if node.op == "quantize":
            env[node.output] = node.output.type.affine.quantise(feed[x.name]).astype(np.int64)
        elif node.op == "reshape":
            env[node.output] = env[x].reshape(node.output.type.shape)
        elif node.op in ("conv2d", "linear"):
            env[node.output] = layer_by_shifts(node, env)
    return {v.name: a for v, a in env.items()}


def layer_by_shifts(node: Node, env: dict[Value, Array]) -> Array:
    source, weight = node.input(0).type.affine, node.input(1)
    x = env[node.input(0)] - source.zero_point
    w = weight.stored().reshape(weight.type.shape[0], -1).astype(np.int64)
    groups = groups_of(node)
    if node.op == "linear":
        acc = x @ w.T
    else:
        window = window_of(node)
        count = window.output[0] * window.output[1]
        rows = conv_rows(window.pad(x, 0), window, groups, np.arange(count))
        acc = rows @ w.reshape(groups, len(w) // groups, -1).transpose(0, 2, 1)
        acc = acc.transpose(0, 2, 1).reshape(1, len(w), *window.output)
    encoding = weight.type.affine
    shape = (1, -1, 1, 1) if node.op == "conv2d" else (1, -1)
    units = [exponent(source.scale) + exponent(s) for s in encoding.scales]
    units = units * (len(w) // len(units))
    bias = node.optional_input(2)
    if bias is not None:
        acc = acc + bias.stored().astype(np.int64).reshape(shape)
    residual = node.optional_input(3)
    if residual is not None:
        r = residual.type.affine
        terms = env[residual] - r.zero_point
        acc = acc + np.stack(
            [shifted(terms[:, c], u - exponent(r.scale)) for c, u in enumerate(units)], axis=1
        )
    assert np.abs(acc).max() <= REACH
    out = node.output.type.encoding
    if not isinstance(out, Affine):
        return acc
    low, high = numerics.activation_codes(
        out, float(node.attrs.get("act_min", -math.inf)), float(node.attrs.get("act_max", math.inf))
    )
    codes = [shifted(acc[:, c], exponent(out.scale) - u) for c, u in enumerate(units)]
    return np.clip(np.stack(codes, axis=1) + out.zero_point, low, high)


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_network_is_computed_by_shifts(net: Net, per: str, bits: int) -> None:
    graph = network(net)
    dense = graph.copy()
    data = samples()
    result = quantise(graph, f"bits={bits} fixed-point={per}", data)
    assert {n.op for n in graph.nodes} == {"quantize", "conv2d", "linear", "reshape"}
    assert any(n.op == "conv2d" and n.optional_input(3) is not None for n in graph.nodes)
    for feed in samples(3, seed=1):
        seen: dict[str, Array] = {}
        execute(graph, feed, lambda v, a, into=seen: into.__setitem__(v.name, a))  # type: ignore[misc]
        got = by_shifts(graph, feed)
        last = graph.nodes[-1]
        for name, codes in got.items():
            if name == last.output.name:
                unit = exponent(last.input(0).type.affine.scale)
                scales = np.array(last.input(1).type.affine.scales, np.float64) * 2.0**unit
                np.testing.assert_array_equal(seen[name], (codes * scales).astype(np.float32))
            else:
                np.testing.assert_array_equal(seen[name], codes)
    want, have = (
        np.stack([execute(g, f)["y0"] for f in samples(4, seed=2)]) for g in (dense, graph)
    )
    assert np.linalg.norm(have - want) < (0.05 if bits == 8 else 0.4) * np.linalg.norm(want)
    shifts = [r.message for r in result.remarks if "shifts by" in r.message]
    assert len(shifts) == 5  # the last layer's result is float


def all_scales(graph: Graph) -> list[float]:
    values = [v for v in graph.values() if isinstance(v.type.encoding, Affine)]
    return [s for v in values for s in v.type.affine.scales]


def test_one_exponent_for_the_whole_network(net: Net) -> None:
    graph = network(net)
    quantise(graph, "bits=8 fixed-point=network", samples())
    plain = {
        s
        for v in graph.values()
        if isinstance(v.type.encoding, Affine) and v.type.affine.bits == 8
        for s in v.type.affine.scales
    }
    assert len(plain) == 1
    exponent(plain.pop())
    for scale in all_scales(graph):
        exponent(scale)


def test_channels_have_exponents_of_their_own_only_where_asked(net: Net) -> None:
    x = net.input(1, 6, 8, 8)
    uneven = net.rng.standard_normal((8, 6, 3, 3)) * 2.0 ** np.arange(-4, 4).reshape(-1, 1, 1, 1)
    y = net.op("relu", net.op("conv2d", x, net.const(uneven), loc="a"))
    dense = net.done(net.conv(y, 4, loc="b"))
    kinds = {}
    for per in ("channel", "tensor"):
        graph = dense.copy()
        quantise(graph, f"fixed-point={per} equalise=false", samples())
        encoding = next(n for n in graph.nodes if n.loc == "a").input(1).type.affine
        kinds[per] = len(set(encoding.scales))
        assert encoding.axis == (0 if per == "channel" else None)
    assert kinds["channel"] >= 5
    assert kinds["tensor"] == 1


def test_signed_values_have_their_zero_in_the_middle(net: Net) -> None:
    graph = network(net)
    quantise(graph, "bits=6 fixed-point=tensor", samples())
    zeros = {
        v.type.affine.zero_point
        for v in graph.values()
        if isinstance(v.type.encoding, Affine) and v.type.affine.axis is None
        if not v.type.affine.signed
    }
    assert zeros == {0, 32}


def long_sums(depth: int) -> Graph:
    net = Net()
    x = net.input(1, depth)
    weight = net.const(np.sign(net.rng.standard_normal((4, depth))) * 0.99, "w")
    hidden = net.op("linear", x, weight, loc="deep")
    return net.done(net.linear(net.op("relu", hidden), 3))


def test_long_sums_get_larger_scales() -> None:
    def data(depth: int) -> list[dict[str, Array]]:
        return [{"x": np.full((1, depth), i, np.float32)} for i in (0.004, 0.01, 0.02)]

    graph = long_sums(2048)
    quantise(graph, "fixed-point=tensor rounding=nearest", data(2048))
    deep = next(n for n in graph.nodes if n.loc == "deep")
    assert REACH < 2048 * 63 * 255  # at the scale with the least error
    assert np.abs(deep.input(1).stored()).max() == 32
    graph = long_sums(8192)
    result = quantise(graph, "fixed-point=network rounding=nearest", data(8192))
    deep = next(n for n in graph.nodes if n.loc == "deep")
    sums = np.abs(deep.input(1).stored().astype(np.int64)).sum(axis=1).max() * 255
    text = next(r.message for r in result.remarks if r.loc == "deep" and "accumul" in r.message)
    assert sums > REACH
    assert "rounded to 24 bits before the shift" in text


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_rounding_with_data_works_at_fixed_scales(net: Net, rounding: str) -> None:
    dense = network(net)
    data, fresh = samples(32, mixed=2), samples(8, seed=2, mixed=2)
    want = np.stack([execute(dense, f)["y0"] for f in fresh])
    errors = {}
    for how in ("nearest", rounding):
        graph = dense.copy()
        quantise(graph, f"weights=[*:4] fixed-point=tensor rounding={how}", data)
        for scale in all_scales(graph):
            exponent(scale)
        got = np.stack([execute(graph, f)["y0"] for f in fresh])
        errors[how] = float(np.linalg.norm(got - want))
    assert errors[rounding] <= errors["nearest"] * (1.0 if rounding == "nearest" else 0.9)


@pytest.mark.parametrize("first", ["prune{sparsity=0.6}", "ternarize{scales=symmetric}"])
def test_compressed_weights_keep_their_kind(net: Net, first: str) -> None:
    graph = network(net)
    PassManager(first).run(graph, PassContext())
    before = {n.loc: n.input(1) for n in graph.nodes if n.op in ("conv2d", "linear")}
    zeros = {loc: v.decoded() == 0 for loc, v in before.items()}
    quantise(graph, "fixed-point=tensor equalise=false", samples())
    for node in graph.nodes:
        if node.op in ("conv2d", "linear") and node.loc in zeros:
            assert not node.input(1).decoded()[zeros[node.loc]].any()
            uniform = node.input(1).type.encoding.uniform
            if uniform is not None:
                for scale in uniform.scales:
                    exponent(scale)


def test_without_data(net: Net) -> None:
    graph = network(net)
    PassManager(f"{OPTIMISE},quantize{{fixed-point=tensor}}").run(graph, PassContext())
    for scale in all_scales(graph):
        exponent(scale)


@pytest.mark.parametrize(
    "options", ["fixed-point=on", "fixed-point=row", "fixed-point=tensor bits=9"]
)
def test_options_that_make_no_sense(net: Net, options: str) -> None:
    with pytest.raises(DlccError) as caught:
        quantise(network(net), options, samples())
    assert caught.value.code is ExitCode.USAGE


# -- choices, by brute force -------------------------------------------------------------------


def statistic(values: Array) -> TensorStatistic:
    made = TensorStatistic("v")
    made.update(values.astype(np.float32))
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 4, 8]), st.booleans())
def test_activation_scales_have_the_least_error(seed: int, bits: int, signed: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(500) * 10.0 ** rng.uniform(-3, 3)
    values = values if signed else np.abs(values)
    found = FixedPoint("tensor").activation([statistic(values)], bits, 2.0)
    assert found.zero_point == (1 << (bits - 1) if signed else 0)

    def error(scale: float) -> float:
        encoding = Affine.per_tensor(bits, False, scale, found.zero_point)
        codes = encoding.quantise(values.astype(np.float32))
        return float(np.square(encoding.dequantise(codes) - values).sum())

    each = [error(found.scale * 2.0**e) for e in (-2, -1, 1, 2)]
    assert error(found.scale) <= min(each) * 1.02  # statistics are histograms


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_weight_scales_have_the_least_error(per: str) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((3, 50)) * np.array([[0.3], [1.0], [5.0]])
    rule = FixedPoint(per)  # type: ignore[arg-type]
    ones = np.ones((1, 1))
    got = rule.weight_scales(weight, 4, np.zeros(3), ones, one=False)

    def error(scales: Array) -> float:
        codes = np.clip(np.rint(weight / scales[:, None]), -7, 7)
        return float(np.square(codes * scales[:, None] - weight).sum())

    exponents = range(-6, 3)
    if per == "tensor":
        best = min(error(np.full(3, 2.0**e)) for e in exponents)
    else:
        every = itertools.product(exponents, repeat=3)
        best = min(error(2.0 ** np.array(e, np.float64)) for e in every)
    assert error(got) == pytest.approx(best)
    raised = rule.weight_scales(weight, 4, np.full(3, 3.0), ones, one=False)
    np.testing.assert_array_equal(raised, np.full(3, 4.0))


def test_the_scale_of_a_network_fits_its_biases() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 20)) * 1e-4
    small = statistic(rng.standard_normal(200) * 1e-4)
    free = network_scale([([small], 8)], [(weight, np.zeros(4), 8)], 2.0)
    held = network_scale([([small], 8)], [(weight, np.full(4, 30.0), 8)], 2.0)
    assert free < held
    assert 30.0 / held**2 < 1 << 28
