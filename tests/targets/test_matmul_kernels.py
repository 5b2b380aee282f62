"""Products of two activations against numpy, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from targets.cpu.levels import AVX2, LEVELS
from targets.kernels.matmul import matmul, matmul_cost
from targets.kernels.spec import NUMPY, Epilogue, MatmulSpec
from tests.targets.reference import finish
from tests.targets.running import Runner, isa_params

U8 = Epilogue("u8", 5, 240, 100)
CASES = {
    "uneven": MatmulSpec(3, 17, 37, 43),
    "uneven-t": MatmulSpec(3, 17, 37, 43, transpose_b=True),
    "row-no-slack": MatmulSpec(2, 1, 70, 18, b_slack=False),
    "u8": MatmulSpec(3, 17, 37, 43, "u8", 9, 200, epilogue=U8),
    "u8-t": MatmulSpec(3, 17, 39, 43, "u8", 9, 3, transpose_b=True, epilogue=U8),
    "u8-centred": MatmulSpec(1, 50, 64, 64, "u8", 77, 128, epilogue=Epilogue("f32")),
    "u8-no-slack": MatmulSpec(
        2, 5, 66, 21, "u8", 255, 0, epilogue=Epilogue("s8"), a_slack=False, b_slack=False
    ),
    "u8-t-no-slack": MatmulSpec(
        1, 33, 7, 5, "u8", 0, 255, transpose_b=True, epilogue=U8, a_slack=False, b_slack=False
    ),
}


class Case:
    """Random operands, the plan and the reference."""

    def __init__(self, spec: MatmulSpec, isa, plan=matmul) -> None:
        rng = np.random.default_rng(4)
        sizes = [(spec.batch, spec.m, spec.k), (spec.batch, spec.k, spec.n)]
        if spec.in_dtype == "u8":
            a, b = (rng.integers(0, 256, size, dtype=np.uint8) for size in sizes)
            acc = (a.astype(np.int64) - spec.a_zero_point) @ (
                b.astype(np.int64) - spec.b_zero_point
            )
            factor = np.float32(50 / acc.std())
            self.want = finish(acc, spec.epilogue, np.int64(0), factor)
        else:
            a, b = (rng.standard_normal(size).astype(np.float32) for size in sizes)
            factor = None
            self.want = (a.astype(np.float64) @ b).astype(np.float32)
        self.exact = spec.in_dtype == "u8"
        self.inputs = [a, np.ascontiguousarray(b.transpose(0, 2, 1)) if spec.transpose_b else b]
        self.plan = plan(spec, isa, factor)
        self.out = np.zeros(self.want.shape, NUMPY[spec.epilogue.out])


@pytest.fixture(scope="module", params=isa_params())
def table(request):
    """All cases planned for one ISA and compiled together."""
    cases = {name: Case(spec, request.param) for name, spec in CASES.items()}
    return cases, Runner([case.plan for case in cases.values()], request.param)


@pytest.mark.parametrize("cuts", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(table, name, cuts):
    cases, runner = table
    case = cases[name]
    slack = ARENA_SLACK if CASES[name].b_slack else 0
    got = runner.run(case.plan, case.inputs, case.out, cuts, slack)
    if case.exact:
        np.testing.assert_array_equal(got, case.want)
    else:
        np.testing.assert_allclose(got, case.want, rtol=2e-5, atol=4e-5)


def test_refusals_and_cost():
    with pytest.raises(ValueError, match="multiplier"):
        matmul(CASES["u8"], AVX2)
    with pytest.raises(ValueError, match="residual"):
        matmul(MatmulSpec(1, 4, 4, 4, epilogue=Epilogue("f32", residual="f32")), AVX2)
    big = MatmulSpec(12, 197, 64, 197, "u8", epilogue=U8)
    costs = [matmul_cost(big, LEVELS[name]) for name in ("sse4", "avx2", "avx512vnni", "amx")]
    assert costs == sorted(costs, reverse=True)
