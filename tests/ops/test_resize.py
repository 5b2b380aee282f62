"""Resize and Upsample: importers against ONNX Runtime, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import Graph, TensorType
from dlcc.ops import Interval, build, op_of
from dlcc.ops.resize import COORDINATES, NEAREST
from tests.ops.onnx_nodes import agrees, floats, import_node
from tests.ops.tir_harness import affine, case, check, f32, reference, u8

NOTHING = np.zeros(0, np.float32)


def by_sizes(*sizes: int) -> list[np.ndarray]:
    return [NOTHING, NOTHING, np.asarray(sizes, np.int64)]


def by_scales(*scales: float) -> list[np.ndarray]:
    return [NOTHING, np.asarray(scales, np.float32)]


@pytest.mark.parametrize("coordinate", COORDINATES)
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


def test_what_is_not_supported_is_refused():
    x, sizes = floats(1, 2, 4, 4), by_sizes(1, 2, 8, 8)
    with pytest.raises(DlccError, match="antialias"):
        import_node("Resize", x, sizes, opset=19, antialias=1, mode="linear")
    with pytest.raises(DlccError, match="tf_crop_and_resize"):
        import_node(
            "Resize", x, sizes, opset=13, coordinate_transformation_mode="tf_crop_and_resize"
        )
    with pytest.raises(DlccError, match="only the last two"):
        import_node("Resize", x, by_sizes(2, 2, 8, 8), opset=13)
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
    return cases


def test_tir_agrees_with_the_references(tmp_path):
    check(tir_cases(), tmp_path)
