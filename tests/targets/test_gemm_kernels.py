"""Convolution, linear and transposed convolution kernels against numpy, on every ISA at hand."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc import tir
from dlcc.lowering.kernel import ARENA_SLACK
from targets.cpu.levels import AVX2, AVX512VNNI, LEVELS
from targets.isa import host_flags, supports
from targets.kernels.blocking import choose_blocking
from targets.kernels.conv import (
    STREAM_BANDWIDTH,
    conv2d,
    conv2d_transpose,
    conv_cost,
    conv_transpose_cost,
    geometry,
)
from targets.kernels.gemm import (
    bundles,
    channel_order,
    code_step,
    even_cut,
    pack_weights,
    tail_cut,
    unit_for,
)
from targets.kernels.spec import NUMPY, ConvSpec, ConvTransposeSpec, Epilogue
from targets.kernels.tiles import tile_shape
from tests.targets.footprints import check_footprints
from tests.targets.reference import conv_accumulators, finish, transposed_accumulators
from tests.targets.running import Runner, isa_params, llvm_target

U8 = Epilogue("u8", 3, 250, 10)
CASES = {
    "pixels-and-channels-uneven": ConvSpec(1, 9, 11, 13, 19, 3, 3, pads=(1, 0, 1, 2)),
    "stem": ConvSpec(1, 15, 22, 3, 16, 7, 7, stride=(2, 2), pads=(3, 3, 3, 3)),
    "flat-1x1-s8-residual": ConvSpec(
        2, 7, 7, 64, 40, epilogue=Epilogue("s8", -100, 100, -5, "u8", 3)
    ),
    "strided-1x1": ConvSpec(1, 8, 9, 36, 32, stride=(2, 2)),
    "dilated": ConvSpec(1, 12, 13, 8, 24, 3, 3, dilation=(2, 3), pads=(2, 3, 2, 3)),
    "grouped-small": ConvSpec(2, 8, 9, 12, 24, 3, 2, stride=(2, 1), groups=6),
    "grouped-large": ConvSpec(1, 6, 7, 66, 80, 3, 3, pads=(1, 1, 1, 1), groups=2),
    "linear-m1": ConvSpec(1, 1, 1, 203, 50, epilogue=Epilogue("f32")),
    "linear-m5-f32-residual": ConvSpec(
        1, 1, 5, 70, 33, epilogue=Epilogue("f32", -2.5, 3.0, residual="f32")
    ),
    "one-block-flat": ConvSpec(1, 9, 13, 8, 16, epilogue=U8),
    "one-block-odd": ConvSpec(2, 8, 23, 1, 6, 5, 5, pads=(2, 2, 2, 2), epilogue=U8),
    "one-block-long": ConvSpec(1, 5, 21, 40, 11, 3, 3, stride=(1, 2), epilogue=Epilogue("s8")),
    "one-block-residual": ConvSpec(
        1, 6, 7, 20, 12, 3, 2, dilation=(1, 2), epilogue=Epilogue("u8", 9, 240, 9, "u8", 5)
    ),
    "wide": ConvSpec(1, 3, 50, 64, 96, 3, 3, pads=(1, 1, 1, 1)),
    "narrow": ConvSpec(2, 7, 6, 70, 50, 3, 3, pads=(1, 1, 1, 1)),
    "no-slack": ConvSpec(1, 5, 5, 7, 9, input_slack=False),
    "rows-of-half-a-tile": ConvSpec(2, 13, 9, 70, 72, 3, 3, stride=(2, 1), pads=(1, 1, 1, 1)),
    "pixels-three-tiles": ConvSpec(2, 9, 17, 24, 96, epilogue=Epilogue("u8", 0, 255, 9, "u8", 30)),
    "rows-of-tiles-apart": ConvSpec(1, 4, 45, 16, 144, 1, 3, stride=(2, 1), pads=(0, 1, 0, 1)),
    "residual-relu6": ConvSpec(
        1, 10, 10, 24, 48, 3, 3, pads=(1, 1, 1, 1), epilogue=Epilogue("u8", 20, 200, 20, "u8", 128)
    ),
}


class Case:
    """Random data for a spec, its plan and its reference output."""

    def __init__(self, spec: ConvSpec, isa, seed: int = 0, plan=conv2d, largest: int = 127) -> None:
        rng = np.random.default_rng(seed)
        shape, integer = (spec.n, spec.h, spec.w, spec.c), spec.in_dtype == "u8"
        kernel = (spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
        if integer:
            self.x = rng.integers(0, 256, shape, dtype=np.uint8)
            self.w = rng.integers(-largest, largest + 1, kernel, dtype=np.int8)
            self.bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
        else:
            self.x = rng.standard_normal(shape).astype(np.float32)
            self.w = rng.standard_normal(kernel).astype(np.float32)
            self.w /= np.float32(np.sqrt(self.w[0].size))  # accumulators of about 1
            self.bias = rng.standard_normal(spec.oc).astype(np.float32)
        acc = conv_accumulators(self.x, self.w, spec)
        spread = max(float(np.abs(acc).std()), 1.0)
        scale = {"u8": 60, "s8": 60, "f32": 2}[spec.epilogue.out] / spread
        factor = (rng.uniform(0.5, 1.5, spec.oc) * scale).astype(np.float32)
        self.factor = factor if integer else None
        self.ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
        self.inputs = [self.x]
        if spec.epilogue.residual == "u8":
            self.inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        if spec.epilogue.residual == "f32":
            self.inputs.append(rng.standard_normal(acc.shape).astype(np.float32))
        residual = self.inputs[1] if len(self.inputs) > 1 else None
        self.want = finish(acc, spec.epilogue, self.bias, self.factor, self.ratio, residual)
        self.plan = plan(spec, isa, self.w, self.bias, self.factor, self.ratio)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])
        self.exact = integer

    def check(self, got: np.ndarray) -> None:
        """Bit for bit for integers, to some ulps of the largest partial sum for f32."""
        assert len(np.unique(self.want)) > 5
        if self.exact:
            np.testing.assert_array_equal(got, self.want)
        else:
            np.testing.assert_allclose(got, self.want, rtol=2e-5, atol=2e-5)


def typed(spec: ConvSpec, dtype: str) -> ConvSpec:
    """``spec`` with u8 activations (zero point 7) or as the nearest f32 layer."""
    if dtype == "u8":
        return replace(spec, in_zero_point=7)
    residual = "f32" if spec.epilogue.residual else None
    return replace(spec, in_dtype="f32", epilogue=Epilogue("f32", -1.5, 2.5, residual=residual))


@pytest.fixture(scope="module", params=isa_params())
def table(request):
    """All cases planned for one ISA and compiled together."""
    cases = {
        (name, dtype): Case(typed(spec, dtype), request.param)
        for name, spec in CASES.items()
        for dtype in ("u8", "f32")
    }
    return cases, Runner([case.plan for case in cases.values()], request.param)


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(table, name, dtype):
    cases, runner = table
    case = cases[name, dtype]
    slack = ARENA_SLACK if CASES[name].input_slack else 0
    case.check(runner.run(case.plan, case.inputs, case.out, slack=slack))


@pytest.mark.parametrize(
    "name", ["wide", "flat-1x1-s8-residual", "linear-m1", "stem", "one-block-odd"]
)
def test_any_split_gives_the_same_bytes(table, name):
    cases, runner = table
    for dtype in ("u8", "f32"):
        case = cases[name, dtype]
        whole = runner.run(case.plan, case.inputs, case.out)
        for cuts in (2, 5, 16):
            split = runner.run(case.plan, case.inputs, case.out, cuts)
            assert split.tobytes() == whole.tobytes()


def test_function_does_not_depend_on_constants(table):
    cases, runner = table
    spec = replace(
        CASES["residual-relu6"],
        in_zero_point=99,
        epilogue=Epilogue("u8", 40, 180, 41, "u8", 1),
    )
    features = set(cases["stem", "u8"].plan.features)
    isa = next(i for i in LEVELS.values() if features <= set(i.flags))
    case = Case(spec, isa, seed=5)
    old = cases["residual-relu6", "u8"].plan
    assert [s.name_key for s in case.plan.steps] == [s.name_key for s in old.steps]
    case.check(runner.run(case.plan, case.inputs, case.out))


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni", "amx"))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_transposed(isa, dtype):
    spec = ConvTransposeSpec(
        2, 5, 6, 8, 12, 3, 4, (2, 3), (1, 2), (1, 0, 1, 2), (1, 0), 2, dtype, 11
    )
    spec = replace(spec, epilogue=U8 if dtype == "u8" else Epilogue("f32"))
    rng = np.random.default_rng(3)
    integer = dtype == "u8"
    x = rng.integers(0, 256, (2, 5, 6, 8), dtype=np.uint8)
    w = rng.integers(-127, 128, (8, 6, 3, 4), dtype=np.int8)
    bias = rng.integers(-500, 500, 12).astype(np.int32)
    factor = rng.uniform(2e-3, 4e-3, 12).astype(np.float32)
    if not integer:
        x, w, bias = x.astype(np.float32) / 64, w.astype(np.float32) / 64, bias / np.float32(500)
    acc = transposed_accumulators(x.astype(np.int64) - 11 if integer else x, w, spec)
    want = finish(acc, spec.epilogue, bias, factor if integer else None)
    plan = conv2d_transpose(spec, isa, w, bias, factor if integer else None)
    got = Runner([plan], isa).run(plan, [x], np.zeros_like(want), 3)
    if integer:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@st.composite
def conv_specs(draw):
    """Small convolutions of any stride, dilation, padding and groups."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return ConvSpec(
        draw(st.integers(1, 2)),
        draw(st.integers(5, 9)),
        draw(st.integers(5, 20)),
        groups * draw(st.integers(1, 9)),
        groups * draw(st.integers(1, 20)),
        kh,
        kw,
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        tuple(draw(st.integers(0, 2)) for _ in range(4)),
        groups,
        "u8",
        draw(st.integers(0, 255)),
        Epilogue(draw(st.sampled_from(["u8", "s8", "f32"]))),
    )


@pytest.mark.parametrize("isa", isa_params("avx2", "amx"))
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(spec=conv_specs())
def test_random_shapes(isa, spec):
    case = Case(spec, isa, seed=1)
    got = Runner([case.plan], isa).run(case.plan, case.inputs, case.out, 2)
    np.testing.assert_array_equal(got, case.want)


@given(length=st.integers(1, 500), limit=st.integers(1, 40))
def test_cuts_cover_the_axis(length, limit):
    for cut in (even_cut(length, limit), tail_cut(length, limit)):
        (count, size), (rest, rest_size) = cut.first, cut.rest
        assert count * size + rest * rest_size == length
        assert max(cut.sizes) <= limit
    assert max(even_cut(length, limit).sizes) - min(even_cut(length, limit).sizes) <= 1


@pytest.mark.parametrize("isa", LEVELS.values(), ids=LEVELS)
def test_blocking_fits_the_registers(isa):
    for spec in CASES.values():
        geo = geometry(typed(spec, "u8"), isa)
        blocking, cycles = choose_blocking(geo.gemm, geo.unit)
        rows, cols, blocks = (
            max(cut.sizes) for cut in (blocking.rows, blocking.cols, blocking.channels)
        )
        assert cycles > 0
        if geo.unit.kind == "amx":
            shape = tile_shape(geo.gemm, blocking)
            assert shape.accumulators + 2 <= 8
            assert shape.turn <= blocks
            assert (shape.height, shape.width) == (rows, cols)
            assert shape.strips * shape.rows == rows * cols
        else:
            used = rows * cols * blocks + blocks + geo.unit.spare
            assert used <= isa.registers


def test_packed_weights_are_zero_past_the_run():
    unit = unit_for(AVX512VNNI, "u8")
    weights = np.ones((2, 17, 3, 6), np.int8)
    packed = pack_weights(weights, unit)
    assert packed.shape == (2, 2, 3, 2, 16, 4)
    assert packed.sum() == weights.sum()
    assert not packed[:, :, :, 1, :, 2:].any()
    assert not packed[:, 1, :, :, 1:].any()


def test_tiles_are_as_deep_as_the_run():
    assert [code_step(run) for run in (1, 27, 48, 64, 66, 96, 144)] == [4, 28, 48, 64, 36, 48, 48]
    assert unit_for(LEVELS["amx"], "u8").k == 64
    for spec in CASES.values():
        geo = geometry(spec, LEVELS["amx"])
        steps = -(-geo.gemm.run // 64)
        assert geo.unit.kind != "amx" or steps == -(-geo.gemm.run // geo.unit.k)


@pytest.mark.parametrize("isa", isa_params("avx512vnni", "amx"))
@pytest.mark.parametrize(
    ("channels", "width", "staged"),
    [(16, 32, (36, 48)), (32, 7, (10, 32)), (8, 29, (32, 56)), (1, 9, (11, 0))],
)
def test_staged_rows_start_at_cache_lines(isa, channels, width, staged):
    spec = ConvSpec(2, 6, width, channels, 24, 3, 3, pads=(1, 1, 2, 1), epilogue=U8)
    stage = geometry(spec, isa).stage
    assert (stage.out_w, stage.lead) == staged
    case = Case(spec, isa)
    runner = Runner([case.plan], isa)
    case.check(runner.run(case.plan, case.inputs, case.out))
    check_footprints(runner, case.plan, case.inputs, case.out)


def test_rows_across_cache_lines_cost_more():
    whole = ConvSpec(1, 1, 4096, 64, 16, epilogue=U8)
    split = replace(whole, c=56)
    assert conv_cost(split, LEVELS["amx"]) > conv_cost(whole, LEVELS["amx"])


def test_narrow_images_fill_tiles():
    gemm = geometry(CASES["narrow"], LEVELS["amx"]).gemm
    assert (gemm.rows, gemm.cols, gemm.pitch, gemm.kept) == (1, 6 * 8 + 6, 8, 6)
    whole_tiles = replace(CASES["wide"], w=64)
    assert geometry(whole_tiles, LEVELS["amx"]).gemm.pitch == 0


def test_tiles_wait_for_weights_beyond_the_cache():
    late = ConvSpec(1, 7, 7, 1024, 1024, epilogue=U8)
    many = replace(late, h=14, w=14)
    streamed = 1024 * 1024 / STREAM_BANDWIDTH
    once, again = conv_cost(late, LEVELS["amx"]), conv_cost(many, LEVELS["amx"])
    assert once > streamed + 7 * 7 * 1024 * 1024 / 7.1e12
    assert again < 4 * once - 2 * streamed  # they pass once for all pixels


def test_cost_ranks_the_units():
    big = ConvSpec(1, 28, 28, 128, 128, 3, 3, pads=(1, 1, 1, 1), epilogue=U8)
    costs = [conv_cost(big, LEVELS[name]) for name in ("avx2", "avx512", "avx512vnni", "amx")]
    assert costs == sorted(costs, reverse=True)
    assert conv_cost(big, LEVELS["amx"], amx=False) == conv_cost(big, AVX512VNNI)
    assert conv_cost(replace(big, in_dtype="f32", epilogue=Epilogue()), AVX2) > costs[0] / 2


@pytest.mark.parametrize(("c", "oc"), [(640, 128), (128, 640), (400, 120), (9216, 4096)])
def test_single_pixels_are_no_work_for_tiles(c, oc):
    linear = ConvSpec(1, 1, 1, c, oc, epilogue=U8)
    isa = LEVELS["amx"]
    assert conv_cost(linear, isa, amx=False) < conv_cost(linear, isa, amx=True)


@pytest.mark.parametrize("isa", isa_params("avx512", "avx512vnni", "amx"))
def test_products_beyond_int32_are_not_packed(isa):
    spec = ConvSpec(1, 7, 9, 40, 61, in_zero_point=7, epilogue=U8)
    case = Case(spec, isa)
    huge = np.full(61, 1e5, np.float32)
    plan = conv2d(spec, isa, case.w, case.bias, huge)
    assert plan.steps[-1].name_key != case.plan.steps[-1].name_key
    runner = Runner([plan, case.plan], isa)
    case.check(runner.run(case.plan, case.inputs, case.out))
    want = finish(conv_accumulators(case.x, case.w, spec), spec.epilogue, case.bias, huge)
    np.testing.assert_array_equal(runner.run(plan, case.inputs, case.out), want)


@pytest.mark.parametrize(("interleave", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (4, [4, 2, 1])])
def test_channel_order_deals_a_bundle_s_channels_to_its_blocks_in_turns(interleave, sizes):
    assert bundles(7, interleave) == sizes
    order, at = channel_order(7, 16, interleave), 0
    for size in sizes:
        blocks = order[16 * at : 16 * (at + size)].reshape(size, 16)
        expected = np.arange(16 * at, 16 * (at + size))
        np.testing.assert_array_equal(blocks.T.reshape(-1), expected)
        at += size


def test_transposed_cost_counts_the_inserted_zeros():
    conv = ConvSpec(1, 31, 31, 64, 64, 3, 3, pads=(1, 1, 1, 1), epilogue=U8)
    transposed = ConvTransposeSpec(1, 16, 16, 64, 64, 3, 3, (2, 2), pads=(1, 1, 1, 1), epilogue=U8)
    ratio = conv_transpose_cost(transposed, AVX2) / conv_cost(conv, AVX2)
    assert 0.8 < ratio < 1.3
    big = ConvTransposeSpec(1, 16, 16, 64, 64, 3, 3, pads=(3, 0, 0, 0))
    with pytest.raises(ValueError, match="padding"):
        conv_transpose_cost(big, AVX2)


def test_plans_refuse_what_they_cannot_do():
    w, bias = np.zeros((4, 4, 1, 1), np.int8), np.zeros(4, np.int32)
    with pytest.raises(ValueError, match="multiplier"):
        conv2d(ConvSpec(1, 4, 4, 4, 4), AVX2, w, bias)
    spec = ConvSpec(1, 4, 4, 4, 4, epilogue=Epilogue("u8", residual="u8"))
    with pytest.raises(ValueError, match="ratio"):
        conv2d(spec, AVX2, w, bias, np.ones(4, np.float32))
    with pytest.raises(ValueError, match="groups"):
        ConvSpec(1, 4, 4, 4, 4, groups=3)
    with pytest.raises(ValueError, match="exceeds"):
        ConvSpec(1, 2, 2, 4, 4, 3, 3)
    with pytest.raises(ValueError, match="residual"):
        Epilogue("f32", residual="u8")


def test_host_is_one_of_the_levels():
    assert any(supports(isa, host_flags()) for isa in LEVELS.values())


@pytest.mark.parametrize("isa", isa_params("avx512vnni"))
def test_four_pixels_are_requantised_together_only_where_their_products_fit(isa):
    spec = typed(CASES["one-block-flat"], "u8")
    case = Case(spec, isa)
    assert geometry(spec, isa).gemm.pixel_bundles
    assert not geometry(replace(spec, oc=17), isa).gemm.pixel_bundles
    huge = np.full(spec.oc, 1e6, np.float32)
    plan = conv2d(spec, isa, case.w, case.bias, huge)
    assert plan.steps[-1].name_key != case.plan.steps[-1].name_key
    case.check(Runner([case.plan], isa).run(case.plan, case.inputs, case.out))
    want = finish(conv_accumulators(case.x, case.w, spec), spec.epilogue, case.bias, huge)
    np.testing.assert_array_equal(Runner([plan], isa).run(plan, case.inputs, case.out), want)


@pytest.mark.parametrize("dtype", ["u8", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_items_touch_what_their_footprint_says(table, name, dtype):
    cases, runner = table
    case = cases[name, dtype]
    check_footprints(runner, case.plan, case.inputs, case.out)


def f32_assembly(spec: ConvSpec, isa, block=None) -> str:
    """The code of an f32 layer."""
    spec = replace(spec, in_dtype="f32", epilogue=Epilogue("f32"))
    weights = np.zeros((spec.oc, spec.c, spec.kh, spec.kw), np.float32)
    plan = conv2d(spec, isa, weights, np.zeros(spec.oc, np.float32), block=block)
    return tir.assembly({s.name_key: s.build() for s in plan.steps}, llvm_target(isa))


@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI], ids=lambda isa: isa.name)
def test_blocks_of_many_pixels_fetch_the_next_weights(isa):
    assert "prefetcht1" in f32_assembly(ConvSpec(1, 1, 128, 384, 1536), isa)
    assert "prefetcht1" in f32_assembly(ConvSpec(1, 28, 28, 256, 256, 3, 3, stride=(2, 2)), isa)
    assert "prefetcht1" not in f32_assembly(ConvSpec(1, 1, 2, 96, 192), isa)  # each weight once
    assert "prefetcht1" not in f32_assembly(ConvSpec(1, 9, 9, 3, 64, 3, 3), isa)  # short runs


@pytest.mark.parametrize("block", [(1, 13, 2), (1, 8, 3), (1, 6, 4)])
def test_accumulators_stay_in_registers(block):
    text = f32_assembly(ConvSpec(1, 1, 128, 384, 192), AVX512VNNI, block)
    loops = [part for part in re.split(r"\n\.LBB\w+:", text) if part.count("vfmadd") > 60]
    assert loops
    for loop in loops:
        inside = loop.split("\tj")[0].splitlines()
        assert not [line for line in inside if "zmm" in line and "rsp" in line]
