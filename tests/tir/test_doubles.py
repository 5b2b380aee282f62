"""Elementary functions of float64 in TIR, in units of the last place over the whole range."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

N = 1 << 12
INFINITY, NAN = float("inf"), float("nan")
RNG = np.random.default_rng(0)

CASES = {
    "exp": (RNG.uniform(-700, 709.7, N), np.exp, 2.0),
    "log": (np.exp(RNG.uniform(-700, 709, N)), np.log, 2.0),
    "tanh": (np.concatenate([RNG.normal(0, 3, N // 2), RNG.normal(0, 0.2, N // 2)]), np.tanh, 4.0),
    "sigmoid": (RNG.uniform(-700, 40, N), lambda x: 1 / (1 + np.exp(-x)), 3.0),
}

SPECIAL = {
    "exp": ([INFINITY, -INFINITY, 0, -0.0, 710, -745, -746, NAN],
            [INFINITY, 0, 1, 1, INFINITY, 5e-324, 0, NAN]),
    "log": ([INFINITY, 0, -0.0, -1, 1, 5e-324, NAN],
            [INFINITY, -INFINITY, -INFINITY, NAN, 0, np.log(5e-324), NAN]),
    "tanh": ([INFINITY, -INFINITY, 0, 1e-300, NAN], [1, -1, 0, 1e-300, NAN]),
    "sigmoid": ([INFINITY, -INFINITY, 0, NAN], [1, 0, 0.5, NAN]),
}  # fmt: skip


def test_functions_over_the_whole_range(tmp_path: Path) -> None:
    from tvm import te

    from dlcc.tir import math as tir_math
    from dlcc.tir.build import LLVMTarget, compile_object
    from dlcc.tir.te_kernels import elementwise_like
    from tests.ops.tir_harness import link
    from tests.tir.test_math import _applied

    kernels, items = {}, 0
    for name in CASES:
        x = te.placeholder((N,), "float64", name="x")
        y = te.compute((N,), _applied(getattr(tir_math, name), [x]), name="y")
        kernels[name], items = elementwise_like(name, [x], [y], 8)
    code = compile_object(kernels, LLVMTarget("x86_64-unknown-linux-gnu", "x86-64-v3"))
    loaded = link(code, tmp_path)

    def call(name: str, values: np.ndarray) -> np.ndarray:
        padded, out = np.zeros(N), np.empty(N)
        padded[: values.size] = values
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (padded, out)]
        assert loaded[name](*pointers, ctypes.c_int32(0), ctypes.c_int32(items)) == 0
        return out[: values.size]

    for name, (values, exact, units) in CASES.items():
        wanted = exact(values)
        apart = np.abs(call(name, values) - wanted) / np.spacing(np.abs(wanted))
        assert apart.max() <= units, name
        given, known = SPECIAL[name]
        np.testing.assert_allclose(call(name, np.asarray(given)), known, rtol=1e-15, err_msg=name)
