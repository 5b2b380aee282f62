"""Layers on codes of fewer than 8 bits: the same kernels, clamped to the narrow codes."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.ir import Affine, Graph
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from tests.lowering.graphs import typed
from tests.targets.running import isa_params


def network() -> Graph:
    """u4 -> conv of s5 weights -> u3 -> depthwise of s3 -> u6, with a u4 residual -> linear."""
    rng = np.random.default_rng(3)
    graph = Graph("net")
    u = {b: Affine.per_tensor(b, False, 0.25, z) for b, z in ((4, 5), (3, 0), (6, 30))}
    x = graph.add_input("x", typed((1, 16, 9, 9), u[4]))

    def layer(op, value, shape, bits, out, residual=None, **attrs):
        scales = rng.uniform(0.02, 0.05, shape[0]).astype(np.float32)
        encoding = Affine.symmetric(bits, scales, 0)
        last = encoding.code_range[1]
        codes = rng.integers(-last, last + 1, shape).astype(np.int8)
        w = graph.add_constant(encoding.dequantise(codes), encoding=encoding, name="w")
        wide = Affine.symmetric(32, np.float32(value.type.affine.scale) * scales, 0)
        b = graph.add_constant(
            rng.normal(size=shape[0]).astype(np.float32), encoding=wide, name="b"
        )
        operands = [value, w, b] if residual is None else [value, w, b, residual]
        node = build(graph, op, operands, attrs)
        if out is not None:
            node.output.type = node.output.type.with_(encoding=out)
        return node.output

    a = layer("conv2d", x, (16, 16, 3, 3), 5, u[3], pads=(1, 1, 1, 1), act_min=0.0)
    d = layer("conv2d", a, (16, 1, 3, 3), 3, u[6], pads=(1, 1, 1, 1), groups=16)
    p = layer("conv2d", d, (16, 16, 1, 1), 4, u[4], residual=x)
    flat = build(graph, "reshape", [p], {"shape": (1, 16 * 81)}).output
    flat.type = flat.type.with_(encoding=u[4])
    y = layer("linear", flat, (7, 16 * 81), 2, None)
    graph.set_outputs([y, a, p], ["y", "a", "p"])
    return graph


@pytest.mark.parametrize("level", isa_params())
def test_narrow_codes_are_computed_exactly(tmp_path, level):
    graph = network()
    program = lower(graph, get_target(f"cpu:{level.name}"), build_object, threads=2)
    refused = [
        row["layer"] for row in program.report["layers"] if "bits with one scale" in str(row)
    ]
    assert not refused
    write_artifact(program, tmp_path / "net")
    x = np.random.default_rng(4).integers(0, 16, (1, 16, 9, 9), dtype=np.uint8)
    want = dlcc.execute(graph, {"x": x})
    assert int(want["a"].max()) == 7, "the clamp to three bits must matter"
    assert int(want["p"].max()) == 15
    with dlcc.load(tmp_path / "net") as model:
        got = model.run({"x": x})
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
