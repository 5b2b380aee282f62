"""Pass binarize-activations: sources of signs, thresholds by brute force, scales, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.errors import DlccError
from dlcc.ir import Binary, Graph, Value
from dlcc.lowering.lower import lower
from passes import PassContext, PassManager, PipelineResult
from targets import get_target
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def larq(net: Net, x: Value) -> Value:
    return net.op("sign", net.op("add", net.op("sign", x), net.const(np.float32(0.1))))


def where(net: Net, x: Value) -> Value:
    one, zero = net.const(np.float32(1)), net.const(np.float32(0))
    above = net.op("greater_equal", x, zero)
    return net.op("where", above, one, net.const(np.float32(-1)))


def below(net: Net, x: Value) -> Value:
    half, zero = net.const(np.float32(0.5)), net.const(np.float32(0))
    return net.op("where", net.op("less", x, zero), net.const(np.float32(-0.5)), half)


def scaled(net: Net, x: Value) -> Value:
    return net.op("mul", net.const(np.float32(2)), where(net, x))


def plain(net: Net, x: Value) -> Value:
    return net.op("sign", x)


def bordered(net: Net, x: Value) -> Value:
    return net.op("pad", where(net, x), pads=(0, 0, 1, 1, 0, 0, 1, 1), value=1.0)


SOURCES = {f.__name__: f for f in (larq, where, below, scaled, plain, bordered)}


def sign_conv(net: Net, x: Value, outputs: int, loc: str, kernel: int = 3, **attrs: Any) -> Value:
    """A convolution by weights -1 and 1, whose float32 sums are exact."""
    shape = (outputs, x.type.shape[1], kernel, kernel)
    weight = net.const(np.where(net.rng.random(shape) < 0.5, -1.0, 1.0))
    return net.op("conv2d", x, weight, loc=loc, **attrs)


def run(graph: Graph, pipeline: str, context: PassContext | None = None) -> PipelineResult:
    result = PassManager(pipeline).run(graph, context or PassContext())
    verify(graph)
    return result


def told(result: PipelineResult, kind: str = "refused") -> dict[str, str]:
    chosen = [r for r in result.remarks if r.kind == kind]
    return {r.loc: r.message for r in chosen if r.pass_name == "binarize-activations"}


def feed(graph: Graph, seed: int = 5) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shape = graph.inputs[0].type.shape
    return {"x": np.round(rng.standard_normal(shape), 1).astype(np.float32)}


def output(graph: Graph, **settings: int) -> Array:
    return execute(graph, feed(graph, **settings))["y0"]


XNOR = "binarize,binarize-activations,eliminate-dead-code"


def test_sign_to_sign(golden: Callable[[Graph, str], PipelineResult]) -> None:
    net = Net()
    x = where(net, net.input(1, 8, 6, 6))
    y = net.norm(sign_conv(net, x, 40, "a", pads=(1, 1, 1, 1)))
    graph = net.done(sign_conv(net, where(net, net.op("relu", y)), 4, "b"))
    golden(graph, XNOR)


@pytest.mark.parametrize("name", SOURCES)
def test_signs_are_known_in_any_spelling(name: str) -> None:
    net = Net()
    graph = net.done(sign_conv(net, SOURCES[name](net, net.input(2, 40, 5, 5)), 24, "a"))
    before = graph.copy()
    result = run(graph, XNOR)
    layer = next(n for n in graph.nodes if n.op == "conv2d")
    assert layer.input(0).type.is_binary
    assert {n.op for n in graph.nodes} <= {"conv2d", "quantize", "pad"}
    x = feed(graph)
    if name == "plain":
        assert "sign(0), which is 0, becomes 1" in told(result, "applied")["a"]
        x["x"][x["x"] == 0] = 1
    np.testing.assert_array_equal(execute(graph, x)["y0"], execute(before, x)["y0"])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_thresholds_give_the_same_signs(data: st.DataObject) -> None:
    net = Net(data.draw(st.integers(0, 99)))
    linear = data.draw(st.booleans())
    x = net.input(3, 30) if linear else net.input(1, 6, 4, 5)
    channels, signs = data.draw(st.integers(2, 9)), where(net, x)
    if linear:
        weight = net.const(np.where(net.rng.random((channels, 30)) < 0.5, -1.0, 1.0))
        y = net.op("linear", signs, weight, loc="a")
    else:
        y = sign_conv(net, signs, channels, "a", pads=(1, 0, 2, 1))
    shape = (channels,) if linear else (channels, 1, 1)
    for kind in data.draw(st.lists(st.sampled_from("mulrcnp"), max_size=4)):
        vector = net.random(*shape)
        if kind == "n" and not linear:
            y = net.norm(y)
        elif kind == "p":
            y = net.op("prelu", y, net.const(np.float32(0.25)))
        elif kind in "rc":
            y = net.op("relu", y) if kind == "r" else net.op("clip", y, min=-2.0, max=3.0)
        elif kind in "mul":
            y = net.op("mul" if kind != "u" else "add", y, vector)
    again = where(net, y)
    if linear:
        last = net.op("linear", again, net.const(np.ones((4, channels), np.float32)), loc="b")
    else:
        last = sign_conv(net, again, 4, "b", 1)
    graph = net.done(last)
    before = graph.copy()
    result = run(graph, XNOR)
    assert result.records[1].statistics["thresholds"] == 1
    assert [n.op for n in graph.nodes] == ["quantize", *["linear" if linear else "conv2d"] * 2]
    for seed in range(3):
        np.testing.assert_array_equal(output(graph, seed=seed), output(before, seed=seed))


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("abs", "changes more than once"),
        ("place", "does not treat all places of a channel alike"),
        ("residual", "a residual is added"),
    ],
)
def test_what_is_no_threshold_stays(case: str, why: str) -> None:
    net = Net()
    x = where(net, net.input(1, 8, 4, 4))
    y = sign_conv(net, x, 8, "a", pads=(1, 1, 1, 1))
    if case == "abs":
        y = net.op("sub", net.op("abs", y), net.const(np.float32(4)))
    elif case == "place":
        y = net.op("add", y, net.random(8, 4, 4))
    else:
        y = net.op("add", y, net.op("neg", x))
    graph = net.done(sign_conv(net, where(net, y), 8, "b"))
    before = graph.copy()
    result = run(graph, f"fuse-epilogues,{XNOR}")
    assert why in told(result)["a"]
    np.testing.assert_array_equal(output(graph), output(before))


def real_layer(op: str = "conv2d") -> Graph:
    """A layer of real inputs with bias and clamp, its weights binary."""
    net = Net()
    if op == "linear":
        y = net.linear(net.input(2, 16), 8, loc="a", act_max=1.5)
    else:
        y = net.conv(net.input(1, 6, 5, 5), 8, loc="a", pads=(1, 1, 1, 1), act_max=1.5)
    return net.done(y)


def weights_of(graph: Graph) -> tuple[Array, Array]:
    layer = next(n for n in graph.nodes if n.loc == "a")
    return layer.input(1).decoded(), layer.input(2).decoded()


@pytest.mark.parametrize("scale", ["tensor", "one", "pixel"])
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_scales_of_real_inputs(op: str, scale: str) -> None:
    graph = real_layer(op)
    run(graph, "binarize")
    weight, bias = weights_of(graph)
    x = feed(graph)["x"]
    samples = [feed(graph, seed) for seed in range(4)]
    context = PassContext(calibration=lambda: iter(samples))
    result = run(graph, f"binarize-activations{{scale={scale}}}", context)
    signs = np.where(x < 0, -1, 1).astype(np.float64)
    if op == "linear":
        sums, size = signs @ weight.T.astype(np.float64), np.abs(x).mean(axis=1, keepdims=True)
    else:
        wide, many = np.pad(signs, ((0, 0), (0, 0), (1, 1), (1, 1))), np.abs(x).mean(axis=1)
        view = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
        sums = np.einsum("nchwij,ocij->nohw", view, weight)
        bias = bias.reshape(-1, 1, 1)
        view = np.lib.stride_tricks.sliding_window_view(
            np.pad(many, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2)
        )
        size = view.mean(axis=(3, 4))[:, None]
    mean = np.mean([np.abs(s["x"]).mean(dtype=np.float64) for s in samples])
    factor = {"tensor": mean, "one": 1.0, "pixel": size}[scale]
    want = np.minimum(sums * factor + bias, 1.5)
    np.testing.assert_allclose(execute(graph, {"x": x})["y0"], want, rtol=1e-5, atol=1e-5)
    if scale == "tensor":
        every = np.concatenate([s["x"] for s in samples]).astype(np.float64)
        left = every - mean * np.where(every < 0, -1, 1)
        error = np.linalg.norm(left) / np.linalg.norm(every)
        assert result.records[0].statistics["worst_activation_error"] == pytest.approx(
            error, abs=1e-6
        )


def test_layers_that_cannot_read_signs() -> None:
    net = Net()
    x = net.input(1, 8, 6, 6)
    a = net.conv(x, 8, loc="float")
    b = net.conv(net.op("relu", a, loc="act"), 8, 1, loc="positive")
    c = net.conv(net.op("max_pool2d", net.op("clip", b, min=0.0), kernel=(2, 2)), 8, 1, loc="pool")
    d = net.op("conv_transpose2d", c, net.random(8, 8, 1, 1), loc="up")
    graph = net.done(d)
    result = run(graph, "binarize{exclude=float},binarize-activations{scale=one}")
    why = told(result)
    assert "its weights are not binary; run binarize" in why["float"]
    assert "never negative (relu 'act')" in why["positive"]
    assert "never negative (clip 'clip')" in why["pool"]
    assert "transposed" in why["up"]
    assert not result.records[1].modified


def test_an_input_that_was_never_negative() -> None:
    graph = real_layer()
    context = PassContext(calibration=lambda: iter([{"x": np.ones((1, 6, 5, 5), np.float32)}]))
    result = run(graph, "binarize,binarize-activations", context)
    assert "never negative on the calibration data" in told(result)["a"]


def test_layers_are_chosen_by_name() -> None:
    net = Net()
    y = net.conv(net.conv(net.input(1, 8, 6, 6), 16, loc="first"), 16, loc="second")
    graph = net.done(y)
    result = run(graph, "binarize,binarize-activations{scale=one exclude=first}")
    assert told(result) == {"first": "excluded by option"}
    assert [n.input(0).type.is_binary for n in graph.nodes if n.op == "conv2d"] == [False, True]
    again = run(graph, "binarize-activations{scale=one}")
    assert "binary already" in told(again)["second"]
    with pytest.raises(DlccError, match="no layer matches"):
        run(graph, "binarize-activations{only=third}")


def test_errors() -> None:
    with pytest.raises(DlccError, match="needs calibration data"):
        run(real_layer(), "binarize,binarize-activations")
    for name, batch in (("empty", []), ("finite", [{"x": np.full((1, 6, 5, 5), np.inf)}])):
        arrays = [{k: a.astype(np.float32) for k, a in one.items()} for one in batch]
        context = PassContext(calibration=lambda kept=arrays: iter(kept))
        with pytest.raises(DlccError, match=name):
            run(real_layer(), "binarize,binarize-activations", context)
    with pytest.raises(DlccError, match="samples"):
        run(real_layer(), "binarize-activations{samples=0}")


def test_the_other_layers_are_quantised(tmp_path: Any) -> None:
    net = Net()
    y = net.conv(net.input(1, 3, 8, 8), 32, loc="first", pads=(1, 1, 1, 1))
    for loc in ("a", "b"):
        y = sign_conv(net, where(net, y), 32, loc, pads=(1, 1, 1, 1))
    flat = net.op("reshape", net.op("max_pool2d", y, kernel=(8, 8)), shape=(1, 32))
    graph = net.done(net.linear(flat, 10, loc="last"))
    chosen = "{only=[a,b]}"
    samples = [feed(graph, seed) for seed in range(4)]
    context = PassContext(calibration=lambda: iter(samples))
    run(graph, f"binarize{chosen},binarize-activations{chosen},quantize", context)
    layers = {n.loc: n.input(0).type.encoding.name for n in graph.nodes}
    assert [layers[loc] for loc in ("first", "a", "b", "last")] == [
        "affine",
        "binary",
        "binary",
        "affine",
    ]
    program = lower(graph, get_target("cpu:avx2"), build_object)
    write_artifact(program, tmp_path / "net")
    with dlcc.load(tmp_path / "net") as model:
        np.testing.assert_array_equal(model(feed(graph)["x"]), output(graph))


def test_a_network_of_signs_from_torch(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")

    class Signs(torch.nn.Module):
        def forward(self, x):
            return torch.where(x >= 0, 1.0, -1.0)

    class SignConv(torch.nn.Conv2d):
        def forward(self, x):
            alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, self.weight.sign() * alpha, None)

    def block(c: int, d: int, stride: int) -> list:
        return [Signs(), SignConv(c, d, 3, stride, 1), torch.nn.BatchNorm2d(d), torch.nn.Hardtanh()]

    torch.manual_seed(0)
    first = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32)]
    net = torch.nn.Sequential(*first, *block(32, 64, 1), *block(64, 64, 2), torch.nn.Flatten())
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.normal_()
    x = torch.randn(1, 3, 8, 8)
    graph = dlcc.from_torch(net, x)
    with torch.no_grad():
        want = net.eval()(x).numpy()
    from passes.pipelines import OPTIMISE

    first_loc = next(n.loc for n in graph.nodes if n.op == "conv2d")
    chosen = f"{{exclude={first_loc}}}"
    result = run(graph, f"{OPTIMISE},binarize{chosen},binarize-activations{chosen}")
    assert result.records[-1].statistics == {"layers": 2, "thresholds": 1}
    assert [n.op for n in graph.nodes].count("quantize") == 1
    got = execute(graph, {graph.inputs[0].name: x.numpy()})[graph.output_names[0]]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    program = lower(graph, get_target("cpu:avx2"), build_object)
    write_artifact(program, tmp_path / "net")
    kernels = [row["kernel"] for row in program.report["layers"] if row["op"] == "conv2d"]
    assert kernels[1:] == ["xnor", "xnor"]
    with dlcc.load(tmp_path / "net") as model:
        np.testing.assert_allclose(model(x.numpy()), got, rtol=1e-5, atol=1e-5)
    assert isinstance(graph.nodes[-2].input(0).type.encoding, Binary)
