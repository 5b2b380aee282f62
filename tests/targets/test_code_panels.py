"""GEMMs that unpack their weights from codes of a few bits, against numpy and the dense kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.cpu.levels import AMX, AVX2, AVX512VNNI, LEVELS
from targets.kernels.code_panel import Panel, code_tables, pack_codes
from targets.kernels.coded_gemm import CodedGemm
from targets.kernels.conv import conv2d, conv_cost, geometry
from targets.kernels.packed_bits import Codes
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import ARENA_SLACK, Runner, isa_params
from tests.targets.test_gemm_kernels import CASES
from tests.targets.test_packed_kernels import CODES

SHAPES = {
    name: replace(spec, in_zero_point=7)
    for name, spec in CASES.items()
    if spec.epilogue.residual != "f32" and not name.startswith("grouped-small")
}
SHAPES |= {
    "whole-runs": ConvSpec(
        2, 9, 8, 16, 40, 3, 3, pads=(1, 1, 1, 1), epilogue=CASES["wide"].epilogue
    ),
    "many-groups-of-blocks": ConvSpec(1, 6, 5, 24, 270, 3, 3, pads=(1, 1, 1, 1)),
    "rows": ConvSpec(1, 1, 4, 200, 150, epilogue=Epilogue("u8", 0, 255, 3)),
    "one-row": ConvSpec(1, 1, 1, 128, 65),
}


class CodedCase:
    """Random codes for a spec, and the reference output."""

    def __init__(self, spec: ConvSpec, codes: Codes, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.spec, self.codes, top = spec, codes, (1 << codes.bits) - 1
        kernel = (spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
        self.x = rng.integers(0, 256, (spec.n, spec.h, spec.w, spec.c), dtype=np.uint8)
        self.w = (codes.base + codes.step * rng.integers(0, top + 1, kernel)).astype(np.int8)
        self.bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
        acc = conv_accumulators(self.x, self.w, spec)
        scale = {"u8": 60, "s8": 60, "f32": 2}[spec.epilogue.out] / max(float(acc.std()), 1.0)
        self.factor = (rng.uniform(0.5, 1.5, spec.oc) * scale).astype(np.float32)
        self.ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
        self.inputs = [self.x]
        if spec.epilogue.residual == "u8":
            self.inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        residual = self.inputs[1] if spec.epilogue.residual else None
        self.want = finish(acc, spec.epilogue, self.bias, self.factor, self.ratio, residual)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])

    def plan(self, isa, *, amx: bool = True, packed: bool = True):
        """The plan, of packed codes or of whole bytes."""
        codes = self.codes if packed else None
        constants = (self.w, self.bias, self.factor, self.ratio)
        return conv2d(self.spec, isa, *constants, amx=amx, codes=codes)


def run_all(cases: dict, isa, *, amx: bool) -> None:
    """Every case in one and in several calls."""
    plans = {key: case.plan(isa, amx=amx) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for key, case in cases.items():
        assert plans[key].compressed
        slack = ARENA_SLACK if case.spec.input_slack else 0
        for cuts in (1, 3):
            got = runner.run(plans[key], case.inputs, case.out, cuts, slack)
            np.testing.assert_array_equal(got, case.want, err_msg=str(key))


@pytest.mark.parametrize("isa", isa_params())
def test_every_shape_against_numpy(isa):
    kinds = sorted(CODES)
    cases = {
        (name, kinds[i % len(kinds)]): CodedCase(spec, CODES[kinds[i % len(kinds)]], i)
        for i, (name, spec) in enumerate(SHAPES.items())
    }
    for kind in kinds:  # every width on one shape
        cases["wide", kind] = CodedCase(SHAPES["wide"], CODES[kind], 5)
    run_all(cases, isa, amx=True)


@pytest.mark.parametrize("isa", isa_params("amx"))
def test_vectors_that_permute_bytes(isa):
    run_all({kind: CodedCase(SHAPES["narrow"], CODES[kind], 5) for kind in CODES}, isa, amx=False)


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni", "amx"))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_shape_equals_the_dense_kernel(isa, data):
    draw = data.draw
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    spec = ConvSpec(
        draw(st.integers(1, 2)),
        draw(st.integers(kh, 9)),
        draw(st.integers(kw, 9)),
        draw(st.integers(1, 70)),
        draw(st.integers(1, 100)),
        kh,
        kw,
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        pads=(draw(st.integers(0, 1)), draw(st.integers(0, 1)), draw(st.integers(0, 1)), 0),
        in_zero_point=draw(st.integers(0, 255)),
        epilogue=Epilogue("u8", 3, 250, 10),
    )
    case = CodedCase(spec, CODES[draw(st.sampled_from(sorted(CODES)))], draw(st.integers(0, 99)))
    plans = [case.plan(isa, packed=packed) for packed in (True, False)]
    runner = Runner(plans, isa)
    packed, dense = (runner.run(plan, case.inputs, case.out, 2) for plan in plans)
    np.testing.assert_array_equal(packed, case.want)
    np.testing.assert_array_equal(dense, case.want)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI, AMX])
def test_a_code_takes_its_bits(isa, kind):
    case = CodedCase(ConvSpec(1, 4, 4, 64, 64, 3, 3), CODES[kind])
    packed = case.plan(isa).constants["weight"]
    assert packed.nbytes == case.w.size * CODES[kind].bits // 8


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 40), st.sampled_from([16, 32, 64]))
@settings(max_examples=40, deadline=None)
def test_codes_and_tables_give_the_weights_back(bits, blocks, vectors, size):
    codes, panel = Codes.signed(bits), Panel("panel", bits, size, False)
    rng = np.random.default_rng(vectors)
    w = (codes.base + rng.integers(0, 1 << bits, (blocks, vectors * 16))).astype(np.int8)
    packed, tables = pack_codes(w, codes, panel), code_tables(codes, panel)
    assert packed.shape[1] == panel.chunks(w.shape[1])
    chunk = np.zeros((*packed.shape[:2], panel.chunk // size, size), np.int8)
    vector = table = 0
    for width, _ in panel.planes:
        fields = 8 // width
        for v in range(panel.chunk // size * width // 8):
            for field in range(fields):
                half = packed[:, :, vector] >> (0 if field < fields // 2 else 4) & 15
                chunk[:, :, v * fields + field] += tables[table + field % (fields // 2), half]
            vector += 1
        table += fields // 2
    np.testing.assert_array_equal(chunk.reshape(blocks, -1)[:, : w.shape[1]], w)


def test_signs_take_two_bits_where_runs_are_filled_up_with_zeros():
    uneven = ConvSpec(1, 4, 4, 5, 16, 3, 3)
    for spec, bits in ((uneven, 2), (replace(uneven, c=8), 1)):
        assert f" {bits} bits" in CodedCase(spec, Codes.signs()).plan(AVX512VNNI).kernel


@pytest.mark.parametrize("isa", [LEVELS["sse4"], AVX2, AVX512VNNI, AMX])
def test_cost_counts_unpacking_and_bytes(isa):
    near = ConvSpec(1, 8, 8, 64, 64, 3, 3)
    assert conv_cost(near, isa) < conv_cost(near, isa, codes=Codes.signed(4))
    rows = ConvSpec(1, 1, 4, 9216, 4096)
    costs = [conv_cost(rows, isa, codes=CODES[kind]) for kind in ("int7", "int4", "binary")]
    assert costs == sorted(costs, reverse=True)


def test_what_is_unpacked_at_a_time_follows_from_the_pixels_that_share_weights():
    wide, signs = ConvSpec(1, 14, 14, 128, 64, 3, 3), Codes.signs()
    for spec, isa, form in (
        (wide, AVX2, "panel"),
        (wide, AVX512VNNI, "panel"),
        (wide, AMX, "tiles"),
        (ConvSpec(1, 1, 4, 4096, 512), AVX2, "steps"),
        (ConvSpec(1, 1, 4, 4096, 512), AVX512VNNI, "steps"),
    ):
        geo = geometry(spec, isa)
        coded = CodedGemm.of(geo.gemm, geo.unit, signs, isa)
        assert coded.panel.form == form
        assert coded.stored_bytes == spec.oc * spec.c * spec.kh * spec.kw // 8
        if form != "panel":
            assert coded.buffer_bytes <= 16 << 10  # stays in the first-level cache
