"""Resize and Upsample: importers against ONNX Runtime, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.ir import Graph, TensorType
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, build, op_of
from dlcc.ops.resize import COORDINATES, NEAREST
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import affine, case, check, f32, reference, u8

NOTHING = np.zeros(0, np.float32)


def by_sizes(*sizes: int) -> list[np.ndarray]:
    return [NOTHING, NOTHING, np.asarray(sizes, np.int64)]


def by_scales(*scales: float) -> list[np.ndarray]:
    return [NOTHING, np.asarray(scales, np.float32)]


@pytest.mark.parametrize("coordinate", [c for c in COORDINATES if c != "tf_crop_and_resize"])
@pytest.mark.parametrize("sizes", [(2, 3, 7, 11), (2, 3, 4, 3), (2, 3, 1, 1)])
def test_modes_agree_with_onnx_runtime(coordinate, sizes):
    if coordinate in ("half_pixel_symmetric", "tf_half_pixel_for_nn"):
        opset = 19 if coordinate == "half_pixel_symmetric" else 11
    else:
        opset = 13
    for mode in ("nearest", "linear", "cubic"):
        if coordinate == "tf_half_pixel_for_nn" and mode != "nearest":
            continue
        agrees(
            "Resize", floats(2, 3, 5, 6), by_sizes(*sizes), opset=opset, rtol=1e-4,
            mode=mode, coordinate_transformation_mode=coordinate,
        )  # fmt: skip


@pytest.mark.parametrize("nearest_mode", NEAREST)
def test_nearest_roundings_agree_with_onnx_runtime(nearest_mode):
    for scales in ((1, 1, 2, 3), (1, 1, 0.5, 1.5)):
        agrees(
            "Resize", floats(1, 2, 6, 8), by_scales(*scales), opset=13,
            nearest_mode=nearest_mode, coordinate_transformation_mode="asymmetric",
        )  # fmt: skip


def test_other_layouts_and_ranks():
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
             "nearest_mode": "floor"}  # fmt: skip
    agrees("Resize", floats(1, 5, 6, 3), by_scales(1, 2, 2, 1), opset=13, **attrs)
    agrees("Resize", floats(2, 3, 5), by_scales(1, 1, 2), opset=13, **attrs)
    same = agrees("Resize", floats(1, 2, 3, 4), by_scales(1, 1, 1, 1), opset=13, **attrs)
    assert not same.nodes


def test_older_spellings():
    scales = np.asarray([1, 1, 2, 2], np.float32)
    agrees("Upsample", floats(1, 2, 3, 4), opset=7, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    agrees("Upsample", floats(1, 2, 3, 4), [scales], opset=9, mode="linear")
    agrees("Resize", floats(1, 2, 3, 4), [scales], opset=10, mode="nearest")


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio_policies(policy):
    sizes = [NOTHING, NOTHING, np.asarray([8, 7], np.int64)]
    agrees(
        "Resize", floats(1, 2, 3, 4), sizes, opset=19, axes=[2, 3], mode="nearest",
        keep_aspect_ratio_policy=policy,
    )  # fmt: skip


FEW = settings(max_examples=15, deadline=None, derandomize=True)


@FEW
@given(st.sampled_from(["linear", "cubic"]), st.booleans(), st.lists(st.integers(2, 9), min_size=2,
       max_size=2), st.booleans())  # fmt: skip
def test_antialiased_shrinking_agrees_with_onnx_runtime(mode, exclude, sizes, symmetric):
    coordinate = "half_pixel_symmetric" if symmetric else "half_pixel"
    agrees(
        "Resize", floats(2, 3, 8, 9), by_sizes(2, 3, *sizes), opset=19, rtol=1e-4, mode=mode,
        antialias=1, exclude_outside=int(exclude), coordinate_transformation_mode=coordinate,
    )  # fmt: skip


@FEW
@given(st.sampled_from(["nearest", "linear"]), st.data())
def test_crops_agree_with_the_standard(mode, data):
    """ONNX Runtime shows all of an axis whose size stays the same, whatever the region is."""
    part = st.floats(-0.25, 0.625, width=32)
    start = [data.draw(part) for _ in "hw"]
    end = [s + data.draw(st.floats(0.25, 0.75, width=32)) for s in start]
    roi = np.asarray([0, 0, *start, 1, 1, *end], np.float32)
    sizes = np.asarray([2, 3, *(data.draw(st.integers(1, 9)) for _ in "hw")], np.int64)
    graph, source, feeds = import_node(
        "Resize", floats(2, 3, 6, 7), [roi, NOTHING, sizes], opset=13, mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=2.5,
    )  # fmt: skip
    (ours,), (theirs,) = execute(graph, feeds).values(), ReferenceEvaluator(source).run(None, feeds)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 7, 2), (2, 3, 8, 6, 5), (2, 3, 4, 3, 5)])
def test_volumes_agree_with_onnx_runtime(mode, sizes):
    agrees("Resize", floats(2, 3, 4, 6, 5), by_sizes(*sizes), opset=13, mode=mode, rtol=1e-4)


def test_axes_before_an_image_are_resized_too():
    agrees("Resize", floats(2, 3, 4), by_sizes(5, 3, 6), opset=13, mode="nearest")
    agrees("Resize", floats(2, 2, 4, 4), by_sizes(3, 2, 8, 8), opset=13, mode="nearest")


def test_integers_are_rounded_once():
    x = np.arange(24, dtype=np.uint8).reshape(1, 1, 4, 6) * 9
    graph, _, feeds = import_node("Resize", x, by_sizes(1, 1, 7, 5), opset=13, mode="linear",
                                  result=np.uint8)  # fmt: skip
    real, _, _ = import_node("Resize", x.astype(np.float32), by_sizes(1, 1, 7, 5), opset=13,
                             mode="linear")  # fmt: skip
    (ours,) = execute(graph, feeds).values()
    (exact,) = execute(real, {"x": x.astype(np.float32)}).values()
    np.testing.assert_array_equal(ours, np.rint(exact))


def test_codes_outside_a_crop_are_those_of_the_extrapolation():
    x = u8(1, 2, 4, 4, scale=0.5, zero_point=10)
    crop = {"sizes": (3, 3), "coordinate": "tf_crop_and_resize", "roi": (-1.0, 0.0, 1.0, 1.0),
            "extrapolation": 3.0}  # fmt: skip
    made = case("resize2d", [x], crop, out=x.encoding)
    (got,) = reference(made)
    assert (got[:, :, 0] == 16).all()
    (found,) = op_of(made.node).interval(made.node, [Interval(0.0, 1.0)])
    assert (found.low, found.high) == (0.0, 3.0)


def test_what_does_not_exist_is_refused():
    x, sizes = floats(1, 2, 4, 4), by_sizes(1, 2, 8, 8)
    with pytest.raises(DlccError, match="coordinate mode sideways"):
        import_node("Resize", x, sizes, opset=13, coordinate_transformation_mode="sideways")
    graph = Graph("g")
    value = graph.add_input("x", TensorType((1, 1, 2, 2)))
    for attrs in ({"mode": "area"}, {"coordinate": "?"}, {"nearest_mode": "?"}):
        with pytest.raises(DlccError, match="unknown"):
            build(graph, "resize2d", [value], {"sizes": (4, 4), **attrs})


def test_cubic_interval_allows_for_overshoot():
    made = case("resize2d", [f32(1, 1, 4, 4)], {"sizes": (9, 9), "mode": "cubic"})
    step = np.zeros((1, 1, 4, 4), np.float32)
    step[:, :, :, 2:] = 1
    (y,) = op_of(made.node).evaluate(made.node, [step])
    (found,) = op_of(made.node).interval(made.node, [Interval(0, 1)])
    assert y.max() > 1
    assert found.low <= y.min()
    assert y.max() <= found.high


def test_nearest_moves_codes():
    x = u8(1, 2, 3, 4)
    made = case("resize2d", [x], {"sizes": (6, 8)}, out=x.encoding)
    (got,) = reference(made)
    np.testing.assert_array_equal(got, x.array.repeat(2, axis=2).repeat(2, axis=3))


def tir_cases():
    cases = []
    for layout in ("", "nhwc"):
        for x in (u8(2, 5, 9, 7, layout=layout), f32(2, 5, 9, 7, layout=layout)):
            for mode in ("nearest", "linear", "cubic"):
                attrs = {"sizes": (13, 20), "mode": mode}
                cases.append(case("resize2d", [x], attrs, out=x.encoding, layout=layout))
        other = case("resize2d", [u8(1, 3, 4, 4, layout=layout)], {"sizes": (8, 8)},
                     out=affine(0.09, 60), layout=layout)  # fmt: skip
        cases.append(other)
    crop = {"sizes": (6, 5), "coordinate": "tf_crop_and_resize", "roi": (-0.5, 0.1, 0.8, 1.5),
            "extrapolation": 1.5}  # fmt: skip
    for x in (u8(1, 3, 5, 6), f32(1, 3, 5, 6)):
        for mode in ("nearest", "linear"):
            cases.append(case("resize2d", [x], {**crop, "mode": mode}, out=x.encoding))
    wide = {"sizes": (2, 7), "mode": "linear", "antialias": True}
    cases.append(case("resize2d", [f32(1, 3, 40, 7)], wide))
    cases.append(case("resize2d", [u8(1, 3, 30, 7)], {**wide, "mode": "cubic"}, out=DENSE))
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
