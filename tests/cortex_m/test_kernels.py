"""Kernels of Cortex-M against numpy, on emulated boards."""

from __future__ import annotations

import numpy as np
import pytest

from targets.cortex_m import CORES
from targets.kernels.dsp import channels_share_words
from targets.kernels.dsp_conv import dsp_conv
from targets.kernels.dsp_depthwise import dsp_depthwise
from targets.kernels.spec import ConvSpec, Epilogue
from tests.cortex_m.board import BOARDS, QEMU
from tests.cortex_m.cases import run_plans
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_gemm_kernels import Case

pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")

U8 = Epilogue("u8", 3, 250, 10)
RELU = Epilogue("u8")
RESIDUAL = Epilogue("s8", -100, 100, -5, "u8", 3)

CONVS = {
    "pointwise": ConvSpec(1, 7, 5, 16, 24, epilogue=RELU),
    "pointwise-centred": ConvSpec(1, 3, 3, 8, 32, in_zero_point=131, epilogue=U8),
    "pointwise-odd": ConvSpec(1, 4, 4, 6, 5, epilogue=RESIDUAL),
    "linear": ConvSpec(1, 1, 1, 64, 12, in_zero_point=7, epilogue=Epilogue("f32")),
    "linear-no-slack": ConvSpec(
        1, 1, 1, 10, 8, epilogue=Epilogue("f32", -1.0, 1.5), input_slack=False
    ),
    "linear-rows": ConvSpec(1, 1, 5, 128, 10, epilogue=U8),
    "stem": ConvSpec(
        1, 9, 11, 3, 8, 3, 3, (2, 2), pads=(0, 0, 1, 1), in_zero_point=71, epilogue=RELU
    ),
    "spectrogram": ConvSpec(
        1, 15, 10, 1, 6, 10, 4, (2, 2), pads=(4, 1, 5, 1), in_zero_point=127, epilogue=RELU
    ),
    "padded-residual": ConvSpec(1, 6, 6, 8, 8, 3, 3, pads=(1, 1, 1, 1), epilogue=RESIDUAL),
    "dilated": ConvSpec(
        2, 7, 9, 4, 7, 3, 2, (2, 1), (1, 2), (2, 1, 0, 3), in_zero_point=9, epilogue=U8
    ),
}
DEPTHWISE = {
    "same": ConvSpec(1, 5, 6, 4, 4, 3, 3, pads=(1, 1, 1, 1), groups=4, epilogue=RELU),
    "odd": ConvSpec(1, 9, 5, 3, 3, 3, 3, pads=(1, 0, 1, 2), groups=3, in_zero_point=7, epilogue=U8),
    "halved": ConvSpec(1, 8, 8, 4, 4, 3, 3, (2, 2), pads=(0, 0, 1, 1), groups=4, epilogue=RELU),
    "residual": ConvSpec(2, 5, 5, 2, 2, 5, 5, pads=(2, 2, 2, 2), groups=2, epilogue=RESIDUAL),
    "wide": ConvSpec(1, 3, 300, 2, 2, 3, 3, pads=(1, 1, 1, 1), groups=2, epilogue=RELU),
    "row": ConvSpec(1, 1, 20, 2, 2, 1, 9, (1, 3), pads=(0, 4, 0, 4), groups=2, epilogue=U8),
    "dilated": ConvSpec(
        1, 8, 17, 2, 2, 3, 4, (2, 1), (1, 2), (2, 3, 1, 2), 2, in_zero_point=200, epilogue=U8
    ),
}


def _case(spec: ConvSpec, core: str, seed: int = 0) -> Case:
    if spec.groups > 1:
        return Case(spec, None, seed, lambda spec, _, *constants: dsp_depthwise(spec, *constants))
    mve = CORES[core].helium
    return Case(spec, None, seed, lambda spec, _, *terms: dsp_conv(spec, *terms, mve=mve))


@pytest.mark.parametrize("core", BOARDS)
def test_against_numpy(core, tmp_path):
    cases = {name: _case(spec, core) for name, spec in (CONVS | DEPTHWISE).items()}
    plans = [(case.plan, case.inputs, case.out) for case in cases.values()]
    wrong = []
    for (name, case), got in zip(cases.items(), run_plans(plans, core, tmp_path), strict=True):
        if not np.array_equal(got, case.want):
            wrong.append((name, float((got != case.want).mean())))
    assert not wrong


@pytest.mark.parametrize("widest", [-128, 127])
def test_channels_that_cannot_share_words(widest, tmp_path):
    """Weights of -128, and sums of more than 24 bits."""
    spec = ConvSpec(1, 1, 4, 320, 6, epilogue=Epilogue("f32"))
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (1, 1, 4, 320), dtype=np.uint8)
    w = rng.integers(-127, 128, (6, 320, 1, 1), dtype=np.int8)
    w[1::2] = widest
    bias, factor = rng.integers(-9, 9, 6).astype(np.int32), np.full(6, 2.0**-8, np.float32)
    plan = dsp_conv(spec, w, bias, factor, None)
    assert "a channel a word" in plan.kernel
    want = finish(conv_accumulators(x, w, spec), spec.epilogue, bias, factor)
    (got,) = run_plans([(plan, [x], want.astype(np.float32))], "cortex-m4", tmp_path)
    np.testing.assert_array_equal(got, want)


def test_channels_share_words_up_to_the_bound():
    rows = np.zeros((2, 300), np.int8)
    rows[1, :259] = 127
    reach = 259 * 127 * 255
    assert reach < 2**23 < reach + 127 * 255
    assert channels_share_words(rows, 0)
    rows[1, 259] = 127
    assert not channels_share_words(rows, 0)
    assert channels_share_words(rows, 128)
