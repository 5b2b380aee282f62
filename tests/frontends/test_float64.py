"""float64 networks: computed in float64 where kernels can, told of where they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import dlcc
from dlcc.analysis.execute import execute
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import F32, F64
from tests.frontends.models import model, tensor

DOUBLE = TensorProto.DOUBLE
RNG = np.random.default_rng(64)


def network(*extra: str) -> tuple[object, dict[str, np.ndarray]]:
    """Convolution, pooling, Gemm and what is around them, with an input of numbers near 1e8."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["c"], name="centred"),
        helper.make_node("Conv", ["c", "k", "kb"], ["v"], name="conv", pads=(1, 1, 1, 1)),
        helper.make_node("Relu", ["v"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=(2, 2), strides=(2, 2)),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w", "b"], ["g"], name="gemm", transB=1, alpha=0.5),
        helper.make_node("ReduceMean", ["g"], ["m"], name="mean_of", axes=[1]),
        helper.make_node("Div", ["g", "m"], ["y" if not extra else "d"], name="divided"),
    ]
    names = ["d", *(f"e{k}" for k in range(len(extra) - 1)), "y"]
    for op, a, b in zip(extra, names, names[1:], strict=False):
        nodes.append(helper.make_node(op, [a], [b], name=op.lower()))
    known = {"mean": np.float64(1e8), "k": RNG.standard_normal((4, 3, 3, 3)),
             "kb": RNG.standard_normal(4), "w": RNG.standard_normal((5, 36)),
             "b": RNG.standard_normal(5)}  # fmt: skip
    source = model(nodes, [tensor("x", (1, 3, 6, 6), DOUBLE)], [tensor("y", None, DOUBLE)], known)
    return source, {"x": 1e8 + RNG.standard_normal((1, 3, 6, 6))}


def wanted(source: object, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """By the evaluator of the onnx package, in float64 throughout."""
    from onnx.reference import ReferenceEvaluator

    (y,) = ReferenceEvaluator(source).run(None, feeds)
    return np.asarray(y)


def test_the_reference_computes_in_float64() -> None:
    source, feeds = network()
    told: list[str] = []
    graph = import_onnx(source, remarks=told)
    assert not told
    assert all(v.type.dtype == F64 for v in graph.values() if v.type.dtype.is_float)
    (got,) = execute(graph, feeds).values()
    np.testing.assert_allclose(got, wanted(source, feeds), rtol=1e-12)
    single = import_onnx(source, doubles=False, remarks=told)
    assert told == ["import: float64 is computed in float32"]
    (rough,) = execute(single, feeds).values()
    assert rough.dtype == np.float64
    assert np.abs(rough / wanted(source, feeds) - 1).max() > 1e-2  # 1e8 + 1 is no float32


def test_functions_without_float64_kernels_are_named() -> None:
    source, feeds = network("Sin", "Erf", "Abs")
    told: list[str] = []
    graph = import_onnx(source, remarks=told)
    assert told == ["import: float64 is computed in float32 by erf, sin"]
    (sine,) = (n for n in graph.nodes if n.op == "sin")
    (erf,) = (n for n in graph.nodes if n.op == "erf")
    assert sine.output.type.dtype == F32
    assert erf.input(0) is sine.output  # nothing is widened in between
    (got,) = execute(graph, feeds).values()
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted(source, feeds), rtol=1e-6)


@pytest.mark.parametrize("bits", [32, 8])
def test_compiled(bits: int, tmp_path: Path) -> None:
    source, feeds = network()
    result = dlcc.compile(source, tmp_path / "net", bits=bits, threads=1)
    inside = {v.type.dtype for v in result.optimised.graph.values() if v.type.dtype.is_float}
    assert (F32 in inside) == (bits == 8)
    (got,) = dlcc.load(tmp_path / "net").run(feeds).values()
    assert got.dtype == np.float64
    if bits == 32:
        np.testing.assert_allclose(got, wanted(source, feeds), rtol=1e-12)


def test_integers_of_64_bits_are_exact(tmp_path: Path) -> None:
    """Sums, products, quotients and comparisons beyond 2^53, modulo 2^64."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["x", "w"], ["s"], name="sum"),
        helper.make_node("Mul", ["s", "x"], ["m"], name="squares"),
        helper.make_node("Div", ["s", "three"], ["d"], name="quotient"),
        helper.make_node("Mod", ["s", "three"], ["r"], name="remainder"),
        helper.make_node("ReduceSum", ["s", "axes"], ["t"], name="total", keepdims=0),
        helper.make_node("CumSum", ["s", "axis"], ["u"], name="running"),
        helper.make_node("Less", ["x", "w"], ["l"], name="less"),
        helper.make_node("Max", ["x", "w"], ["h"], name="larger"),
    ]
    x = (1 << 60) + RNG.integers(0, 9, (4, 4))
    w = (1 << 60) + RNG.integers(0, 9, (4, 4))
    known = {"w": w, "three": np.int64(3), "axes": np.asarray([1]), "axis": np.int64(1)}
    outputs = [tensor(n, None, TensorProto.INT64) for n in "psmdrtuh"]
    outputs.append(tensor("l", None, TensorProto.BOOL))
    source = model(nodes, [tensor("x", (4, 4), TensorProto.INT64)], outputs, known)
    with np.errstate(over="ignore"):
        s = x + w
        want = {"p": x @ w, "s": s, "m": s * x, "d": s // 3, "r": s % 3, "t": s.sum(1),
                "u": np.cumsum(s, 1), "h": np.maximum(x, w), "l": x < w}  # fmt: skip
    dlcc.compile(source, tmp_path / "net", bits=32, threads=1)
    for results in (
        execute(import_onnx(source), {"x": x}),
        dlcc.load(tmp_path / "net").run({"x": x}),
    ):
        for name, array in want.items():
            np.testing.assert_array_equal(results[name], array, err_msg=name)
