"""float32 on tensor cores: operands rounded to TF32, where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.analysis.sample import ROUNDED, tolerances
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, TensorType
from dlcc.ops import build
from targets.kernels.grid_gemm import grid_gemm
from targets.kernels.grid_matmul import grid_matmul
from targets.kernels.spec import ConvSpec, Epilogue, MatmulSpec
from tests.cuda.emulator import compiled_for_cpu
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_kernels import AMPERE
from tests.targets.reference import conv_accumulators, finish

MACHINE = replace(AMPERE, tf32=True)
UNIT = 2.0**-11
"""Largest relative error of an operand."""


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to 11 significant bits, halves away from zero."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    whole = np.floor(np.abs(mantissa) * 2.0**11 + 0.5)
    return np.copysign(np.ldexp(whole, exponent - 11), x)


def conv_data(spec: ConvSpec, seed: int):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
    w = rng.standard_normal((spec.oc, spec.c, spec.kh, spec.kw)).astype(np.float32)
    return x, w / np.float32(np.sqrt(w[0].size)), rng.standard_normal(spec.oc).astype(np.float32)


def test_layers():
    """As exact sums of rounded operands, and as near to the float layer as the bound says."""
    epilogue = Epilogue("f32")
    specs = (
        ConvSpec(1, 9, 7, 20, 50, 3, 3, pads=(1, 1, 1, 1), in_dtype="f32", epilogue=epilogue),
        ConvSpec(1, 11, 9, 3, 16, 5, 5, stride=(2, 2), in_dtype="f32", epilogue=epilogue),
        ConvSpec(1, 1, 37, 300, 64, in_dtype="f32", epilogue=epilogue),
    )
    jobs = []
    for seed, spec in enumerate(specs):
        x, w, bias = conv_data(spec, seed)
        x.flat[:2] = 1 + UNIT, -1 - UNIT  # halves
        jobs.append((spec, x, w, bias, grid_gemm(spec, w, bias, None, None, MACHINE)))
    runner = GridRunner([plan for *_, plan in jobs])
    for spec, x, w, bias, plan in jobs:
        assert plan.kernel.startswith("mma tf32")
        want, real, size = (
            finish(conv_accumulators(*operands, spec), spec.epilogue, shift)
            for *operands, shift in (
                (tf32(x), tf32(w), bias),
                (x.astype(np.float64), w.astype(np.float64), bias),
                (np.abs(x).astype(np.float64), np.abs(w).astype(np.float64), 0 * bias),
            )
        )
        got = runner.run(plan, [x], np.zeros(want.shape, np.float32))
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=4e-6)
        assert np.any(np.abs(want - real) > 1e-5)
        room = (2 * UNIT + UNIT**2) * size + 4e-6
        assert np.all(np.abs(got - real) <= room)


def test_products_of_activations():
    spec = MatmulSpec(2, 19, 44, 33, "f32")
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 19, 44), (2, 44, 33)))
    plan = grid_matmul(spec, MACHINE)
    got = GridRunner([plan]).run(plan, [a, b], np.zeros((2, 19, 33), np.float32))
    np.testing.assert_allclose(got, tf32(a) @ tf32(b), rtol=2e-6, atol=8e-6)


@pytest.fixture
def network() -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((64, 128)))
    w = np.random.default_rng(2).standard_normal((48, 128)).astype(np.float32)
    graph.set_outputs([build(graph, "linear", [x, graph.add_constant(w)]).output])
    return graph


@pytest.mark.usefixtures("emulator")
def test_the_option(tmp_path, network):
    """The manifest and the report say so, and the library is held to a tolerance for it."""
    options = {"bits": 32, "target": "cuda:sm_80", "tf32": True, "verify_numerics": 1}
    with compiled_for_cpu():
        made = dlcc.compile(network, tmp_path / "net", **options)
    assert made.artifact.manifest["tf32"] is True
    report = json.loads((made.artifact.folder / "report.json").read_text())
    assert [row["variant"][:9] for row in report["layers"]] == ["mma tf32 "]
    assert tolerances(network, tf32=True) == (ROUNDED,) > tolerances(network)


@pytest.mark.parametrize("target", ["cpu:avx2", "cuda:sm_75", "cuda:sm_75+sm_80"])
def test_targets_without(tmp_path, network, target):
    with pytest.raises(DlccError, match="has no TF32") as caught:
        dlcc.compile(network, tmp_path / "net", bits=32, target=target, tf32=True)
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "net").exists()
