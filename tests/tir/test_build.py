"""Object code from TIR: interface, rounding, determinism, open symbols; kernels from te."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from dlcc import tir
from tests.tir.linking import Library

AVX2 = tir.LLVMTarget("x86_64-unknown-linux-gnu", "x86-64-v3")


def _axpy(fenced: bool):
    """round(a * b + c) over 100 elements."""
    te = tir.te
    a, b, c = (te.placeholder((100,), "float32", name=n) for n in "abc")
    product = (lambda i: tir.separate(a[i] * b[i])) if fenced else (lambda i: a[i] * b[i])
    return tir.elementwise_like(
        "k", [a, b, c], [te.compute((100,), lambda i: product(i) + c[i], name="y")], 8
    )


def test_import_is_lazy():
    code = "import sys; from dlcc import tir; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("fenced", [False, True])
def test_contraction_only_without_fence(tmp_path, fenced):
    func, items = _axpy(fenced)
    text = tir.assembly({"k": func}, AVX2)
    assert ("vfmadd" in text) != fenced
    assert "mulps" in text or not fenced  # vectors stay vectors
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(100).astype(np.float32) for _ in range(3))
    y = np.zeros(100, np.float32)
    Library(tir.compile_object({"k": func}, AVX2), tmp_path).call("k", [a, b, c, y], 0, items)
    exact = (a.astype(np.float64) * b + c).astype(np.float32)
    separate = a * b + c
    assert (exact != separate).any()
    np.testing.assert_array_equal(y, separate if fenced else exact)


def test_object_is_deterministic_and_closed():
    func, _ = _axpy(True)
    code = tir.compile_object({"k": func}, AVX2)
    assert code == tir.compile_object({"k": func}, AVX2)
    assert tir.undefined_symbols(code) <= tir.LIBC_SYMBOLS


def test_libm_calls_are_refused():
    te = tir.te
    a = te.placeholder((64,), "float32", name="a")
    func, _ = tir.elementwise_like("k", [a], [te.compute((64,), lambda i: te.exp(a[i]), "y")], 8)
    with pytest.raises(ValueError, match="exp"):
        tir.compile_object({"k": func}, AVX2)


@pytest.mark.parametrize("shape", [(3, 9, 10, 37), (1, 4, 4, 64), (2, 5, 6, 3)])
@pytest.mark.parametrize("lanes", [4, 16])
def test_max_pool_in_ranges(tmp_path, shape, lanes):
    te = tir.te
    n, h, w, c = shape
    x = te.placeholder(shape, "uint8", name="x")
    i, j = te.reduce_axis((0, 3), "i"), te.reduce_axis((0, 2), "j")
    pool = te.compute(
        (n, h - 2, w - 1, c), lambda b, r, s, k: te.max(x[b, r + i, s + j, k], axis=[i, j]), "pool"
    )
    y = te.compute(pool.shape, lambda *at: pool(*at).astype("int32") - 7, name="y")
    func, items = tir.elementwise_like("pool", [x], [y], lanes)
    library = Library(tir.compile_object({"pool": func}, AVX2), tmp_path)
    data = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    want = np.max(
        [data[:, a : a + h - 2, b : b + w - 1] for a in range(3) for b in range(2)], axis=0
    ).astype(np.int32)
    got = np.full(want.shape, -1, np.int32)
    cuts = [0, items // 3, items // 2, items]
    for begin, end in pairwise(cuts[1:]):
        library.call("pool", [data, got], begin, end)
    library.call("pool", [data, got], cuts[0], cuts[1])
    np.testing.assert_array_equal(got, want - 7)


def test_row_reduction_stays_in_the_item(tmp_path):
    te = tir.te
    x = te.placeholder((6, 50), "float32", name="x")
    k = te.reduce_axis((0, 50), "k")
    peak = te.compute((6,), lambda r: te.max(x[r, k], axis=k), name="peak")
    y = te.compute((6, 50), lambda r, c: x[r, c] - peak[r], name="y")
    func, items = tir.elementwise_like("k", [x], [y], 8)
    assert items >= 1
    data = np.random.default_rng(2).standard_normal((6, 50)).astype(np.float32)
    got = np.zeros_like(data)
    Library(tir.compile_object({"k": func}, AVX2), tmp_path).call("k", [data, got], 0, items)
    np.testing.assert_array_equal(got, data - data.max(1, keepdims=True))


def test_two_outputs_and_their_errors(tmp_path):
    te = tir.te
    x = te.placeholder((4, 33), "float32", name="x")
    low = te.compute((4, 33), lambda r, c: te.min(x[r, c], 0.0), name="low")
    high = te.compute((4, 33), lambda r, c: te.max(x[r, c], 0.0), name="high")
    func, items = tir.elementwise_like("k", [x], [low, high], 8)
    data = np.random.default_rng(3).standard_normal((4, 33)).astype(np.float32)
    got = [np.zeros_like(data), np.zeros_like(data)]
    Library(tir.compile_object({"k": func}, AVX2), tmp_path).call("k", [data, *got], 0, items)
    np.testing.assert_array_equal(got[0], np.minimum(data, 0))
    np.testing.assert_array_equal(got[1], np.maximum(data, 0))
    odd = te.compute((5000, 33), lambda r, c: x[0, c], name="odd")
    with pytest.raises(ValueError, match="work items"):
        tir.elementwise_like("k", [x], [low, odd], 8)
    with pytest.raises(ValueError, match="output"):
        tir.elementwise_like("k", [x], [], 8)


def test_large_temporary_is_refused():
    te = tir.te
    x = te.placeholder((4, 300_000), "float32", name="x")
    k = te.reduce_axis((0, 2), "k")
    total = te.compute((4, 300_000), lambda r, c: te.sum(x[r, c] + k, axis=k), name="total")
    y = te.compute((4, 300_000), lambda r, c: total[r, c] * 2.0, name="y")
    func, _ = tir.elementwise_like("k", [x], [y], 8)
    with pytest.raises(ValueError, match="stack"):
        tir.compile_object({"k": func}, AVX2)
