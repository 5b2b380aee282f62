"""Elementary functions in TIR against numpy in float64, in units of the last place."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

N = 1 << 14
FUNCTIONS = ("exp", "log", "tanh", "erf", "sigmoid", "sin", "cos", "pow")

erf = np.vectorize(math.erf, otypes=[np.float64])


def _applied(function: Any, operands: Any) -> Any:
    return lambda i: function(*(x[i] for x in operands))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """All functions compiled into one library; call it with a name and the operands."""
    from tvm import te

    from dlcc.tir import math as tir_math
    from dlcc.tir.build import LLVMTarget, compile_object
    from dlcc.tir.te_kernels import elementwise_like
    from tests.ops.tir_harness import link

    kernels, items = {}, 0
    for name in FUNCTIONS:
        count = 2 if name == "pow" else 1
        operands = [te.placeholder((N,), "float32", name=f"x{i}") for i in range(count)]

        function = getattr(tir_math, name)
        result = te.compute((N,), _applied(function, operands), name="y")
        kernels[name], items = elementwise_like(name, operands, [result], 8)
    code = compile_object(kernels, LLVMTarget("x86_64-unknown-linux-gnu", "x86-64-v3"))
    folder: Path = tmp_path_factory.mktemp("math")
    loaded = link(code, folder)

    def call(name: str, *operands: np.ndarray) -> np.ndarray:
        padded = [np.zeros(N, np.float32) for _ in operands]
        for buffer, operand in zip(padded, operands, strict=True):
            buffer[: operand.size] = operand
        out = np.empty(N, np.float32)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*padded, out)]
        assert loaded[name](*pointers, ctypes.c_int32(0), ctypes.c_int32(items)) == 0
        return out[: operands[0].size]

    return call


def errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the float32 nearest to ``exact``."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(nearest))
    finite = np.isfinite(nearest)
    spacing = np.spacing(np.abs(nearest[finite])).astype(np.float64)
    return np.abs(got[finite].astype(np.float64) - exact[finite]) / spacing


RANDOM = np.random.default_rng(0)
CASES = {
    "exp": (RANDOM.uniform(-104, 90, N), np.exp, 1.5),
    "log": (np.exp(RANDOM.uniform(-100, 88, N)), np.log, 1.5),
    "tanh": (RANDOM.normal(0, 3, N), np.tanh, 2.0),
    "erf": (RANDOM.normal(0, 2, N), erf, 6.0),
    "sigmoid": (RANDOM.uniform(-80, 30, N), lambda x: 1 / (1 + np.exp(-x)), 3.0),
    "sin": (RANDOM.uniform(-1000, 1000, N), np.sin, 2.0),
    "cos": (RANDOM.uniform(-1000, 1000, N), np.cos, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_are_accurate_to_some_units_in_the_last_place(library, name):
    values, function, units = CASES[name]
    x = values.astype(np.float32)
    assert errors(library(name, x), function(x.astype(np.float64))).max() <= units


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves_of_any_float(library, name):
    """Up to the largest, whose remainder needs 150 bits of pi; glibc's reduction is exact."""
    x = (RANDOM.choice([-1, 1], N) * 10 ** RANDOM.uniform(-30, 38.5, N)).astype(np.float32)
    exact = getattr(np, name)(x.astype(np.float64))
    assert np.abs(library(name, x) - exact).max() <= 1e-7


def test_pow_is_accurate(library):
    x = np.exp(RANDOM.uniform(-20, 20, N)).astype(np.float32)
    y = RANDOM.uniform(-4, 4, N).astype(np.float32)
    exact = x.astype(np.float64) ** y.astype(np.float64)
    assert errors(library("pow", x, y), exact).max() <= 1.0


INFINITY = float("inf")
NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        (
            "exp",
            [INFINITY, -INFINITY, 0, 89, NOT_A_NUMBER],
            [INFINITY, 0, 1, INFINITY, NOT_A_NUMBER],
        ),
        (
            "log",
            [0, -1, INFINITY, 1, NOT_A_NUMBER],
            [-INFINITY, NOT_A_NUMBER, INFINITY, 0, NOT_A_NUMBER],
        ),
        ("tanh", [INFINITY, -INFINITY, 0], [1, -1, 0]),
        ("erf", [INFINITY, -INFINITY, 0], [1, -1, 0]),
        ("sigmoid", [INFINITY, -INFINITY, 0], [1, 0, 0.5]),
    ],
)
def test_special_arguments(library, name, values, wanted):
    got = library(name, np.asarray(values, np.float32))
    np.testing.assert_array_equal(got, np.asarray(wanted, np.float32))


def test_special_arguments_of_pow(library):
    pairs = [(0, 2), (0, -1), (-2, 3), (-2, 2), (-2, 0.5), (INFINITY, -1), (1, INFINITY), (-0.0, 0)]
    x, y = (np.asarray(v, np.float32) for v in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(library("pow", x, y), np.power(x, y), rtol=1e-6)


def test_names_keep_expressions_small():
    """Without names the text of a nested expression grows exponentially."""
    from tvm import tirx

    from dlcc.tir import math as tir_math

    x = tirx.Var("x", "float32")
    once, twice = tir_math.exp(x), tir_math.exp(tir_math.exp(x))
    assert len(str(twice)) < 3 * len(str(once))
