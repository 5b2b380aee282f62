"""Kernels that read packed codes against decode-then-dense in numpy, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.cpu.levels import AVX2, AVX512VNNI, LEVELS
from targets.kernels.packed_bits import STEP, Codes, pack_planes
from targets.kernels.packed_gemv import packed_gemv, packed_gemv_cost
from targets.kernels.sparse_layer import Layer
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import ARENA_SLACK, Runner, isa_params

CODES = {"binary": Codes.signs(), **{f"int{bits}": Codes.signed(bits) for bits in range(2, 8)}}


class PackedCase:
    """Random codes for a spec, and the reference output."""

    def __init__(self, spec: ConvSpec, codes: Codes, seed: int, *, extreme: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.spec, self.codes = spec, codes
        shape = (spec.n, spec.h, spec.w, spec.c)
        top = (1 << codes.bits) - 1
        if extreme:
            self.x = np.full(shape, 255, np.uint8)
            u = np.broadcast_to(np.array([0, top])[np.arange(spec.oc) % 2, None], (spec.oc, spec.c))
        else:
            self.x = rng.integers(0, 256, shape, dtype=np.uint8)
            u = rng.integers(0, top + 1, (spec.oc, spec.c))
        self.w = (codes.base + codes.step * u).astype(np.int8).reshape(spec.oc, spec.c, 1, 1)
        self.bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
        self.factor = (rng.uniform(0.01, 0.05, spec.oc) / (1 + top)).astype(np.float32)
        self.ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
        acc = conv_accumulators(self.x, self.w, spec)
        self.inputs = [self.x]
        if spec.epilogue.residual == "u8":
            self.inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        residual = self.inputs[1] if spec.epilogue.residual else None
        self.want = finish(acc, spec.epilogue, self.bias, self.factor, self.ratio, residual)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])

    def planned(self, isa):
        """The plan of the kernel for this case."""
        layer = Layer(self.spec, self.w, self.bias, self.factor, self.ratio)
        return packed_gemv(layer, isa, self.codes)


U8 = Epilogue("u8", 3, 250, 10)
GEMV = {
    "whole-steps": ConvSpec(1, 1, 1, 208, 64, in_zero_point=7, epilogue=U8),
    "uneven": ConvSpec(1, 1, 1, 203, 77, in_zero_point=255, epilogue=U8),
    "to-signed": ConvSpec(1, 1, 1, 131, 100, epilogue=Epilogue("s8", -90, 99, -4)),
    "few-outputs": ConvSpec(1, 1, 1, 90, 5, epilogue=Epilogue("f32", -8.0, 9.0)),
    "residual": ConvSpec(1, 1, 1, 64, 48, epilogue=Epilogue("u8", 0, 255, 3, "u8", 9)),
    "one-step": ConvSpec(1, 1, 1, 20, 9, epilogue=U8),
    "no-slack": ConvSpec(1, 1, 1, 37, 33, epilogue=U8, input_slack=False),
}


@pytest.mark.parametrize("isa", isa_params(*LEVELS, "neon", "dotprod", "armv7"))
def test_gemv_against_numpy(isa):
    cases = {
        (name, kind): PackedCase(spec, codes, 3)
        for name, spec in GEMV.items()
        for kind, codes in CODES.items()
    }
    for kind, codes in CODES.items():
        spec = ConvSpec(1, 1, 1, 4000, 40, in_zero_point=3, epilogue=U8)
        cases["extreme", kind] = PackedCase(spec, codes, 1, extreme=True)
    plans = {key: case.planned(isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for slack in (0, ARENA_SLACK):
        some = {k: case for k, case in cases.items() if case.spec.input_slack == (slack > 0)}
        jobs = [(plans[key], case.inputs, case.out) for key, case in some.items()]
        for cuts in (1, 3):
            made = runner.run_all(jobs, cuts, slack)
            for (key, case), got in zip(some.items(), made, strict=True):
                np.testing.assert_array_equal(got, case.want, err_msg=str(key))


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemv_of_any_shape(isa, data):
    k, n = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 90))
    spec = ConvSpec(1, 1, 1, k, n, in_zero_point=7, epilogue=U8)
    codes = CODES[data.draw(st.sampled_from(sorted(CODES)))]
    case = PackedCase(spec, codes, data.draw(st.integers(0, 99)))
    plan = case.planned(isa)
    got = Runner([plan], isa).run(plan, case.inputs, case.out, 2)
    np.testing.assert_array_equal(got, case.want)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI])
def test_a_code_takes_its_bits(isa, kind):
    case = PackedCase(ConvSpec(1, 1, 1, 2048, 512, epilogue=U8), CODES[kind], 1)
    packed = case.planned(isa).constants["weight"]
    assert packed.nbytes == case.w.size * CODES[kind].bits // 8


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 80), st.sampled_from([4, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_planes_hold_every_code_once(bits, n, k, lanes):
    codes = Codes.signed(bits)
    u = np.random.default_rng(n * k).integers(0, 1 << bits, (n, k))
    packed = pack_planes((u + codes.base).astype(np.int8), codes, lanes)
    back = np.zeros((-(-n // lanes) * lanes, packed.shape[1] * STEP), int)
    for block, step, lane, byte in np.ndindex(*packed.shape[:2], lanes, 4):
        vector = 0
        for width, low in codes.planes:
            for v in range(width):
                value = int(packed[block, step, vector, lane, byte])
                for field in range(8 // width):
                    column = STEP * step + 4 * (v * (8 // width) + field) + byte
                    part = value >> (width * field) & ((1 << width) - 1)
                    back[block * lanes + lane, column] += part << low
                vector += 1
    np.testing.assert_array_equal(back[:n, :k], u)
    assert not back[n:].any()
    assert not back[:, k:].any()


def test_other_numbers_are_refused():
    for weights, codes in (
        ([[4]], Codes.signed(3)),
        ([[-5]], Codes.signed(3)),
        ([[0]], Codes.signs()),
    ):
        with pytest.raises(ValueError, match="no codes"):
            pack_planes(np.array(weights, np.int8), codes, 8)


@pytest.mark.parametrize("isa", [AVX2, AVX512VNNI])
def test_cost_falls_with_the_bits(isa):
    spec = ConvSpec(1, 1, 1, 9216, 4096, epilogue=U8)
    costs = [packed_gemv_cost(spec, isa, CODES[k]) for k in ("int7", "int4", "int2", "binary")]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 3
