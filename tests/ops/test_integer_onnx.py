"""MatMulInteger and ConvInteger: exact int32 sums modulo 2^32, whatever is known when."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlcc
from dlcc.analysis.execute import execute
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph
from tests.frontends.models import model, ops, tensor

KINDS = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}


def extreme(*shape: int, kind: Any = np.uint8) -> np.ndarray:
    """Codes of which most are the largest: sums grow as fast as they can."""
    limits = np.iinfo(kind)
    rng = np.random.default_rng(sum(shape))
    return np.where(rng.random(shape) < 0.9, limits.max, rng.integers(0, 9, shape)).astype(kind)


def source(
    op_type: str, arrays: Mapping[str, np.ndarray], late: str, **attrs: Any
) -> onnx.ModelProto:
    """A node of operands x, w, zx and zw, of which those in ``late`` are inputs."""
    names = [n if n in arrays else "" for n in ("x", "w", "zx", "zw")]
    node = helper.make_node(op_type, names, ["y"], name="node", **attrs)
    inputs = [tensor(n, a.shape, KINDS[a.dtype]) for n, a in arrays.items() if n in late.split()]
    known = {n: a for n, a in arrays.items() if n not in late.split()}
    return model([node], inputs, [tensor("y", None, TensorProto.INT32)], known)


def imported(op_type: str, arrays: Mapping[str, np.ndarray], late: str, **attrs: Any) -> Graph:
    return import_onnx(source(op_type, arrays, late, **attrs))


def products(a: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the standard says of MatMulInteger."""
    zx = a["zx"].astype(np.int64) if "zx" in a else np.int64(0)
    x = a["x"].astype(np.int64) - (zx[:, None] if np.ndim(zx) else zx)
    zw = a["zw"].astype(np.int64) if "zw" in a else np.int64(0)
    return (x @ (a["w"].astype(np.int64) - zw)).astype(np.int32)


def operands(depth: int, weight: Any, rows: bool = False) -> dict[str, np.ndarray]:
    zeros = np.asarray([3, 250], np.uint8) if rows else np.asarray(3, np.uint8)
    some = np.asarray([5, 100, 0], weight)
    return {"x": extreme(2, depth), "w": extreme(depth, 3, kind=weight), "zx": zeros, "zw": some}


@pytest.mark.parametrize(
    ("depth", "weight", "late"),
    [*product((1100,), (np.int8, np.uint8), ("x", "x zx", "x w", "x zx w zw")),
     (40_000, np.uint8, "x zx")],
)  # fmt: skip
def test_products_are_exact(depth: int, weight: Any, late: str) -> None:
    """Sums of 1100 products leave 2^24 behind, those of 40,000 wrap."""
    arrays = operands(depth, weight)
    graph = imported("MatMulInteger", arrays, late)
    feeds = {v.name: arrays[v.name] for v in graph.inputs}
    (got,) = execute(graph, feeds).values()
    np.testing.assert_array_equal(got, products(arrays))
    assert ("linear" in ops(graph)) == ("w" not in late.split())


def test_zero_points_of_rows() -> None:
    arrays = operands(40, np.int8, rows=True)
    for late in ("x", "x zx", "x zx w zw"):
        graph = imported("MatMulInteger", arrays, late)
        (got,) = execute(graph, {v.name: arrays[v.name] for v in graph.inputs}).values()
        np.testing.assert_array_equal(got, products(arrays))


def images(weight: Any, groups: int, channels: int = 130) -> dict[str, np.ndarray]:
    """3x3 windows of 130 channels leave 2^24 behind."""
    kernel = extreme(4, channels // groups, 3, 3, kind=weight)
    zeros = np.asarray([5, 100, 0, 7], weight)
    return {"x": extreme(1, channels, 5, 4), "w": kernel, "zx": np.asarray(3, np.uint8),
            "zw": zeros}  # fmt: skip


def windows(a: Mapping[str, np.ndarray], groups: int) -> np.ndarray:
    """ConvInteger with a border of 1 and strides of 1 and 2."""
    x = np.pad(a["x"].astype(np.int64) - int(a["zx"]), ((0, 0), (0, 0), (1, 1), (1, 1)))
    w = a["w"].astype(np.int64) - a["zw"].astype(np.int64).reshape(-1, 1, 1, 1)
    seen = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, :, ::2]
    parts = zip(np.split(seen, groups, 1), np.split(w, groups, 0), strict=True)
    sums = [np.einsum("nchwij,ocij->nohw", s, k) for s, k in parts]
    return np.concatenate(sums, 1).astype(np.int32)


@pytest.mark.parametrize(
    ("weight", "groups", "late"),
    [*product((np.int8, np.uint8), (1, 2), ("x", "x zx")), (np.int8, 1, "x zx w zw")],
)
def test_convolutions_are_exact(weight: Any, groups: int, late: str) -> None:
    arrays = images(weight, groups)
    attrs = {"pads": (1, 1, 1, 1), "strides": (1, 2), "group": groups}
    graph = imported("ConvInteger", arrays, late, **attrs)
    (got,) = execute(graph, {v.name: arrays[v.name] for v in graph.inputs}).values()
    np.testing.assert_array_equal(got, windows(arrays, groups))


def test_a_group_whose_sums_exceed_float32_is_summed_in_int32() -> None:
    arrays = images(np.uint8, 2, 300)
    graph = imported("ConvInteger", arrays, "x", pads=(1, 1, 1, 1), strides=(1, 2), group=2)
    assert "conv2d" not in ops(graph)
    (got,) = execute(graph, {"x": arrays["x"]}).values()
    np.testing.assert_array_equal(got, windows(arrays, 2))


def test_small_groups_are_layers_of_codes() -> None:
    arrays = images(np.uint8, 2, 8)
    attrs = {"pads": (1, 1, 1, 1), "strides": (1, 2), "group": 2}
    graph = imported("ConvInteger", arrays, "x zx", **attrs)
    assert ops(graph).count("conv2d") == 2  # of the weights, and of the windows' sums
    (got,) = execute(graph, {k: arrays[k] for k in ("x", "zx")}).values()
    np.testing.assert_array_equal(got, windows(arrays, 2))


@pytest.mark.slow
def test_compiled_sums_are_exact(tmp_path: Any) -> None:
    from tests.onnx_backend.merge import merged

    attrs = {"pads": (1, 1, 1, 1), "strides": (1, 2)}
    made: dict[str, tuple[Graph, dict[str, np.ndarray], np.ndarray]] = {}
    for weight, late in product((np.int8, np.uint8), ("x", "x zx", "x zx w zw")):
        key = f"{np.dtype(weight)}_{late.replace(' ', '_')}"
        for depth in (1100, 40_000):
            a = operands(depth, weight)
            made[f"{key}_{depth}"] = (imported("MatMulInteger", a, late), a, products(a))
        a = images(weight, 1)
        made[f"{key}_conv"] = (imported("ConvInteger", a, late, **attrs), a, windows(a, 1))
    dlcc.compile(merged({k: g for k, (g, _, _) in made.items()}), tmp_path / "all", bits=32,
                 threads=1)  # fmt: skip
    feeds = {f"{k}.{v.name}": a[v.name] for k, (g, a, _) in made.items() for v in g.inputs}
    results = dlcc.load(tmp_path / "all").run(feeds)
    for key, (_, _, want) in made.items():
        np.testing.assert_array_equal(results[f"{key}.0"], want, err_msg=key)
