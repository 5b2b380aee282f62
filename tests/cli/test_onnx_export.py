"""ONNX export: ONNX Runtime computes what the reference computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx_export import EXPORTERS, export_onnx, to_onnx
from dlcc.ir import BOOL, F32, I64, U8, Affine, Graph, TensorType
from dlcc.ops.base import OPS, build

ort = pytest.importorskip("onnxruntime")

INF = float("inf")


def graph_of(op, shapes, attrs=None, *, constants=(), dtype=F32, outputs=1):
    """One node on inputs of ``shapes`` (constants: operand index -> array; None: absent)."""
    graph, operands = Graph("one"), []
    fixed = dict(constants)
    for index, shape in enumerate(shapes):
        if index in fixed:
            array = fixed[index]
            operands.append(None if array is None else graph.add_constant(array, name=f"c{index}"))
        else:
            operands.append(graph.add_input(f"x{index}", TensorType(shape, dtype)))
    node = build(graph, op, operands, attrs or {}, loc="layer", outputs=outputs)
    graph.set_outputs(node.outputs, ["y"] if outputs == 1 else None)
    verify(graph)
    return graph


def feeds(graph, seed=0, low=-2.0, high=2.0):
    rng = np.random.default_rng(seed)
    out = {}
    for value in graph.inputs:
        shape, storage = value.type.shape, value.type.storage.numpy
        if storage.kind == "f":
            out[value.name] = rng.uniform(low, high, shape).astype(storage)
        elif storage.kind == "b":
            out[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            out[value.name] = rng.integers(1, 5, shape).astype(storage)
    return out


def by_onnxruntime(graph, feed, opset=17):
    proto = to_onnx(graph, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def check_float(graph, *, opset=17, low=-2.0, high=2.0):
    feed = feeds(graph, low=low, high=high)
    expected, found = execute(graph, feed), by_onnxruntime(graph, feed, opset)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        scale = max(float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0)), 1.0)
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5 * scale)


RNG = np.random.default_rng(5)


def weights(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


IMAGE = (2, 4, 7, 9)
UNARY_DOMAINS = {
    "log": (0.1, 3), "sqrt": (0, 3), "reciprocal": (0.5, 2), "acos": (-0.9, 0.9),
    "asin": (-0.9, 0.9), "atanh": (-0.9, 0.9), "acosh": (1.1, 3), "tan": (-1, 1),
}  # fmt: skip
UNARY = sorted(
    name
    for name, op in OPS.items()
    if op.operands == ("x",) and op.quantised.value == "table" and name != "not"
)
UNARY_ATTRIBUTES = [
    ("clip", {"min": -0.5}), ("clip", {"max": 0.25}), ("clip", {"min": 0.0, "max": 6.0}),
    ("gelu", {"approximate": "tanh"}), ("leaky_relu", {"alpha": 0.3}), ("elu", {"alpha": 0.7}),
    ("hard_sigmoid", {"alpha": 0.3, "beta": 0.4}), ("celu", {"alpha": 0.8}),
    ("shrink", {"bias": 0.1, "lambd": 0.4}), ("thresholded_relu", {"alpha": 0.5}),
    ("selu", {"alpha": 1.5, "gamma": 1.1}), ("cast", {"to": "i32"}),
    ("softmax", {"axis": 1}), ("log_softmax", {"axis": -1}), ("lp_norm", {"axis": 1, "p": 1}),
    ("reshape", {"shape": (4, 2, 63)}), ("transpose", {"perm": (0, 3, 1, 2)}),
    ("tile", {"repeats": (1, 2, 1, 3)}), ("expand", {"shape": (3, 2, 4, 7, 9)}),
    ("slice", {"starts": (1, 8), "ends": (3, -1), "axes": (1, 3), "steps": (1, -2)}),
    ("slice", {"starts": (0,), "ends": (7,), "axes": (2,), "steps": (3,)}),
    ("pad", {"pads": (0, 1, 2, 0, 0, 0, 1, 3), "value": 1.5}),
    ("pad", {"pads": (0, 0, 2, 1, 0, 0, 1, 3), "mode": "reflect"}),
    ("pad", {"pads": (0, 0, 2, 1, 0, 0, 1, 3), "mode": "edge"}),
    ("max_pool2d", {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}),
    ("max_pool2d", {"kernel": (2, 2), "dilations": (2, 3)}),
    ("avg_pool2d", {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("avg_pool2d", {"kernel": (3, 3), "pads": (1, 1, 0, 1), "count_include_pad": True}),
    ("unfold", {"axis": 2, "taps": 3, "stride": 2, "dilation": 2, "pads": (2, 1)}),
    ("unfold", {"axis": 1, "taps": 2, "pads": (-1, 0)}),
    ("max_pool_indices", {"kernel": (3, 2), "strides": (2, 1), "dilations": (1, 1),
                          "pads": (1, 0, 1, 1)}),
    ("resize2d", {"sizes": (14, 18)}),
    ("resize2d", {"sizes": (5, 21), "mode": "linear"}),
    ("resize2d", {"sizes": (13, 17), "mode": "linear", "coordinate": "align_corners"}),
    ("resize2d", {"sizes": (14, 27), "mode": "cubic", "exclude_outside": True}),
    ("resize2d", {"sizes": (10, 12), "mode": "linear", "scales": (1.5, 1.4),
                  "coordinate": "asymmetric"}),
    ("resize2d", {"sizes": (14, 18), "coordinate": "asymmetric", "nearest_mode": "floor"}),
    ("resize2d", {"sizes": (5, 6), "mode": "linear", "coordinate": "tf_crop_and_resize",
                  "roi": (0.1, -0.2, 0.9, 1.1), "extrapolation": 1.5}),
    ("lrn", {"size": 3, "alpha": 0.1}), ("layer_norm", {"axis": -1}), ("rms_norm", {"axis": 2}),
    ("group_norm", {"groups": 2}), ("instance_norm", {}),
    ("argmax", {"axis": 2}), ("argmin", {"axis": 1, "keepdims": False}),
]  # fmt: skip


@pytest.mark.parametrize("op", [*UNARY, "relayout"])
def test_functions_of_one_argument(op):
    low, high = UNARY_DOMAINS.get(op, (-2.0, 2.0))
    check_float(graph_of(op, [IMAGE]), low=low, high=high)


@pytest.mark.parametrize(("op", "attrs"), UNARY_ATTRIBUTES)
def test_attributes(op, attrs):
    check_float(graph_of(op, [IMAGE], attrs))


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("op", sorted(name for name in OPS if name.startswith("reduce_")))
def test_reductions(op, opset):
    check_float(graph_of(op, [IMAGE], {"axes": (1, 3)}), opset=opset)
    check_float(graph_of(op, [IMAGE], {"axes": (2,), "keepdims": False}), opset=opset)


LAYERS = [
    ("conv2d", [IMAGE, 0, 0], {"pads": (1, 2, 0, 1), "strides": (2, 1)}, [(6, 4, 3, 2), (6,)]),
    ("conv2d", [IMAGE, 0], {"groups": 4, "dilations": (2, 2), "act_min": 0.0}, [(4, 1, 3, 3)]),
    ("conv2d", [IMAGE, 0, 0, (2, 4, 7, 9)], {"act_min": 0.0, "act_max": 1.5}, [(4, 4, 1, 1), (4,)]),
    ("conv2d", [IMAGE, 0], {"act_max": 0.5, "groups": 2}, [(4, 2, 3, 3)]),
    ("conv_transpose2d", [IMAGE, 0, 0], {"strides": (2, 3), "output_padding": (1, 1),
                                         "pads": (1, 0, 1, 1)}, [(4, 3, 3, 4), (3,)]),
    ("conv_transpose2d", [IMAGE, 0], {"groups": 2, "act_min": -0.1}, [(4, 3, 2, 2)]),
    ("linear", [(3, 5), 0, 0], {"act_min": 0.0}, [(4, 5), (4,)]),
    ("linear", [(3, 5), 0], {}, [(4, 5)]),
    ("linear", [(2, 3, 5), 0, 0, (2, 3, 4)], {"act_max": 1.0}, [(4, 5), (4,)]),
    ("layer_norm", [(2, 3, 5), 0, 0], {"axis": -1, "epsilon": 1e-3}, [(5,), (5,)]),
    ("rms_norm", [(2, 3, 5), 0], {"axis": -1}, [(5,)]),
    ("group_norm", [IMAGE, 0, 0], {"groups": 2}, [(4,), (4,)]),
    ("instance_norm", [IMAGE, 0, 0], {}, [(4,), (4,)]),
    ("prelu", [IMAGE, 0], {}, [(4, 1, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attrs", "fixed"), LAYERS)
def test_layers(op, shapes, attrs, fixed):
    constants = {i + 1: weights(*shape) for i, shape in enumerate(fixed)}
    check_float(graph_of(op, shapes, attrs, constants=constants))


def test_batch_norm():
    constants = {i: weights(4) for i in (1, 2, 3)} | {4: np.abs(weights(4)) + 0.5}
    check_float(graph_of("batch_norm", [IMAGE, *[0] * 4], {"epsilon": 1e-3}, constants=constants))


def test_weights_that_are_not_constant():
    check_float(graph_of("conv2d", [IMAGE, (3, 4, 2, 2)]))
    check_float(graph_of("linear", [(2, 3, 5), (4, 5)]))
    check_float(graph_of("linear", [(3, 5), (4, 5)]))


BINARY = [
    ("add", {"act_min": 0.0}), ("add", {"act_min": -0.5, "act_max": 0.5}), ("sub", {}),
    ("mul", {}), ("div", {}), ("minimum", {}), ("maximum", {}), ("pow", {}),
    ("mod", {"fmod": True}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs"), BINARY)
def test_binary(op, attrs):
    check_float(graph_of(op, [(2, 3, 5), (3, 1)], attrs), low=0.5)


@pytest.mark.parametrize(
    "op", sorted({"equal", "less", "less_equal", "greater", "greater_equal"} & set(OPS))
)
def test_comparisons(op):
    check_float(graph_of(op, [(2, 3, 5), (3, 1)]))


@pytest.mark.parametrize("op", sorted({"and", "or", "xor"} & set(OPS)))
def test_logic(op):
    check_float(graph_of(op, [(2, 3, 5), (3, 1)], dtype=BOOL))


def test_matmul():
    check_float(graph_of("matmul", [(2, 3, 4, 5), (3, 5, 6)], {"act_max": 1.0}))
    check_float(graph_of("matmul", [(2, 4, 5), (2, 6, 5), (2, 4, 6)], {"transpose_b": True}))
    queries_and_keys = [(2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)]
    check_float(graph_of("attention", [*queries_and_keys, (3, 1, 5)], {"scale": 0.3}))
    check_float(graph_of("attention", queries_and_keys))


def test_concat_and_gather():
    check_float(graph_of("concat", [(2, 3, 4), (2, 1, 4), (2, 2, 4)], {"axis": 1}))
    index = np.array([[2, 0], [1, 1]], np.int64)
    check_float(graph_of("gather", [(2, 3, 4), 0], {"axis": 1}, constants={1: index}))


def test_selection():
    check_float(graph_of("trilu", [(2, 4, 5)], {"k": 1, "upper": False}))
    check_float(graph_of("cum_sum", [(2, 4, 5)], {"axis": 1, "reverse": True, "exclusive": True}))
    index = np.array([[2, -1], [1, 9]], np.int64)
    constants = {0: index, 1: np.array([-1, 2], np.float32)}
    check_float(graph_of("one_hot", [0, 0], {"axis": 1, "depth": 4}, constants=constants))
    places = {1: np.array([[2, 0, 1]], np.int64)}
    check_float(graph_of("gather_elements", [(3, 3), 0], constants=places))
    check_float(graph_of("scatter_elements", [(3, 3), 0, (1, 3)], constants=places))
    places = {1: np.array([[2], [0]], np.int64)}
    check_float(graph_of("gather_nd", [(3, 4), 0], constants=places))
    check_float(graph_of("scatter_nd", [(3, 4), 0, (2, 4)], {"reduction": "add"}, constants=places))
    condition = {0: np.array([[True], [False]])}
    check_float(graph_of("where", [0, (2, 3), (3,)], constants=condition))
    check_float(graph_of("is_inf", [(2, 3)], {"negative": False}))
    check_float(graph_of("is_nan", [(2, 3)]))
    check_float(graph_of("not", [(2, 3)], dtype=BOOL))


@pytest.mark.parametrize("largest", [False, True])
def test_several_results(largest):
    graph = Graph("top")
    x = graph.add_input("x", TensorType((3, 7)))
    node = build(graph, "top_k", [x], {"axis": 1, "k": 4, "largest": largest}, loc="t", outputs=2)
    graph.set_outputs(node.outputs, ["values", "places"])
    check_float(graph)


def test_bits():
    for op in ("bit_and", "bit_or", "bit_xor"):
        graph = graph_of(op, [(2, 3), (3,)], dtype=U8)
        check_float(graph, opset=18)
        with pytest.raises(DlccError, match="opset 18"):
            to_onnx(graph)
    for op in ("shift_left", "shift_right"):
        check_float(graph_of(op, [(2, 3), (3,)], dtype=U8))
        with pytest.raises(DlccError, match="unsigned"):
            to_onnx(graph_of(op, [(2, 3), (3,)], dtype=I64))


def test_opset_dependent_forms():
    for opset in (17, 20, 21):
        for attrs in ({}, {"approximate": "tanh"}):
            check_float(graph_of("gelu", [IMAGE], attrs), opset=opset)
        check_float(graph_of("rms_norm", [IMAGE], {"axis": -1}), opset=opset)
    dilated = graph_of("avg_pool2d", [IMAGE], {"kernel": (2, 2), "dilations": (2, 2)})
    check_float(dilated, opset=19)
    with pytest.raises(DlccError, match="opset 19"):
        to_onnx(dilated, opset=17)
    fold = {"sizes": (7, 9), "kernel": (2, 3), "strides": (1, 2), "dilations": (2, 1),
            "pads": (0, 1, 0, 0)}  # fmt: skip
    columns = graph_of("fold", [(2, 4, 6, 20)], fold)
    check_float(columns, opset=18)
    with pytest.raises(DlccError, match="opset 18"):
        to_onnx(columns, opset=17)
    with pytest.raises(DlccError, match="negative"):
        to_onnx(graph_of("fold", [(2, 4, 6, 15)], {**fold, "pads": (0, -1, 0, 0)}), opset=18)
    smooth = graph_of("resize2d", [IMAGE], {"sizes": (3, 9), "mode": "linear", "antialias": True})
    check_float(smooth, opset=18)
    with pytest.raises(DlccError, match="opset 18"):
        to_onnx(smooth, opset=17)
    wrapped = graph_of("pad", [IMAGE], {"pads": (0, 0, 1, 1, 0, 0, 1, 1), "mode": "wrap"})
    check_float(wrapped, opset=19)
    with pytest.raises(DlccError, match="opset 19"):
        to_onnx(wrapped, opset=17)


def test_samples_at_positions():
    for rank in (2, 3):
        shapes = [(2, *range(4, 4 + rank), 3), (2, *range(3, 3 + rank), rank)]
        for mode, padding in (("linear", "zeros"), ("nearest", "border"), ("linear", "reflection")):
            attrs = {"mode": mode, "padding": padding, "coordinates": "corners"}
            check_float(graph_of("grid_sample", shapes, attrs), opset=17 if rank == 2 else 20)
    deep = graph_of("grid_sample", [(2, 4, 5, 3), (2, 3, 2, 4, 2)], {"coordinates": "pixels"})
    check_float(deep, low=-1.0, high=5.0)
    for graph, opset, why in (
        (graph_of("grid_sample", [(1, 5, 3), (1, 4, 1)]), 20, "no 1 axes"),
        (graph_of("cum_prod", [(2, 3)], {"axis": 1}), 21, "CumProd exists from opset 26 on"),
        (graph_of("grid_sample", [(1, 5, 5, 3), (1, 4, 2)], {"coordinates": "pixels",
                  "padding": "border"}), 20, "zeros outside"),
    ):  # fmt: skip
        with pytest.raises(DlccError, match=why):
            to_onnx(graph, opset=opset)


def test_results_of_data_dependent_size_are_filled_up():
    attrs = {"boxes": 9, "iou": 0.01, "score": 0.4, "filtered": True}
    suppress = graph_of("non_max_suppression", [(1, 9, 4), (1, 2, 9)], attrs, outputs=2)
    unique = graph_of("unique_rows", [(8, 2)], {"sorted": False}, dtype=I64, outputs=4)
    places = graph_of("nonzero", [(12,)], dtype=U8, outputs=2)
    for graph in (suppress, unique, places):
        (node,) = graph.nodes
        feed = feeds(graph, low=-0.5, high=1.5)
        if graph is places:
            feed["x0"] %= 2
        expected = execute(graph, feed)
        count = next(a for a in expected.values() if not a.shape)
        assert 0 < count < node.outputs[0].type.shape[0]
        for name, array in by_onnxruntime(graph, feed).items():
            np.testing.assert_array_equal(array, expected[name])
    check_float(graph_of("determinant", [(3, 4, 4)]), low=-1.0, high=1.0)


def test_every_op_can_be_exported():
    import dlcc.frontends.onnx_export_bounded
    import dlcc.frontends.onnx_export_ops
    import dlcc.frontends.onnx_export_recurrent
    import dlcc.frontends.onnx_export_windows

    assert dlcc.frontends.onnx_export_ops.EXPORTERS is EXPORTERS
    in_lowered_networks_only = {"loop_enter", "loop_again"}
    assert set(EXPORTERS) == set(OPS) - in_lowered_networks_only


# -- names and borders -------------------------------------------------------------------------


def test_outputs_keep_their_names():
    """A value twice, an input, a constant, and a name that another value has."""
    graph = Graph("names")
    x = graph.add_input("x", TensorType((2, 3)))
    a = build(graph, "relu", [x], loc="y").output
    b = build(graph, "neg", [a], loc="b").output
    c = graph.add_constant(weights(2, 3), name="c")
    graph.set_outputs([a, a, b, x, c], ["first", "again", "y", "through", "fixed"])
    check_float(graph)


def test_node_names_are_the_layers():
    graph = graph_of("conv2d", [IMAGE, 0], {"act_min": 0.0}, constants={1: weights(4, 4, 1, 1)})
    assert [n.name for n in to_onnx(graph).graph.node] == ["layer", "layer/Relu"]


def test_integers_and_casts():
    graph = Graph("ints")
    x = graph.add_input("x", TensorType((3, 2), I64))
    y = build(graph, "add", [x, graph.add_constant(np.array([1, 2]), name="k")], loc="sum").output
    graph.set_outputs([y], ["y"])
    check_float(graph)


# -- quantised ---------------------------------------------------------------------------------


def u8(scale, zero):
    return Affine.per_tensor(8, False, scale, zero)


def quantised_cnn(signed: bool = False) -> Graph:
    """Conv with residual, depthwise, pools, mean, table op, concat, linear with float result."""
    rng = np.random.default_rng(11)
    graph = Graph("q")

    def typed(shape, scale, zero):
        zero = zero - 128 if signed else zero
        return TensorType(shape, F32, Affine.per_tensor(8, signed, scale, zero))

    def constant(name, *shape, source=None):
        values = rng.uniform(-1, 1, shape).astype(np.float32)
        scales = np.abs(values).reshape(shape[0], -1).max(1) / 127
        weight = graph.add_constant(values, encoding=Affine.symmetric(8, scales, 0), name=name)
        if source is None:
            return weight
        grid = np.float32(source.affine.scale) * scales.astype(np.float32)
        bias = rng.uniform(-1, 1, shape[0]).astype(np.float32)
        encoding = Affine.symmetric(32, grid, 0)
        return weight, graph.add_constant(bias, encoding=encoding, name=f"{name}_bias")

    def node(op, xs, attrs, type_, loc):
        return build(graph, op, xs, attrs, loc=loc, types=[type_]).output

    shape = (1, 8, 6, 6)
    x = graph.add_input("x", TensorType((1, 3, 6, 6)))
    q = node("quantize", [x], {}, typed((1, 3, 6, 6), 0.016, 120), "quant")
    w1, b1 = constant("w1", 8, 3, 3, 3, source=q.type)
    a = node("conv2d", [q, w1, b1], {"pads": (1,) * 4, "act_min": 0.0}, typed(shape, 0.03, 0), "c1")
    w2, b2 = constant("w2", 8, 1, 3, 3, source=a.type)
    attrs = {"pads": (1, 1, 1, 1), "groups": 8}
    b = node("conv2d", [a, w2, b2], attrs, typed(shape, 0.04, 100), "depthwise")
    w3, b3 = constant("w3", 8, 8, 1, 1, source=b.type)
    attrs = {"act_min": 0.0, "act_max": 6.0}
    c = node("conv2d", [b, w3, b3, a], attrs, typed(shape, 6 / 255, 0), "residual")
    half = typed((1, 8, 3, 3), 6 / 255, 0)
    d = node("max_pool2d", [c], {"kernel": (2, 2), "strides": (2, 2)}, half, "max")
    e = node("avg_pool2d", [c], {"kernel": (2, 2), "strides": (2, 2)}, half, "avg")
    f = node("add", [d, e], {}, typed((1, 8, 3, 3), 0.05, 10), "sum")
    g = node("sigmoid", [f], {}, typed((1, 8, 3, 3), 1 / 256, 0), "gate")
    h = node("mul", [f, g], {}, typed((1, 8, 3, 3), 0.05, 10), "gated")
    both = node("concat", [f, h], {"axis": 1}, typed((1, 16, 3, 3), 0.05, 10), "cat")
    mean = node("reduce_mean", [both], {"axes": (2, 3)}, typed((1, 16, 1, 1), 0.04, 20), "mean")
    flat = node("reshape", [mean], {"shape": (1, 16)}, typed((1, 16), 0.04, 20), "flat")
    w4, b4 = constant("w4", 5, 16, source=flat.type)
    scores = build(graph, "linear", [flat, w4, b4], loc="head").output
    codes = node("requantize", [flat], {}, typed((1, 16), 0.05, 30), "again")
    graph.set_outputs([scores, codes], ["scores", "codes"])
    verify(graph)
    return graph


@pytest.mark.parametrize("signed", [False, True])
def test_quantised_network(signed):
    graph = quantised_cnn(signed)
    step = float(np.max(graph.outputs[0].producer.input(1).type.affine.scales)) * 0.04 * 127
    for seed in range(8):
        feed = feeds(graph, seed)
        expected, found = execute(graph, feed), by_onnxruntime(graph, feed)
        difference = found["codes"].astype(int) - expected["codes"].astype(int)
        assert found["codes"].dtype == expected["codes"].dtype
        assert np.abs(difference).max() <= 2
        # a code more or less in one of the 16 inputs moves a score by at most one weight
        assert np.abs(found["scores"] - expected["scores"]).max() <= 16 * step
        assert np.corrcoef(found["scores"].ravel(), expected["scores"].ravel())[0, 1] > 0.999


@pytest.mark.parametrize("signed", [False, True])
def test_integer_adds(signed):
    """One more pair in the layer with a residual operand; a code or two more of error."""
    graph = quantised_cnn(signed)
    plain, rounded = to_onnx(graph), to_onnx(graph, integer_adds=True)
    assert len(rounded.graph.node) == len(plain.graph.node) + 2
    (add,) = (n for n in rounded.graph.node if n.op_type == "Add" and "residual" in n.name)
    producers = {name: n.op_type for n in rounded.graph.node for name in n.output}
    assert [producers[name] for name in add.input] == ["DequantizeLinear"] * 2
    session = ort.InferenceSession(rounded.SerializeToString())
    for seed in range(8):
        feed = feeds(graph, seed)
        expected = execute(graph, feed)["codes"].astype(int)
        found = session.run(["codes"], feed)[0].astype(int)
        assert np.abs(found - expected).max() <= 3


def test_quantised_constants_stay_integers():
    proto = to_onnx(quantised_cnn())
    stored = {t.name: t for t in proto.graph.initializer}
    kinds = {t.data_type for t in stored.values()}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.INT32} <= kinds
    weight = stored["w1_codes"]
    assert weight.data_type == onnx.TensorProto.INT8
    assert list(weight.dims) == [8, 3, 3, 3]
    floats = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(t.dims, dtype=int)) for t in floats) <= 8


def test_linear_of_higher_rank_transposes_codes():
    graph = Graph("q")
    grid = u8(0.02, 128)
    x = graph.add_input("x", TensorType((2, 3, 5), F32, grid))
    values = weights(4, 5)
    scales = np.abs(values).max(1) / 127
    w = graph.add_constant(values, encoding=Affine.symmetric(8, scales, 0), name="w")
    y = build(graph, "linear", [x, w], loc="fc").output
    graph.set_outputs([y], ["y"])
    feed = {"x": np.random.default_rng(0).integers(0, 256, (2, 3, 5)).astype(np.uint8)}
    found, expected = by_onnxruntime(graph, feed)["y"], execute(graph, feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_raw_integers_become_codes_and_back():
    graph = Graph("q")
    x = graph.add_input("x", TensorType((2, 4), F32, u8(0.5, 3)))
    y = build(graph, "relu", [x], loc="r", types=[TensorType((2, 4), F32, u8(0.25, 0))]).output
    raw = TensorType((2, 4), y.type.storage)
    z = build(graph, "reinterpret", [y], loc="raw", types=[raw]).output
    again = build(graph, "reinterpret", [z], loc="q", types=[x.type]).output
    real = build(graph, "dequantize", [again], loc="dq").output
    graph.set_outputs([z, real], ["codes", "real"])
    verify(graph)
    feed = {"x": np.arange(8, dtype=np.uint8).reshape(2, 4) * 9}
    found, expected = by_onnxruntime(graph, feed), execute(graph, feed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_sixteen_bit_codes_need_opset_21():
    graph = Graph("q")
    x = graph.add_input("x", TensorType((2, 4)))
    wide = TensorType((2, 4), F32, Affine.per_tensor(16, False, 1e-4, 30000))
    y = build(graph, "quantize", [x], loc="q", types=[wide]).output
    graph.set_outputs([build(graph, "dequantize", [y], loc="dq").output], ["y"])
    with pytest.raises(DlccError, match="opset 21") as caught:
        to_onnx(graph)
    assert caught.value.code == ExitCode.UNSUPPORTED
    feed = feeds(graph)
    found, expected = by_onnxruntime(graph, feed, 21)["y"], execute(graph, feed)["y"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encodings_that_onnx_lacks():
    graph = Graph("q")
    x = graph.add_input("x", TensorType((2, 4)))
    odd = TensorType((2, 4), F32, Affine.per_tensor(5, False, 0.1, 3))
    y = build(graph, "quantize", [x], loc="five", types=[odd]).output
    graph.set_outputs([build(graph, "dequantize", [y], loc="dq").output], ["y"])
    with pytest.raises(DlccError, match="5 bits") as caught:
        to_onnx(graph)
    assert caught.value.where == "five"


def test_same_bytes_every_time(tmp_path: Path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    sizes = [export_onnx(quantised_cnn(), path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sizes == [path.stat().st_size for path in paths]
