"""The generators' code for ARM, on emulated machines, against the same references as on x86."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from targets.rows.codes import TableRow
from tests.ops.tir_harness import affine, case, reference, u8
from tests.targets import test_matmul_kernels as products
from tests.targets import test_winograd_kernels as filtering
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES, Case, typed
from tests.targets.test_softmax_kernels import check_softmax


def check_convolutions(in_dtype, isa):
    cases = {name: Case(typed(spec, in_dtype), isa) for name, spec in CASES.items()}
    runner = Runner([one.plan for one in cases.values()], isa)
    for slack in (0, ARENA_SLACK):
        some = [one for name, one in cases.items() if CASES[name].input_slack == (slack > 0)]
        made = runner.run_all([(one.plan, one.inputs, one.out) for one in some], 3, slack)
        for one, got in zip(some, made, strict=True):
            one.check(got)


@pytest.mark.parametrize("isa", isa_params("neon", "armv7", "vfpv4"))
def test_float_convolutions(isa):
    check_convolutions("f32", isa)


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_winograd(isa):
    cases = [
        filtering.Case(filtering.float_spec(spec), isa, m, band)
        for spec, band in filtering.CASES.values()
        for m in filtering.TILES
    ]
    runner = Runner([one.plan for one in cases], isa)
    made = runner.run_all([(one.plan, one.inputs, one.out) for one in cases], 2, slack=0)
    for one, got in zip(cases, made, strict=True):
        one.check(got)


@pytest.mark.parametrize("isa", isa_params("neon", "dotprod", "i8mm", "armv7"))
def test_integer_convolutions(isa):
    check_convolutions("u8", isa)


@pytest.mark.parametrize("isa", isa_params("neon", "dotprod", "i8mm", "armv7"))
def test_integer_products_of_activations(isa):
    specs = {name: spec for name, spec in products.CASES.items() if spec.in_dtype == "u8"}
    cases = {name: products.Case(spec, isa) for name, spec in specs.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for slack in (0, ARENA_SLACK):
        some = [one for name, one in cases.items() if specs[name].b_slack == (slack > 0)]
        made = runner.run_all([(one.plan, one.inputs, one.out) for one in some], 2, slack)
        for one, got in zip(some, made, strict=True):
            np.testing.assert_array_equal(got, one.want)


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_softmax(isa):
    check_softmax(isa)


@pytest.mark.parametrize("isa", isa_params("neon"))
def test_tables_of_codes(isa):
    nodes = [
        case("sigmoid", [u8(n, seed=n)], out=affine(1 / 256, 3)) for n in (1, 15, 16, 100, 40000)
    ]
    row = TableRow(isa)
    plans = [row.plan(made.node) for made in nodes]
    runner = Runner(plans, isa)
    want = [reference(made)[0] for made in nodes]
    jobs = [
        (plan, [made.arrays[0]], np.zeros_like(y))
        for plan, made, y in zip(plans, nodes, want, strict=True)
    ]
    for got, y in zip(runner.run_all(jobs, 2, slack=0), want, strict=True):
        np.testing.assert_array_equal(got, y)
