"""Depthwise convolution on GPUs against numpy, on the emulated one, and its machine code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcc.lowering.choice import choose
from targets import get_target
from targets.kernels.grid_depthwise import (
    Words,
    best_share,
    depthwise_refusal,
    grid_depthwise,
)
from targets.kernels.grid_pixels import Share
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.cuda.machine_code import assert_has, machine_code
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_kernels import AMPERE, check
from tests.ops.tir_harness import case, constant, f32
from tests.targets.reference import conv_accumulators, finish
from tests.targets.test_bf16_kernels import bits, rounded
from tests.targets.test_bf16_kernels import check as check_short
from tests.targets.test_gemm_kernels import Case, typed

SAME = ConvSpec(
    2, 6, 7, 16, 16, 3, 3, pads=(1, 1, 1, 1), groups=16, epilogue=Epilogue("u8", 3, 250, 10)
)
SPECS = {
    "same": SAME,
    "strided": ConvSpec(
        1, 9, 10, 32, 32, 3, 3, stride=(2, 2), pads=(0, 0, 1, 1), groups=32,
        epilogue=Epilogue("s8", -100, 100, -5, "u8", 3),
    ),
    "five": ConvSpec(1, 7, 9, 8, 8, 5, 5, pads=(2, 2, 2, 2), groups=8),
    "dilated": ConvSpec(1, 9, 11, 4, 4, 3, 5, dilation=(2, 3), pads=(2, 6, 2, 6), groups=4),
    "long": ConvSpec(
        1, 7, 12, 4, 4, 1, 7, stride=(1, 3), pads=(0, 3, 0, 3), groups=4,
        epilogue=Epilogue("f32", -2, 3),
    ),
    "whole": ConvSpec(3, 4, 4, 12, 12, 4, 4, groups=12),
}  # fmt: skip
SHARES = {"same": Share(16, 4), "strided": Share(8, 2), "five": Share(8, 4)}


def by(share: Share | None):
    return lambda spec, _isa, *constants: grid_depthwise(spec, *constants, AMPERE, share)


def cases(shares: dict[str, list[Share]]) -> dict[object, Case]:
    made = {}
    for name, several in shares.items():
        for share in several:
            codes, reals = (typed(SPECS[name], dtype) for dtype in ("u8", "f32"))
            made[name, "u8", share] = Case(codes, None, plan=by(share))
            cut = replace(share, channels=4)
            made[name, "f32", cut] = Case(reals, None, plan=by(cut))
    return made


def test_against_numpy():
    made = cases({name: [SHARES.get(name, Share(4, 2))] for name in ("same", "strided", "dilated")})
    check({key: case for key, case in made.items() if key[:2] != ("strided", "f32")})


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_61", "sm_90"])
def test_every_share(architecture):
    every = {
        name: [
            Share(channels, pixels)
            for channels in (4, 8, 16)
            for pixels in (1, 2, 4)
            if spec.c % channels == 0
        ]
        for name, spec in SPECS.items()
    }
    check(cases(every), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_short_floats(dtype):
    jobs, rng = [], np.random.default_rng(3)
    for stored, share in ((dtype, Share(8, 4)), ("f32", Share(4, 2))):
        residual = dtype if stored == dtype else None
        spec = replace(
            SAME, in_dtype=dtype, stored=stored,
            epilogue=Epilogue(stored, -1.5, 2.5, residual=residual),
        )  # fmt: skip
        x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c)).astype(np.float32)
        w = rng.standard_normal((spec.c, 1, 3, 3)).astype(np.float32) / 3
        bias = rng.standard_normal(spec.c).astype(np.float32)
        sums = conv_accumulators(rounded(x, dtype), rounded(w, dtype), spec)
        other = rounded(rng.standard_normal(sums.shape).astype(np.float32), dtype)
        want = finish(
            sums + other if residual else sums, replace(spec.epilogue, residual=None), bias
        )
        plan = grid_depthwise(spec, bits(w, dtype), bias, None, None, AMPERE, share)
        inputs = [bits(x, dtype), bits(other, dtype)] if residual else [x]
        jobs.append((plan, inputs, want, stored))
    runner = GridRunner([plan for plan, *_ in jobs])
    for plan, inputs, want, stored in jobs:
        check_short(runner.run(plan, inputs, np.zeros(want.shape, NUMPY[stored])), want)


def test_pixels_share_words():
    """Two pixels of three taps lie in four columns, which are one word."""
    words = Words.of(3, 1, 1, 4)
    assert words.words == ((0, 1, 2, 3), (2, 3, 4, 5))
    assert words.variants == ((0, 1, 2, -1), (-1, 0, 1, 2))
    assert words.uses == ((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1))


def test_large_layers_give_a_thread_more():
    few, many = (replace(SAME, n=n, h=28, w=28, c=64, oc=64, groups=64) for n in (1, 256))
    shares = [best_share(spec, AMPERE) for spec in (few, many)]
    assert shares[0].channels * shares[0].pixels < shares[1].channels * shares[1].pixels


@pytest.mark.parametrize(("size", "channels", "stride"), [(112, 64, 2), (28, 256, 2), (7, 1024, 1)])
def test_layers_of_mobilenets_get_it(size, channels, stride):
    x = f32(1, channels, size, size, layout="nhwc")
    weight = constant(np.zeros((channels, 1, 3, 3), np.float32))
    attrs = {"strides": (stride, stride), "pads": (1, 1, 1, 1), "groups": channels}
    made = case("conv2d", [x, weight, None], attrs, layout="nhwc")
    assert choose(made.node, get_target("cuda:sm_80")).row.name == "grid-depthwise"


def test_refusals():
    assert "more than one channel" in depthwise_refusal(replace(SAME, groups=8))
    assert "multiple of 4" in depthwise_refusal(replace(SAME, c=6, oc=6, groups=6))
    assert "2 GiB" in depthwise_refusal(replace(SAME, n=64, h=1024, w=1024))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("u8", ("IDP.4A.U8.S8", "LDG.E.128", "STG.E.128")),
        pytest.param("f16", ("FFMA", "LDG.E.128", "STG.E.128"), marks=pytest.mark.slow),
    ],
)
def test_instructions(dtype, wanted):
    spec = replace(SAME, h=56, w=56, in_dtype=dtype, epilogue=Epilogue(dtype))
    weights = np.zeros((16, 1, 3, 3), "int8" if dtype == "u8" else NUMPY[dtype])
    factor = np.ones(16, np.float32) if dtype == "u8" else None
    share = Share(16 if dtype == "u8" else 8, 4)
    plan = grid_depthwise(spec, weights, np.zeros(16), factor, None, AMPERE, share)
    (found,) = machine_code(plan, "sm_80")
    assert_has(found, *wanted)
