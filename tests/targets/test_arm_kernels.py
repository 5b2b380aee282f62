"""The generators' code for ARM, on emulated machines, against the same references as on x86."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dlcc.lowering.kernel import ARENA_SLACK
from targets.arm import NEON
from targets.kernels import depthwise_neon
from targets.kernels.arm_mlal import proven_unit
from targets.kernels.conv import conv2d
from targets.kernels.gemm import unit_for
from targets.kernels.spec import ConvSpec, Epilogue
from targets.rows.codes import TableRow
from tests.ops.tir_harness import affine, case, reference, u8
from tests.targets import test_bf16_kernels as bf16
from tests.targets import test_code_panels as coded
from tests.targets import test_depthwise_kernels as depthwise
from tests.targets import test_matmul_kernels as products
from tests.targets import test_winograd_kernels as filtering
from tests.targets import test_xnor_kernels as signs
from tests.targets.reference import conv_accumulators, finish
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
def test_weights_unpacked_from_codes(isa):
    shapes = ("many-groups-of-blocks", "whole-runs", "rows", "grouped-large", "no-slack")
    cases = [
        coded.CodedCase(coded.SHAPES[shapes[i % len(shapes)]], codes, i)
        for i, codes in enumerate(coded.CODES.values())
    ]
    plans = [one.plan(isa) for one in cases]
    assert all(plan.compressed for plan in plans)
    runner = Runner(plans, isa)
    for slack in (0, ARENA_SLACK):
        some = [i for i, one in enumerate(cases) if one.spec.input_slack == (slack > 0)]
        jobs = [(plans[i], cases[i].inputs, cases[i].out) for i in some]
        for i, got in zip(some, runner.run_all(jobs, 3, slack), strict=True):
            np.testing.assert_array_equal(got, cases[i].want)


def extreme_case(isa, spec: ConvSpec, limit: int):
    """Weights of this size at most and codes 0 or 255: the largest sums that there can be."""
    rng = np.random.default_rng(limit)
    w = rng.choice([-limit, min(limit, 127)], (spec.oc, spec.c, spec.kh, spec.kw)).astype(np.int8)
    w[: spec.oc // 2] = -limit
    x = rng.choice([0, 255], (spec.n, spec.h, spec.w, spec.c)).astype(np.uint8)
    x[:, : spec.h // 2] = 0
    acc = conv_accumulators(x, w, spec)
    factor = np.full(spec.oc, 100 / np.abs(acc).max(), np.float32)
    bias = np.zeros(spec.oc, np.int32)
    plan = conv2d(spec, isa, w, bias, factor)
    return plan, x, finish(acc, spec.epilogue, bias, factor)


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_sums_of_16_bits(isa):
    epilogue = Epilogue("u8", 0, 255, 100)
    deep = ConvSpec(1, 7, 7, 100, 24, 2, 2, in_zero_point=9, epilogue=epilogue)
    flat = ConvSpec(1, 1, 3, 259, 9, in_zero_point=128, epilogue=epilogue)
    specs = (deep, flat, ConvSpec(1, 1, 1, 768, 4, in_zero_point=128, epilogue=epilogue))
    cases = [extreme_case(isa, spec, w) for spec in specs for w in (128, 127, 63, 42, 31)]
    runner = Runner([plan for plan, _, _ in cases], isa)
    for plan, x, want in cases:
        got = runner.run(plan, [x], np.zeros(want.shape, np.uint8), 2)
        np.testing.assert_array_equal(got, want)


def test_sums_are_as_long_as_weights_prove():
    unit = unit_for(NEON, "u8")
    found = {}
    for limit in (128, 127, 63, 42, 31):
        weights = np.full((1, 8, 1, 128), -limit, np.int8)
        found[limit] = proven_unit(unit, weights).sums
    assert found == {128: 1, 127: 2, 63: 4, 42: 6, 31: 8}
    one = np.full((1, 8, 1, 128), 1, np.int8)
    one[0, 7, 0, [3, 11, 19]] = -128, -100, -30  # products of one lane
    assert proven_unit(unit, one).sums == 2
    short = np.full((1, 8, 1, 40), 1, np.int8)
    assert proven_unit(unit, short).k == 48
    assert proven_unit(unit, short, (1, 4, 1)).k == 32  # registers for four pixels


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


@pytest.mark.parametrize("isa", isa_params("neon", "dotprod", "armv7"))
def test_signs(isa):
    cases = list(signs.cases().values())
    plans = [signs.xnor(one.layer, isa) for one in cases]
    runner = Runner(plans, isa)
    jobs = [(plan, one.inputs, one.out) for plan, one in zip(plans, cases, strict=True)]
    for one, got in zip(cases, runner.run_all(jobs, 3, slack=0), strict=True):
        np.testing.assert_array_equal(got, one.want)


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


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_depthwise(isa):
    cases = {
        (name, dtype, largest): depthwise.case_of(name, dtype, isa, largest)
        for name in depthwise.CASES
        for dtype, largest in (("u8", 127), ("u8", 40), ("f32", 0))
    }
    runner = Runner([one.plan for one in cases.values()], isa)
    for slack in (0, ARENA_SLACK):
        specs = depthwise.CASES
        some = [one for key, one in cases.items() if specs[key[0]].input_slack == (slack > 0)]
        made = runner.run_all([(one.plan, one.inputs, one.out) for one in some], 3, slack)
        for one, got in zip(some, made, strict=True):
            one.check(got)


def test_depthwise_products_summed_in_16_bits():
    spec = ConvSpec(1, 9, 9, 8, 8, 1, 3, groups=8, in_dtype="u8", epilogue=Epilogue("u8"))
    for last, runs in ((1, (3,)), (2, (3,)), (3, (2, 1)), (-1, (3,)), (-2, (2, 1))):
        side = 127 if last > 0 else -127
        weights = np.zeros((8, 1, 1, 3), np.int8)
        weights[5] = [side, side, last]
        shape = depthwise_neon.shape_of(spec, NEON, weights)
        assert shape is not None
        assert shape.runs == (runs,), last


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_bfloat16(isa):
    cases = list(bf16.cases_on(isa).values())
    runner = Runner([one.plan for one in cases], isa)
    for slack in (0, ARENA_SLACK):
        some = [one for one in cases if one.slack == slack]
        made = runner.run_all([(one.plan, one.inputs, one.out) for one in some], 2, slack)
        for one, got in zip(some, made, strict=True):
            bf16.check(got, one.want)


BLOCKS = [(1, 1, 1), (1, 1, 6), (1, 2, 4), (1, 3, 2), (3, 1, 3), (1, 5, 4), (1, 7, 1), (2, 2, 5)]
"""Register blocks: odd numbers of pixels, one register of codes at a time and two."""


@pytest.mark.parametrize("isa", isa_params("dotprod", "i8mm"))
def test_blocks_of_dot_products(isa):
    rng = np.random.default_rng(3)
    cases = []
    for i, (kernel, block) in enumerate(itertools.product((1, 3), BLOCKS)):
        c = (16, 37, 48, 112)[(i + i // 4) % 4]
        pads = (kernel // 2,) * 4  # codes as they are, and staged
        residual = "u8" if i % 3 == 0 else None
        codes = Epilogue("u8", 3, 250, 9, residual, 77 if residual else 0)
        spec = ConvSpec(1, 4, 7, c, 22, kernel, kernel, pads=pads, in_zero_point=5, epilogue=codes)
        x = rng.choice([0, 255, 129], (1, 4, 7, c)).astype(np.uint8)
        w = rng.choice([-128, 127, 3], (22, c, kernel, kernel)).astype(np.int8)
        acc = conv_accumulators(x, w, spec)
        bias = rng.integers(-99, 99, 22).astype(np.int32)
        factor = np.full(22, 200 / np.abs(acc).max(), np.float32)
        ratio = np.linspace(1, 99, 22, dtype=np.float32)
        more = rng.integers(0, 256, (1, 4, 7, 22)).astype(np.uint8) if residual else None
        plan = conv2d(spec, isa, w, bias, factor, ratio if residual else None, block=block)
        inputs = [x] if more is None else [x, more]
        cases.append((plan, inputs, finish(acc, codes, bias, factor, ratio, more)))
    runner = Runner([plan for plan, _, _ in cases], isa)
    jobs = [(plan, inputs, np.zeros(want.shape, np.uint8)) for plan, inputs, want in cases]
    for (_, _, want), got in zip(cases, runner.run_all(jobs, 2), strict=True):
        np.testing.assert_array_equal(got, want)
