"""Quantise kernels: the reciprocal gives the codes of the division, for any scale."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.kernels.quantise import reciprocal


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e3), st.integers(0, 255))
def test_reciprocal_finds_the_codes_of_the_division(scale, zero):
    pair = reciprocal(scale, -zero, 255 - zero)
    if pair is None:
        return
    s = np.float32(scale)
    high, low = (np.float32(part) for part in pair)
    rng = np.random.default_rng(1)
    near = (np.arange(-zero - 2, 258 - zero) + 0.5) * np.float64(s)
    x = near.astype(np.float32)
    for _ in range(6):
        x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, -x)])
        x = np.unique(x)[:4000]
    x = np.concatenate([x, rng.uniform(-300, 300, 4000).astype(np.float32) * s])
    wide = x.astype(np.longdouble) * np.longdouble(high) + np.longdouble(x * low)
    ours, theirs = np.rint(wide.astype(np.float32)), np.rint(x / s)
    np.testing.assert_array_equal(ours, theirs)


def test_most_scales_have_a_reciprocal():
    scales = np.random.default_rng(0).uniform(1e-3, 0.2, 40).astype(np.float32)
    found = [reciprocal(float(scale), -128, 127) is not None for scale in scales]
    assert np.mean(found) > 0.8
