"""Kernels of binary activations against sums of signs in numpy, on every ISA at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.cpu.levels import AMX, AVX2, SSE4
from targets.isa import Isa
from targets.kernels.sign_words import pack_signs
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.xnor import BinaryLayer, refusal, xnor, xnor_cost
from targets.kernels.xnor_pack import thresholds_of
from tests.targets.reference import conv_accumulators
from tests.targets.running import Runner, isa_params


class XnorCase:
    """Random signs for a spec, and the results by definition."""

    def __init__(self, spec: ConvSpec, signs: bool, seed: int, *, same: bool = False) -> None:
        rng = np.random.default_rng(seed)
        shape, weight = (spec.n, spec.h, spec.w, spec.c), (spec.oc, spec.c, spec.kh, spec.kw)
        x = np.ones(shape, bool) if same else rng.random(shape) < 0.5
        negative = np.zeros(weight, bool) if same else rng.random(weight) < 0.5
        sums = conv_accumulators(1 - 2 * x.astype(int), 1 - 2 * negative.astype(int), spec)
        reach = np.sqrt(spec.c * spec.kh * spec.kw)
        multiplier = rng.uniform(0.1, 2, spec.oc).astype(np.float32)
        multiplier[0] = 0
        bias = (rng.uniform(-1, 1, spec.oc) * reach).astype(np.float32)
        bias[-1] = -multiplier[-1] * (sums.flat[-1] if sums.size else 0)  # exactly 0 somewhere
        self.inputs = [pack_signs(x)]
        real = sums.astype(np.float32) * multiplier + bias
        if spec.epilogue.residual:
            self.inputs.append(rng.standard_normal(sums.shape).astype(np.float32))
            real = real + self.inputs[1]
        real = np.clip(real, np.float32(spec.epilogue.lo), np.float32(spec.epilogue.hi))
        self.want = pack_signs(real < 0) if signs else real
        self.layer = BinaryLayer(spec, negative, multiplier, bias, signs)
        self.out = np.full(self.want.shape, 77, self.want.dtype)


RELU6 = Epilogue("f32", -2.0, 6.0)
SPECS = {
    "linear": ConvSpec(1, 1, 1, 200, 77),
    "rows": ConvSpec(1, 1, 6, 64, 40, epilogue=RELU6),
    "pointwise": ConvSpec(2, 3, 5, 33, 96),
    "padded": ConvSpec(1, 6, 7, 40, 70, 3, 3, pads=(1, 1, 1, 1)),
    "long-runs": ConvSpec(1, 3, 4, 300, 33, 3, 3, pads=(1, 1, 1, 1), epilogue=RELU6),
    "strided": ConvSpec(2, 9, 8, 32, 64, 3, 3, stride=(2, 2), pads=(0, 1, 1, 0)),
    "dilated": ConvSpec(1, 9, 9, 20, 5, 3, 2, dilation=(2, 3), pads=(2, 3, 2, 0)),
    "far-pads": ConvSpec(1, 2, 2, 31, 8, 3, 3, pads=(4, 4, 4, 4)),
    "residual": ConvSpec(1, 4, 5, 64, 48, 3, 3, epilogue=replace(RELU6, residual="f32")),
}


def cases() -> dict:
    """Every spec to float32 and, without residual, to signs."""
    made = {(name, False): XnorCase(spec, False, 3) for name, spec in SPECS.items()}
    made |= {(n, True): XnorCase(s, True, 4) for n, s in SPECS.items() if n != "residual"}
    whole = ConvSpec(1, 1, 5, 4096, 40)
    made |= {("same", signs): XnorCase(whole, signs, 5, same=True) for signs in (False, True)}
    return made


@pytest.mark.parametrize("isa", isa_params())
def test_xnor_against_numpy(isa):
    made = cases()
    plans = {key: xnor(case.layer, isa) for key, case in made.items()}
    runner = Runner(list(plans.values()), isa)
    for key, case in made.items():
        for cuts in (1, 3):
            got = runner.run(plans[key], case.inputs, case.out, cuts, 0)
            np.testing.assert_array_equal(got, case.want, err_msg=str(key))


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512", "amx"))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_xnor_of_any_shape(isa, data):
    def size(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    kh, kw = size(1, 3), size(1, 3)
    spec = ConvSpec(
        size(1, 2), size(kh, 6), size(kw, 7), size(1, 70), size(1, 90), kh, kw,
        stride=(size(1, 2), size(1, 2)), pads=tuple(size(0, 2) for _ in range(4)),
    )  # fmt: skip
    case = XnorCase(spec, data.draw(st.booleans()), size(0, 99))
    plan = xnor(case.layer, isa)
    got = Runner([plan], isa).run(plan, case.inputs, case.out, 2, 0)
    np.testing.assert_array_equal(got, case.want)


@pytest.mark.parametrize("isa", [SSE4, AVX2, AMX])
def test_a_weight_takes_a_bit(isa):
    case = XnorCase(ConvSpec(1, 1, 1, 2048, 512), False, 1)
    assert xnor(case.layer, isa).constants["weight"].nbytes == 2048 * 512 // 8


@given(
    st.floats(0, 10, width=32),
    st.floats(-100, 100, width=32),
    st.sampled_from([-np.inf, -1.0, 0.0]),
)
def test_a_threshold_is_where_the_sign_changes(multiplier, bias, low):
    reach = 40
    sums = np.arange(-reach, reach + 1)
    real = sums.astype(np.float32) * np.float32(multiplier) + np.float32(bias)
    negative = np.clip(real, np.float32(low), np.float32(np.inf)) < 0
    [found] = thresholds_of(
        np.array([multiplier], np.float32), np.array([bias], np.float32), low, np.inf, reach
    )
    np.testing.assert_array_equal(sums < found, negative)


def test_what_is_refused():
    assert "2 groups" in refusal(ConvSpec(1, 4, 4, 8, 8, groups=2))
    assert "may leave 16 bits" in refusal(ConvSpec(1, 1, 1, 70000, 8))
    assert not refusal(ConvSpec(1, 1, 1, 65535, 8))


@pytest.mark.parametrize("isa", [SSE4, AVX2, AMX])
def test_cost_grows_with_the_layer(isa: Isa):
    specs = [ConvSpec(1, 14, 14, c, 256, 3, 3, pads=(1, 1, 1, 1)) for c in (64, 128, 256)]
    costs = [xnor_cost(spec, isa, True) for spec in specs]
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[0]
