"""The generators' code for ARM, on emulated machines, against the same references as on x86."""

from __future__ import annotations

import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES, Case, typed


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_float_convolutions(isa):
    cases = {name: Case(typed(spec, "f32"), isa) for name, spec in CASES.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for name, case in cases.items():
        slack = ARENA_SLACK if CASES[name].input_slack else 0
        case.check(runner.run(case.plan, case.inputs, case.out, 3, slack=slack))
