"""RoiAlign and MaxRoiPool: importers against ONNX Runtime, kernels against the references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import dlcc
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import F32, I64, Graph, TensorType
from dlcc.ops import Interval, build, op_of
from tests.frontends.models import assert_same, model, runtime, tensor
from tests.ops.onnx_nodes import floats, import_node

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def boxes(count: int, seed: int = 1, spread: float = 12.0) -> np.ndarray:
    """Regions inside, across and beyond an image of some 10 pixels; some upside down."""
    return (np.random.default_rng(seed).random((count, 4)) * spread - 2).astype(np.float32)


@FEW
@given(
    st.integers(0, 3), st.sampled_from(["half_pixel", "output_half_pixel"]),
    st.sampled_from(["avg", "max"]), st.sampled_from([0.25, 1.0]), st.integers(0, 99),
)  # fmt: skip
def test_roi_align_agrees_with_onnx_runtime(sampling, coordinates, mode, scale, seed):
    rois = boxes(6, seed, 12 / scale)
    rois[:, 2:] = np.maximum(rois[:, 2:], rois[:, :2])  # ONNX Runtime takes no others
    node = helper.make_node(
        "RoiAlign", ["x", "r", "i"], ["y"], output_height=3, output_width=2, mode=mode,
        sampling_ratio=sampling, spatial_scale=scale, coordinate_transformation_mode=coordinates,
    )  # fmt: skip
    inputs = [tensor("x", (2, 3, 9, 7)), tensor("r", (6, 4)), tensor("i", (6,), 7)]
    source = model([node], inputs, ["y"], opset=16)
    given = {"x": floats(2, 3, 9, 7), "r": rois, "i": np.asarray([0, 1, 1, 0, 0, 1])}
    assert_same(import_onnx(source), source, given, 1e-4)


@FEW
@given(st.sampled_from([0.25, 1.0]), st.integers(0, 99))
def test_max_roi_pool_agrees_with_onnx_runtime(scale, seed):
    images = np.random.default_rng(seed).integers(0, 2, (6, 1)).astype(np.float32)
    rois = np.concatenate([images, boxes(6, seed, 12 / scale)], axis=1)
    node = helper.make_node("MaxRoiPool", ["x", "r"], ["y"], pooled_shape=[3, 2],
                            spatial_scale=scale)  # fmt: skip
    source = model([node], [tensor("x", (2, 3, 9, 7)), tensor("r", (6, 5))], ["y"])
    assert_same(import_onnx(source), source, {"x": floats(2, 3, 9, 7), "r": rois}, 0)


def layers(channels: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """One layer of each kind, all reading the same image and regions."""
    graph = Graph("regions")
    x = graph.add_input("x", TensorType((2, 9, 7, channels)))
    rois, images = (
        graph.add_input("rois", TensorType((8, 4))),
        graph.add_input("images", TensorType((8,), I64)),
    )
    pooled = graph.add_input("pooled", TensorType((8, 5), F32))
    outputs = []
    for attrs in (
        {"half_pixel": False},
        {"sampling": 3, "maximum": True, "scale": 0.5},
    ):
        node = build(graph, "roi_align", [x, rois, images], {"size": (3, 2), **attrs}, loc="align")
        outputs.append(node.output)
    fixed = graph.add_constant(np.asarray([[0, 1, 1, 5, 6], [1, 0, 0, 20, 20]], np.float32))
    for regions in (pooled, fixed):
        pool = {"size": (3, 2), "scale": 0.9}
        outputs.append(build(graph, "max_roi_pool", [x, regions], pool, loc="pool").output)
    graph.set_outputs(outputs)
    rois = boxes(8)
    rois[5:] = [[np.nan, 0, 3, 4], [-1e9, -1e9, 1e9, 1e9], [0, 0, np.inf, 2]]
    feeds = {
        "x": floats(2, 9, 7, channels), "rois": rois,
        "images": np.asarray([0, 1, 1, 0, 0, 1, 5, -3]),
        "pooled": np.concatenate([np.asarray([[0, 1, 1, 0, 0, 1, 5, np.nan]]).T, rois], axis=1)
        .astype(np.float32),
    }  # fmt: skip
    return graph, feeds


@pytest.mark.parametrize("channels", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_kernels_agree_with_the_references(channels, tmp_path):
    """Also where regions are NaN or infinite, and images out of range."""
    graph, feeds = layers(channels)
    dlcc.compile(graph, tmp_path, bits=32)
    wanted = list(dlcc.execute(graph, feeds).values())
    got = dlcc.load(tmp_path).run(feeds)
    for a, b in zip(got.values(), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_exported_regions_are_those_of_onnx():
    graph, feeds = layers(3)
    feeds["rois"] = np.sort(boxes(8).reshape(8, 2, 2), axis=1).reshape(8, 4)
    feeds["images"] %= 2
    feeds["pooled"] = np.concatenate([np.zeros((8, 1), np.float32), feeds["rois"]], axis=1)
    wanted = dlcc.execute(graph, feeds).values()
    for a, b in zip(runtime(to_onnx(graph), feeds), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    graph = Graph("g")
    x, rois = (
        graph.add_input("x", TensorType((1, 4, 4, 2))),
        graph.add_input("r", TensorType((3, 4))),
    )
    images = graph.add_input("i", TensorType((2,), I64))
    with pytest.raises(DlccError, match="one image number for each"):
        build(graph, "roi_align", [x, rois, images], {"size": (2, 2)})
    with pytest.raises(DlccError, match="must be 0 to 4096"):
        build(graph, "roi_align", [x, rois, images], {"size": (2, 2), "sampling": 2**31})
    with pytest.raises(DlccError, match="has 5 numbers"):
        build(graph, "max_roi_pool", [x, rois], {"size": (2, 2)})
    rows = graph.add_input("rows", TensorType((3, 5)))
    with pytest.raises(DlccError, match="would be 0 x 2"):
        build(graph, "max_roi_pool", [x, rows], {"size": (0, 2)})
    made = build(graph, "max_roi_pool", [x, rows], {"size": (2, 2)})
    (found,) = op_of(made).interval(made, [Interval(3.0, 5.0), None])
    assert (found.low, found.high) == (0.0, 5.0)
    with pytest.raises(DlccError, match="images with 3 axes"):
        import_node("MaxRoiPool", floats(1, 2, 3), [floats(2, 5)], pooled_shape=[2, 2])
