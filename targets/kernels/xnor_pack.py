"""Constants of the kernels for binary activations: weights, tables, padding, thresholds."""

from __future__ import annotations

from math import ceil

import numpy as np

from targets.kernels.sign_words import pack_signs
from targets.kernels.spec import ConvSpec

BYTES = 4
"""Bytes of a word."""

_NEVER = 1 << 30
"""A popcount that is never reached."""


def _grouped(negative: np.ndarray, group: int) -> np.ndarray:
    """Weights ``[oc, c, kh, kw]`` as words ``[groups, group, kh * kw * words]``, channels last."""
    words = pack_signs(negative.transpose(0, 2, 3, 1))
    words = words.reshape(len(words), -1)
    groups = ceil(len(words) / group)
    full = np.zeros((groups * group, words.shape[1]), np.int32)
    full[: len(words)] = words
    return full.reshape(groups, group, -1)


def pack_counts(negative: np.ndarray, width: int, vectors: int) -> np.ndarray:
    """int32 ``[groups, words, vectors * width]``."""
    grouped = _grouped(negative, width * vectors)
    return np.ascontiguousarray(grouped.transpose(0, 2, 1))


def pack_tables(negative: np.ndarray, width: int, vectors: int) -> np.ndarray:
    """int8 ``[groups, words, 4, vectors, width]``.

    Of each vector the even places hold the first half of the outputs, the odd ones the second, as
    the sums come apart that way.
    """
    grouped = _grouped(negative, width * vectors)
    groups, _, words = grouped.shape
    parts = grouped.view(np.int8).reshape(groups, vectors, 2, width // 2, words, BYTES)
    packed = parts.transpose(0, 4, 5, 1, 3, 2).reshape(groups, words, BYTES, vectors, width)
    return np.ascontiguousarray(packed)


def popcount_table(width: int) -> np.ndarray:
    """int8 ``[16, width]``: entry w of row x is popcount(x xor w), again and again."""
    values = np.arange(16)
    counts = np.array([bin(v).count("1") for v in values], np.int8)
    return np.tile(counts[values[:, None] ^ values[None, :]], (1, width // 16))


def _windows(
    size: int, out: int, taps: int, stride: int, dilation: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Class of each output place, and for each class whether each tap lies inside."""
    places = np.arange(out)[:, None] * stride - pad + np.arange(taps)[None, :] * dilation
    inside = (places >= 0) & (places < size)
    kinds, index = np.unique(inside, axis=0, return_inverse=True)
    return index.reshape(-1), kinds


def classes_of(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class of each output row and column, and of each pair of classes which taps lie inside.

    Returns:
        int ``[oh]``, int ``[ow]``, bool ``[classes, kh, kw]``: columns' classes count fastest.
    """
    (sh, sw), (dh, dw), (top, left) = spec.stride, spec.dilation, spec.pads[:2]
    rows, down = _windows(spec.h, spec.oh, spec.kh, sh, dh, top)
    cols, right = _windows(spec.w, spec.ow, spec.kw, sw, dw, left)
    inside = down[:, None, :, None] & right[None, :, None, :]
    return rows, cols, inside.reshape(-1, spec.kh, spec.kw)


def base_of(spec: ConvSpec, negative: np.ndarray) -> np.ndarray:
    """What twice the popcount is subtracted from, int64 ``[classes, oc]``.

    On padding the bits of x are 0, which counts as 1: the weights there are subtracted again.
    """
    signs = 1 - 2 * negative.astype(np.int64)
    sums = signs.sum(axis=1).reshape(len(signs), -1)
    _, _, inside = classes_of(spec)
    outside = ~inside.reshape(len(inside), -1)
    return np.asarray(negative[0].size - outside.astype(np.int64) @ sums.T)


def thresholds_of(
    multiplier: np.ndarray, bias: np.ndarray, low: float, high: float, reach: int
) -> np.ndarray:
    """The least sum from -reach to reach whose result is not below 0, int64 ``[oc]``.

    The result is f32(f32(sum) * multiplier) + bias, clamped, which grows with the sum: halving
    finds where it changes its sign. ``reach + 1``: nowhere.
    """

    def negative(sums: np.ndarray) -> np.ndarray:
        real = sums.astype(np.float32) * multiplier.astype(np.float32) + bias.astype(np.float32)
        return np.asarray(np.clip(real, np.float32(low), np.float32(high)) < 0)

    first = np.full(multiplier.shape, -reach, np.int64)
    last = np.full(multiplier.shape, reach + 1, np.int64)
    while (first < last).any():
        middle = (first + last) // 2
        below = negative(middle) & (first < last)
        first = np.where(below, middle + 1, first)
        last = np.where(below, last, np.minimum(last, middle))
    return first


def limits_of(
    multiplier: np.ndarray, bias: np.ndarray, spec: ConvSpec, base: np.ndarray, padded: int
) -> np.ndarray:
    """The largest popcount whose result is not negative, int32 ``[classes, padded]``.

    base - 2 * count < threshold is count > (base - threshold) / 2.
    """
    reach = spec.c * spec.kh * spec.kw
    found = thresholds_of(multiplier, bias, spec.epilogue.lo, spec.epilogue.hi, reach)
    limits = (base - found) // 2
    limits = np.where(found > reach, -_NEVER, np.where(found <= -reach, _NEVER, limits))
    full = np.full((len(base), padded), _NEVER, np.int32)
    full[:, : spec.oc] = limits
    return full
