"""conv2d, conv_transpose2d: importers against ONNX Runtime, integer forms against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dlcc import numerics
from dlcc.errors import DlccError
from dlcc.ir import F32, Affine, Graph, Node, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from tests.ops.onnx_nodes import agrees, floats, import_node

CONVOLUTIONS = [
    ((2, 3, 9, 8), (4, 3, 3, 3), {"pads": (1, 0, 2, 1), "strides": (2, 1)}),
    ((1, 3, 9, 8), (4, 3, 1, 1), {"strides": (2, 2)}),
    ((1, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "dilations": (2, 3)}),
    ((2, 4, 7, 7), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    ((1, 4, 7, 7), (8, 1, 3, 3), {"group": 4, "strides": (2, 2)}),
    ((1, 3, 10, 9), (2, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": (3, 2)}),
    ((1, 3, 10, 9), (2, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": (1, 2)}),
    ((1, 3, 10, 9), (2, 3, 4, 3), {"auto_pad": "VALID"}),
    ((2, 3, 11), (4, 3, 3), {"pads": (1, 2), "strides": (2,), "dilations": (2,)}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), CONVOLUTIONS)
@pytest.mark.parametrize("opset", [7, 13])
def test_conv_agrees_with_onnx_runtime(x, w, attrs, opset):
    agrees("Conv", floats(*x), [floats(*w, seed=1), floats(w[0], seed=2)], opset=opset, **attrs)


TRANSPOSED = [
    ((2, 4, 5, 6), (4, 3, 3, 2), {"strides": (2, 3), "pads": (1, 0, 0, 1)}),
    ((1, 4, 5, 6), (4, 2, 3, 3), {"group": 2, "dilations": (2, 1), "output_padding": (1, 0),
                                  "strides": (2, 2)}),
    ((1, 2, 5, 6), (2, 3, 3, 3), {"strides": (2, 2), "output_shape": (10, 12)}),
    ((1, 2, 5, 6), (2, 3, 3, 3), {"strides": (2, 2), "auto_pad": "SAME_UPPER"}),
    ((1, 2, 5, 6), (2, 3, 3, 3), {"strides": (2, 3), "auto_pad": "SAME_LOWER"}),
    ((2, 3, 7), (3, 4, 3), {"strides": (2,), "pads": (1, 0), "output_padding": (1,)}),
]  # fmt: skip


@pytest.mark.parametrize(("x", "w", "attrs"), TRANSPOSED)
def test_conv_transpose_agrees_with_onnx_runtime(x, w, attrs):
    bias = floats(w[1] * attrs.get("group", 1), seed=2)
    agrees("ConvTranspose", floats(*x), [floats(*w, seed=1), bias], **attrs)


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_four_dimensions_are_refused_with_the_reason(op_type):
    with pytest.raises(DlccError, match="4-D"):
        import_node(op_type, floats(1, 2, 2, 2, 2, 2), [floats(2, 2, 2, 2, 2, 2)])


# -- integer form ------------------------------------------------------------------------------


def quantised_layer(
    op: str, x: np.ndarray, weight: np.ndarray, out: Affine | None, *, seed: int = 0, **more
) -> tuple[Node, list[np.ndarray]]:
    """A layer on u8 codes with s8 weights, int32 bias, and a residual where one is asked for."""
    rng = np.random.default_rng(seed)
    axis = 1 if op == "conv_transpose2d" else 0
    residual, attrs = more.pop("residual", None), more
    graph = Graph("g")
    source = Affine.per_tensor(8, False, 0.02, 131)
    outs = weight.shape[axis] * (attrs.get("groups", 1) if axis else 1)
    count = weight.shape[axis]
    scales = rng.uniform(0.001, 0.004, count).astype(np.float32)
    if axis and attrs.get("groups", 1) > 1:
        weights = Affine.per_tensor(8, True, float(scales[0]), 0)
        scales = np.repeat(scales[:1], outs)
    else:
        weights = Affine(8, True, tuple(scales.tolist()), (0,) * count, axis)
    bias_scales = np.float64(source.scale) * scales.astype(np.float64)
    bias = rng.integers(-3000, 3000, outs).astype(np.int32)
    bias_type = Affine(32, True, tuple(bias_scales.tolist()), (0,) * outs, 0)
    operands = [
        graph.add_input("x", TensorType(x.shape, F32, source)),
        graph.add_stored({"values": weight}, TensorType(weight.shape, F32, weights)),
        graph.add_stored({"values": bias}, TensorType(bias.shape, F32, bias_type)),
    ]
    arrays = [x, weight, bias]
    if residual is not None:
        encoding = Affine.per_tensor(8, False, 0.03, 90)
        operands.append(graph.add_input("r", TensorType(residual.shape, F32, encoding)))
        arrays.append(residual)
    node = build(graph, op, operands, attrs)
    node.output.type = node.output.type.with_(encoding=out or DENSE)
    return node, arrays


def brute_force_sums(x, weight, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), groups=1):
    """Sums of a convolution by loops, int64."""
    n, _, h, w = x.shape
    outs, per_group, kh, kw = weight.shape
    top, left, bottom, right = pads
    oh = (h + top + bottom - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    ow = (w + left + right - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    sums = np.zeros((n, outs, oh, ow), np.int64)
    for o, r, c, k, i, j in itertools.product(
        range(outs), range(oh), range(ow), range(per_group), range(kh), range(kw)
    ):
        row = r * strides[0] + i * dilations[0] - top
        column = c * strides[1] + j * dilations[1] - left
        if 0 <= row < h and 0 <= column < w:
            channel = o // (outs // groups) * per_group + k
            sums[:, o, r, c] += x[:, channel, row, column] * int(weight[o, k, i, j])
    return sums


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dense_output", [False, True])
def test_integer_conv_is_exact(groups, dense_output):
    rng = np.random.default_rng(groups)
    x = rng.integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
    weight = rng.integers(-128, 128, (4, 4 // groups, 3, 2)).astype(np.int8)
    geometry = {"strides": (2, 1), "dilations": (1, 2), "pads": (1, 0, 1, 2), "groups": groups}
    out = None if dense_output else Affine.per_tensor(8, False, 0.05, 100)
    shape = brute_force_sums(x.astype(np.int64), weight, **geometry).shape
    residual = rng.integers(0, 256, shape).astype(np.uint8)
    node, arrays = quantised_layer(
        "conv2d", x, weight, out, residual=residual, act_min=-1.0, act_max=3.0, **geometry
    )
    (got,) = op_of(node).reference(node, arrays)
    acc = brute_force_sums(x.astype(np.int64) - 131, weight, **geometry)
    acc = acc + arrays[2].reshape(1, -1, 1, 1)
    scales = np.float64(np.float32(0.02)) * np.asarray(node.input(1).type.affine.scales, np.float64)
    scales = scales.reshape(1, -1, 1, 1)
    term = (residual.astype(np.int32) - 90).astype(np.float32)
    ratio = (np.float64(np.float32(0.03)) / scales).astype(np.float32)
    acc = (acc + np.rint(term * ratio).astype(np.int64)).astype(np.int32)
    if out is None:
        want = acc.astype(np.float32) * scales.astype(np.float32)
        np.testing.assert_array_equal(got, np.clip(want, np.float32(-1), np.float32(3)))
        return
    factor = (scales / np.float64(np.float32(0.05))).astype(np.float32)
    want = np.rint(acc.astype(np.float32) * factor) + np.float32(100)
    np.testing.assert_array_equal(got, np.clip(want, 80, 160).astype(np.uint8))
    assert got.dtype == np.uint8


def test_long_integer_sums_are_exact():
    """Sums above 2^24 cannot run in float32; those above 2^31 wrap like a 32-bit register."""
    x = np.full((1, 4000, 3, 3), 255, np.uint8)
    weight = np.full((1, 4000, 3, 3), 127, np.int8)
    node, arrays = quantised_layer("conv2d", x, weight, None)
    (got,) = op_of(node).reference(node, arrays)
    acc = np.int64(4000 * 9) * (255 - 131) * 127 + int(arrays[2][0])
    assert acc > 1 << 24
    scale = np.float64(np.float32(0.02)) * node.input(1).type.affine.scales[0]
    wrapped = np.asarray(acc).astype(np.int32)
    want = numerics.dequantise(wrapped, numerics.multiplier([scale]))
    np.testing.assert_array_equal(got.reshape(-1), want.reshape(-1))


@pytest.mark.parametrize("groups", [1, 2])
def test_integer_conv_transpose_is_exact(groups):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (2, 4, 3, 4)).astype(np.uint8)
    weight = rng.integers(-127, 128, (4, 3, 3, 2)).astype(np.int8)
    out = Affine.per_tensor(8, False, 0.04, 120)
    geometry = {"strides": (2, 1), "pads": (1, 0, 0, 1), "groups": groups}
    node, arrays = quantised_layer("conv_transpose2d", x, weight, out, **geometry)
    (got,) = op_of(node).reference(node, arrays)
    real = [v.type.encoding.dequantise(a) for v, a in zip(node.inputs, arrays, strict=True)]
    (exact,) = op_of(node).evaluate(node, [r.astype(np.float64) for r in real])
    codes = np.clip(np.rint(exact / np.float32(0.04)) + 120, 0, 255)
    assert np.abs(codes - got).max() <= 1
    assert (codes == got).mean() > 0.99


def test_weight_only_quantisation_decodes_the_weight():
    weight = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    graph, x = Graph("g"), floats(1, 3, 6, 6)
    encoding = Affine.symmetric(8, np.asarray([0.1, 0.2, 0.3, 0.4]), 0)
    constant = graph.add_stored({"values": weight}, TensorType(weight.shape, F32, encoding))
    node = build(graph, "conv2d", [graph.add_input("x", TensorType(x.shape)), constant])
    (got,) = op_of(node).reference(node, [x, weight])
    (want,) = op_of(node).evaluate(node, [x, encoding.dequantise(weight)])
    np.testing.assert_array_equal(got, want)


# -- inference, intervals, errors ----------------------------------------------------------------


def float_conv(x=(1, 3, 8, 8), w=(4, 3, 3, 3), **attrs) -> Node:
    graph = Graph("g")
    operands = [graph.add_input("x", TensorType(x)), graph.add_constant(floats(*w, seed=5))]
    return build(graph, "conv2d", operands, attrs)


def test_interval_holds_every_output_and_is_reached():
    node = float_conv(x=(1, 3, 3, 3))
    weight = node.input(1).decoded()
    (found,) = op_of(node).interval(node, [Interval(-0.5, 2.0), None])
    highest = max(float(np.where(w > 0, 2.0, -0.5).ravel() @ w.ravel()) for w in weight)
    assert found.high == pytest.approx(highest, rel=1e-5)
    x = np.random.default_rng(0).uniform(-0.5, 2, (1, 3, 3, 3)).astype(np.float32)
    (y,) = op_of(node).evaluate(node, [x, weight])
    assert found.low <= y.min()
    assert y.max() <= found.high


def test_interval_counts_padding_and_the_fused_clamp():
    node = float_conv(pads=(1, 1, 1, 1), act_min=0.0, act_max=6.0)
    (found,) = op_of(node).interval(node, [Interval(5.0, 6.0), None])
    assert found.low == 0.0
    assert found.high == 6.0


def test_macs():
    assert op_of(float_conv()).macs(float_conv()) == 4 * 6 * 6 * 27


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"w": (4, 2, 3, 3)}, "groups"),
        ({"w": (4, 3, 9, 3)}, "does not fit"),
        ({"strides": (0, 1)}, "at least 1"),
        ({"x": (3, 8, 8)}, "4 axes"),
    ],
)
def test_operands_that_do_not_fit_are_refused(more, why):
    with pytest.raises(DlccError, match=why):
        float_conv(**more)


def test_asymmetric_weights_have_no_integer_form():
    x = np.zeros((1, 1, 3, 3), np.uint8)
    node, arrays = quantised_layer("conv2d", x, np.ones((1, 1, 2, 2), np.int8), None)
    encoding = Affine(8, True, (0.1,), (3,), 0)
    node.input(1).type = node.input(1).type.with_(encoding=encoding)
    with pytest.raises(DlccError, match="zero point 0"):
        op_of(node).reference(node, arrays)
