"""Arithmetic of two operands: values, integer forms, ranges, TIR."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.errors import DlccError
from dlcc.ir import Affine
from dlcc.ir.encodings import DENSE
from tests.ops.elementwise import (
    NARROW,
    OUT,
    S8,
    SHAPE,
    U8,
    assert_interval_holds,
    coded,
    dense,
    evaluate,
    operand,
    real,
)  # fmt: skip
from tests.ops.tir_harness import Case, case, check, constant

FUNCTIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
}


def ints(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20, 20, shape)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_values_broadcast(op: str) -> None:
    a, b = real(3, 1, 4), real(5, 1, seed=1)
    (result,) = evaluate(dense(op, a, b))
    assert result.shape == (3, 5, 4)
    function = np.vectorize(FUNCTIONS[op])
    np.testing.assert_allclose(result, function(a, b), rtol=1e-6)


def test_shapes_that_do_not_broadcast() -> None:
    with pytest.raises(DlccError, match="do not broadcast"):
        dense("add", real(3), real(4))


def test_dtypes_must_agree() -> None:
    with pytest.raises(DlccError, match="different dtypes"):
        dense("add", real(3), ints(3))


def test_integer_division_truncates() -> None:
    a = np.array([7, -7, 7, -7, 6])
    b = np.array([2, 2, -2, -2, 3])
    (result,) = evaluate(dense("div", a, b))
    assert result.tolist() == [3, -3, -3, 3, 2]


@pytest.mark.parametrize("fmod", [True, False])
def test_mod(fmod: bool) -> None:
    a, b = np.array([7.0, -7.0, 7.5, -7.5]), np.array([3.0, 3.0, -3.0, -3.0])
    (result,) = evaluate(dense("mod", a, b, attrs={"fmod": fmod}))
    want = [math.fmod(x, y) if fmod else x % y for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(result, want)


def test_activation_of_add() -> None:
    attrs = {"act_min": 0.0, "act_max": 2.0}
    (result,) = evaluate(dense("add", real(9), real(9, seed=1), attrs=attrs))
    np.testing.assert_array_equal(result, np.clip(real(9) + real(9, seed=1), 0, 2))


# -- integer forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("shapes", [(SHAPE, SHAPE), (SHAPE, (5, 1, 1))])
def test_integer_form_is_the_rounded_result(op: str, shapes: tuple) -> None:
    """Half a code from the real result, and the little that the fixed point loses."""
    checked = coded(op, shapes, [U8, S8], OUT)
    a, b = (e.dequantise(x) for e, x in zip((U8, S8), checked.arrays, strict=True))
    exact = np.vectorize(FUNCTIONS[op])(a.astype(np.float64), b.astype(np.float64))
    error = OUT.dequantise(evaluate(checked)[0]) - np.clip(exact, *OUT.real_range)
    assert np.abs(error).max() <= 0.501 * OUT.scale


@pytest.mark.parametrize("op", FUNCTIONS)
def test_integer_form_with_float_output(op: str) -> None:
    checked = coded(op, [SHAPE, SHAPE], [U8, S8], DENSE)
    a, b = (e.dequantise(x) for e, x in zip((U8, S8), checked.arrays, strict=True))
    (result,) = evaluate(checked)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.vectorize(FUNCTIONS[op])(a, b), atol=2e-4)


def test_integer_add_as_the_contract_writes_it() -> None:
    """Term by term, in Python integers and single float32 operations."""
    checked = coded("add", [(64,), (64,)], [U8, S8], OUT)
    f = np.float32
    first, second = (f(e.scale / OUT.scale * 2**16) for e in (U8, S8))
    for k, got in enumerate(evaluate(checked)[0].tolist()):
        a = f(int(checked.arrays[0][k]) - U8.zero_point)
        b = f(int(checked.arrays[1][k]) - S8.zero_point)
        total = int(np.rint(a * first)) + int(np.rint(b * second))
        y = np.rint(f(total) * f(2.0**-16)) + f(OUT.zero_point)
        assert got == int(min(max(y, f(0)), f(255)))


def test_integer_mul_as_the_contract_writes_it() -> None:
    checked = coded("mul", [(64,), (64,)], [U8, S8], OUT)
    m = np.float32(U8.scale * S8.scale / OUT.scale)
    for k, got in enumerate(evaluate(checked)[0].tolist()):
        a = int(checked.arrays[0][k]) - U8.zero_point
        b = int(checked.arrays[1][k]) - S8.zero_point
        y = np.rint(np.float32(a * b) * m) + np.float32(OUT.zero_point)
        assert got == int(min(max(y, np.float32(0)), np.float32(255)))


def test_fused_activation_on_codes() -> None:
    attrs = {"act_min": 0.0, "act_max": 3.5}
    (codes,) = evaluate(coded("add", [SHAPE, SHAPE], [U8, S8], OUT, attrs))
    assert codes.min() == OUT.zero_point
    assert codes.max() == OUT.zero_point + 50


@settings(deadline=None, max_examples=60)
@given(
    st.floats(1e-6, 1e4), st.floats(1e-6, 1e4), st.floats(1e-6, 1e4),
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 255),
)  # fmt: skip
def test_integer_add_never_overflows(
    sa: float, sb: float, sy: float, za: int, zb: int, zy: int
) -> None:
    """For any scales the sum is the real sum to the accuracy of the fixed-point unit."""
    a, b, out = (Affine.per_tensor(8, False, s, z) for s, z in ((sa, za), (sb, zb), (sy, zy)))
    codes = np.arange(256, dtype=np.uint8)
    operands = [operand(a.dequantise(codes), a), operand(b.dequantise(codes[::-1]), b)]
    (result,) = evaluate(case("add", operands, out=out))
    total = a.dequantise(codes).astype(np.float64) + b.dequantise(codes[::-1])
    slack = 1 + 600 * 2.0**-22 * max(a.scale, b.scale) * 255 / out.scale
    want = np.clip(np.rint(total / out.scale) + zy, 0, 255)
    below = np.clip(np.rint(total / out.scale - slack) + zy, 0, 255)
    above = np.clip(np.rint(total / out.scale + slack) + zy, 0, 255)
    assert ((below <= result) & (result <= above)).all(), (want, result)


def test_mixed_operands_are_refused() -> None:
    checked = case("add", [operand(real(4), U8), operand(real(4))], out=OUT)
    with pytest.raises(DlccError, match="one operand is quantised and the other is not"):
        evaluate(checked)


def test_wide_codes_do_not_fit_the_accumulator() -> None:
    wide = Affine.per_tensor(16, False, 0.01, 9)
    with pytest.raises(DlccError, match="16 x 16 bits"):
        evaluate(coded("mul", [(4,), (4,)], [wide, wide], OUT))


def prelu(encoding: object = DENSE, out: object = DENSE, layout: str = "") -> Case:
    slope = constant(real(5, 1, 1, seed=3))
    return case("prelu", [operand(real(*SHAPE), encoding, layout), slope], out=out, layout=layout)


def test_prelu() -> None:
    x, slope = real(*SHAPE), real(5, 1, 1, seed=3)
    want = np.where(x >= 0, x, x * slope)
    np.testing.assert_array_equal(evaluate(prelu())[0], want)
    checked = prelu(U8, OUT)
    real_x = U8.dequantise(checked.arrays[0])
    codes = OUT.quantise(np.where(real_x >= 0, real_x, real_x * slope))
    assert np.abs(evaluate(checked)[0].astype(int) - codes).max() <= 1


@pytest.mark.parametrize("op", [*FUNCTIONS, "div", "mod"])
def test_interval(op: str) -> None:
    for shift in (-7.0, 0.0, 7.0):
        assert_interval_holds(dense(op, real(50) + np.float32(shift), real(50, seed=1)))
    assert_interval_holds(dense(op, ints(50), ints(50, seed=1) * 2 + 1))


def test_interval_of_a_square_is_not_negative() -> None:
    from dlcc.ir import Graph, TensorType
    from dlcc.ops import Interval, build, op_of

    graph = Graph("square")
    x = graph.add_input("x", TensorType((4,)))
    node = build(graph, "mul", [x, x])
    (rule,) = op_of(node).interval(node, [Interval(-2, 3)] * 2)
    assert rule == Interval(0, 9)
    assert_interval_holds(prelu())


HARD = np.array([-(2**63), -7, 0, 1, 2**63 - 1])
"""Operands of divisions that trap: by 0, and the smallest integer by -1."""


def tir_cases() -> list[Case]:
    cases = [prelu(), prelu(U8, OUT, "nhwc"), prelu(S8)]
    for op in FUNCTIONS:
        for layout in ("", "nhwc"):
            cases += [
                coded(op, [SHAPE, SHAPE], [U8, S8], OUT, layout=layout),
                coded(op, [SHAPE, SHAPE], [U8, S8], NARROW, layout=layout),
                coded(op, [SHAPE, (1, 5, 1, 1)], [U8, S8], OUT, layout=layout),
                coded(op, [SHAPE, SHAPE], [U8, S8], DENSE, layout=layout),
                dense(op, real(*SHAPE), real(5, 1, 1, seed=2)),
            ]
        cases.append(dense(op, ints(3, 4), ints(4, seed=1)))
    attrs = {"act_min": 0.0, "act_max": 2.0}
    cases += [
        coded("add", [SHAPE, SHAPE], [U8, S8], OUT, attrs),
        dense("add", real(*SHAPE), real(*SHAPE, seed=1), attrs=attrs),
        dense("add", np.float32(3), np.float32(4)),
        dense("div", real(3, 4), real(1, 4, seed=1)),
        dense("div", ints(4, 5), ints(4, 5, seed=1) * 2 + 1),
        dense("div", HARD, -HARD[::-1]),
        dense("div", HARD.astype(np.int32), np.zeros(5, np.int32) - 1),
        dense("pow", np.abs(real(3, 4)) + np.float32(0.1), real(4, seed=1)),
        dense("pow", real(3, 4), np.full((1,), 3, np.float32)),
        dense("pow", np.array([-5, 2, 4, 0]), np.array([2, 3, 0, 1])),
    ]
    for fmod in (True, False):
        cases.append(dense("mod", real(30) * 10, real(30, seed=1), attrs={"fmod": fmod}))
        cases.append(dense("mod", ints(20), ints(20, seed=1) * 2 + 1, attrs={"fmod": fmod}))
        cases.append(dense("mod", HARD, -HARD[::-1], attrs={"fmod": fmod}))
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
