"""Normalisation: importers against ONNX Runtime, integer layer norm, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from tests.frontends.models import assert_same, model, tensor
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import Operand, affine, case, check, constant, f32, reference, rng, u8


def positive(*shape: int, seed: int) -> np.ndarray:
    return (np.abs(floats(*shape, seed=seed)) + np.float32(0.1)).astype(np.float32)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_norm_agrees_with_onnx_runtime(opset):
    stats = [floats(3, seed=1), floats(3, seed=2), floats(3, seed=3), positive(3, seed=4)]
    agrees("BatchNormalization", floats(2, 3, 4, 5), stats, opset=opset, epsilon=1e-3)
    agrees("BatchNormalization", floats(2, 3), stats, opset=opset)


def test_training_mode_takes_the_statistics_of_the_batch():
    x, stats = floats(2, 3, 4), [floats(3, seed=s) for s in range(4)]
    graph, _, _ = import_node("BatchNormalization", x, stats, training_mode=1)
    (got,) = execute(graph, {"x": x}).values()
    scale, bias = (a.reshape(3, 1) for a in stats[:2])
    centred = x - x.mean((0, 2), keepdims=True)
    wanted = centred / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_layer_norm_agrees_with_onnx_runtime(axis):
    x = floats(2, 3, 4)
    shape = x.shape[axis:]
    agrees("LayerNormalization", x, [positive(*shape, seed=1), floats(*shape, seed=2)], axis=axis)
    agrees("LayerNormalization", x, [positive(*shape, seed=1)], axis=axis, epsilon=0.1)


def test_layer_norm_gives_its_statistics_too():
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean", "inverse"], axis=1)
    source = model([node], [tensor("x", (2, 3, 4))], ["y", "mean", "inverse"],
                   {"s": positive(3, 4, seed=1)})  # fmt: skip
    assert_same(import_onnx(source), source, {"x": floats(2, 3, 4)}, 1e-5)


def test_instance_group_and_local_response_norm_agree_with_onnx_runtime():
    x, scale, bias = floats(2, 4, 5, 6), positive(4, seed=1), floats(4, seed=2)
    agrees("InstanceNormalization", x, [scale, bias])
    agrees("GroupNormalization", x, [scale, bias], opset=21, num_groups=2)
    agrees("LRN", positive(2, 7, 3, 3, seed=0), size=3, alpha=0.5, beta=0.6, bias=1.2)
    agrees("LRN", positive(2, 7, 3, 3, seed=0), size=5, alpha=0.5)
    for axis, p in ((1, 2), (-1, 1)):
        agrees("LpNormalization", x, axis=axis, p=p)


def test_group_norm_of_opset_18_has_one_scale_per_group():
    x, scale, bias = floats(2, 6, 5), positive(3, seed=1), floats(3, seed=2)
    graph, _, feeds = import_node("GroupNormalization", x, [scale, bias], opset=18, num_groups=3)
    rows = x.reshape(2, 3, -1).astype(np.float64)
    normal = rows - rows.mean(axis=2, keepdims=True)
    normal /= np.sqrt(rows.var(axis=2, keepdims=True) + 1e-5)
    want = normal * scale.reshape(1, 3, 1) + bias.reshape(1, 3, 1)
    (got,) = execute(graph, feeds).values()
    np.testing.assert_allclose(got, want.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_rms_norm():
    x, scale = floats(2, 3, 8), positive(8, seed=1)
    graph, _, feeds = import_node("RMSNormalization", x, [scale], opset=23, epsilon=0.01)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + 0.01) * scale
    (got,) = execute(graph, feeds).values()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [8, 768])
def test_integer_layer_norm_is_within_one_code_of_the_real_one(depth):
    scale, bias = positive(depth, seed=1), floats(depth, seed=2)
    made = case(
        "layer_norm", [u8(9, depth), constant(scale), constant(bias)], out=affine(0.05, 128)
    )
    (got,) = reference(made)
    real = affine(0.05, 117).dequantise(made.arrays[0]).astype(np.float64)
    normal = (real - real.mean(1, keepdims=True)) / np.sqrt(real.var(1, keepdims=True) + 1e-5)
    codes = np.clip(np.rint((normal * scale + bias) / np.float32(0.05)) + 128, 0, 255)
    assert np.abs(codes - got).max() <= 1
    assert (codes == got).mean() > 0.99


def test_rows_too_long_for_int32_are_refused():
    made = case("layer_norm", [u8(1, 40000)], out=affine(0.05, 128))
    with pytest.raises(DlccError, match="do not fit int32"):
        reference(made)


def test_constant_rows_normalise_to_the_bias():
    made = case("layer_norm", [u8(2, 16), None, constant(floats(16))], out=affine(0.05, 128))
    flat = np.full((2, 16), 9, np.uint8)
    (got,) = op_of(made.node).reference(made.node, [flat, None, made.arrays[2]])
    bias = np.float32(1) * (floats(16).astype(np.float64) / np.float64(np.float32(0.05)))
    want = np.clip(np.rint(bias.astype(np.float32)) + 128, 0, 255)
    np.testing.assert_array_equal(got[0], want)


def test_batch_norm_interval_holds_every_output():
    graph, x = Graph("g"), floats(2, 3, 4)
    stats = [floats(3, seed=1), floats(3, seed=2), floats(3, seed=3), positive(3, seed=4)]
    operands = [graph.add_input("x", TensorType(x.shape)), *map(graph.add_constant, stats)]
    node = build(graph, "batch_norm", operands)
    (found,) = op_of(node).interval(node, [Interval.of(x), *[None] * 4])
    (y,) = op_of(node).evaluate(node, [x, *stats])
    assert found.low <= y.min() + 1e-5
    assert y.max() <= found.high + 1e-5


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("batch_norm", [(2, 3, 4), (4,), (3,), (3,), (3,)], {}),
        ("layer_norm", [(2, 3), (2,)], {}),
        ("group_norm", [(2, 3, 4)], {"groups": 2}),
        ("rms_norm", [()], {}),
    ],
)
def test_operands_that_do_not_fit_are_refused(op, shapes, attrs):
    graph = Graph("g")
    values = [graph.add_input(f"x{i}", TensorType(s)) for i, s in enumerate(shapes)]
    with pytest.raises(DlccError, match="not valid"):
        build(graph, op, values, attrs)


def tir_cases():
    cases = []
    known = [constant(rng(i).uniform(0.5, 2, 6).astype(np.float32)) for i in range(4)]
    late = [Operand(k.array) for k in known]
    for layout in ("", "nhwc"):
        x = f32(2, 6, 5, 7, layout=layout)
        cases += [
            case("batch_norm", [x, *known], layout=layout),
            case("batch_norm", [x, *late], layout=layout),
            case("group_norm", [x, *known[:2]], {"groups": 3}, layout=layout),
            case("instance_norm", [x, *known[:2]], layout=layout),
            case("lp_norm", [x], {"axis": 1, "p": 2}, layout=layout),
        ]
    cases.append(case("lrn", [x], {"size": 3, "alpha": 0.5, "beta": 0.7}, layout=layout))
    cases.append(case("lp_norm", [f32(2, 6, 5)], {"axis": 2, "p": 1}))
    scale, bias = (constant(rng(s).normal(size=40).astype(np.float32)) for s in (1, 2))
    x, q = f32(3, 40), u8(3, 40)
    cases += [
        case("layer_norm", [x, scale, bias]),
        case("layer_norm", [f32(2, 3, 4, 5)], {"axis": 1}),
        case("rms_norm", [x, scale]),
        case("layer_norm", [q, scale, bias], out=affine(0.03, 120)),
        case("layer_norm", [u8(5, 40, seed=3), None, bias], out=affine(0.03, 120)),
        case("layer_norm", [q, scale], out=DENSE, tolerance=0.0),
    ]
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
