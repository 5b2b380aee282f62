"""Functions of one number: values, ranges, tables, TIR."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ops import OPS, Interval, Quantised, op_of
from dlcc.ops.unary import Unary
from dlcc.special import erf
from tests.ops.elementwise import (
    OUT,
    S8,
    SHAPE,
    U8,
    assert_interval_holds,
    coded,
    dense,
    evaluate,
    real,
)  # fmt: skip
from tests.ops.tir_harness import Case, check

POINTS = np.concatenate(
    [np.linspace(-12, 12, 77), [0, -0.0, 0.5, 1, -1, 1e-3, -1e-4, 30, -30]]
).astype(np.float32)
POSITIVE = np.abs(POINTS)
INSIDE = np.linspace(-1, 1, 41).astype(np.float32)[1:-1]
BESIDE_ZERO = POINTS[np.abs(POINTS) > 1e-5]
ALPHA, GAMMA = 1.6732632423543772, 1.0507009873554805

FUNCTIONS = {
    "relu": (POINTS, lambda x: max(x, 0)),
    "neg": (POINTS, lambda x: -x),
    "abs": (POINTS, abs),
    "sign": (POINTS, lambda x: math.copysign(1, x) if x else 0),
    "floor": (POINTS, math.floor),
    "ceil": (POINTS, math.ceil),
    "round": (POINTS, round),
    "sqrt": (POSITIVE, math.sqrt),
    "reciprocal": (BESIDE_ZERO, lambda x: 1 / x),
    "softsign": (POINTS, lambda x: x / (1 + abs(x))),
    "hard_sigmoid": (POINTS, lambda x: min(max(0.2 * x + 0.5, 0), 1)),
    "hard_swish": (POINTS, lambda x: x * min(max(x / 6 + 0.5, 0), 1)),
    "leaky_relu": (POINTS, lambda x: x if x >= 0 else 0.01 * x),
    "thresholded_relu": (POINTS, lambda x: x if x > 1 else 0),
    "shrink": (POINTS, lambda x: x if abs(x) > 0.5 else 0),
    "sigmoid": (POINTS, lambda x: 1 / (1 + math.exp(-x))),
    "tanh": (POINTS, math.tanh),
    "erf": (POINTS, math.erf),
    "exp": (POINTS, math.exp),
    "log": (BESIDE_ZERO[BESIDE_ZERO > 0], math.log),
    "gelu": (POINTS, lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2)))),
    "silu": (POINTS, lambda x: x / (1 + math.exp(-x))),
    "elu": (POINTS, lambda x: x if x > 0 else math.expm1(x)),
    "celu": (POINTS, lambda x: x if x > 0 else math.expm1(x)),
    "selu": (POINTS, lambda x: GAMMA * (x if x > 0 else ALPHA * math.expm1(x))),
    "softplus": (POINTS, lambda x: math.log1p(math.exp(x))),
    "mish": (POINTS, lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    "sin": (POINTS, math.sin),
    "cos": (POINTS, math.cos),
    "tan": (POINTS, math.tan),
    "asin": (INSIDE, math.asin),
    "acos": (INSIDE, math.acos),
    "atan": (POINTS, math.atan),
    "sinh": (POINTS, math.sinh),
    "cosh": (POINTS, math.cosh),
    "asinh": (POINTS, math.asinh),
    "acosh": (POSITIVE + 1, math.acosh),
    "atanh": (INSIDE, math.atanh),
    "clip": (POINTS, lambda x: x),
}  # fmt: skip
"""Op -> where it is tried, and what it is, by the standard library."""


def test_every_unary_op_is_tested() -> None:
    assert {n for n, op in OPS.items() if isinstance(op, Unary)} == set(FUNCTIONS)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_values(op: str) -> None:
    points, function = FUNCTIONS[op]
    (result,) = evaluate(dense(op, points))
    want = np.array([function(float(x)) for x in points])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, want, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_interval(op: str) -> None:
    points, _ = FUNCTIONS[op]
    for part in (points, points[points > 0.3], points[10:30], points[:1]):
        assert_interval_holds(dense(op, part))


def test_gelu_by_tanh() -> None:
    (result,) = evaluate(dense("gelu", POINTS, attrs={"approximate": "tanh"}))
    cubic = POINTS + 0.044715 * POINTS.astype(np.float64) ** 3
    want = POINTS / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * cubic))
    np.testing.assert_allclose(result, want, atol=3e-6)


def test_clip_ends() -> None:
    (result,) = evaluate(dense("clip", POINTS, attrs={"min": -1.0, "max": 6.0}))
    np.testing.assert_array_equal(result, np.clip(POINTS, -1, 6))
    (low_above_high,) = evaluate(dense("clip", POINTS, attrs={"min": 3.0, "max": 1.0}))
    assert set(low_above_high.tolist()) == {1.0}
    whole = np.arange(-128, 128).astype(np.int8)
    (result,) = evaluate(dense("clip", whole, attrs={"min": -1000.0, "max": 5.0}))
    np.testing.assert_array_equal(result, np.minimum(whole, 5))
    assert result.dtype == np.int8


def test_infinities() -> None:
    """What the standard's formulas give there, as ONNX Runtime does; ranges have the limits."""
    ends, nan = np.array([-np.inf, np.inf], np.float32), np.nan
    for op, want in {"gelu": (nan, np.inf), "silu": (nan, np.inf), "mish": (nan, np.inf),
                     "hard_swish": (nan, np.inf), "sigmoid": (0, 1), "softplus": (0, np.inf),
                     "softsign": (nan, nan)}.items():  # fmt: skip
        checked = dense(op, ends)
        (result,) = evaluate(checked)
        np.testing.assert_array_equal(result, np.array(want, np.float32), err_msg=op)
        (range_,) = op_of(checked.node).interval(checked.node, [Interval(-np.inf, np.inf)])
        assert np.isfinite(range_.low), op


def test_erf_to_double_precision() -> None:
    x = np.linspace(-8, 8, 4001)
    want = np.array([math.erf(v) for v in x])
    assert np.abs(erf(x) - want).max() < 5e-16


def test_table_holds_the_rounded_function() -> None:
    checked = coded("sigmoid", [SHAPE], [U8], OUT)
    (codes,) = evaluate(checked)
    values = U8.dequantise(checked.arrays[0]).astype(np.float64)
    np.testing.assert_array_equal(codes, OUT.quantise(1 / (1 + np.exp(-values))))


def test_all_unary_ops_have_a_table() -> None:
    assert {OPS[name].quantised for name in FUNCTIONS} == {Quantised.TABLE}


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(DlccError, match="no attribute named slope"):
        dense("leaky_relu", POINTS, attrs={"slope": 0.1})


@pytest.mark.parametrize(("op", "values"), [("silu", [True]), ("exp", [1]), ("abs", [True])])
def test_types_that_are_no_argument_are_refused(op: str, values: list[int]) -> None:
    with pytest.raises(DlccError, match=f"{op} is a function of real"):
        dense(op, np.asarray(values))


def tir_cases() -> list[Case]:
    cases = [dense(op, points) for op, (points, _) in FUNCTIONS.items()]
    cases += [
        dense("gelu", POINTS, attrs={"approximate": "tanh"}),
        dense("clip", POINTS, attrs={"min": -1.0, "max": 6.0}),
        dense("clip", np.arange(-9, 9), attrs={"min": -1.0, "max": 6.0}),
        dense("shrink", POINTS, attrs={"bias": 0.3}),
        dense("celu", POINTS, attrs={"alpha": 2.0}),
        dense("relu", np.asarray(-2.5, np.float32)),
        dense("tanh", np.asarray(0.7, np.float32)),
        *(dense(op, np.arange(-9, 9)) for op in ("relu", "abs", "neg", "sign", "floor")),
    ]
    for layout in ("", "nhwc"):
        cases += [
            coded(op, [SHAPE], [encoding], OUT, layout=layout)
            for op in ("relu", "sigmoid", "gelu", "log", "reciprocal")
            for encoding in (U8, S8)
        ]
        cases.append(dense("silu", real(*SHAPE)))
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
