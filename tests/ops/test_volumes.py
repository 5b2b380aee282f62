"""Layers and pools in one to three dimensions, run-time weights, unfold and fold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import dlcc
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph, TensorType
from dlcc.ops import Interval, build, op_of
from tests.frontends.models import assert_same, feed, model, ops, runtime, tensor
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import case, check, f32, u8

FEW = settings(max_examples=12, deadline=None, derandomize=True)
CODES, INTEGERS = 2, 6
"""Element types of ONNX: uint8, int32."""


@st.composite
def windows(draw, largest_rank=3):
    """Spatial sizes of an input, and attributes of windows over it that fit."""
    rank = draw(st.integers(1, largest_rank))
    axes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(axes), draw(axes), draw(axes)
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [draw(st.integers(span, span + 4)) for span in spans]
    return sizes, {
        "kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads,
    }  # fmt: skip


@FEW
@given(windows(), st.sampled_from([1, 2, 4]), st.integers(1, 2))
def test_convolutions_agree_with_onnx_runtime(drawn, groups, batch):
    sizes, attrs = drawn
    weight = floats(4, 4 // groups, *attrs["kernel_shape"], seed=1)
    x = floats(batch, 4, *sizes)
    agrees("Conv", x, [weight, floats(4, seed=2)], group=groups, **attrs)


@FEW
@given(windows(), st.sampled_from([1, 2]), st.data())
def test_transposed_convolutions_agree_with_onnx_runtime(drawn, groups, data):
    sizes, attrs = drawn
    weight = floats(4, 3, *attrs["kernel_shape"], seed=1)
    extra = [data.draw(st.integers(0, s - 1)) for s in attrs["strides"]]
    x, bias = floats(2, 4, *sizes), floats(3 * groups, seed=2)
    agrees("ConvTranspose", x, [weight, bias], group=groups, output_padding=extra, **attrs)


def test_a_stride_beyond_the_kernel_leaves_slices_of_bias():
    weight, bias = floats(2, 3, 1, 2, 2, seed=1), floats(3, seed=2)
    agrees("ConvTranspose", floats(1, 2, 3, 3, 3), [weight, bias], strides=[3, 2, 1])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_of_volumes(mode):
    x, weight = floats(1, 2, 5, 6, 7), floats(3, 2, 3, 2, 3, seed=1)
    agrees("Conv", x, [weight], strides=[2, 1, 3], auto_pad=mode)
    agrees("MaxPool", x, kernel_shape=[3, 2, 3], strides=[2, 1, 3], auto_pad=mode)


@FEW
@given(windows(), st.booleans(), st.booleans())
def test_pools_agree_with_onnx_runtime(drawn, ceil, include):
    sizes, attrs = drawn
    x = floats(2, 3, *sizes)
    agrees("MaxPool", x, opset=12, ceil_mode=int(ceil), **attrs)
    shared = {**attrs, "ceil_mode": int(ceil)}
    agrees("AveragePool", x, opset=19, count_include_pad=int(include), **shared)


@FEW
@given(windows(), st.sampled_from([1, 2, 3]))
def test_lp_pools_agree_with_onnx_runtime(drawn, p):
    sizes, attrs = drawn
    agrees("LpPool", floats(2, 3, *sizes), opset=18, p=p, **attrs)
    agrees("GlobalLpPool", floats(2, 3, *sizes), p=p)


@FEW
@given(windows(), st.booleans())
def test_indices_of_maxima_agree_with_onnx_runtime(drawn, column_major):
    sizes, attrs = drawn
    order = int(column_major and len(sizes) > 1)  # ONNX Runtime's lines are row-major always
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], storage_order=order, **attrs)
    outputs = ["y", tensor("i", None, 7)]
    source = model([node], [tensor("x", (2, 3, *sizes))], outputs)
    assert_same(import_onnx(source), source, feed(import_onnx(source)), 0)


def test_unpooling_puts_the_maxima_back():
    pool = helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2], strides=[2, 2])
    back = helper.make_node("MaxUnpool", ["y", "i"], ["z"], kernel_shape=[2, 2], strides=[2, 2])
    source = model([pool, back], [tensor("x", (2, 3, 6, 8))], ["z"])
    graph = import_onnx(source)
    assert_same(graph, source, feed(graph), 0)
    places, shape = np.zeros((1, 1, 2, 2), np.int64), np.asarray([1, 1, 3, 4])
    with pytest.raises(DlccError, match="smaller"):
        import_node("MaxUnpool", floats(1, 1, 2, 2), [places, shape], kernel_shape=[2, 2],
                    strides=[2, 2])  # fmt: skip


# -- weights of run time -----------------------------------------------------------------------


@FEW
@given(windows(), st.sampled_from([1, 2]), st.booleans())
def test_weights_that_are_inputs(drawn, groups, transposed):
    sizes, attrs = drawn
    kernel = attrs["kernel_shape"]
    shape = (4, 3, *kernel) if transposed else (4, 4 // groups, *kernel)
    op_type = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], group=groups, **attrs)
    count = 3 * groups if transposed else 4
    inputs = [tensor("x", (2, 4, *sizes)), tensor("w", shape), tensor("b", (count,))]
    source = model([node], inputs, ["y"])
    graph = import_onnx(source)
    assert "matmul" in ops(graph)
    assert_same(graph, source, feed(graph), 1e-5)


def test_a_bias_that_is_an_input():
    for op_type in ("Conv", "ConvTranspose"):
        node = helper.make_node(op_type, ["x", "w", "b"], ["y"], kernel_shape=[2, 2])
        inputs = [tensor("x", (1, 3, 4, 4)), tensor("b", (3,))]
        source = model([node], inputs, ["y"], {"w": floats(3, 3, 2, 2)})
        graph = import_onnx(source)
        assert_same(graph, source, feed(graph), 1e-5)


def test_integer_sums_of_run_time_weights_are_exact():
    """300 products of 255 * 255 do not fit float32's 24 bits."""
    node = helper.make_node("ConvInteger", ["x", "w", "z"], ["y"])
    inputs = [tensor("x", (1, 300, 3, 3), CODES), tensor("w", (2, 300, 2, 2), CODES)]
    source = model([node], inputs, [tensor("y", None, INTEGERS)], {"z": np.asarray(3, np.uint8)})
    rng = np.random.default_rng(0)
    given = {
        "x": rng.integers(250, 256, (1, 300, 3, 3)).astype(np.uint8),
        "w": rng.integers(250, 256, (2, 300, 2, 2)).astype(np.uint8),
    }
    assert_same(import_onnx(source), source, given, 0)


def test_quantised_convolution_with_run_time_weights():
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1, 0, 0, 1], group=2)
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(110), "ys": np.float32(0.4), "yz": np.uint8(120),
        "ws": floats(4, seed=1).__abs__() / 9, "wz": np.zeros(4, np.int8),
        "b": np.arange(4, dtype=np.int32) * 900,
    }  # fmt: skip
    constants = {k: np.asarray(v) for k, v in constants.items()}
    inputs = [tensor("x", (2, 4, 5, 6), CODES), tensor("w", (4, 2, 3, 2), 3)]
    source = model([node], inputs, [tensor("y", None, CODES)], constants)
    rng = np.random.default_rng(0)
    given = {
        "x": rng.integers(0, 256, (2, 4, 5, 6)).astype(np.uint8),
        "w": rng.integers(-128, 128, (4, 2, 3, 2)).astype(np.int8),
    }
    (theirs,) = runtime(source, given)
    (ours,) = dlcc.execute(import_onnx(source), given).values()
    assert ours.dtype == theirs.dtype
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.99


def test_windows_that_do_not_fit_are_refused():
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    for shape, why in (((2, 3, 3, 3), "does not fit"), ((2, 2, 2, 2), "do not fit the weight")):
        inputs = [tensor("x", (1, 3, 2, 2)), tensor("w", shape)]
        with pytest.raises(DlccError, match=why):
            import_onnx(model([node], inputs, ["y"]))


# -- volumes as images ---------------------------------------------------------------------------


def _network():
    """Two layers, a pool and a residual."""
    weights = {
        "w0": floats(8, 2, 3, 3, 3) / 7, "b0": floats(8), "w1": floats(8, 8, 3, 1, 3, seed=1) / 8,
        "w2": floats(8, 4, 2, 2, 2, seed=2) / 4,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first", pads=[1] * 6),
        helper.make_node("Relu", ["a"], ["ar"], name="relu"),
        helper.make_node("MaxPool", ["ar"], ["p"], name="pool", kernel_shape=[2, 2, 2],
                         strides=[2, 2, 2]),
        helper.make_node("Conv", ["p", "w1"], ["c"], name="second", pads=[1, 0, 1, 1, 0, 1]),
        helper.make_node("Add", ["p", "c"], ["d"], name="residual"),
        helper.make_node("Relu", ["d"], ["dr"], name="relu2"),
        helper.make_node("ConvTranspose", ["dr", "w2"], ["y"], name="up", strides=[2, 2, 2]),
    ]  # fmt: skip
    return model(nodes, [tensor("x", (2, 2, 6, 8, 8))], ["y"], weights)


@pytest.mark.parametrize("bits", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_a_network_of_volumes_compiles_like_one_of_images(bits, tmp_path):
    source = _network()
    graph = import_onnx(source)
    samples = [feed(graph, seed) for seed in range(4)]
    result = dlcc.compile(graph, tmp_path, bits=bits, calibration=lambda: iter(samples))
    layers = [n for n in result.optimised.graph.nodes if n.op.startswith("conv")]
    assert [n.attrs.get("act_min") for n in layers[:2]] == [0.0, 0.0]
    assert layers[1].optional_input(3) is not None
    got, (wanted,) = dlcc.load(tmp_path)(samples[0]["x"]), runtime(source, samples[0])
    (reference,) = dlcc.execute(result.optimised.graph, samples[0]).values()
    if bits == 8:
        np.testing.assert_array_equal(got, reference)
        assert np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)) < 0.05
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# -- unfold and fold -----------------------------------------------------------------------------


def test_unfold_is_the_taps_of_every_window():
    attrs = {"axis": 1, "taps": 3, "stride": 2, "dilation": 2, "pads": (3, 2)}
    made = case("unfold", [f32(2, 6, 4, 3)], attrs)
    (got,) = op_of(made.node).evaluate(made.node, made.arrays)
    padded = np.pad(made.arrays[0], ((0, 0), (3, 2), (0, 0), (0, 0)))
    assert got.shape == (2, 4, 4, 3, 3)
    for o, k in itertools.product(range(4), range(3)):
        np.testing.assert_array_equal(got[:, o, :, k], padded[:, 2 * o + 2 * k])
    (found,) = op_of(made.node).interval(made.node, [Interval(2.0, 5.0)])
    assert (found.low, found.high) == (0.0, 5.0)


def test_fold_is_the_transpose_of_unfold():
    """<unfold(x), y> = <x, fold(y)>, with pads of either sign."""
    for pads in ((1, 2), (-1, -2), (0, -1)):
        unfold = case("unfold", [f32(1, 9, 1)],
                      {"axis": 1, "taps": 3, "stride": 2, "dilation": 2, "pads": pads})  # fmt: skip
        (taps,) = op_of(unfold.node).evaluate(unfold.node, unfold.arrays)
        y = f32(1, 1, 3, taps.shape[1], seed=3)
        fold = case("fold", [y], {"sizes": (9,), "kernel": (3,), "strides": (2,),
                                  "dilations": (2,), "pads": pads})  # fmt: skip
        (back,) = op_of(fold.node).evaluate(fold.node, fold.arrays)
        left = (taps[0, :, :, 0] * y.array[0, 0].T).sum()
        np.testing.assert_allclose(left, (unfold.arrays[0][0, :, 0] * back[0, 0]).sum(), rtol=1e-5)


def test_attributes_that_do_not_fit_are_refused():
    graph = Graph("g")
    x = graph.add_input("x", TensorType((1, 4, 4, 6)))
    for attrs, why in (
        ({"axis": 3, "taps": 2}, "no axis before the last"),
        ({"axis": 1, "taps": 0}, "at least 1"),
        ({"axis": 1, "taps": 5}, "no window of 5 fits"),
    ):
        with pytest.raises(DlccError, match=why):
            build(graph, "unfold", [x], attrs)
    fitting = {"sizes": (3, 4), "kernel": (2, 2), "strides": (1, 1), "dilations": (1, 1),
               "pads": (0, 0, 0, 0)}  # fmt: skip
    assert build(graph, "fold", [x], fitting).output.type.shape == (1, 4, 3, 4)
    for more, why in (
        ({"kernel": (2,)}, "not all for 2 axes"),
        ({"strides": (0, 1)}, "at least 1"),
        ({"sizes": (4, 4)}, "were expected"),
    ):
        with pytest.raises(DlccError, match=why):
            build(graph, "fold", [x], {**fitting, **more})
    large = {"kernel": (5, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4}
    with pytest.raises(DlccError, match="does not fit"):
        build(graph, "max_pool_indices", [x], large)
    with pytest.raises(DlccError, match="for blocks of"):
        import_node("Col2Im", floats(1, 5, 4), [np.asarray([4, 4]), np.asarray([2, 2])], opset=18)


def test_tir_agrees_with_the_references(tmp_path):
    taps = {"axis": 1, "taps": 3, "stride": 2, "dilation": 2, "pads": (3, 2)}
    fold = {"sizes": (4, 5), "kernel": (2, 3), "strides": (2, 1), "dilations": (1, 2),
            "pads": (1, 0, 1, 2)}  # fmt: skip
    maxima = {"kernel": (2, 3, 2), "strides": (2, 1, 1), "dilations": (1, 1, 2),
              "pads": (1, 1, 0, 0, 1, 1)}  # fmt: skip
    flat = {"kernel": (3, 2), "strides": (2, 1), "dilations": (1, 1), "pads": (1, 0, 1, 1)}
    cases = [
        case("unfold", [f32(2, 6, 4, 20)], taps),
        case("unfold", [u8(2, 6, 4, 3)], taps),
        case("unfold", [u8(2, 6, 3)], {"axis": 1, "taps": 2, "pads": (-1, 0)}),
        case("fold", [f32(2, 3, 6, 9)], fold),
        case("max_pool_indices", [f32(2, 3, 5, 4, 6)], maxima),
        case("max_pool_indices", [f32(2, 3, 5, 6)], {**flat, "column_major": True}),
        case("max_pool_indices", [f32(2, 3, 5, 6, layout="nhwc")], flat, layout="nhwc"),
    ]
    check(cases, tmp_path)
