"""Weights behind a bit mask against decode-then-dense, on every ISA at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.cpu.levels import AMX, AVX2, AVX512VNNI
from targets.kernels.sparse_mask import refusal, sparse_mask, sparse_mask_cost
from targets.kernels.spec import ConvSpec
from tests.targets.running import ARENA_SLACK, Runner, isa_params
from tests.targets.test_sparse_kernels import GEMV, U8, SparseCase, typed
from tests.targets.test_sparse_rows import check, lowered, sparse_layer

LEVELS = [("f32", "avx512"), ("f32", "amx"), ("u8", "amx")]


def levels() -> list:
    """Activations, and the levels that expand numbers of their width."""
    return [
        pytest.param(dtype, *param.values, id=f"{dtype}-{name}", marks=param.marks)
        for dtype, name in LEVELS
        for param in isa_params(name)
    ]


@pytest.mark.parametrize(("dtype", "isa"), levels())
def test_gemv_against_numpy(dtype, isa):
    cases = {
        (name, density): SparseCase(typed(spec, dtype), block, density, 3)
        for name, (spec, block) in GEMV.items()
        for density in (0.0, 0.3, 1.0)
    }
    plans = {key: case.planned(sparse_mask, isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for (name, density), case in cases.items():
        slack = ARENA_SLACK if case.spec.input_slack else 0
        for cuts in (1, 3):
            plan = plans[name, density]
            case.check(runner.run(plan, case.inputs, case.out, cuts, slack))


@pytest.mark.parametrize(("dtype", "isa"), levels())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemv_of_any_shape(dtype, isa, data):
    k, n = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 150))
    spec = typed(ConvSpec(1, 1, 1, k, n, epilogue=U8), dtype)
    case = SparseCase(spec, (1, 1), data.draw(st.floats(0, 1)), data.draw(st.integers(0, 99)))
    plan = case.planned(sparse_mask, isa)
    case.check(Runner([plan], isa).run(plan, case.inputs, case.out, 2))


@pytest.mark.parametrize(("dtype", "size"), [("u8", 1), ("f32", 4)])
def test_a_weight_takes_itself_and_every_place_a_bit(dtype, size):
    case = SparseCase(typed(ConvSpec(1, 1, 1, 1024, 128, epilogue=U8), dtype), (1, 1), 0.4, 1)
    made = case.planned(sparse_mask, AMX).constants
    assert made["weight"].nbytes == size * np.count_nonzero(case.w)
    assert made["mask"].nbytes == case.w.size // 8


@pytest.mark.parametrize("isa", isa_params("amx"))
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_half_the_weights_run_from_a_mask(isa, bits, pattern, tmp_path):
    graph = sparse_layer("linear", (1, 2048), (1024, 2048), pattern, 0.5, bits=bits)
    program, row = lowered(graph, isa.name)
    assert (row["kernel"], row["weights"]) == ("sparse-mask", "compressed")
    assert "predicted" in row["rejected"]["sparse-gather"]
    check(graph, program, tmp_path / "net")


def test_what_is_refused():
    spec = ConvSpec(1, 1, 1, 32, 16, epilogue=U8)
    assert "cannot expand" in refusal(typed(spec, "f32"), AVX2)
    assert "cannot expand bytes" in refusal(spec, AVX512VNNI)
    assert refusal(replace(spec, w=3), AMX)
    assert not refusal(spec, AMX)


def test_cost_falls_with_the_weights():
    spec = typed(ConvSpec(1, 1, 1, 4096, 4096, epilogue=U8), "f32")
    rng = np.random.default_rng(0)
    kept = rng.random((4096, 4096), np.float32)
    costs = [sparse_mask_cost(spec, AMX, kept < density) for density in (0.9, 0.5, 0.2)]
    assert costs == sorted(costs, reverse=True)
