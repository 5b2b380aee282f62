"""The functions that generated C calls, against numpy: every bit, on numbers of every kind."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact.portable import needed_functions
from tests.portable.source import shared

UNARY = {
    "rint_f32": np.rint,
    "trunc_f32": np.trunc,
    "floor_f32": np.floor,
    "ceil_f32": np.ceil,
    "sqrt_f32": np.sqrt,
    "abs_f32": np.abs,
    "rint_f64": np.rint,
    "trunc_f64": np.trunc,
    "floor_f64": np.floor,
    "ceil_f64": np.ceil,
    "abs_f64": np.abs,
}
BINARY = {
    "max_f32": lambda a, b: np.where(a > b, a, b),
    "min_f32": lambda a, b: np.where(a < b, a, b),
    "wrapped_add_i32": np.add,
    "wrapped_sub_i32": np.subtract,
    "wrapped_mul_i32": np.multiply,
}
TYPES = {"f32": ("float", np.float32), "f64": ("double", np.float64), "i32": ("int32_t", np.int32)}


def driver(name: str) -> str:
    kind = TYPES[name.rpartition("_")[2]][0]
    second, argument = (f"const {kind} *b, ", ", b[i]") if name in BINARY else ("", "")
    return (
        f"void run_{name}(const {kind} *a, {second}{kind} *y, int n);\n"
        f"void run_{name}(const {kind} *a, {second}{kind} *y, int n) {{\n"
        f"  for (int i = 0; i < n; i++) y[i] = {name}(a[i]{argument});\n}}\n"
    )


MORE = """
void to_int(const float *a, int32_t *y, int n);
void to_int(const float *a, int32_t *y, int n) {
  for (int i = 0; i < n; i++) y[i] = rint_i32(a[i]);
}
void shifted(const int32_t *a, int32_t *left, int32_t *right, int n);
void shifted(const int32_t *a, int32_t *left, int32_t *right, int n) {
  for (int i = 0; i < n; i++) left[i] = shift_left_i32(a[i], i % 32);
  for (int i = 0; i < n; i++) right[i] = shift_right_i32(a[i], i % 32);
}
void halved(const float *a, uint16_t *h, const uint16_t *b, float *y, int n);
void halved(const float *a, uint16_t *h, const uint16_t *b, float *y, int n) {
  for (int i = 0; i < n; i++) h[i] = f16_of_f32(a[i]);
  for (int i = 0; i < n; i++) y[i] = f32_of_f16(b[i]);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    text = "\n".join(driver(name) for name in (*UNARY, *BINARY)) + MORE
    path: Path = tmp_path_factory.mktemp("arithmetic") / "functions.c"
    head = ["#include <stdint.h>", *needed_functions([text])]
    path.write_text("\n".join([*head, text]))
    return ctypes.CDLL(str(shared(path)))


def call(function: Callable[..., object], *arrays: np.ndarray) -> None:
    function(*(ctypes.c_void_p(a.ctypes.data) for a in arrays), ctypes.c_int(len(arrays[0])))


def numbers(dtype: type, seed: int = 0) -> np.ndarray:
    """Any bits, integers and halves and their neighbours, powers of two."""
    rng = np.random.default_rng(seed)
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    bits = rng.integers(0, 2 ** (8 * unsigned.itemsize) - 1, 50_000, unsigned, endpoint=True)
    if np.dtype(dtype).kind == "i":
        return bits.view(dtype)
    halves = (np.arange(-4000, 4000) / 2).astype(dtype)
    powers = (2.0 ** np.arange(-60, 70)).astype(dtype)
    some = np.concatenate([halves, powers, -powers])
    near = [np.nextafter(some, dtype(np.inf)), np.nextafter(some, dtype(-np.inf))]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40], dtype)
    return np.concatenate([bits.view(dtype), some, *near, special])


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, where they are no NaN's."""
    unsigned = np.dtype(f"u{want.itemsize}")
    nan = np.isnan(want) if want.dtype.kind == "f" else np.zeros(want.shape, bool)
    np.testing.assert_array_equal(got.view(unsigned)[~nan], want.view(unsigned)[~nan])
    assert np.isnan(got[nan]).all()


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_function(name: str, library: ctypes.CDLL) -> None:
    dtype = TYPES[name.rpartition("_")[2]][1]
    arrays = [numbers(dtype)]
    if name in BINARY:
        arrays.append(np.random.default_rng(1).permutation(arrays[0]))
    with np.errstate(all="ignore"):
        want = {**UNARY, **BINARY}[name](*arrays)
    got = np.empty_like(arrays[0])
    call(library[f"run_{name}"], *arrays, got)
    same(got, want.astype(dtype))


def test_rounding_to_int(library: ctypes.CDLL) -> None:
    x = numbers(np.float32)
    x = x[np.abs(x) < 2.0**31]
    got = np.empty(x.shape, np.int32)
    call(library["to_int"], x, got)
    np.testing.assert_array_equal(got, np.rint(x).astype(np.int32))


def test_shifts(library: ctypes.CDLL) -> None:
    x = numbers(np.int32)
    left, right = np.empty_like(x), np.empty_like(x)
    call(library["shifted"], x, left, right)
    counts = np.arange(len(x), dtype=np.int32) % 32
    np.testing.assert_array_equal(left, np.left_shift(x, counts))
    np.testing.assert_array_equal(right, np.right_shift(x, counts))


def test_half_precision(library: ctypes.CDLL) -> None:
    halves = np.arange(1 << 16).astype(np.uint16)
    near = halves.view(np.float16).astype(np.float32)
    finite = near[np.isfinite(near)]
    between = (finite[:-1] + finite[1:]) / 2
    x = np.concatenate([near, between, np.array([65519.9, 65520.0], np.float32)])
    got, b = np.empty(x.shape, np.uint16), np.resize(halves, x.shape)
    back = np.empty(x.shape, np.float32)
    call(library["halved"], x, got, b, back)
    with np.errstate(all="ignore"):
        same(got.view(np.float16), x.astype(np.float16))
    same(back, b.view(np.float16).astype(np.float32))
