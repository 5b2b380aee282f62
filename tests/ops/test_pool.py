"""Pooling: importers against ONNX Runtime, integer means against exact ones, TIR against both."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import affine, case, check, f32, reference, u8

WINDOWS = [
    {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)},
    {"kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (2, 3), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    {"kernel_shape": (3, 2), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
    {"kernel_shape": (2, 3), "strides": (1, 2), "auto_pad": "SAME_LOWER"},
    {"kernel_shape": (3, 3), "auto_pad": "VALID"},
]


@pytest.mark.parametrize("attrs", WINDOWS)
def test_max_pool_agrees_with_onnx_runtime(attrs):
    agrees("MaxPool", floats(2, 3, 11, 9), opset=12, **attrs)


@pytest.mark.parametrize("attrs", WINDOWS)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_agrees_with_onnx_runtime(attrs, include):
    agrees("AveragePool", floats(2, 3, 11, 9), opset=19, count_include_pad=include, **attrs)


def test_one_dimensional_and_dilated_pools():
    agrees("MaxPool", floats(2, 3, 13), kernel_shape=(3,), strides=(2,), pads=(1, 0))
    agrees("AveragePool", floats(2, 3, 13), kernel_shape=(3,), strides=(2,), pads=(1, 0))
    agrees("MaxPool", floats(1, 2, 9, 9), kernel_shape=(2, 3), dilations=(3, 2))


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op_type):
    agrees(op_type, floats(2, 3, 5, 4))


def test_four_dimensions_are_refused():
    with pytest.raises(DlccError, match="4-D"):
        import_node("MaxPool", floats(1, 2, 2, 2, 2, 2), kernel_shape=(2, 2, 2, 2))


def test_padding_never_wins_a_maximum():
    graph = Graph("g")
    x = graph.add_input("x", TensorType((1, 1, 2, 2)))
    node = build(graph, "max_pool2d", [x], {"kernel": (3, 3), "pads": (1, 1, 1, 1)})
    negative = np.full((1, 1, 2, 2), -3.0, np.float32)
    assert (op_of(node).evaluate(node, [negative])[0] == -3.0).all()


def test_integer_average_is_the_requantised_exact_sum():
    made = case(
        "avg_pool2d", [u8(1, 2, 4, 4)], {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 0, 0)},
        out=affine(0.04, 100),
    )  # fmt: skip
    (got,) = reference(made)
    x = np.pad(made.arrays[0].astype(np.int64) - 117, ((0, 0), (0, 0), (1, 0), (1, 0)))
    counts = np.asarray([[4, 6], [6, 9]])
    for r in (0, 1):
        for c in (0, 1):
            acc = x[0, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].sum(axis=(1, 2))
            sy = np.float64(np.float32(0.04))
            factor = np.float32(np.float64(np.float32(0.05)) / (sy * counts[r, c]))
            want = np.rint(acc.astype(np.float32) * factor) + np.float32(100)
            np.testing.assert_array_equal(got[0, :, r, c], np.clip(want, 0, 255))


def test_interval_of_a_mean_includes_counted_padding():
    attrs = {"kernel": (2, 2), "pads": (1, 1, 0, 0)}
    for include, low in ((False, 3.0), (True, 0.0)):
        made = case("avg_pool2d", [f32(1, 1, 4, 4)], {**attrs, "count_include_pad": include})
        (found,) = op_of(made.node).interval(made.node, [Interval(3.0, 5.0)])
        assert (found.low, found.high) == (low, 5.0)


def test_windows_that_do_not_fit_are_refused():
    graph = Graph("g")
    x = graph.add_input("x", TensorType((1, 1, 2, 2)))
    with pytest.raises(DlccError, match="does not fit"):
        build(graph, "max_pool2d", [x], {"kernel": (3, 3)})


def tir_cases():
    cases = []
    for layout in ("", "nhwc"):
        for x in (u8(2, 5, 9, 7, layout=layout), f32(2, 5, 9, 7, layout=layout)):
            out = affine(0.04, 100) if isinstance(x.encoding, Affine) else None
            window = {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}
            cases += [
                case("max_pool2d", [x], window, layout=layout),
                case("max_pool2d", [x], {"kernel": (2, 2), "strides": (2, 2)}, layout=layout),
                case("avg_pool2d", [x], window, out=out, layout=layout),
                case("avg_pool2d", [x], {**window, "count_include_pad": True}, out=out,
                     layout=layout),
                case("avg_pool2d", [x], {"kernel": (9, 7)}, out=out, layout=layout),
                case("avg_pool2d", [x], {"kernel": (2, 2), "dilations": (2, 3)}, out=DENSE,
                     layout=layout),
            ]  # fmt: skip
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
