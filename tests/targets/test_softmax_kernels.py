"""Softmax over rows against the op's reference, on every ISA at hand."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir import BFLOAT16, Affine
from dlcc.ir.encodings import DENSE
from dlcc.ops import op_of
from targets.cpu.levels import AVX2, LEVELS
from targets.kernels.softmax import SoftmaxSpec, softmax
from targets.rows.dense import SoftmaxRow
from tests.ops.tir_harness import Operand, affine, case, f32, reference, u8
from tests.targets.running import Runner, isa_params

LENGTHS = (1, 2, 7, 16, 33, 128, 197, 256, 1001)
OUTPUTS = {
    "u8": affine(1 / 256, 0),
    "u8-fine": affine(1e-12, 3),  # probabilities far beyond the codes
    "s8": Affine.per_tensor(8, True, 1 / 255, -128),
    "f32": DENSE,
}


def softmax_cases():
    """Rows of floats and of codes: wide and narrow, all equal, with every output."""
    made = {f"f32-{n}": case("softmax", [f32(2, 5, n, seed=n, scale=4.0)]) for n in LENGTHS}
    for n in LENGTHS:
        for name, out in OUTPUTS.items():
            x = u8(2, 5, n, seed=n, scale=0.03)
            x.array[0, 0] = 255
            x.array[0, 1] = 0
            made[f"{name}-{n}"] = case("softmax", [x], out=out)
    return made


def check_softmax(isa):
    """Plans all cases for one ISA, compiles them together and compares them with the reference."""
    cases = softmax_cases()
    row = SoftmaxRow(isa)
    assert not any(row.refuses(made.node) for made in cases.values())
    plans = [row.plan(made.node) for made in cases.values()]
    wanted = [reference(made)[0] for made in cases.values()]
    jobs = [
        (plan, [made.arrays[0]], np.zeros_like(want))
        for plan, made, want in zip(plans, cases.values(), wanted, strict=True)
    ]
    runner = Runner(plans, isa)
    results = [got for cuts in (1, 3) for got in runner.run_all(jobs, cuts, slack=0)]
    for (name, made), got, want in zip([*cases.items()] * 2, results, wanted * 2, strict=True):
        if name.startswith("f32") and made.arrays[0].dtype == np.float32:
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize("isa", isa_params())
def test_against_the_reference(isa):
    check_softmax(isa)


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512bf16"))
def test_bfloat16(isa):
    row, made = SoftmaxRow(isa), {}
    for n in LENGTHS:
        real = f32(2, 5, n, seed=n, scale=4.0).array
        x = Operand(BFLOAT16.encode(real)["values"], BFLOAT16)
        made[n] = case("softmax", [x], out=BFLOAT16 if n % 2 == 0 else DENSE)
    assert not any(row.refuses(case.node) for case in made.values())
    plans = {n: row.plan(case.node) for n, case in made.items()}
    runner = Runner(list(plans.values()), isa)
    for n, one in made.items():
        (want,) = reference(one)
        got = runner.run(plans[n], [one.arrays[0]], np.zeros_like(want), 3, slack=0)
        step = 2**-7 if n % 2 == 0 else 2e-5  # one unit in the last place of a bfloat16 number
        np.testing.assert_allclose(
            got.astype(np.float32), want.astype(np.float32), rtol=step, atol=1e-7, err_msg=str(n)
        )


@pytest.mark.isa("avx2")
def test_floats_that_are_not_finite():
    x = f32(4, 20)
    x.array[0, 3] = -np.inf
    x.array[1, 19] = np.nan
    x.array[2] = 88.0
    x.array[3, 0] = -3e38
    made = case("softmax", [x])
    plan = SoftmaxRow(AVX2).plan(made.node)
    got = Runner([plan], AVX2).run(plan, [x.array], np.zeros_like(x.array), slack=0)
    np.testing.assert_allclose(got, reference(made)[0], rtol=2e-5, atol=1e-7)


def test_what_the_row_refuses():
    row = SoftmaxRow(AVX2)
    other_axis = case("softmax", [f32(2, 5, 9)], {"axis": 1})
    assert "neighbours" in row.refuses(other_axis.node)
    channels_last = case("softmax", [f32(2, 5, 3, 3, layout="nhwc")], {"axis": 1}, layout="nhwc")
    assert not row.refuses(channels_last.node)
    mixed = case("softmax", [f32(2, 5)], out=affine(1 / 256, 0))
    assert "input is not" in row.refuses(mixed.node)
    with pytest.raises(ValueError, match="tables"):
        softmax(SoftmaxSpec(1, 4, "u8", "u8"), AVX2)
    with pytest.raises(ValueError, match="gives f32"):
        SoftmaxSpec(1, 4, "f32", "u8")


def test_wider_vectors_cost_less():
    made = case("softmax", [u8(4, 128)], out=affine(1 / 256, 0))
    costs = [SoftmaxRow(LEVELS[name]).cost(made.node) for name in ("sse4", "avx2", "avx512")]
    assert costs == sorted(costs, reverse=True)
    assert op_of(made.node).name == "softmax"
