"""Direct loops against numpy: as machine code between guard pages, and as C."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcc.tir.c99 import print_kernel
from targets.kernels.direct import (
    Window,
    conv2d,
    conv2d_transpose,
    packed,
    sums_fit,
    weight_bits,
)
from targets.kernels.spec import ConvSpec, ConvTransposeSpec, Epilogue
from targets.portable import SCALAR
from tests.portable.source import kernels
from tests.targets.reference import finish, transposed_accumulators
from tests.targets.running import Runner
from tests.targets.test_gemm_kernels import CASES, Case, typed

DEPTHWISE = {
    "depthwise": ConvSpec(1, 9, 8, 11, 11, 3, 3, pads=(1, 1, 1, 1), groups=11),
    "depthwise-strided": ConvSpec(
        2, 9, 9, 8, 8, 3, 3, stride=(2, 2), pads=(0, 0, 1, 1), groups=8,
        epilogue=Epilogue("u8", 3, 250, 10),
    ),
    "depthwise-dilated": ConvSpec(
        1, 12, 11, 6, 6, 3, 2, dilation=(2, 3), pads=(2, 3, 2, 0), groups=6
    ),
    "depthwise-whole": ConvSpec(2, 4, 5, 7, 7, 4, 5, groups=7, epilogue=Epilogue("s8")),
}  # fmt: skip
BORDERS = {
    "padding-beyond-kernel": ConvSpec(1, 3, 4, 5, 6, 2, 2, pads=(3, 2, 4, 3)),
    "dilated-beyond": ConvSpec(1, 4, 3, 5, 6, 3, 3, dilation=(3, 2), pads=(5, 4, 5, 4)),
}
ALL = {**CASES, **DEPTHWISE, **BORDERS}


NARROW = {4: ("pixels-and-channels-uneven", "depthwise", "linear-m1"), 2: ("grouped-small",)}


def planned(spec, _isa, *constants):
    return conv2d(spec, *constants)


@pytest.mark.parametrize(("bits", "name"), [(b, n) for b, names in NARROW.items() for n in names])
def test_packed_weights(bits, name):
    spec, half = typed(ALL[name], "u8"), 1 << bits - 1
    case = Case(spec, SCALAR, plan=planned)
    rng = np.random.default_rng(4)
    weights = rng.integers(-half, half, case.w.shape).astype(np.int8)
    assert weight_bits(weights) == bits
    factor = (case.factor * np.float32(127 / half)).astype(np.float32)
    plans = [conv2d(spec, weights, case.bias, factor, case.ratio, bits=b) for b in (bits, 8)]
    assert plans[0].compressed
    assert plans[0].constants["weight"].size == -(-weights.size * bits // 8)
    runner = Runner(plans, SCALAR)
    got, want = (runner.run(plan, case.inputs, case.out, slack=0) for plan in plans)
    assert len(np.unique(want)) > 5
    np.testing.assert_array_equal(got, want)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9), st.sampled_from([2, 4]))
def test_packing_is_undone_by_shifts(codes, bits):
    half = 1 << bits - 1
    codes = np.clip(np.array(codes, np.int8), -half, half - 1)
    data, each = packed(codes, bits), 8 // bits
    fields = [(int(data[i // each]) >> i % each * bits) & (2 * half - 1) for i in range(len(codes))]
    assert [f - half for f in fields] == codes.tolist()
    assert weight_bits(codes) <= bits


@pytest.fixture(scope="module")
def cases():
    return {
        (name, dtype): Case(typed(spec, dtype), SCALAR, plan=planned)
        for name, spec in ALL.items()
        for dtype in ("u8", "f32")
    }


@pytest.fixture(scope="module")
def runner(cases):
    return Runner([case.plan for case in cases.values()], SCALAR)


@pytest.fixture(scope="module")
def library(cases, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    steps = {step.name_key: step for case in cases.values() for step in case.plan.steps}
    printed = {key: print_kernel(key, step.build(), step.work_items) for key, step in steps.items()}
    return kernels(printed, tmp_path_factory.mktemp("direct"))


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("name", ALL)
def test_against_numpy(cases, runner, library, name, dtype):
    case = cases[name, dtype]
    case.check(runner.run(case.plan, case.inputs, case.out, cuts=2, slack=0))
    (step,) = case.plan.steps
    out = case.out.copy()
    arrays = {("in", i): array for i, array in enumerate(case.inputs)} | {("out", 0): out}
    arrays |= {("const", key): np.ascontiguousarray(a) for key, a in case.plan.constants.items()}
    library[step.name_key](*(ctypes.c_void_p(arrays[arg].ctypes.data) for arg in step.args))
    case.check(out)


@pytest.mark.parametrize("name", [n for n, s in ALL.items() if s.epilogue.residual != "f32"])
def test_output_may_overwrite_input(cases, runner, name):
    case = cases[name, "u8"]
    (step,) = case.plan.steps
    overlaps = case.plan.overlaps
    lead = overlaps[0].lead
    start = -(-max(-lead, 0) // 4) * 4
    room = np.zeros(start + abs(lead) + case.x.nbytes + case.out.nbytes, np.uint8)
    y = room[start : start + case.out.nbytes].view(case.out.dtype)
    x = room[start + lead : start + lead + case.x.nbytes]
    x[...] = case.x.ravel()
    arrays = {("in", 0): x, ("out", 0): y}
    if 1 in overlaps:  # the residual has to be where the output goes, so it is not over the input
        assert overlaps[1].exact
        y = case.inputs[1].copy()
        arrays = {("in", 0): case.x, ("in", 1): y, ("out", 0): y}
    arrays |= {("const", key): np.ascontiguousarray(a) for key, a in case.plan.constants.items()}
    made = [arrays[arg] for arg in step.args]
    runner.library.call(step.name_key, made, 0, step.work_items)
    case.check(y.view(case.out.dtype).reshape(case.out.shape))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_transposed(dtype, groups):
    out = Epilogue("u8", 3, 250, 10) if dtype == "u8" else Epilogue("f32", -1.0, 90.0)
    spec = ConvTransposeSpec(
        2, 5, 6, 8, 12, 3, 4, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0), groups, dtype, 11, out
    )
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (2, 5, 6, 8), dtype=np.uint8)
    w = rng.integers(-127, 128, (8, 12 // groups, 3, 4), dtype=np.int8)
    bias = rng.integers(-500, 500, 12).astype(np.int32)
    factor = rng.uniform(2e-3, 4e-3, 12).astype(np.float32) if dtype == "u8" else None
    if dtype == "f32":
        x, w, bias = x.astype(np.float32) / 64, w.astype(np.float32) / 64, bias / np.float32(500)
    acc = transposed_accumulators(x.astype(np.int64) - 11 if dtype == "u8" else x, w, spec)
    want = finish(acc, spec.epilogue, bias, factor)
    plan = conv2d_transpose(spec, w, bias, factor)
    got = Runner([plan], SCALAR).run(plan, [x], np.zeros_like(want), 3, slack=0)
    if dtype == "u8":
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_extreme_codes_fit():
    spec = replace(ALL["wide"], in_zero_point=255, epilogue=Epilogue("f32"))
    case = Case(spec, SCALAR, plan=planned)
    weights = np.full_like(case.w, -127)
    bias = np.full(spec.oc, 2**20, np.int32)
    assert sums_fit(weights, bias)
    plan = conv2d(spec, weights, bias, np.ones(spec.oc, np.float32))
    x = np.zeros_like(case.x)
    got = Runner([plan], SCALAR).run(plan, [x], case.out, slack=0)
    inner = 2**20 + 9 * 64 * 127 * 255
    assert got.max() == inner
    assert got[0, 0, 0, 0] == 2**20 + 4 * 64 * 127 * 255


@given(st.integers(1, 200), st.integers(-(2**31), 2**31 - 1))
def test_sums_that_may_leave_32_bits_are_known(taps, bias):
    weights = np.full((1, taps), -127, np.int8)
    reach = 255 * 127 * taps * 2 + abs(bias)
    assert sums_fit(weights, np.array([bias], np.int64)) == (reach < 2**31)


@pytest.mark.parametrize("name", ALL)
def test_window_knows_its_borders(name):
    spec = ALL[name]
    rows = np.arange(spec.oh)[:, None] * spec.stride[0] - spec.pads[0]
    rows = rows + np.arange(spec.kh) * spec.dilation[0]
    columns = np.arange(spec.ow)[:, None] * spec.stride[1] - spec.pads[1]
    columns = columns + np.arange(spec.kw) * spec.dilation[1]
    outside = [((v < 0) | (v >= size)).any() for v, size in ((rows, spec.h), (columns, spec.w))]
    window = Window(spec)
    assert [window.row_borders, window.column_borders] == outside
