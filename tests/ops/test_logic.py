"""Comparisons, booleans, bits, choices."""

from __future__ import annotations

import operator
from pathlib import Path

import numpy as np
import pytest

from dlcc.errors import DlccError
from tests.ops.elementwise import SHAPE, U8, assert_interval_holds, dense, evaluate, operand, real
from tests.ops.tir_harness import Case, case, check

COMPARISONS = {
    "equal": operator.eq,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
BOOLEANS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
BITS = {"bit_and": operator.and_, "bit_or": operator.or_, "bit_xor": operator.xor}
SHIFTS = {"shift_left": operator.lshift, "shift_right": operator.rshift}
ODD = np.array([np.nan, np.inf, -np.inf, 1, 0, -0.0], np.float32)


def truth(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.5


def octets(*shape: int, below: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, shape).astype(np.uint8)


@pytest.mark.parametrize("op", COMPARISONS)
def test_comparisons(op: str) -> None:
    a, b = np.round(real(4, 5)), np.round(real(5, seed=1))
    checked = dense(op, a, b)
    (result,) = evaluate(checked)
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result, np.vectorize(COMPARISONS[op])(a, b))
    assert_interval_holds(checked)


@pytest.mark.parametrize("op", BOOLEANS)
def test_booleans(op: str) -> None:
    a, b = truth(4, 5), truth(5, seed=1)
    np.testing.assert_array_equal(evaluate(dense(op, a, b))[0], BOOLEANS[op](a, b))


@pytest.mark.parametrize("op", [*BITS, *SHIFTS])
def test_bits(op: str) -> None:
    a, b = octets(4, 5), octets(5, below=8, seed=1)
    function = (BITS | SHIFTS)[op]
    want = [[function(int(p), int(q)) & 255 for p, q in zip(row, b, strict=True)] for row in a]
    assert evaluate(dense(op, a, b))[0].tolist() == want


def test_kinds_of_numbers() -> None:
    assert evaluate(dense("is_nan", ODD))[0].tolist() == [True, False, False, False, False, False]
    for attrs, places in (({}, {1, 2}), ({"positive": False}, {2}), ({"negative": False}, {1})):
        (result,) = evaluate(dense("is_inf", ODD, attrs=attrs))
        assert set(np.nonzero(result)[0].tolist()) == places
    assert evaluate(dense("not", truth(9)))[0].tolist() == [not t for t in truth(9)]


def test_where() -> None:
    c, a, b = truth(4, 1), real(4, 5), real(5, seed=1)
    checked = dense("where", c, a, b)
    np.testing.assert_array_equal(evaluate(checked)[0], np.where(c, a, b))
    with pytest.raises(DlccError, match="must be bool"):
        dense("where", a, a, a)
    with pytest.raises(DlccError, match="different dtypes"):
        dense("where", c, a, octets(5))


def test_bits_are_of_integers() -> None:
    with pytest.raises(DlccError, match="must be integers"):
        dense("bit_and", real(4), real(4))


def coded_where(layout: str) -> Case:
    operands = [
        operand(truth(*SHAPE), layout=layout),
        operand(real(*SHAPE), U8, layout),
        operand(real(1, 5, 1, 1, seed=1), U8, layout),
    ]
    return case("where", operands, out=U8, layout=layout)


def tir_cases() -> list[Case]:
    cases = [dense(op, np.round(real(4, 5)), np.round(real(5, seed=1))) for op in COMPARISONS]
    cases += [dense(op, octets(4, 5), octets(5, seed=1)) for op in ("less", "equal")]
    cases += [dense(op, truth(4, 5), truth(5, seed=1)) for op in BOOLEANS]
    cases += [dense(op, octets(4, 5), octets(5, below=8, seed=1)) for op in BITS | SHIFTS]
    cases += [dense("is_nan", ODD), dense("not", truth(4, 5))]
    for attrs in ({}, {"positive": False}, {"negative": False}):
        cases.append(dense("is_inf", ODD, attrs=attrs))
    cases += [dense("where", truth(4, 1), real(4, 5), real(5, seed=1))]
    cases += [coded_where(""), coded_where("nhwc")]
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
