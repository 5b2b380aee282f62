"""GridSample and DeformConv: importers against ONNX Runtime, TIR against the references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph, TensorType
from dlcc.ops import Interval, build, op_of
from tests.frontends.models import assert_same, model, tensor
from tests.ops.onnx_nodes import floats, import_node
from tests.ops.tir_harness import Operand, case, check, f32

FEW = settings(max_examples=20, deadline=None, derandomize=True)
MODES = st.sampled_from(["nearest", "linear", "cubic"])
PADDINGS = st.sampled_from(["zeros", "border", "reflection"])


@FEW
@given(MODES, PADDINGS, st.booleans(), st.integers(2, 3), st.data())
def test_grid_sample_agrees_with_onnx_runtime(mode, padding, corners, rank, data):
    rank = 2 if mode == "cubic" else rank  # ONNX Runtime has no cubic volumes
    size, out = (data.draw(st.lists(st.integers(2, 5), min_size=rank, max_size=rank)) for _ in "xy")
    old = rank == 2 and (mode, padding) != ("cubic", "border")
    named = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    node = helper.make_node(
        "GridSample", ["x", "g"], ["y"], mode=named if old else mode, padding_mode=padding,
        align_corners=int(corners),
    )  # fmt: skip
    inputs = [tensor("x", (2, 3, *size)), tensor("g", (2, *out, rank))]
    source = model([node], inputs, ["y"], opset=16 if old else 20)
    given = {"x": floats(2, 3, *size), "g": floats(2, *out, rank, seed=1)}
    if old or rank == 3:
        assert_same(import_onnx(source), source, given, 1e-4)
        return
    # the standard brings an axis inside where it is outside, ONNX Runtime both where one is
    (ours,) = execute(import_onnx(source), given).values()
    (theirs,) = ReferenceEvaluator(source).run(None, given)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@FEW
@given(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 4)]), st.booleans(), st.booleans(), st.data())
def test_deform_conv_agrees_with_onnx_runtime(parts, masked, known, data):
    groups, offset_groups = parts
    small = st.integers(1, 2)
    kernel, strides, dilations = ([data.draw(small) for _ in "hw"] for _ in "ksd")
    pads = [data.draw(st.integers(0, 1)) for _ in "tlbr"]
    out = [
        (5 + pads[a] + pads[a + 2] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in (0, 1)
    ]
    taps = kernel[0] * kernel[1] * offset_groups
    arrays = {
        "x": floats(2, 4, 5, 5), "w": floats(6, 4 // groups, *kernel, seed=1),
        "o": floats(2, 2 * taps, *out, seed=2), "b": floats(6, seed=3),
    }  # fmt: skip
    if masked:
        arrays["m"] = floats(2, taps, *out, seed=4)
    node = helper.make_node(
        "DeformConv", list(arrays), ["y"], group=groups, offset_group=offset_groups,
        strides=strides, dilations=dilations, pads=pads, kernel_shape=kernel,
    )  # fmt: skip
    fixed = {k: arrays[k] for k in (["w", "b"] if known else [])}
    inputs = [tensor(k, a.shape) for k, a in arrays.items() if k not in fixed]
    source = model([node], inputs, ["y"], fixed, opset=19)
    fed = {k: a for k, a in arrays.items() if k not in fixed}
    assert_same(import_onnx(source), source, fed, 1e-5)


def test_numbers_far_outside_sample_the_border():
    """Infinite positions and NaN must not become indices."""
    grid = np.asarray([[[np.nan, 0], [np.inf, 0], [-np.inf, 0], [1e30, 0]]], np.float32)
    x = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3, 1)
    for padding in ("zeros", "border", "reflection"):
        made = case("grid_sample", [Operand(x), Operand(grid)], {"padding": padding})
        (got,) = op_of(made.node).evaluate(made.node, made.arrays)
        assert np.isfinite(got).all()
        assert (got == 0).all() == (padding == "zeros")


def test_intervals():
    zeros, border, cubic = (
        case("grid_sample", [f32(1, 4, 4, 1), f32(1, 3, 2)], attrs)
        for attrs in ({}, {"padding": "border"}, {"mode": "cubic", "padding": "border"})
    )
    for made, wanted in ((zeros, (0.0, 5.0)), (border, (2.0, 5.0))):
        (found,) = op_of(made.node).interval(made.node, [Interval(2.0, 5.0), None])
        assert (found.low, found.high) == wanted
    (found,) = op_of(cubic.node).interval(cubic.node, [Interval(2.0, 5.0), None])
    assert found.low < 2.0 < 5.0 < found.high


def test_what_does_not_fit_is_refused():
    graph = Graph("g")
    x, grid = (
        graph.add_input(n, TensorType(s)) for n, s in (("x", (1, 4, 4, 2)), ("g", (1, 3, 3)))
    )
    with pytest.raises(DlccError, match="positions in 2 axes"):
        build(graph, "grid_sample", [x, grid])
    grid = graph.add_input("h", TensorType((1, 3, 2)))
    for attrs in ({"mode": "area"}, {"padding": "wrap"}, {"coordinates": "miles"}):
        with pytest.raises(DlccError, match="unknown"):
            build(graph, "grid_sample", [x, grid], attrs)
    weight, offset = floats(2, 2, 2, 2), floats(1, 8, 2, 2)
    for constants, attrs, why in (
        ([weight, offset], {"offset_group": 3}, "groups of offsets"),
        ([weight, floats(1, 8, 3, 2)], {}, "offsets of shape"),
        ([floats(2, 2, 5, 5), offset], {}, "does not fit"),
    ):
        with pytest.raises(DlccError, match=why):
            import_node("DeformConv", floats(1, 2, 3, 3), constants, opset=19, **attrs)


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_tir_agrees_with_the_references(step, tmp_path):
    cases = []
    for rank, channels in ((2, 20), (2, 3), (3, 5)):
        x = f32(2, *range(4, 4 + rank), channels)
        grid = f32(2, 3, 7, rank, seed=1, scale=0.9)
        grid.array[0, 0, 0] = np.nan
        grid.array[0, 0, 1] = np.inf
        for mode in ("nearest", "linear", "cubic")[: 3 if rank == 2 else 2]:
            for padding in ("zeros", "border", "reflection"):
                coordinates = "corners" if len(cases) % 2 else "edges"
                attrs = {"mode": mode, "padding": padding, "coordinates": coordinates}
                cases.append(case("grid_sample", [x, grid], attrs))
    x, grid = f32(2, 5, 6, 16), f32(2, 9, 2, scale=5.0)
    cases.append(case("grid_sample", [x, grid], {"coordinates": "pixels"}))
    check(cases[::step], tmp_path)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("extents", [(3, 4), (1, 2, 5)])
def test_affine_grid_agrees_with_onnx_runtime(images, corners, extents):
    """Of one image too, whose axis the standard's own function loses.

    ONNX Runtime puts a single plane between corners at 1, where the standard has it at -1.
    """
    axes = len(extents)
    node = helper.make_node("AffineGrid", ["theta", "size"], ["y"], align_corners=corners)
    inputs = [tensor("theta", (images, axes, axes + 1))]
    extents = extents if not corners else tuple(max(2, e) for e in extents)
    source = model([node], inputs, ["y"], {"size": np.array([images, 3, *extents])}, opset=20)
    assert_same(import_onnx(source), source, {"theta": floats(images, axes, axes + 1)}, 1e-6)


@pytest.mark.parametrize(
    ("size", "maps", "corners", "why"),
    [
        ((1, 1, 4), (1, 2, 3), 0, "a size of 3 numbers"),
        ((1, 1, 4, 4), (1, 3, 4), 0, r"maps of shape \[1, 3, 4\] for a size of \[1, 1, 4, 4\]"),
        ((1, 1, 0, 4), (1, 2, 3), 0, "which has no places"),
        ((1, 1, 1, 4), (1, 2, 3), 1, "has no place by the standard"),
        ((1, 1, 1 << 40, 1 << 40), (1, 2, 3), 0, "--max-memory"),
    ],
)
def test_affine_grids_that_are_refused(size, maps, corners, why):
    node = helper.make_node("AffineGrid", ["theta", "size"], ["y"], align_corners=corners)
    source = model([node], [tensor("theta", maps)], ["y"], {"size": np.array(size)}, opset=20)
    with pytest.raises(DlccError, match=why):
        import_onnx(source)
