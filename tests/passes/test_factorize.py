"""The factorise pass: the chains it builds, ranks and prices, refusals, composition, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, DType, Graph, Node, Value
from dlcc.ops.base import op_of
from dlcc.ops.conv import convolve, window_of
from passes import PassContext, PassManager, PipelineResult
from passes.factorization.forms import Spatial, Svd, Tucker, rank_grid
from passes.factorization.layer import Layer
from passes.factorize import FORMS, Factorize
from tests.passes.conftest import Net


def macs(node: Node) -> float:
    """A machine on which a second is a multiply-accumulate."""
    return float(op_of(node).macs(node))


def factorise(
    graph: Graph, options: str = "", cost: Callable[[Node], float] | None = macs
) -> PipelineResult:
    return PassManager(f"factorize{{{options}}}").run(graph, PassContext(cost=cost))


def reasons(result: PipelineResult) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == "refused"}


def feed(graph: Graph, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs}


def low_rank(rng: np.random.Generator, o: int, i: int, k: int, r: int, s: int) -> Any:
    """A weight of Tucker ranks (r, s)."""
    core = rng.standard_normal((s, r, k, k))
    ends = rng.standard_normal((o, s)), rng.standard_normal((r, i))
    return np.einsum("os,srkl,ri->oikl", ends[0], core, ends[1])


def closely(got: Any, want: Any, limit: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * np.abs(want).max())


def one_conv(
    net: Net, weight: Any, *, size: int = 9, residual: bool = False, **attrs: Any
) -> Graph:
    x = net.input(2, weight.shape[1], size, size)
    bias = net.random(weight.shape[0], name="b")
    operands: list[Value | None] = [x, net.const(weight, "w"), bias]
    if residual:
        shape = net.op("conv2d", *operands, loc="like", **attrs).type.shape
        operands.append(net.input(*shape, name="r"))
    return net.done(net.op("conv2d", *operands, loc="conv", **attrs))


# -- what the graph becomes --------------------------------------------------------------------


def test_tucker_of_a_convolution(net: Any, golden: Any) -> None:
    weight = low_rank(net.rng, 24, 16, 3, 4, 6)
    x = net.input(1, 16, 9, 9)
    attrs = {"pads": (1, 1, 1, 1), "strides": (2, 2), "act_min": 0.0}
    y = net.op("conv2d", x, net.const(weight, "w"), net.random(24, name="b"), loc="stem", **attrs)
    golden(net.done(y), "factorize{energy=0.999}")


def test_spatial_of_a_convolution(net: Any, golden: Any) -> None:
    weight = np.einsum(
        "orl,rik->oikl", net.random(16, 2, 3).decoded(), net.random(2, 16, 3).decoded()
    )
    x = net.input(1, 16, 9, 11)
    attrs = {"pads": (1, 2, 3, 4), "strides": (2, 1), "dilations": (1, 2)}
    y = net.op("conv2d", x, net.const(weight, "w"), loc="conv", **attrs)
    golden(net.done(y), "factorize{method=spatial energy=0.999}")


def test_svd_of_linear_layers(net: Any, golden: Any) -> None:
    x = net.input(1, 64)
    first = net.const(net.rng.standard_normal((48, 4)) @ net.rng.standard_normal((4, 64)), "w")
    a = net.op("linear", x, first, net.random(48, name="b"), loc="fc1", act_min=0.0)
    golden(net.done(net.linear(a, 10, loc="fc2")), "factorize{energy=0.99}")


@pytest.mark.parametrize("method", ["svd", "tucker", "spatial"])
@pytest.mark.parametrize("residual", [False, True])
def test_an_exact_factorisation_computes_the_same(net: Any, method: str, residual: bool) -> None:
    weight = low_rank(net.rng, 20, 18, 3, 3, 4)
    attrs = {"pads": (2, 1, 0, 1), "strides": (1, 2), "dilations": (2, 1), "act_max": 9.0}
    graph = one_conv(net, weight, residual=residual, **attrs)
    before = graph.copy()
    result = factorise(graph, f"method={method} energy=0.9999999 only=[conv]")
    verify(graph)
    assert result.modified
    chain = [n for n in graph.nodes if n.loc.startswith("conv.")]
    assert [n.loc for n in chain] == {
        "svd": ["conv.reduce", "conv.expand"],
        "tucker": ["conv.reduce", "conv.core", "conv.expand"],
        "spatial": ["conv.vertical", "conv.horizontal"],
    }[method]
    assert all(n.optional_input(2) is None and "act_max" not in n.attrs for n in chain[:-1])
    assert chain[-1].attrs["act_max"] == 9.0
    assert (chain[-1].optional_input(3) is not None) == residual
    assert graph.outputs[0].name == before.outputs[0].name
    closely(execute(graph, feed(graph))["y0"], execute(before, feed(graph))["y0"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_chains_compute_what_their_weights_compose_to(data: Any) -> None:
    draw: Callable[..., Any] = data.draw
    net = Net(draw(st.integers(0, 99)))
    kh, kw = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 5), (5, 1)]))
    o, i = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    strides, dilations = ((draw(st.integers(1, 2)), draw(st.integers(1, 2))) for _ in range(2))
    size = 12
    x = net.input(1, i, size, size)
    weight = net.random(o, i, kh, kw)
    attrs = {"pads": pads, "strides": strides, "dilations": dilations}
    y = net.op("conv2d", x, weight, loc="conv", **attrs)
    layer = Layer.of(y.producer, weight.decoded())
    names = [m for m in FORMS if not FORMS[m].refusal(layer)]
    form = FORMS[draw(st.sampled_from(names))](layer)
    ranks = tuple(draw(st.integers(1, full)) for full in form.full)
    weights = form.weights(ranks)
    assert [w.shape for w in weights] == [f.shape for f in form.factors(ranks)]
    composed = form.compose(weights)
    error = np.square(composed - layer.weight).sum() / layer.energy
    assert error <= 1 - form.kept(ranks) + 1e-9
    if len(weights) == 1:
        return
    graph = net.done(y)
    sample = feed(graph)
    rank = max(ranks)
    limited = tuple(min(rank, full) for full in form.full)
    if limited == form.full:
        return
    want = convolve(
        sample["x"], form.compose(form.weights(limited)), window_of(graph.nodes[0]), 1, np.float64
    )

    def cost(node: Node) -> float:
        return 9.0 if node.loc == "conv" else 1.0

    PassManager([Factorize(method=form.name, rank=rank)]).run(graph, PassContext(cost=cost))
    assert len(graph.nodes) == len(form.factors(limited))
    closely(execute(graph, sample)["y0"], want)


def test_full_ranks_are_exact() -> None:
    net = Net()
    y = net.conv(net.input(1, 6, 5, 5), 7)
    layer = Layer.of(y.producer, y.producer.input(1).decoded())  # type: ignore[union-attr, arg-type]
    for form in (Svd(layer), Tucker(layer), Spatial(layer)):
        closely(form.compose(form.weights(form.full)), layer.weight, 1e-9)
        assert form.kept(form.full) == pytest.approx(1.0)
        assert form.full not in form.candidates()


def test_svd_keeps_what_numpy_says() -> None:
    net = Net()
    y = net.linear(net.input(1, 40), 30)
    weight = y.producer.input(1).decoded()  # type: ignore[union-attr]
    form = Svd(Layer.of(y.producer, weight))  # type: ignore[arg-type]
    s = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    for rank in (1, 7, 29):
        assert form.kept((rank,)) == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum())
        left = form.compose(form.weights((rank,)))[:, :, 0, 0] - weight
        assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-6)


def test_a_full_tucker_rank_needs_no_layer(net: Any) -> None:
    weight = low_rank(net.rng, 8, 32, 3, 4, 8)
    graph = one_conv(net, weight, pads=(1, 1, 1, 1))
    factorise(graph, "method=tucker energy=0.99999")
    assert [n.loc for n in graph.nodes] == ["conv.reduce", "conv.core"]
    assert graph.nodes[-1].optional_input(2) is not None


def test_cp_finds_the_outer_products(net: Any) -> None:
    modes = [net.rng.standard_normal((n, 4)) for n in (20, 18, 3, 3)]
    graph = one_conv(net, np.einsum("or,ir,kr,lr->oikl", *modes), pads=(1, 0, 1, 2), strides=(2, 1))
    before = graph.copy()
    factorise(graph, "method=cp rank=6")
    suffixes = ["reduce", "vertical", "horizontal", "expand"]
    assert [n.loc for n in graph.nodes] == [f"conv.{s}" for s in suffixes]
    assert [n.attrs.get("groups", 1) for n in graph.nodes] == [1, 6, 6, 1]
    got, want = (execute(g, feed(graph))["y0"] for g in (graph, before))
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_names_are_unique(net: Any) -> None:
    x = net.input(1, 32)
    taken = net.linear(x, 32, loc="fc.reduce")
    w = net.const(net.rng.standard_normal((32, 2)) @ net.rng.standard_normal((2, 32)), "w")
    graph = net.done(taken, net.op("linear", x, w, loc="fc"))
    factorise(graph, "energy=0.9999")
    assert [n.loc for n in graph.nodes] == ["fc.reduce", "fc.reduce_1", "fc.expand"]


def test_a_shared_weight_is_factorised_in_every_layer(net: Any) -> None:
    x = net.input(1, 32)
    w = net.const(net.rng.standard_normal((32, 2)) @ net.rng.standard_normal((2, 32)), "w")
    a = net.op("linear", x, w, loc="a")
    graph = net.done(net.op("linear", a, w, loc="b"))
    before = graph.copy()
    factorise(graph, "energy=0.9999")
    assert [n.loc for n in graph.nodes] == ["a.reduce", "a.expand", "b.reduce", "b.expand"]
    assert graph.nodes[0].input(1) is graph.nodes[2].input(1)
    closely(execute(graph, feed(graph))["y0"], execute(before, feed(graph))["y0"])


def test_moments_of_a_batch_norm_follow_the_layer(net: Any) -> None:
    graph = one_conv(net, low_rank(net.rng, 16, 16, 3, 2, 2))
    context = PassContext(cost=macs, channel_moments={"conv": (np.zeros(16), np.ones(16))})
    PassManager("factorize").run(graph, context)
    assert list(context.channel_moments) == ["conv.expand"]


# -- ranks and prices --------------------------------------------------------------------------


def decaying(net: Net, outputs: int, inputs: int, decay: float = 0.8) -> Any:
    """A matrix with singular values 1, decay, decay^2, ..."""
    shape = min(outputs, inputs)
    left, _ = np.linalg.qr(net.rng.standard_normal((outputs, shape)))
    right, _ = np.linalg.qr(net.rng.standard_normal((inputs, shape)))
    return (left * decay ** np.arange(shape)) @ right.T


def matrix_net(net: Net, weight: Any) -> Graph:
    x = net.input(1, weight.shape[1])
    return net.done(net.op("linear", x, net.const(weight, "w"), loc="fc"))


def rank_of(graph: Graph) -> int:
    return graph.nodes[0].output.type.shape[-1]


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ("", 6),  # 1 - 0.64^6 = 0.931, 0.64^5 = 0.107
        ("energy=0.99", 11),
        ("error=0.1", 11),
        ("error=0.3", 6),
        ("speedup=4", 8),  # 64 * 64 / 4 / (64 + 64)
        ("ratio=0.25", 16),
        ("rank=9", 9),
    ],
)
def test_rules_for_ranks(net: Any, options: str, rank: int) -> None:
    graph = matrix_net(net, decaying(net, 64, 64))
    result = factorise(graph, options)
    assert rank_of(graph) == rank
    statistics = result.records[0].statistics
    assert statistics["factorised_layers"] == 1
    assert statistics["saved_bytes"] == 4 * (64 * 64 - rank * 128)
    assert statistics["worst_error"] == pytest.approx(0.8**rank, rel=1e-3)


def test_variational_bayes_finds_the_signal(net: Any) -> None:
    noise = net.rng.standard_normal((96, 128))
    signal = net.rng.standard_normal((96, 7)) @ net.rng.standard_normal((7, 128))
    graph = matrix_net(net, noise + signal)
    factorise(graph, "rank=evb")
    assert rank_of(graph) == 7


def test_variational_bayes_refuses_noise(net: Any) -> None:
    graph = matrix_net(net, net.rng.standard_normal((64, 80)))
    result = factorise(graph, "rank=evb")
    assert "no component above the noise" in reasons(result)["fc"]


def stepped(node: Node) -> float:
    """Kernels that compute 16 output channels at once, and sum in steps of 4."""
    n, k = node.input(1).type.shape[:2]
    return float(math.ceil(n / 16) * 16 * math.ceil(k / 4) * 4)


def test_ranks_are_rounded_as_the_kernels_like_them(net: Any) -> None:
    graph = matrix_net(net, decaying(net, 256, 256))
    factorise(graph, "ratio=0.04", stepped)
    assert rank_of(graph) == 12, "10 rounded up to a step of the second factor"
    graph = matrix_net(Net(), decaying(net, 256, 256))
    first_only = {"fc.reduce": 16}

    def cost(node: Node) -> float:
        n = node.input(1).type.shape[0]
        return math.ceil(n / first_only.get(node.loc, n)) if node.loc != "fc" else 99.0

    factorise(graph, "ratio=0.04", cost)
    assert rank_of(graph) == 16, "the most exact one of equal cost"


def test_the_fastest_form_that_meets_the_rule_is_taken(net: Any) -> None:
    weight = low_rank(net.rng, 32, 32, 3, 4, 4)
    graph = one_conv(net, weight)
    factorise(graph, "energy=0.9999")
    assert [n.loc for n in graph.nodes] == ["conv.reduce", "conv.core", "conv.expand"]
    vertical = net.rng.standard_normal((4, 32, 3))
    weight = np.einsum("orl,rik->oikl", net.rng.standard_normal((32, 4, 3)), vertical)
    graph = one_conv(Net(), weight)
    factorise(graph, "energy=0.9999")
    assert [n.loc for n in graph.nodes] == ["conv.vertical", "conv.horizontal"]


def test_factors_that_are_not_faster_are_refused_with_both_numbers(net: Any) -> None:
    graph = matrix_net(net, decaying(net, 64, 64))
    result = factorise(graph, "energy=0.9", lambda node: 2e-6 if node.loc == "fc" else 1.5e-6)
    assert not result.modified
    reason = reasons(result)["fc"]
    assert "svd of rank 6 of 64 keeps 0.9" in reason or "keeps" in reason
    assert reason.endswith("predicted to take 3.0 us, the layer itself 2.0 us")


def test_a_small_gain_is_refused(net: Any) -> None:
    def cost(node: Node) -> float:
        return 1.0 if node.loc == "fc" else 0.475

    assert not factorise(matrix_net(net, decaying(net, 64, 64)), "gain=0.06", cost).modified
    assert factorise(matrix_net(Net(), decaying(net, 64, 64)), "gain=0.04", cost).modified


def test_without_a_target_the_nominal_machine_decides(net: Any) -> None:
    graph = matrix_net(net, decaying(net, 64, 64))
    assert factorise(graph, "energy=0.9", None).modified
    assert not factorise(
        matrix_net(Net(), decaying(net, 64, 64)), "energy=0.9999999999", None
    ).modified


def test_no_rank_is_fast_enough(net: Any) -> None:
    result = factorise(matrix_net(net, decaying(net, 64, 64)), "speedup=100")
    assert reasons(result)["fc"] == "no rank is predicted 100 times as fast"


@pytest.mark.parametrize("full", [2, 3, 17, 64, 65, 100, 500, 1000, 5000, 30000])
@pytest.mark.parametrize("fine", [False, True])
def test_grids_of_ranks(full: int, fine: bool) -> None:
    grid = rank_grid(full, fine=fine)
    assert grid == sorted(set(grid))
    assert grid[-1] == full
    assert grid[0] >= 1
    assert len(grid) <= (500 if full > 4096 else 80)
    assert all(16 % r == 0 or r % 16 == 0 or full <= 512 for r in grid[:1])


# -- refusals ----------------------------------------------------------------------------------


def test_layers_that_cannot_be_factorised_are_named(net: Any) -> None:
    x = net.input(1, 8, 9, 9)
    net.op("conv2d", x, net.input(8, 8, 3, 3, name="given"), loc="given weight")
    values = {
        "depthwise": net.conv(x, 8, groups=8, loc="depthwise"),
        "grouped": net.conv(x, 8, groups=2, loc="grouped"),
        "zero": net.op("conv2d", x, net.const(np.zeros((8, 8, 3, 3))), loc="zero"),
        "nan": net.op("conv2d", x, net.const(np.full((8, 8, 3, 3), np.nan)), loc="nan"),
        "pruned": net.op("conv2d", x, net.const(np.eye(8)[:, :, None, None] * 2.0), loc="pruned"),
        "transposed": net.op("conv_transpose2d", x, net.random(8, 4, 2, 2), loc="transposed"),
        "one channel": net.conv(x, 1, loc="one channel"),
        "left out": net.conv(x, 8, loc="left out"),
    }
    codes = Affine.symmetric(8, np.ones(8), 0)
    coded = net.graph.add_constant(net.random(8, 8, 3, 3).decoded(), encoding=codes)
    values["coded"] = net.op("conv2d", x, coded, loc="coded")
    graph = net.done(*values.values())
    result = factorise(graph, 'exclude=["left out"]')
    expected = {
        "given weight": "not constant",
        "depthwise": "depthwise",
        "grouped": "2 groups share no channels",
        "zero": "all zero",
        "nan": "NaN",
        "pruned": "88 % of its weights are zero",
        "transposed": "transposed",
        "one channel": "one channel only",
        "left out": "excluded by option",
        "coded": "stored as affine",
    }
    found = reasons(result)
    assert found.keys() == expected.keys()
    for loc, text in expected.items():
        assert text in found[loc]
    assert not result.modified
    assert result.records[0].statistics == {"refused_layers": len(expected)}


def test_other_precisions_are_refused() -> None:
    net = Net(dtype=DType("float", 64))
    graph = net.done(net.linear(net.input(1, 8), 8, loc="fc"))
    assert reasons(factorise(graph)) == {"fc": "not on float32 numbers"}


@pytest.mark.parametrize(
    ("method", "kernel", "reason"),
    [
        ("tucker", 1, "its kernel is 1x1"),
        ("spatial", 1, "no two axes to separate"),
        ("cp", 1, "no two"),
    ],
)
def test_methods_that_do_not_fit(net: Any, method: str, kernel: int, reason: str) -> None:
    graph = net.done(net.conv(net.input(1, 8, 5, 5), 8, kernel, loc="conv"))
    assert reason in reasons(factorise(graph, f"method={method}"))["conv"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("energy=0.9 error=0.1", "energy and error are given together"),
        ("energy=0", "nothing would be left"),
        ("error=1", "nothing would be left"),
        ("ratio=0", "nothing would be left"),
        ("energy=1", "only full ranks would do"),
        ("speedup=1", "only full ranks would do"),
        ("error=0", "only full ranks would do"),
        ("rank=-3", "is no rank"),
        ("rank=0", "is no rank"),
        ("rank=best", "is no rank"),
        ("energy=1.5", "energy (part of the squared weights to keep) must be"),
        ("speedup=0.5", "must be a number of at least 1"),
        ("ratio=nan", "must be a number from 0 to 1"),
        ("method=qr", "must be one of auto"),
        ("only=[conv9]", "the layers are fc"),
        ("rank=65", "rank 65 is above every layer's"),
    ],
)
def test_nonsense_is_refused(net: Any, options: str, why: str) -> None:
    with pytest.raises(DlccError) as caught:
        factorise(matrix_net(net, decaying(net, 64, 64)), options)
    assert caught.value.code == ExitCode.USAGE
    assert why in str(caught.value)


def test_a_rank_above_one_layers_is_refused_there(net: Any) -> None:
    x = net.input(1, 64)
    graph = net.done(net.linear(net.linear(x, 64, loc="wide"), 10, loc="narrow"))
    result = factorise(graph, "rank=16")
    assert reasons(result) == {"narrow": "rank 16 is above its full rank 10"}
    assert result.modified


def test_a_rank_may_be_an_integer_in_python() -> None:
    assert Factorize(rank=8) == Factorize(rank="8")  # type: ignore[arg-type]


# -- composition -------------------------------------------------------------------------------


def test_factorised_layers_are_quantised(net: Any, tmp_path: Any) -> None:
    x = net.input(1, 32, 8, 8)
    weight = net.const(low_rank(net.rng, 64, 32, 3, 8, 8) / 30, "w")
    a = net.op(
        "conv2d", x, weight, net.random(64, name="b"), loc="conv", pads=(1, 1, 1, 1), act_min=0.0
    )
    m = net.op("reduce_mean", a, axes=(2, 3), keepdims=False)
    wide = net.const(net.rng.standard_normal((64, 4)) @ net.rng.standard_normal((4, 64)), "v")
    head = net.op("linear", m, wide, loc="fc")
    graph = net.done(head)
    before = graph.copy()
    samples = [feed(graph, seed) for seed in range(32)]
    factorise(graph, "energy=0.999")
    result = dlcc.compile(
        graph, tmp_path / "out", passes="quantize{bits=8}", calibration=lambda: iter(samples)
    )
    factors = [n for n in result.optimised.graph.nodes if n.op in ("conv2d", "linear")]
    assert [n.loc for n in factors] == [
        *("conv.reduce", "conv.core", "conv.expand"),
        *("fc.reduce", "fc.expand"),
    ]
    assert all(n.input(1).type.affine.bits == 8 for n in factors)
    with dlcc.load(tmp_path / "out") as library:
        got = np.stack([library.run(s)["y0"] for s in samples])
    want = np.stack([execute(before, s)["y0"] for s in samples])
    exact = np.stack([execute(result.optimised.graph, s)["y0"] for s in samples])
    np.testing.assert_array_equal(got, exact)
    assert np.square(got - want).sum() < 0.01 * np.square(want).sum()
