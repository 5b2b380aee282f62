"""The generators' code for ARM, on emulated machines, against the same references as on x86."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from tests.targets import test_matmul_kernels as products
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES, Case, typed


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_float_convolutions(isa):
    cases = {name: Case(typed(spec, "f32"), isa) for name, spec in CASES.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for name, case in cases.items():
        slack = ARENA_SLACK if CASES[name].input_slack else 0
        case.check(runner.run(case.plan, case.inputs, case.out, 3, slack=slack))


@pytest.mark.parametrize("isa", isa_params("neon", "dotprod", "i8mm", "armv7"))
def test_integer_convolutions(isa):
    cases = {name: Case(typed(spec, "u8"), isa) for name, spec in CASES.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for name, case in cases.items():
        slack = ARENA_SLACK if CASES[name].input_slack else 0
        case.check(runner.run(case.plan, case.inputs, case.out, 3, slack=slack))


@pytest.mark.parametrize("isa", isa_params("neon", "dotprod", "i8mm", "armv7"))
def test_integer_products_of_activations(isa):
    specs = {name: spec for name, spec in products.CASES.items() if spec.in_dtype == "u8"}
    cases = {name: products.Case(spec, isa) for name, spec in specs.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for name, case in cases.items():
        slack = ARENA_SLACK if specs[name].b_slack else 0
        got = runner.run(case.plan, case.inputs, case.out, 2, slack)
        np.testing.assert_array_equal(got, case.want)
