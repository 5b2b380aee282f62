"""NaN and infinities go through float layers to where the sums have them, bounds or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from targets.kernels.conv import conv2d
from targets.kernels.depthwise import depthwise
from targets.kernels.spec import ConvSpec
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES, Case, typed

LAYERS: dict[str, tuple[ConvSpec, Any]] = {
    "padded": (ConvSpec(1, 9, 11, 13, 19, 3, 3, pads=(1, 0, 1, 2)), conv2d),
    "1x1": (ConvSpec(1, 8, 9, 36, 32), conv2d),
    "one row": (CASES["linear-m1"], conv2d),
    "residual": (CASES["linear-m5-f32-residual"], conv2d),
    "depthwise": (ConvSpec(1, 9, 11, 19, 19, 3, 3, pads=(1, 0, 1, 2), groups=19), depthwise),
    "few channels": (ConvSpec(1, 9, 29, 8, 8, 3, 3, pads=(1, 1, 1, 1), groups=8), depthwise),
}


def poisoned(spec: ConvSpec, plan: Any, isa: Any) -> Case:
    """A layer clamped to [-1.5, 2.5] of an activation in which a few numbers are none."""
    made = Case(typed(spec, "f32"), isa, plan=plan)
    x = made.x.reshape(-1)
    x[[3, x.size // 2, x.size - 2]] = np.nan, np.inf, -np.inf
    made.inputs[1:] = [replaced(r) for r in made.inputs[1:]]
    residual = made.inputs[1] if len(made.inputs) > 1 else None
    shape = typed(spec, "f32")
    with np.errstate(invalid="ignore"):
        sums = conv_accumulators(made.x, made.w, shape)
    made.want = finish(sums, shape.epilogue, made.bias, residual=residual)
    return made


def replaced(residual: np.ndarray) -> np.ndarray:
    """With a NaN in the last place."""
    residual = residual.copy()
    residual.reshape(-1)[-1] = np.nan
    return residual


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512", "neon", "armv7"))
def test_layers_keep_them(isa: Any) -> None:
    cases = {name: poisoned(spec, plan, isa) for name, (spec, plan) in LAYERS.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    got = runner.run_all([(case.plan, case.inputs, case.out) for case in cases.values()])
    for (name, case), result in zip(cases.items(), got, strict=True):
        assert np.isnan(case.want).any(), name
        np.testing.assert_allclose(result, case.want, 2e-5, 2e-5, equal_nan=True, err_msg=name)
